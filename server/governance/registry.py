"""Everything that the coordinator must not forget beside the runs themselves, in one SQLite file."""

from __future__ import annotations

from polyclinic.server.governance.members import Members, SiteRecord
from polyclinic.server.governance.reports import Head, Reports
from polyclinic.server.governance.runs import Event, Run, Runs, State
from polyclinic.server.governance.statements import Decision
from polyclinic.server.governance.studies import Studies

__all__ = ["Decision", "Event", "Head", "Registry", "Run", "SiteRecord", "State"]


class Registry(Members, Studies, Reports, Runs):
    """Sites, studies, decisions, reports, runs and events. See ``Store`` for how it is opened and shared.

    Each change is one transaction, on the disk before the call returns; what matters for security is also appended to
    the coordinator's book.
    """
