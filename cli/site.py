"""``polyclinic site``: a hospital's side of a live federation – joining, running, looking."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from polyclinic.cli import site_studies as studies
from polyclinic.cli.answers import AsJson, Folder, answer, command
from polyclinic.cli.described import Command
from polyclinic.cli.site_standing import logs, opened

app = typer.Typer(help="Take part in a live federation, as a hospital.", no_args_is_help=True)
data = typer.Typer(help="Look at this site's images.", no_args_is_help=True)
app.add_typer(data, name="data")


@app.command(cls=Command)
def join(
    invitation: Annotated[str, typer.Argument(metavar="INVITATION", help="The text, or the file that holds it.")],
    manifest: Annotated[
        Path, typer.Option("--data", metavar="MANIFEST.csv", help="One line an image; it is read where it lies.")
    ],
    folder: Folder = Path(),
    proxy: Annotated[
        str | None, typer.Option(metavar="http://HOST:PORT", help="The HTTP proxy to the outside, if there is one.")
    ] = None,
    local_port: Annotated[
        int, typer.Option(min=1, max=65535, help="A free port, used between this machine's own processes alone.")
    ] = 9480,
    as_json: AsJson = False,
) -> None:
    """Join a federation: make this site's keys, which never leave, and have the coordinator certify them."""
    from polyclinic.client.join import join as enrol

    home = enrol(invitation, folder, manifest, proxy=proxy, local_port=local_port)
    settings = home.settings
    at = settings.coordinator
    told = {"site": settings.name, "folder": str(home.folder.absolute()), "key": settings.key, "host": at.host,
            "ports": [at.fleet_port, at.governance_port]}  # fmt: skip
    answer(as_json, told, (
        f"Joined as {settings.name}. Keys, settings (site.toml) and this site's book are in {home.folder.absolute()}.",
        f"This site opens connections to {at.host}, ports {at.fleet_port} and {at.governance_port}, and listens to "
        "nobody outside. Nothing is trained before you approve a study.",
        f"Next: {command('site doctor', folder)}, then: {command('site start', folder)}",
    ))  # fmt: skip


@app.command(cls=Command)
def start(
    folder: Folder = Path(),
    part: Annotated[
        Literal["all", "agent", "network"],
        typer.Option(help="One half alone, where each runs as a user of its own: see 'polyclinic site service'."),
    ] = "all",
) -> None:
    """Run the site in the foreground, until Ctrl-C or SIGTERM: whatever dies in between is started again."""
    from polyclinic.cli import foreground
    from polyclinic.client import site as processes

    home = opened(folder, owner=part != "network")
    held = {"all": (home.book, home.network), "agent": (home.book,), "network": (home.network,)}[part]
    with foreground.alone(*held, what="this site", remedy=f"see: {command('site status', folder)}"):
        if part != "agent":
            place = {"local_port": ("127.0.0.1", home.settings.local_port)}
            foreground.demand_free(place, str(home.config))
        at = home.settings.coordinator
        typer.echo(f"{home.settings.name} connects to {at.host}, ports {at.fleet_port} and {at.governance_port}.")
        typer.echo(f"Logs are in {logs(home, part)}. Ctrl-C ends everything; nothing is lost.")
        with foreground.until_stopped() as stopped:
            processes.start(home, part, foreground.supervised(logs(home, part)), stopped)
    typer.echo("Stopped. An instruction that was under way is carried out at the next start, if its round still waits.")


@app.command(cls=Command)
def doctor(folder: Folder = Path(), as_json: AsJson = False) -> None:
    """Find out what would keep this site from taking part, and say how to mend it. Exit code 1 if something would."""
    from polyclinic.client.doctor import examine
    from polyclinic.client.record import held

    home = opened(folder, owner=False)
    found = examine(home)
    wrong = sum(one.state == "error" for one in found)
    words = [f"{one.state}: {one.name}: {one.sentence}{f' ({one.remedy})' if one.remedy else ''}" for one in found]
    verdict = f"{wrong} of these keep this site from taking part: mend them, then call this again."
    if not wrong:
        after = command("site studies" if held(home) else "site start", folder)
        verdict = f"Nothing keeps this site from taking part. Next: {after}"
    answer(as_json, {"ok": not wrong, "findings": [vars(one) for one in found]}, [*words, verdict])
    raise typer.Exit(1 if wrong else 0)


@app.command(cls=Command)
def status(folder: Folder = Path(), as_json: AsJson = False) -> None:
    """Say how this site stands: its processes, the coordinator, its certificate, what was approved, what is waiting."""
    from polyclinic.cli.site_standing import sentences, standing

    told = standing(opened(folder, owner=False))
    answer(as_json, told, sentences(told, folder))


@app.command(cls=Command)
def service(
    folder: Folder = Path(),
    user: Annotated[
        str, typer.Option(metavar="NAME", help="The user that may read the images, and owns the folder.")
    ] = "polyclinic",
    network_user: Annotated[
        str, typer.Option(metavar="NAME", help="The user that faces the network, and may read no image.")
    ] = "polyclinic-net",
    hide: Annotated[
        list[Path] | None,
        typer.Option("--hide", metavar="PATH", help="More of what the network half must not see; may be repeated."),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option(
            "--to",
            metavar="FOLDER",
            help="Write them there (/etc/systemd/system), and the second user into site.toml, instead of printing.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make two systemd units: the agent, which reads the images, and what faces the network, which cannot."""
    from polyclinic.cli import units
    from polyclinic.cli.services import hand_out, set_network_user

    home = opened(folder, owner=False)
    hidden = [*units.images(home.manifest, home.folder), *(path.absolute() for path in hide or [])]
    made = units.site(home.folder, user, units.demand_user(network_user), hidden)
    if to is not None:
        set_network_user(home, network_user)
    hand_out(made, to, as_json, (
        f"Two users are needed: useradd --system {user}; useradd --system {network_user}",
        f"{home.folder} must belong to {user}, who must be able to read the images: chown -R {user}: {home.folder}",
    ))  # fmt: skip


@app.command("hand-over", cls=Command, hidden=True)
def hand_over(folder: Folder = Path()) -> None:
    """Give the network user what is that user's: the agent's unit calls this as root before it starts."""
    from polyclinic.cli.services import hand_over as give

    give(opened(folder, owner=False))


@data.callback()
def _data() -> None:
    """Look at this site's images."""


@data.command("check", cls=Command)
def data_check(
    study: Annotated[
        str | None,
        typer.Argument(metavar="[STUDY]", help="A study that is offered: its name or its digest's start."),
    ] = None,
    folder: Folder = Path(),
    quick: Annotated[bool, typer.Option("--quick", help="Look for the images without opening them.")] = False,
    as_json: AsJson = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the report as a page, for this site's eyes only.")
    ] = None,
    quarantine: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a list of the images that cannot be read, and why.")
    ] = None,
) -> None:
    """Find everything that is wrong with this site's manifest and images. Exit code 1 if a study cannot run on them.

    Without a study, the only one that is offered is meant; if there is none, labels are not checked.
    """
    from polyclinic.cli.data import check

    home = opened(folder)
    digests = sorted(path.stem for path in home.studies.glob("*.toml"))
    digest = studies.digest_of(home, study, folder) if study else digests[0] if len(digests) == 1 else None
    check(home.manifest, home.studies / f"{digest}.toml" if digest else None, True, quick, as_json, html, quarantine)


for _name, _command in (
    ("studies", studies.studies), ("show", studies.show), ("approve", studies.approve),
    ("withdraw", studies.withdraw), ("log", studies.log), ("verify", studies.verify),
):  # fmt: skip
    app.command(_name, cls=Command)(_command)
