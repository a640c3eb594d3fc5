"""The report of a run: one HTML file that needs no network, put together from findings, charts and tables."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from jinja2 import BaseLoader, ChoiceLoader, Environment, PackageLoader, StrictUndefined

from polyclinic.core import files
from polyclinic.server.report import data, svg, words
from polyclinic.server.report.data import Evidence
from polyclinic.server.report.sections import sections

UNITS = re.compile(
    r"(?<=\d) (?=(?:%|[kMG]?B|s|min|h|sites?|rounds?|patients?)(?!\w))"
    r"|(?<=\bp) (?=[<=])|(?<=p [<=]) (?=\d)"
)
"""Spaces at which a line must not break: between a number and its unit, and within "p < 0.001"."""


def write_report(folder: Path) -> Path:
    """Writes ``report.html`` from what the run folder holds, whole or not at all.

    Raises:
        RunError: the folder holds no finished run, or cannot be written.
    """
    path = folder / "report.html"
    files.write(path, render(data.read(folder)))
    return path


def render(evidence: Evidence) -> str:
    """The page."""
    took = words.duration(evidence.facts["seconds"])
    return environment().get_template("report.html").render(sections(evidence), took=took)


def environment(*first: BaseLoader) -> Environment:
    """The report's templates, and before them those of ``first``; everything that they are given is escaped."""
    templates = Environment(
        loader=ChoiceLoader([*first, PackageLoader("polyclinic.server.report")]),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=unbroken,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.globals.update(key=svg.key)
    return templates


def unbroken(value: Any) -> Any:
    """Text whose numbers stay on one line with their units."""
    return UNITS.sub("\N{NO-BREAK SPACE}", value) if type(value) is str else value
