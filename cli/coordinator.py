"""``polyclinic coordinator``: a federation's one server, and who may take part in it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polyclinic.cli import coordinator_runs as runs
from polyclinic.cli.answers import AsJson, Folder, Yes, answer, command, confirm
from polyclinic.cli.described import Command
from polyclinic.cli.standing import desk, page

if TYPE_CHECKING:
    from polyclinic.server.governance.registry import Registry

DAY = 86400.0
LOOK = 0.5
"""Seconds between two looks for news."""

app = typer.Typer(help="Run a live federation's coordinator.", no_args_is_help=True)


@app.command(cls=Command)
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to make; must be empty or not exist yet.")],
    host: Annotated[
        str, typer.Option(metavar="NAME", help="The DNS name or address under which sites reach this machine.")
    ],
    bind: Annotated[str, typer.Option(metavar="ADDRESS", help="The address of this machine to listen on.")] = "0.0.0.0",
    fleet_port: Annotated[int, typer.Option(min=1, max=65535, help="For adapters and for joining (open it).")] = 8443,
    governance_port: Annotated[
        int, typer.Option(min=1, max=65535, help="For studies, approvals and receipts (open it).")
    ] = 8444,
    page_port: Annotated[int, typer.Option(min=1, max=65535, help="For the live page, on this machine alone.")] = 8480,
    private_port: Annotated[
        int, typer.Option(min=1, max=65535, help="Between the coordinator's own processes, on this machine alone.")
    ] = 8481,
    as_json: AsJson = False,
) -> None:
    """Make a coordinator: a folder with its keys, its certificate authority and its settings."""
    from polyclinic.core.config import parse
    from polyclinic.core.errors import TrustError
    from polyclinic.core.invitation import is_host
    from polyclinic.server.live.home import Home, Settings

    if not is_host(host):
        raise TrustError("is neither a DNS name nor an address", where=host[:80], remedy="--host fed.example.org")
    ports = {
        "fleet_port": fleet_port, "governance_port": governance_port, "page_port": page_port,
        "private_port": private_port,
    }  # fmt: skip
    if len(set(ports.values())) < len(ports):
        raise typer.BadParameter("four different ports are needed", param_hint="--fleet-port and others")
    home = Home.create(folder, parse(Settings, {"host": host, "bind": bind, **ports}, "coordinator"))
    told = {"folder": str(home.folder), "host": host, "bind": bind, **ports}
    answer(as_json, told, (
        f"Made a coordinator in {home.folder}: keys, certificate authority and settings (coordinator.toml). The keys "
        "never leave this folder; whoever has them is the coordinator.",
        f"Sites will open connections to {host}, ports {fleet_port} and {governance_port} (TCP): open these two.",
        f"Next, for every site: {command('coordinator invite SITE --to SITE.invitation', folder)}",
        f"Then: {command('coordinator start', folder)}",
    ))  # fmt: skip


@app.command(cls=Command)
def invite(
    site: Annotated[str, typer.Argument(metavar="SITE", help="The name under which it joins, as in its manifest.")],
    folder: Folder = Path(),
    days: Annotated[float, typer.Option(min=0.01, max=365, help="For how long the invitation holds.")] = 7.0,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="FILE", help="Write it there, readable by you alone.")
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="For a site that has joined, and lost its keys or its certificate's time.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Invite a site: make the text with which it can join once. Hand it over in private, such as by phone or letter."""
    import time

    from polyclinic.core.errors import TrustError
    from polyclinic.core.signing import write_secret

    if to is not None and to.exists():
        raise TrustError("exists already", where=str(to), remedy="an invitation is not written over a file")
    with desk(folder) as (home, registry):
        expires = time.time() + days * DAY
        invitation = home.invitation(site, registry.invite(site, days * DAY, again=again), expires)
    if to is not None:
        write_secret(to, invitation.file_text().encode())
    where = str(to) if to else "below"
    words = [
        f"Invited {site}: the invitation is {'in ' if to else ''}{where}. It is good once, until "
        f"{time.strftime('%Y-%m-%d %H:%M', time.localtime(expires))}; whoever has it first joins as {site}, so hand it "
        "over in private.",
        *([] if to else ["", invitation.text(), ""]),
        f"Next, at the site: polyclinic site join {to.name if to else 'INVITATION'} --dir DIR --data MANIFEST.csv",
        "The coordinator must be running then.",
    ]
    told = {"site": site, "expires": expires, "file": str(to) if to else None}
    answer(as_json, told | ({} if to else {"invitation": invitation.text()}), words)


@app.command(cls=Command)
def start(folder: Folder = Path()) -> None:
    """Run the coordinator in the foreground, until Ctrl-C or SIGTERM: whatever dies in between is started again."""
    from polyclinic.cli import foreground
    from polyclinic.core import files
    from polyclinic.server.live import coordinator

    with desk(folder) as (home, registry):
        settings = home.settings
        status = command("coordinator status", folder)
        with foreground.alone(home.folder, what="this coordinator", remedy=f"see: {status}"):
            foreground.demand_free(
                {
                    "fleet_port": (settings.bind, settings.fleet_port),
                    "governance_port": (settings.bind, settings.governance_port),
                    "page_port": ("127.0.0.1", settings.page_port),
                    "private_port": ("127.0.0.1", settings.private_port),
                },
                str(home.folder / "coordinator.toml"),
            )
            with files.explained(home.logs):
                home.logs.mkdir(mode=0o700, exist_ok=True)  # no backup holds it
            ports = f"ports {settings.fleet_port} and {settings.governance_port}"
            typer.echo(f"Sites connect to {settings.host}, {ports}; this listens on {settings.bind}.")
            typer.echo(f"The live page, on this machine: {page(home)}")
            typer.echo(f"Logs are in {home.logs}. Ctrl-C ends everything; a run goes on at the next start.")
            with foreground.until_stopped() as stopped:
                news = News(registry, foreground.say)
                coordinator.start(home, foreground.supervised(home.logs), lambda: stopped() or news())
            typer.echo("Stopped. Nothing is lost: a run that was on goes on at the next start.")


@app.command(cls=Command)
def sites(folder: Folder = Path(), as_json: AsJson = False) -> None:
    """List the sites: who has joined, what they are doing, whose certificate ends soon, who is invited."""
    from polyclinic.cli.standing import columns, site_rows

    with desk(folder) as (_, registry):
        rows, invited = site_rows(registry), registry.invited()
    told = {"sites": rows, "invited": [{"site": name, "expires": until} for name, until in invited]}
    answer(as_json, told, columns(rows, invited) or [
        f"Nobody has joined yet, and nobody is invited. Next: {command('coordinator invite SITE', folder)}"
    ])  # fmt: skip


@app.command(cls=Command)
def revoke(
    site: Annotated[str, typer.Argument(metavar="SITE", help="A site that has joined, or was invited.")],
    folder: Folder = Path(),
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Shut a site out for good: from the next round on nothing of it counts. An invitation not used yet is void too."""
    with desk(folder) as (_, registry):
        known = registry.site(site)
        if known is not None and known.revoked is None:
            confirm(f"Shut {site} out? It can come back only under another name.", yes)
        registry.revoke(site)
    done = "Its invitation is void." if known is None else (
        f"Revoked {site}: it cannot connect any more, a run goes on without it, and what it answers from now on does "
        "not count. What it contributed to earlier rounds stays in the model."
    )  # fmt: skip
    answer(as_json, {"site": site, "revoked": known is not None}, (
        done, f"To let it in again, invite it under another name. See: {command('coordinator sites', folder)}",
    ))  # fmt: skip


@app.command(cls=Command)
def service(
    folder: Folder = Path(),
    user: Annotated[str, typer.Option(metavar="NAME", help="As whom it runs; owns the folder.")] = "polyclinic",
    to: Annotated[
        Path | None,
        typer.Option("--to", metavar="FOLDER", help="Write it there (/etc/systemd/system) instead of printing it."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make the systemd unit that keeps the coordinator running, also after a restart of the machine."""
    from polyclinic.cli import units
    from polyclinic.cli.services import hand_out
    from polyclinic.server.live.home import Home

    home = Home.open(folder)
    hand_out(units.coordinator(home.folder, user), to, as_json, (
        f"The folder must belong to {user}: chown -R {user}: {home.folder}",
    ))  # fmt: skip


class News:
    """Tells each event once, when it is called often enough; whether it is time to end: never."""

    def __init__(self, registry: Registry, say: Callable[[str], None]) -> None:
        self._registry, self._say = registry, say
        self._seen, self._looked = registry.last_event(), 0.0

    def __call__(self) -> bool:
        import time

        from polyclinic.core.errors import PolyclinicError

        if time.monotonic() - self._looked >= LOOK:
            self._looked = time.monotonic()
            with suppress(PolyclinicError):  # the disk is full, or another process writes: the next look will do
                for event in self._registry.events(self._seen):
                    self._seen = event.sequence
                    self._say(f"ALARM: {event.text}" if event.kind == "alarm" else event.text)
        return False


for _name, _command in (
    ("publish", runs.publish), ("retire", runs.retire), ("run", runs.run), ("status", runs.status),
    ("watch", runs.watch), ("stop", runs.stop), ("resume", runs.resume), ("backup", runs.backup),
    ("verify", runs.verify),
):  # fmt: skip
    app.command(_name, cls=Command)(_command)
