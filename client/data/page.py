"""The preflight as one HTML page for the site: no network, no script, and nothing of it leaves."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined

if TYPE_CHECKING:
    from polyclinic.client.data.check import Report

MOST = 2000
"""Lines of one table; the list that --quarantine writes, and --json, have all."""


def page(report: Report) -> str:
    """The page; whatever it shows of files and labels is escaped."""
    templates = Environment(
        loader=PackageLoader("polyclinic.client.data"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    warnings = [problem for problem in report.problems if problem.severity == "warning"]
    return templates.get_template("check.html").render(
        report=report, errors=report.errors, warnings=warnings, taken=_taken(report), most=MOST
    )


def _taken(report: Report) -> dict[str, dict[str, list[tuple[str, int]]]]:
    """By field and site: values and images, the most frequent first."""
    found: dict[str, dict[str, list[tuple[str, int]]]] = defaultdict(lambda: defaultdict(list))
    for one in sorted(report.acquisition, key=lambda one: -one.images):
        found[one.field][one.site].append((one.value, one.images))
    return {field: dict(sites) for field, sites in found.items()}
