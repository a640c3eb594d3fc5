"""What a reader with two minutes should know, in sentences made from figures and never saying more than they do."""

from __future__ import annotations

from polyclinic.server.report.data import Evidence
from polyclinic.server.report.findings.benefit import for_whom, worst_off, worth
from polyclinic.server.report.findings.concern import miscalibrated, set_aside, shifted
from polyclinic.server.report.findings.finding import Finding

__all__ = ["Finding", "findings"]


def findings(evidence: Evidence) -> list[Finding]:
    """All answers that a report gives, the most important first; until the end, those that can be given before it."""
    if not evidence.finished:
        return [worst_off(evidence), shifted(evidence), set_aside(evidence)]
    made = (worth(evidence), for_whom(evidence), worst_off(evidence), miscalibrated(evidence), shifted(evidence))
    return [finding for finding in (*made, set_aside(evidence)) if finding is not None]
