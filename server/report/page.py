"""The report of a run: one HTML file."""

from __future__ import annotations

import html
import json
from pathlib import Path

from polyclinic.core import files
from polyclinic.core.runs import Run


def write_report(folder: Path) -> Path:
    """Writes ``report.html`` from what the run folder holds."""
    run = Run(folder)
    body = html.escape(json.dumps(run.summary, indent=1))
    page = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Polyclinic</title><pre>{body}</pre></html>'
    files.write(run.report, page)
    return run.report
