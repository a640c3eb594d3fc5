"""What people type in place of a digest or a run's whole name: whatever names exactly one."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

SHORTEST = 6
"""Digits of a digest that are too few to name anything below."""


def study(wanted: str, known: Mapping[str, str], *, where: str, look: str) -> str:
    """The digest among ``known`` (digest → the study's name) that ``wanted`` names: a digest, its start, or a name.

    Args:
        where: they are known, such as "published here".
        look: the command that lists them.

    Raises:
        StudyError: none, or several.
    """
    from polyclinic.core.errors import StudyError

    named = sorted(digest for digest, name in known.items() if name == wanted)
    if not named and re.fullmatch(rf"[0-9a-f]{{{SHORTEST},64}}", wanted.lower()):
        named = sorted(digest for digest in known if digest.startswith(wanted.lower()))
    if len(named) == 1:
        return named[0]
    if named:
        told = ", ".join(digest[:12] for digest in named)
        raise StudyError(f"could be {told}", where=wanted[:80], remedy="say the start of the digest")
    if re.fullmatch(rf"[0-9a-fA-F]{{1,{SHORTEST - 1}}}", wanted):
        remedy = f"say its name, or {SHORTEST} digits of its digest or more: {look}"
    else:
        remedy = f"see: {look}"
    raise StudyError(f"no such study is {where}", where=wanted[:80], remedy=remedy)


def run(wanted: str, known: Collection[str], *, look: str) -> str:
    """The name among ``known`` that ``wanted`` names: whole, or its start.

    Raises:
        RunError: none, or several.
    """
    from polyclinic.core.errors import RunError

    named = [wanted] if wanted in known else sorted(name for name in known if wanted and name.startswith(wanted))
    if len(named) == 1:
        return named[0]
    problem = f"could be {', '.join(named)}" if named else "there is no such run"
    raise RunError(problem, where=wanted[:80], remedy="say its whole name" if named else f"see: {look}")
