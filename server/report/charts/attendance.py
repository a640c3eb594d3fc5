"""One site's rounds in a row: where its answer counted, where it was set aside, where it was not asked."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from polyclinic.server.report import svg
from polyclinic.server.report.data import Round

MOST = 16
"""Rounds that are drawn: the last ones."""
CELL = 9.0


def attendance(site: str, rounds: Sequence[Round]) -> Markup:
    """A square a round, the latest at the right; told apart by shape and place as well as by colour."""
    last = rounds[-MOST:]
    if not last:
        return Markup("")
    drawn = [cell(site, one, 1 + CELL * i) for i, one in enumerate(last)]
    set_aside = [str(one.number) for one in last if site in one.excluded]
    counted = sum(site in one.arrived for one in last)
    out = f"; set aside in {', '.join(set_aside)}" if set_aside else ""
    said = f"Answered in {counted} of the last {len(last)}{out}"
    return svg.picture(f"Rounds of {site}", said, CELL * len(last) + 2, 12, *drawn)


def cell(site: str, one: Round, left: float) -> Markup:
    """One round: a full square, a low triangle in another colour, or a dot."""
    if site in one.arrived:
        told = svg.element("title", f"Round {one.number}: answered")
        return svg.element("rect", told, x=left, y=2, width=CELL - 2, height=8, class_="bar better")
    if site in one.excluded:
        why = f"Round {one.number}: {one.excluded[site]}"
        return svg.mark("down", left + (CELL - 2) / 2, 6, 3.6, "mark worse", why)
    return svg.mark("circle", left + (CELL - 2) / 2, 6, 1.2, "mark", f"Round {one.number}: not asked")
