"""No foreign code: whatever bundle a coordinator sends, not a line of it runs at a site or at the coordinator."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, RecordDict

from polyclinic.core import envelope
from polyclinic.core.messages import REFUSED, Instruction, encode_instruction
from polyclinic.core.version import VERSION
from polyclinic.server.live import flower_run
from polyclinic.server.live.flower_run import Door
from polyclinic.simulations.live import until
from tests.live.conftest import World
from tests.live.harness import PATIENCE, demand_sound, go, injected, live_json, logs, started, stopped
from tests.live.poison import poisoned

pytestmark = pytest.mark.faults


def content(message: bytes) -> RecordDict:
    """As an instruction travels."""
    return RecordDict({"message": ArrayRecord({"bytes": Array("uint8", (len(message),), "polyclinic", message)})})


STRANGE: dict[str, RecordDict] = {
    "nothing": RecordDict(),
    "another record": RecordDict({"config": ConfigRecord({"run": "rm -rf /"})}),
    "no instruction": content(b"PLC1 and something else"),
    "an empty instruction": content(b""),
    "a pickle": content(b"\x80\x04cposix\nsystem\nX\x04\x00\x00\x00true\x85R."),
}


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")
def test_a_foreign_run_reaches_nobody(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    canary = tmp_path / "canary"
    monkeypatch.setattr(flower_run, "build_fab_from_files", lambda files: poisoned(files, canary))
    home = world.local.coordinator
    instruction = encode_instruction(
        Instruction("a" * 64, "foreign run", 1, "0" * 16, "b" * 64, True, ("val",), False, VERSION, {})
    )
    with flower_run.flower_run(Door(home.door, home.secret.encode())) as (grid, _):
        until(lambda: len(list(grid.get_nodes())) == len(world.local.sites), 60.0, "the sites")
        nodes = {node.name: node.node_id for node in grid.get_nodes()}
        asked = {}
        for name, record in (STRANGE | {"another study": content(instruction)}).items():
            for site, node in nodes.items():
                message = Message(record, node, MessageType.TRAIN, ttl=60.0)
                asked.update(dict.fromkeys(grid.push_messages([message]), (name, site)))
        replies: dict[tuple[str, str], Message] = {}
        end = time.monotonic() + PATIENCE
        while len(replies) < len(asked) and time.monotonic() < end:
            for reply in grid.pull_messages([one for one in asked if asked[one] not in replies]):
                replies[asked[reply.metadata.reply_to_message_id]] = reply
            time.sleep(0.2)
    assert replies.keys() == set(asked.values())
    for (name, site), reply in replies.items():
        if name != "another study":
            assert reply.has_error(), name
            assert reply.error.code == REFUSED, (name, reply.error)
            continue
        array = reply.content.array_records["message"]["bytes"]
        seal, signature, body = envelope.unseal(array.data)
        envelope.verify(seal, signature, world.local.sites[site].settings.key)
        assert seal.kind == "refusal"
        assert "was not approved here" in envelope.refusal_text(body)
    assert not canary.exists()
    for home_folder in (home.folder, *(site.folder for site in world.local.sites.values())):
        assert not list(home_folder.rglob("evil*")), "a foreign bundle was unpacked"
        assert "evil" not in logs(home_folder)


def test_modules_in_the_bundle_of_an_honest_run_are_not_run_either(world: World, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    stopped(world.local, "coordinator")
    started(world.local, "coordinator", environment=injected(canary=canary))
    try:
        run = go(world.local, world.study)
        demand_sound(world.local, run, world.expected, world.local.wait(run, PATIENCE))
        assert live_json(run)["phase"] == "finished"
        assert canary.with_suffix(".sent").exists(), "the bundle was not the poisoned one"
        assert not canary.exists()
    finally:
        stopped(world.local, "coordinator")
        world.local.start_coordinator()
