"""Every error that Polyclinic raises: what was wrong, where, and what to do about it."""

from __future__ import annotations


class PolyclinicError(Exception):
    """Root of all our errors; subclasses differ by who can mend the matter.

    Args:
        problem: what was wrong, in one sentence.
        where: the file, line, key or site at which it was found.
        remedy: what to do.
    """

    def __init__(self, problem: str, *, where: str = "", remedy: str = "") -> None:
        self.problem, self.where, self.remedy = problem, where, remedy
        super().__init__(problem, where, remedy)

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        """How it crosses to another process: exceptions with keywords do not by themselves."""
        return _again, (type(self), self.problem, self.where, self.remedy)

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        advice = f" ({self.remedy})" if self.remedy else ""
        return f"{place}{self.problem}{advice}"


def _again(kind: type[PolyclinicError], problem: str, where: str, remedy: str) -> PolyclinicError:
    return kind(problem, where=where, remedy=remedy)


class StudyError(PolyclinicError):
    """The study file asks for something unknown, malformed or impossible."""


class DataError(PolyclinicError):
    """A manifest or an image cannot be used as it is."""


class BackboneError(PolyclinicError):
    """A backbone is unknown, absent or not the one that was pinned."""


class UpdateError(PolyclinicError):
    """Tensors that arrived do not match what was agreed."""


class PolicyError(PolyclinicError):
    """A site's policy forbids what was asked."""


class LimitError(PolicyError):
    """A limit on epsilon would be passed; how much was spent is for the site's own eyes."""


class RunError(PolyclinicError):
    """A run folder is damaged, belongs to another study, or cannot be written."""


class QuorumError(RunError):
    """Too few sites gave a good reply; the run can go on once they do."""


class DivergedError(RunError):
    """The global state is no longer one that any site could answer to."""


class PrivacyError(RunError):
    """What was spent cannot be proven: a privacy ledger is damaged, or two accountants contradict each other."""


class EngineError(PolyclinicError):
    """The machinery that carries instructions to sites failed."""


class TrustError(PolyclinicError):
    """A key, certificate, signature or invitation is not to be trusted."""


class PluginError(PolyclinicError):
    """A plugin is unknown or does not keep its contract."""
