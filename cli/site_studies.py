"""``polyclinic site``: what is offered, what was decided, what happened, and whether it can be proved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from polyclinic.cli.answers import AsJson, Folder, Yes, answer, command, confirm, table
from polyclinic.cli.site_standing import opened

if TYPE_CHECKING:
    from polyclinic.client.approvals import Decision
    from polyclinic.client.home import Home

StudyName = Annotated[
    str, typer.Argument(metavar="DIGEST", help="A study: its digest, 6 digits of it or more, or its name.")
]


def studies(folder: Folder = Path(), as_json: AsJson = False) -> None:
    """List the studies that are offered to this site, and what was decided about each."""
    from polyclinic.client.approvals import decisions
    from polyclinic.client.offer import offers
    from polyclinic.core.errors import PolyclinicError

    home = opened(folder)
    decided, found = decisions(home), offers(home)
    rows: list[dict[str, Any]] = []
    for digest, offer in found.items():
        row: dict[str, Any] = {"study": digest, **_decided(decided.get(digest)), "problem": None}
        if isinstance(offer, PolyclinicError):
            row |= {"name": None, "problem": str(offer)}
        else:
            row |= {"name": offer.study.study.name, "rounds": offer.study.rounds.count, "bytes_up": offer.bytes_up}
        rows.append(row)
    gone = [{"study": digest, "name": None, **_decided(decided[digest]), "problem": "is no longer offered"}
            for digest in sorted(decided.keys() - found.keys())]  # fmt: skip
    cells = [
        (row["name"] or "?", row["study"][:12], row["problem"] or row["decision"] or "not decided", row["limits"] or "")
        for row in [*rows, *gone]
    ]
    words = table(("study", "digest", "decision", "limits"), cells)
    if not words:
        words = [f"Nothing is offered yet. Is the site running? {command('site status', folder)}"]
    elif any(row["decision"] is None and not row["problem"] for row in rows):
        words.append(f"Next: {command('site show DIGEST', folder)}, then approve it or leave it.")
    answer(as_json, {"studies": [*rows, *gone]}, words)


def show(study: StudyName, folder: Folder = Path(), as_json: AsJson = False) -> None:
    """Say in plain words what a study would do here: what trains on what, what leaves, for how long, which code."""
    from polyclinic.client.approvals import decisions
    from polyclinic.client.offer import read_offer
    from polyclinic.client.words import words

    home = opened(folder)
    digest = digest_of(home, study, folder)
    decided = decisions(home).get(digest)
    said = words(read_offer(home, digest), home, decided)
    approving = f"Next: {command(f'site approve {digest[:12]}', folder)}, or nothing: what is not approved is refused."
    if decided is not None and decided.verb == "approve":
        approving = f"To take it back: {command(f'site withdraw {digest[:12]}', folder)}"
    answer(as_json, {"study": digest, **_decided(decided), "words": said}, [*_spoken(said), "", approving])


def approve(
    study: StudyName,
    folder: Folder = Path(),
    rounds: Annotated[
        str | None, typer.Option(metavar="N", help="At most so many rounds of training, over all runs.")
    ] = None,
    until: Annotated[
        str | None, typer.Option(metavar="DATE", help="Until the end of that day (2027-01-31), or until a time of it.")
    ] = None,
    hours: Annotated[
        str | None, typer.Option(metavar="HH:MM-HH:MM", help="Only within these hours of the day: 20:00-06:00.")
    ] = None,
    epsilon: Annotated[
        str | None,
        typer.Option(metavar="E", help="At most so much privacy spent on any patient: a private study only."),
    ] = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Approve a study, this very digest, with this version and backbone. Shows it in plain words and asks first."""
    from polyclinic.client.approvals import Limits, decisions
    from polyclinic.client.offer import read_offer
    from polyclinic.client.privacy.approval import demand_possible
    from polyclinic.client.record import held, state_decision
    from polyclinic.client.words import words

    home, limits = opened(folder), Limits.read(rounds, until, hours, epsilon=epsilon)
    digest = digest_of(home, study, folder)
    offer = read_offer(home, digest)
    demand_possible(home, offer, limits)
    if not as_json:
        for line in _spoken(words(offer, home, decisions(home).get(digest))):
            typer.echo(line)
        typer.echo("")
    confirm(f"Approve {offer.study.study.name} ({digest[:12]}) with {limits.words()}?", yes)
    decided = state_decision(home, "approve", offer, limits)
    running = f"polyclinic site start must be running: {command('site status', folder)}"
    answer(as_json, {"study": digest, **_decided(decided), "sequence": decided.sequence}, (
        f"Approved {offer.study.study.name} ({digest[:12]}) for polyclinic {decided.version}: {limits.words()}. It "
        f"stands in this site's book, line {decided.sequence + 1}, and the coordinator is told.",
        "This site now takes part in runs of this study." if held(home) else running,
        f"To take it back, at any time: {command(f'site withdraw {digest[:12]}', folder)}",
    ))  # fmt: skip


def withdraw(study: StudyName, folder: Folder = Path(), as_json: AsJson = False) -> None:
    """Take an approval back: from now on everything that the study asks is refused. What was sent stays sent."""
    from contextlib import closing

    from polyclinic.client.approvals import decide, decisions
    from polyclinic.client.record import post
    from polyclinic.core.book import Book
    from polyclinic.core.errors import PolicyError

    home = opened(folder)
    digest, key = digest_of(home, study, folder), home.demand().key()
    if (before := decisions(home).get(digest)) is None:
        raise PolicyError("was not approved here, so there is nothing to take back", where=digest[:12])
    with closing(Book(home.book, key)) as book:
        name, backbone = home.settings.name, before.backbone_sha256
        decided = decide(book, name, digest, "withdraw", before.version, backbone)
        post(home, book, key)
    answer(as_json, {"study": digest, **_decided(decided), "sequence": decided.sequence}, (
        f"Withdrew from {digest[:12]}: refused here from this moment on, and the coordinator is told. It stands in "
        f"this site's book, line {decided.sequence + 1}.",
        "What this site contributed to earlier rounds stays in the model.",
    ))  # fmt: skip


def log(
    folder: Folder = Path(),
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what is written from now on.")] = False,
    last: Annotated[int, typer.Option("--last", "-n", min=1, help="So many of the latest lines.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Read this site's book in plain words: what was decided, asked, answered, refused, and seen of the coordinator."""
    import time

    from polyclinic.cli.site_log import lines
    from polyclinic.core.book import read_entries

    if follow and as_json:
        raise typer.BadParameter("one object cannot be printed before the end", param_hint="--json with --follow")
    home = opened(folder, owner=False)
    entries = read_entries(home.book, public=home.settings.key)[-last:]
    told = [{"sequence": e.sequence, "time": e.time, "kind": e.kind, "body": e.body} for e in entries]
    answer(as_json, {"site": home.settings.name, "entries": told}, lines(entries) or ["Nothing is written yet."])
    try:
        while follow:
            time.sleep(0.5)
            new = read_entries(home.book, entries[-1].sequence if entries else -1, public=home.settings.key)
            for line in lines(new):
                typer.echo(line)
            entries = new or entries
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def verify(folder: Folder = Path(), as_json: AsJson = False) -> None:
    """Check this site's book and all that the coordinator told, one by the other. Exit code 1 if anything is wrong."""
    from polyclinic.cli.checking import report
    from polyclinic.cli.site_checks import checks

    report(list(checks(opened(folder, owner=False))), as_json)


def digest_of(home: Home, wanted: str, folder: Path) -> str:
    """The digest of the study that is offered, or was decided about, and is called ``wanted``."""
    from polyclinic.cli import naming
    from polyclinic.client.approvals import decisions
    from polyclinic.client.offer import offers
    from polyclinic.core.errors import PolyclinicError

    known = dict.fromkeys(decisions(home), "")
    for digest, offer in offers(home).items():
        known[digest] = "" if isinstance(offer, PolyclinicError) else offer.study.study.name
    return naming.study(wanted, known, where="offered to this site", look=command("site studies", folder))


def _decided(decided: Decision | None) -> dict[str, Any]:
    if decided is None:
        return {"decision": None, "limits": None}
    said = {"approve": "approved", "withdraw": "withdrawn"}[decided.verb]
    return {"decision": said, "limits": decided.limits.words() if decided.verb == "approve" else None}


def _spoken(said: dict[str, list[str]]) -> list[str]:
    """Titles and sentences as lines for the terminal, sentences wrapped to its width."""
    import shutil
    import textwrap

    width = min(110, shutil.get_terminal_size((100, 24)).columns)
    lines: list[str] = []
    for title, sentences in said.items():
        lines += ["", typer.style(title, bold=True)]
        for sentence in sentences:
            inner = "  " * (1 + sentence.startswith("  "))
            lines += textwrap.wrap(sentence.strip(), width, initial_indent=inner, subsequent_indent=f"{inner}  ",
                                   break_long_words=False, break_on_hyphens=False)  # fmt: skip
    return lines[1:]
