"""``polyclinic live-demo``: a whole live federation on this machine, by the very commands that people type."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from polyclinic.cli.typed import call, shown, title

if TYPE_CHECKING:
    import subprocess

    from polyclinic.core.study import Study
    from polyclinic.simulations.centres import Centre

MARK = "live-demo.txt"
OURS = "The live demo of Polyclinic made this folder, and replaces it when it is called again.\n"
PATIENCE = 90.0
"""Seconds for which a process that was started is waited for."""


def live_demo(
    folder: Annotated[
        Path, typer.Argument(metavar="[DIR]", help="Where everything goes; an old live demo there is replaced.")
    ] = Path("runs/live-demo"),
    rounds: Annotated[int, typer.Option(min=1, max=100, help="How many rounds are trained.")] = 6,
    open_page: Annotated[
        bool, typer.Option("--open", help="Open the live page, and the report, in a browser.")
    ] = False,
) -> None:
    """Run a coordinator and three made-up hospitals on this machine, as processes of their own, over TLS.

    Every step is shown as the command that people type; needs no data and no network, and ends by itself.
    """
    with until_interrupted(folder):
        _begin(folder)
        Demo(folder, rounds, open_page).play()


class Demo:
    """The demo in ``folder``."""

    def __init__(self, folder: Path, rounds: int, open_page: bool) -> None:
        self._folder, self._open = folder, open_page
        self._study, self._centres = study(rounds), centres()
        self._coordinator, self._file = folder / "coordinator", folder / "study.toml"
        self._started: list[subprocess.Popen[bytes]] = []

    def play(self) -> None:
        """From nothing to a report; every process is ended, however this ends."""
        try:
            self._prepare()
            self._found()
            for centre in self._centres:
                self._take_in(centre.name)
            self._agree()
            self._run()
        finally:
            self._stop()

    def _prepare(self) -> None:
        from polyclinic.core import files
        from polyclinic.simulations.centres import write_centres

        count = sum(centre.patients for centre in self._centres)
        typer.echo(f"Making {count} images of {len(self._centres)} made-up hospitals, each with a manifest of its own.")
        with files.explained(self._folder):
            for centre in self._centres:
                images = self._folder / "images" / centre.name
                write_centres(images, (centre,), seed=self._study.study.seed, size=self._study.data.image_size)
        files.write(self._file, self._study.toml())

    def _found(self) -> None:
        from polyclinic.simulations.live import free_ports

        names = ("--fleet-port", "--governance-port", "--page-port", "--private-port")
        ports = [word for pair in zip(names, map(str, free_ports(4)), strict=True) for word in pair]
        title("The coordinator")
        call("coordinator", "init", self._coordinator, "--host", "127.0.0.1", "--bind", "127.0.0.1", *ports)
        self._start("coordinator", self._coordinator)
        from polyclinic.server.live.home import Home
        from polyclinic.simulations.live import reachable

        settings = Home.open(self._coordinator).settings
        self._until(lambda: all(map(reachable, (settings.fleet_port, settings.governance_port, settings.page_port))))

    def _take_in(self, name: str) -> None:
        from polyclinic.simulations.live import free_ports

        title(name)
        invitation, home = self._folder / f"{name}.invitation", self._folder / name
        call("coordinator", "invite", name, "--to", invitation, "--dir", self._coordinator)
        manifest = self._folder / "images" / name / "manifest.csv"
        port = str(free_ports(1)[0])
        call("site", "join", invitation, "--data", manifest, "--local-port", port, "--dir", home)
        self._start("site", home)

    def _agree(self) -> None:
        title("A study, and the sites' approval")
        call("coordinator", "publish", self._file, "--dir", self._coordinator)
        digest = self._study.digest
        for centre in self._centres:
            home = self._folder / centre.name
            self._until((home / "shared" / "studies" / f"{digest}.json").exists)
            call(
                "site",
                "approve",
                digest[:12],
                "--yes",
                "--rounds",
                str(self._study.rounds.count),
                "--dir",
                home,
                says="Approved ",
            )
        self._until(lambda: len(self._approved(digest)) == len(self._centres))

    def _run(self) -> None:
        import webbrowser

        from polyclinic.cli.standing import desk, page

        title("A run")
        with desk(self._coordinator) as (home, registry):
            url = page(home)
            call("coordinator", "run", self._study.digest[:12], "--dir", self._coordinator)
            run = registry.runs()[-1]
        typer.echo(f"  The live page: {url}")
        if self._open:
            webbrowser.open(url)  # silently nothing where there is no desktop
        finished = call("coordinator", "watch", run.name, "--dir", self._coordinator, whole=True) == 0
        title("Can it be proved?")
        call("coordinator", "verify", "--dir", self._coordinator, says=" checks")
        for centre in self._centres:
            call("site", "verify", "--dir", self._folder / centre.name, says=" checks")
        if not finished:
            typer.echo(f"The run did not finish; the logs are in {self._coordinator / 'logs'}.", err=True)
            raise typer.Exit(1)
        report = Path(run.folder) / "report.html"
        typer.echo(f"Look around: polyclinic site log --dir {self._folder / self._centres[0].name}")
        typer.echo(f"Report:      {report}")
        if self._open:
            webbrowser.open(report.as_uri())

    def _start(self, role: str, home: Path) -> None:
        """As in a terminal of its own."""
        import subprocess

        words = [role, "start", "--dir", str(home)]
        shown(words)
        typer.echo(f"  In a process of its own; what it says goes to {home.name}.log.")
        with (self._folder / f"{home.name}.log").open("ab") as log:
            command = [sys.executable, "-m", "polyclinic.cli.main", *words]
            self._started.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log))

    def _stop(self) -> None:
        import subprocess

        for process in reversed(self._started):
            process.terminate()
        for process in self._started:
            try:
                process.wait(30.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._started:
            typer.echo("Every process was ended.")

    def _approved(self, digest: str) -> Sequence[str]:
        from polyclinic.cli.standing import desk

        with desk(self._coordinator) as (_, registry):
            return [site for site, found in registry.decisions(digest).items() if found.verb == "approve"]

    def _until(self, so: Callable[[], bool]) -> None:
        """Waits; a process that has ended meanwhile will not bring it about.

        Raises:
            EngineError: it took too long.
        """
        from polyclinic.core.errors import EngineError

        end = time.monotonic() + PATIENCE
        while not so():
            if time.monotonic() > end or any(process.poll() is not None for process in self._started):
                remedy = "the logs there say why"
                raise EngineError("a process of the demo does not answer", where=str(self._folder), remedy=remedy)
            time.sleep(0.2)


def study(rounds: int) -> Study:
    """The demo's study, of so many rounds."""
    from polyclinic.core.config import parse
    from polyclinic.core.study import Study
    from polyclinic.simulations.demo import demo_study

    document: dict[str, Any] = demo_study().model_dump(mode="json")
    about = "Is there a lesion? Three synthetic hospitals that differ in scanner and size."
    document["study"] |= {"name": "live-demo", "description": about}
    document["rounds"]["count"] = rounds
    return parse(Study, document, "live-demo")


def centres() -> Sequence[Centre]:
    """Three of the demo's centres, with fewer patients, and enough that every split may be told of."""
    from dataclasses import replace

    from polyclinic.simulations.centres import demo_centres

    patients = {"large_hospital": 140, "old_scanner": 90, "hurried_readers": 80}
    return [replace(centre, patients=patients[centre.name]) for centre in demo_centres() if centre.name in patients]


@contextmanager
def until_interrupted(folder: Path) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the block, and say so."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(
            f"\nStopped. What there is so far is in {folder}; the demo starts anew when it is called again.", err=True
        )
        raise typer.Exit(130) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _begin(folder: Path) -> None:
    """Makes the folder; one that the live demo made before is emptied.

    Raises:
        RunError: it holds something else.
    """
    import shutil

    from polyclinic.core import files
    from polyclinic.core.errors import RunError

    if folder.exists() and not (folder.is_dir() and (not any(folder.iterdir()) or (folder / MARK).is_file())):
        raise RunError("holds something else than a live demo", where=str(folder), remedy="choose another folder")
    with files.explained(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    files.write(folder / MARK, OURS)
