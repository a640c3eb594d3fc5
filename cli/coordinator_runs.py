"""``polyclinic coordinator``: studies and runs – publish, run, watch, stop, resume – and backup and verification."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from polyclinic.cli.answers import AsJson, Folder, answer, command, listed, table
from polyclinic.cli.standing import SOON, desk, known_studies, page, pick, run_rows, server_days, site_rows, study_rows

if TYPE_CHECKING:
    from polyclinic.server.governance.registry import Registry, State

ON: tuple[State, ...] = ("wanted", "running", "paused")
ENDED: tuple[State, ...] = ("stopped", "failed")
STUDIES, STATUS = "coordinator status", "coordinator status"

StudyName = Annotated[
    str, typer.Argument(metavar="STUDY", help="A published study: its name, its digest, or 6 digits of that or more.")
]
RunName = Annotated[
    str | None, typer.Argument(metavar="[RUN]", help="A run's name or its start; without one, the one that is meant.")
]


def publish(
    study_file: Annotated[Path, typer.Argument(metavar="STUDY.toml", help="What to offer: see 'polyclinic study'.")],
    folder: Folder = Path(),
    as_json: AsJson = False,
) -> None:
    """Offer a study to all sites, signed, with the backbone's hash. Nobody takes part before approving its digest."""
    from polyclinic.core import files
    from polyclinic.core import study as studies
    from polyclinic.core.signing import canonical
    from polyclinic.server.live import publish as publishing

    study = studies.load(study_file)
    with desk(folder) as (home, registry):
        initial = home.folder / "initial" / study.digest
        with files.explained(initial.parent):
            initial.parent.mkdir(mode=0o700, exist_ok=True)
        signed, _ = publishing.publish(study, initial, home.signing_key())
        registry.publish(signed, study.digest)
    offer = canonical(signed.document)
    told = {key: offer[key] for key in ("study", "name", "version", "backbone", "initial", "bytes_up")}
    answer(as_json, told, (
        f"Published {study.study.name}: every site is offered it within seconds of being connected.",
        f"Digest:   {study.digest}",
        f"Backbone: {offer['backbone']['reference']}, SHA-256 {offer['backbone']['sha256']}",
        f"A reply holds {offer['bytes_up'] / 1e6:.1f} MB of trained weights; polyclinic {offer['version']} is needed.",
        f"Next, at every site: polyclinic site show {study.digest[:12]}, then approve. "
        f"Then: {command(f'coordinator run {study.digest[:12]}', folder)}",
    ))  # fmt: skip


def retire(study: StudyName, folder: Folder = Path(), as_json: AsJson = False) -> None:
    """Offer a study no longer. Nothing new can be approved or run; a run that is on goes on until it is stopped."""
    from polyclinic.cli import naming

    with desk(folder) as (_, registry):
        look = command(STUDIES, folder)
        digest = naming.study(study, known_studies(registry), where="published here", look=look)
        registry.retire(digest)
        on = [found.name for found in registry.runs() if found.study == digest and found.state in ON]
    goes = f"{listed(on)} goes on; to stop it: {command('coordinator stop', folder)}" if on else "No run of it is on."
    answer(as_json, {"study": digest, "running": on}, (f"Retired {digest[:12]}: it is no longer offered. {goes}",))


def run(
    study: Annotated[
        str, typer.Argument(metavar="STUDY", help="A published study: its file, name, digest, or the digest's start.")
    ],
    folder: Folder = Path(),
    as_json: AsJson = False,
) -> None:
    """Begin a run of a published study with the sites that approved it; it begins as soon as a quorum is there."""
    from polyclinic.cli import foreground
    from polyclinic.server.live import runner

    with desk(folder) as (home, registry):
        digest = _digest(study, registry, folder)
        begun = runner.want(home, registry, digest)
        said = next(row for row in study_rows(registry) if row["study"] == digest)["sites"]
        serving = bool(foreground.held(home.folder))
    approved = sorted(site for site, verb in said.items() if verb == "approve")
    undecided = sorted(site for site, verb in said.items() if verb == "undecided")
    missing = f"; {listed(undecided)} did not decide yet and may still join in" if undecided else ""
    told = {"run": begun.name, "study": digest, "folder": begun.folder, "approved": approved, "undecided": undecided,
            "coordinator_running": serving}  # fmt: skip
    answer(as_json, told, (
        f"Asked for the run {begun.name}: approved by {listed(approved)}{missing}.",
        *([] if serving else [f"The coordinator is not running: {command('coordinator start', folder)}"]),
        f"Next: {command('coordinator watch', folder)}, or the live page: {page(home)}",
    ))  # fmt: skip


def status(run: RunName = None, folder: Folder = Path(), as_json: AsJson = False) -> None:
    """Say how everything stands: the coordinator, its sites, what they approved, and its runs, or one of them."""
    from polyclinic.cli import foreground
    from polyclinic.cli.standing import columns
    from polyclinic.server.live import state
    from polyclinic.server.live.page import snapshot

    with desk(folder) as (home, registry):
        serving, days = bool(foreground.held(home.folder)), server_days(home)
        rows, invited, studies = site_rows(registry), registry.invited(), study_rows(registry)
        runs = run_rows(registry)
        chosen = pick(registry, run, ON, command(STATUS, folder)) if run or (runs and _one(runs)) else None
    live = dict(state.read(Path(chosen.folder))) if chosen else {}
    told = {
        "running": serving, "server_certificate_days": days, "folder": str(home.folder), "page": page(home),
        "sites": rows, "studies": studies,
        "invited": [{"site": name, "expires": until} for name, until in invited], "runs": runs,
        "run": {"name": chosen.name, "state": chosen.state, "why": chosen.why, "live": live} if chosen else None,
    }  # fmt: skip
    word = "is running" if serving else f"is not running: {command('coordinator start', folder)}"
    lines = [f"The coordinator in {home.folder} {word}"]
    if days < SOON:
        lines.append(f"This machine's own certificate ends in {days:.0f} days: start again, and it is made anew.")
    lines += ["", *(columns(rows, invited) or ["Nobody has joined yet."])]
    if studies:
        lines += ["", *table(("study", "digest", "approved by", "not decided"), map(_decisions, studies))]
    if runs:
        lines += ["", *table(("run", "state", "round", "why"), map(_progress, runs))]
    if chosen and (live or run):
        lines += ["", *snapshot(Path(chosen.folder))]
    answer(as_json, told, lines)


def watch(run: RunName = None, folder: Folder = Path(), as_json: AsJson = False) -> None:
    """Follow a run, line by line, until it has ended; Ctrl-C ends the watching alone. Exit code 1 unless it finished.

    With --json nothing is said until the run has ended.
    """
    from polyclinic.cli import watching

    with desk(folder) as (_, registry):
        chosen = pick(registry, run, ON, command(STATUS, folder))
        try:
            ended = watching.watch(registry, chosen.name, quiet=as_json)
        except KeyboardInterrupt:
            typer.echo("\nThe run goes on without being watched.", err=True)
            raise typer.Exit(130) from None
    place = Path(ended.folder)
    told = {"run": ended.name, "state": ended.state, "why": ended.why, "folder": ended.folder}
    answer(as_json, told, watching.ending(ended, place, command(f"coordinator resume {ended.name}", folder)))
    raise typer.Exit(0 if ended.state == "finished" else 1)


def stop(run: RunName = None, folder: Folder = Path(), as_json: AsJson = False) -> None:
    """Stop a run. What is committed stays; 'resume' goes on with the round that was under way."""
    with desk(folder) as (_, registry):
        chosen = pick(registry, run, ON, command(STATUS, folder))
        done = registry.set_state(chosen.name, "stopped", "by the coordinator", only_from=ON)
        now = registry.run(chosen.name) or chosen
    again = command(f"coordinator resume {chosen.name}", folder)
    said = f"Stopped {chosen.name}. To go on: {again}" if done else f"{chosen.name} is {now.state} already."
    answer(as_json, {"run": chosen.name, "state": now.state, "changed": done}, (said,))


def resume(run: RunName = None, folder: Folder = Path(), as_json: AsJson = False) -> None:
    """Go on with a run that was stopped or failed, from its last committed round."""
    with desk(folder) as (_, registry):
        chosen = pick(registry, run, ENDED, command(STATUS, folder))
        done = registry.set_state(chosen.name, "wanted", "", only_from=ENDED)
        now = registry.run(chosen.name) or chosen
    said = f"{chosen.name} goes on. Next: {command('coordinator watch', folder)}"
    if not done:
        said = f"{chosen.name} is {now.state}: there is nothing to resume."
    answer(as_json, {"run": chosen.name, "state": now.state, "changed": done}, (said,))


def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE.tar", help="The file to write; must not exist yet.")],
    folder: Folder = Path(),
    as_json: AsJson = False,
) -> None:
    """Copy everything that the coordinator must not lose into one file, also while it runs. It holds the keys."""
    from polyclinic.cli.backup import back_up

    with desk(folder) as (home, registry):
        held = back_up(home, registry, file)
    told = {"file": str(file), "bytes": file.stat().st_size, "files": held}
    answer(as_json, told, (
        f"Wrote {file}: {held} files, {file.stat().st_size / 1e6:.1f} MB, readable by you alone. Whoever has it can "
        "pass for the coordinator: keep it as you keep its keys.",
        f"To restore, into an empty folder at the same place: tar -xpf {file.name} -C {home.folder}",
    ))  # fmt: skip


def verify(folder: Folder = Path(), as_json: AsJson = False) -> None:
    """Check the book, every receipt, every run's ledger and files. Exit code 1 if anything is wrong."""
    from polyclinic.cli.checking import checks, report

    with desk(folder, writing=False) as (home, registry):
        found = list(checks(home, registry))
    report(found, as_json)


def _digest(wanted: str, registry: Registry, folder: Path) -> str:
    """That of the published study that ``wanted`` names, which may be a study's file."""
    from polyclinic.cli import naming
    from polyclinic.core import study as studies

    if wanted.endswith(".toml") or Path(wanted).is_file():
        wanted = studies.load(wanted).digest
    return naming.study(wanted, known_studies(registry), where="published here", look=command(STUDIES, folder))


def _one(runs: list[dict[str, Any]]) -> bool:
    """Whether there is a run that is meant when none is named."""
    return sum(row["state"] in ON for row in runs) <= 1


def _decisions(row: dict[str, Any]) -> tuple[str, str, str, str]:
    of = {verb: [site for site, said in row["sites"].items() if said == verb] for verb in ("approve", "undecided")}
    return row["name"], row["study"][:12], listed(of["approve"]), ", ".join(of["undecided"]) or "–"


def _progress(row: dict[str, Any]) -> tuple[str, str, str, str]:
    rounds = row["rounds"]
    if not rounds:
        return row["run"], row["state"], "–", row["why"]
    over = row["round"] > rounds
    said = "last evaluation" if over and row["state"] != "finished" else f"{min(row['round'], rounds)} of {rounds}"
    return row["run"], row["state"], said, row["why"]
