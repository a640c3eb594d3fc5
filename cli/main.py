"""The command line: one small file a role; everything heavy is imported only when a command runs."""

from __future__ import annotations

import sys

import typer

from polyclinic.cli import bench, data, run, simulate, study
from polyclinic.core.errors import PolyclinicError

app = typer.Typer(
    name="polyclinic",
    help="Hospitals adapt a medical-imaging foundation model together while every image stays at home.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command("simulate")(simulate.simulate)
app.command("demo")(simulate.demo)
app.command("evaluate")(run.evaluate)
app.command("report")(run.report)
app.command("export")(run.export)
app.add_typer(study.app, name="study", help="Write, check and explain study files.")
app.add_typer(bench.app, name="bench", help="Measure speed and memory, side by side with what they are judged by.")
app.add_typer(data.app, name="data", help="Look at images and manifests before anything is trained.")


def main() -> None:
    """Runs the command line; an error of ours is one clear line and exit code 1."""
    try:
        app()
    except PolyclinicError as failure:
        print(f"polyclinic: {failure}", file=sys.stderr)
        sys.exit(1)
