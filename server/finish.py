"""The end of a run: adapter, summary and report, made from the journal."""

from __future__ import annotations

import json
from pathlib import Path

from polyclinic.core import files
from polyclinic.core.ledger import fingerprint
from polyclinic.core.study import Study
from polyclinic.models.export import write_adapter
from polyclinic.server.journal import Journal
from polyclinic.server.report.page import write_report
from polyclinic.server.summary import summarise


def finish(study: Study, journal: Journal, folder: Path, *, engine: str, backbone: str, peak_rss_mb: float) -> None:
    """Writes what a finished run leaves; the ledger's last entry holds the digests of adapter and summary.

    Args:
        backbone: SHA-256 of the weights that the adapter belongs to.
        peak_rss_mb: what the run's processes took of memory.
    """
    state = journal.state()
    assert state is not None
    sha256 = write_adapter(study, state.tensors, folder / "adapter", backbone)
    summary = summarise(study, journal, engine=engine, adapter_sha256=sha256, peak_rss_mb=peak_rss_mb)
    journal.commit(entries=[("end", {"adapter_sha256": sha256, "summary": fingerprint(summary)})])
    files.write(folder / "summary.json", json.dumps(summary | {"ledger_head": journal.head()}, indent=1))
    write_report(folder)
