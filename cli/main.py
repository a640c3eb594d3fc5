"""The command line: one small file a role; everything heavy is imported only when a command runs."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from polyclinic.cli import (
    audit,
    bench,
    compare,
    coordinator,
    data,
    live_demo,
    methods,
    privacy,
    run,
    simulate,
    site,
    study,
)
from polyclinic.cli.described import Command
from polyclinic.core.errors import PolyclinicError

_FIRST_STEPS = (
    "New here? 'polyclinic demo' shows everything on made-up images. With images of your own: 'polyclinic study new', "
    "then 'polyclinic data check', then 'polyclinic simulate'."
)

app = typer.Typer(
    name="polyclinic",
    epilog=_FIRST_STEPS,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"polyclinic {version('polyclinic')}")
        raise typer.Exit


@app.callback()
def _polyclinic(
    version: Annotated[bool, typer.Option("--version", help="Say the version.", callback=_version, is_eager=True)] = (
        False
    ),
) -> None:
    """Hospitals adapt a medical-imaging foundation model together while every image stays at home."""


for _name, _command, _panel in (
    ("demo", simulate.demo, "Simulate a federation"),
    ("simulate", simulate.simulate, "Simulate a federation"),
    ("compare", compare.compare, "Simulate a federation"),
    ("evaluate", run.evaluate, "Use a finished run"),
    ("report", run.report, "Use a finished run"),
    ("export", run.export, "Use a finished run"),
    ("verify", run.verify, "Use a finished run"),
):
    app.command(_name, cls=Command, rich_help_panel=_panel)(_command)
app.command("methods", cls=Command, rich_help_panel="Prepare")(methods.methods)
app.command("audit", cls=Command, rich_help_panel="Prepare")(audit.audit)
app.command("live-demo", cls=Command, rich_help_panel="Live federation")(live_demo.live_demo)
app.add_typer(study.app, name="study", help="Write, check and explain study files.", rich_help_panel="Prepare")
app.add_typer(data.app, name="data", help="Check images before anything is trained.", rich_help_panel="Prepare")
app.add_typer(privacy.app, name="privacy", help="Plan and prove what privacy costs.", rich_help_panel="Prepare")
app.add_typer(
    coordinator.app, name="coordinator", help="Run a live federation's coordinator.", rich_help_panel="Live federation"
)
app.add_typer(site.app, name="site", help="Take part in one, as a hospital.", rich_help_panel="Live federation")
app.add_typer(bench.app, name="bench", help="Measure speed and memory on this machine.", rich_help_panel="Develop")


def main() -> None:
    """Runs the command line; an error of ours, or a file that may not be read, is one clear line and exit code 1."""
    try:
        app()
    except PolyclinicError as failure:
        print(f"polyclinic: {failure}", file=sys.stderr)
        sys.exit(1)
    except PermissionError as failure:
        print(f"polyclinic: {failure.filename}: permission denied (call this as its owner)", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
