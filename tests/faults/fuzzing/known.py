"""Everything that is fuzzed, by name."""

from __future__ import annotations

from pathlib import Path

from polyclinic.core.messages import encode_reply
from tests.faults.fuzzing import data, governance, trust
from tests.faults.fuzzing.target import Target
from tests.faults.hostile.bench import honest


def targets(folder: Path) -> dict[str, Target]:
    """All, by name; some need a ``folder`` of their own to write in."""
    reply = encode_reply(honest("eve", data.asked()[0]))
    made = (
        data.reply_target(),
        data.instruction_target(),
        data.statistic_target(),
        data.received_target(),
        data.study_target(folder),
        trust.sealed_target("sealed reply", 11, reply, "reply"),
        trust.sealed_target("sealed refusal", 3, b"this study was not approved here", "refusal"),
        trust.statement_target(),
        trust.invitation_target(),
        trust.forged_invitation_target(),
        trust.request_target(),
        trust.certificate_target(),
        trust.book_target(folder),
        governance.enrol_target(),
        governance.status_target(),
    )
    assert sum(target.share for target in made) == 100
    return {target.name: target for target in made}
