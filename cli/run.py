"""polyclinic evaluate, report, export and verify: what can be done with a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")]


def evaluate(
    run: RunFolder,
    data: Annotated[
        Path, typer.Option("--data", metavar="MANIFEST.csv", help="The images to judge it on, of whichever sites.")
    ],
    split: Annotated[
        Literal["train", "val", "test", "all"], typer.Option(help="Which of them; all: whatever their split.")
    ] = "test",
    policy: Annotated[
        Path | None, typer.Option(metavar="POLICY.toml", help="What is held back, such as figures of small groups.")
    ] = None,
    quarantine: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Images to leave out, as 'data check --quarantine' lists them.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Judge a finished model on any sites, those that took no part included, with 95 % confidence intervals."""
    import json

    from polyclinic.client.policy import read_policy
    from polyclinic.core import runs
    from polyclinic.simulations.evaluate import evaluate as judge

    rules = None if policy is None else read_policy(policy)
    result = judge(runs.read(run), data, split, rules, quarantine)
    if as_json:
        typer.echo(json.dumps(result, indent=1))
    else:
        _table(result)


def report(
    run: RunFolder,
    open_it: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
) -> None:
    """Write a run's report anew (one HTML file that needs no network) and say where it is."""
    import webbrowser

    from polyclinic.core import runs
    from polyclinic.server.report.page import write_report

    finished = runs.read(run)
    write_report(finished.folder)
    typer.echo(finished.report.resolve())
    if open_it:
        webbrowser.open(finished.report.resolve().as_uri())


def export(
    run: RunFolder,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where it goes; must not exist yet.")],
    merged: Annotated[
        bool, typer.Option("--merged", help="The whole model, with the adapter merged into the backbone.")
    ] = False,
) -> None:
    """Take the adapter (in peft's format if it has one) or, merged, the whole model (in transformers') out of a run."""
    from polyclinic.core import runs
    from polyclinic.simulations.export import export as write

    write(runs.read(run), folder, merged=merged)
    typer.echo(f"{'Merged model' if merged else 'Adapter'}: {folder.resolve()} (README.md there says how to load it)")


def verify(run: RunFolder) -> None:
    """Check that a run was not altered: study, ledger line by line, rounds and adapter. Exit code 1 if it was."""
    from polyclinic.core.verify import verify as checks

    for found in checks(run):
        typer.echo(f"ok: {found}")


def _table(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from polyclinic.cli.result import figure
    from polyclinic.core.statistics.metrics import JUDGED, kind_of

    judged = [row["metrics"] for row in (*result["sites"].values(), result["pooled"]) if row["metrics"]]
    kind = kind_of(judged[0] if judged else ()) or JUDGED["outcome"]
    names = {metric.key: metric.name for metric in kind.metrics if metric.key in kind.brief}
    images = {"all": "all images"}.get(result["split"], f"{result['split']} images")
    table = Table("site", "images", "patients", *names.values(), title=f"On {images}, with 95 % intervals")
    notes: list[str] = []
    for site, row in [*result["sites"].items(), ("pooled", result["pooled"])]:
        counts = row.get("n", {})
        cells = [figure(row["metrics"][key]) if row["metrics"] else "–" for key in names]
        table.add_row(site, str(counts.get("images", "")), str(counts.get("patients", "")), *cells)
        why = {row["metrics"][key].get("why") for key in names if row["metrics"]} - {None}
        notes += [f"{site}: {reason}" for reason in sorted(why)]
    console = Console()
    console = console if console.is_terminal else Console(width=160)  # in a file, no column is cut
    console.print(table)
    for note in notes:
        console.print(f"– {note}", highlight=False)
