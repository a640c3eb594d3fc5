"""What is going on, in sentences: the same on the page and on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from polyclinic.server.live.page.live import Happened, Live, SiteNow
from polyclinic.server.report import words

SOON = 30
"""Days before its end from which a certificate is warned of."""


@dataclass(frozen=True)
class State:
    """How a site's state is shown.

    Attributes:
        word: for the state.
        shape, look: of its mark.
        text: what it means where no reason is told.
        level: 2 needs somebody's attention, 1 is worth a look, 0 is as it should be.
        over: whether it came about and is over, rather than lasting.
    """

    word: str
    shape: str
    look: str
    text: str = ""
    level: int = 0
    over: bool = False


STATES = {
    "refused": State("refused", "down", "worse", "its answer did not count", 2, over=True),
    "revoked": State("revoked", "down", "worse", "its certificate was revoked; it takes no part any more", 2),
    "withdrawn": State("withdrawn", "down", "worse", "it withdrew its approval of this study", 2),
    "overdue": State("overdue", "diamond", "some", "not waited for, and welcome back at any time", 1),
    "away": State("away", "diamond", "some", "not connected; not waited for", 1),
    "undecided": State("undecided", "diamond", "open", "has not approved this study yet", 1),
    "working": State("working", "square", "pooled"),
    "sent": State("asked", "square", "open", "was sent the model and has not begun yet"),
    "waiting": State("waiting", "circle", "open", "connected; not asked yet"),
    "answered": State("answered", "circle", "better", over=True),
}
"""By the word for it in live.json."""
PHASES = {
    "waiting": ("Waiting", "circle", "open"),
    "running": ("Running", "square", "pooled"),
    "paused": ("Paused", "down", "worse"),
    "stopped": ("Stopped", "diamond", "some"),
    "finishing": ("Finishing", "square", "pooled"),
    "finished": ("Finished", "up", "better"),
    "failed": ("Failed", "down", "worse"),
}
ADVICE = {
    "paused": "Nothing is lost. The round is tried again by itself and counts as soon as enough sites answer well: see "
    "below which site lacks what. To end the attempt: polyclinic coordinator stop.",
    "failed": "Nothing that was committed is lost. Mend what is named here, then: polyclinic coordinator resume. The "
    "coordinator's logs folder tells more.",
    "stopped": "Nothing is lost. To go on: polyclinic coordinator resume.",
}


def state_of(site: SiteNow) -> State:
    """How a site's state is shown; one that is not known under its own word."""
    return STATES.get(site.state) or State(site.state, "diamond", "unknown", level=1)


def phase_of(live: Live) -> tuple[str, str, str]:
    """(word, shape, look) of the phase."""
    return PHASES.get(live.phase) or (live.phase.capitalize(), "diamond", "unknown")


def headline(live: Live, done: int | None = None) -> str:
    """Where the run stands, in a few words.

    Args:
        live: what the runner says; one that has just been started again knows of no round.
        done: rounds that are committed, where that is known.
    """
    of = f"round {live.round} of {live.rounds}" if live.rounds else f"round {live.round}"
    place = "the last evaluation" if live.judging else of
    in_it = f" in {place}" if live.round else ""
    behind = max(0, live.round - 1) if done is None else done
    said = {
        "waiting": f"Waiting to go on with {place}" if live.round else f"Waiting to {'go on' if behind else 'begin'}",
        "running": "The final model is judged at every site" if live.judging else of.capitalize(),
        "paused": f"Paused{in_it}",
        "stopped": f"Stopped, with {words.counted(behind, 'round')} done" if behind else "Stopped",
        "finishing": "All rounds are done; adapter, summary and report are being written",
        "finished": f"Finished: {words.counted(live.rounds or live.round, 'round')}",
        "failed": f"Failed{in_it}",
    }
    return said.get(live.phase) or f"{live.phase.capitalize()}{in_it}"


def why(live: Live) -> str:
    """The reason as a sentence, where it adds to the headline."""
    text = live.why
    if not text or (live.phase == "running" and live.judging) or live.phase == "finishing":
        return ""
    named = text.partition(":")[0] in {site.name for site in live.sites}
    return ended(text) if named else sentence(text)


def sentence(text: str) -> str:
    """With a capital and an end."""
    return ended(f"{text[:1].upper()}{text[1:]}")


def ended(text: str) -> str:
    """With a full stop; a reason keeps its first letter, for it may begin with a site's name."""
    return f"{text}." if text and text[-1] not in ".!?…)" else text


def advice(live: Live) -> str:
    """What to do about a run that does not go on by itself."""
    return ADVICE.get(live.phase, "")


def answered(live: Live) -> list[SiteNow]:
    """Sites whose answer to this round is in and good."""
    return [site for site in live.sites if site.state == "answered" and site.last in (live.round, None)]


def needed(live: Live) -> str:
    """How many answers are lacking."""
    lacking = live.quorum - len(answered(live))
    if not live.quorum:
        return ""
    return f"{live.quorum} needed: " + (f"{lacking} more" if lacking > 0 else "enough")


def counts(live: Live) -> list[tuple[State, int]]:
    """How many sites are in each state, those that need attention first."""
    found: dict[str, list[State]] = {}
    for site in live.sites:
        found.setdefault(state_of(site).word, []).append(state_of(site))
    order = [state.word for state in STATES.values()]
    rank = {word: order.index(word) if word in order else -1 for word in found}
    return [(found[word][0], len(found[word])) for word in sorted(found, key=rank.__getitem__)]


def ranked(sites: Sequence[SiteNow]) -> list[SiteNow]:
    """Sites that need attention first, then by name."""
    return sorted(sites, key=lambda site: (-urgency(site), site.name))


def urgency(site: SiteNow) -> int:
    """2 where somebody must do something."""
    return max(state_of(site).level, 2 if expiring(site) else 0)


def explained(site: SiteNow) -> str:
    """Why a site is in its state, or what the state means."""
    state = state_of(site)
    missed = site.state == "overdue" and site.missed > 0
    head = f"Missed {words.counted(site.missed, 'round')} in a row: " if missed else ""
    return head + ended(site.why or state.text) if head or site.why else sentence(state.text)


def expiring(site: SiteNow) -> bool:
    """Whether a site's certificate ends soon."""
    return site.certificate_days is not None and site.certificate_days <= SOON and site.state != "revoked"


def certificate(site: SiteNow) -> str:
    """How long a site's certificate is good, or nothing where that is not known."""
    days = site.certificate_days
    if days is None or site.state == "revoked":
        return ""
    return "certificate has expired" if days <= 0 else f"certificate ends in {words.counted(days, 'day')}"


def told(events: Sequence[Happened]) -> list[Happened]:
    """Events, the latest first, without those that the one after them tells again."""
    again = [one for one, after in pairwise(events) if one.kind == "site" and twice(one, after)]
    return [event for event in reversed(events) if not any(event is one for one in again)]


def happened(event: Happened) -> str:
    """What an event says, without its site."""
    head = "set aside: " if event.kind == "excluded" and event.text else ""
    return f"{head}{event.text or event.kind}"


def twice(one: Happened, after: Happened) -> bool:
    """Whether the second says what the first said."""
    same = (one.site, one.round) == (after.site, after.round)
    return same and after.kind == "excluded" and (not after.text or one.text.endswith(after.text))


def alarms(live: Live) -> list[tuple[Happened, int]]:
    """Alarms with how often each was raised, the latest first; a pause's or failure's own is told by the phase."""
    found: dict[tuple[str, str], tuple[Happened, int]] = {}
    for event in live.events:
        if event.kind == "alarm" and not (live.phase in ADVICE and event.text == live.why and not event.site):
            _, before = found.pop((event.site, event.text), (event, 0))
            found[event.site, event.text] = (event, before + 1)
    return list(found.values())[::-1]
