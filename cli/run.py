"""polyclinic evaluate, report and export: what can be done with a finished run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

RunFolder = Annotated[Path, typer.Argument(help="A run folder.", show_default=False)]


def evaluate(
    run: RunFolder,
    data: Annotated[Path, typer.Option("--data", help="CSV of the images to judge on; any sites.")],
    split: Annotated[Literal["train", "val", "test", "all"], typer.Option(help="Which images.")] = "test",
    policy: Annotated[Path | None, typer.Option(help="Rules about what is withheld (TOML).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
) -> None:
    """Judge a finished model on any sites, with 95 % confidence intervals (external validation)."""
    from polyclinic.client.policy import read_policy
    from polyclinic.core import runs
    from polyclinic.simulations.evaluate import evaluate as judge

    result = judge(runs.read(run), data, split, None if policy is None else read_policy(policy))
    if as_json:
        typer.echo(json.dumps(result, indent=1))
    else:
        _table(result)


def report(
    run: RunFolder,
    open_it: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
) -> None:
    """Write a run's report anew (one HTML file, no network) and say where it is."""
    from polyclinic.core import runs
    from polyclinic.server.report.page import write_report

    finished = runs.read(run)
    write_report(finished.folder)
    typer.echo(finished.report.resolve())
    if open_it:
        typer.launch(str(finished.report.resolve()))


def export(
    run: RunFolder,
    folder: Annotated[Path, typer.Argument(help="Where to; must not exist yet.", show_default=False)],
    merged: Annotated[
        bool, typer.Option("--merged", help="Backbone with the adapter merged in, and the head.")
    ] = False,
) -> None:
    """Take a finished adapter (peft's format) or the merged model (transformers' format) out of a run."""
    from polyclinic.core import runs
    from polyclinic.simulations.export import export as write

    write(runs.read(run), folder, merged=merged)
    typer.echo(f"{'Merged model' if merged else 'Adapter'}: {folder.resolve()} (README.md there says how to load it)")


def _table(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    names = {"auroc": "AUROC", "accuracy": "accuracy", "nll": "NLL", "brier": "Brier", "ece": "ECE"}
    table = Table("site", "images", "patients", *names.values(), title=f"split: {result['split']}, 95 % intervals")
    notes: list[str] = []
    for site, row in [*result["sites"].items(), ("pooled", result["pooled"])]:
        counts = row.get("n", {})
        cells = [figure(row["metrics"][key]) if row["metrics"] else "–" for key in names]
        table.add_row(site, str(counts.get("images", "")), str(counts.get("patients", "")), *cells)
        why = {row["metrics"][key].get("why") for key in names if row["metrics"]} - {None}
        notes += [f"{site}: {reason}" for reason in sorted(why)]
    console = Console()
    console.print(table)
    for note in notes:
        console.print(f"– {note}", highlight=False)


def figure(found: dict[str, Any]) -> str:
    """0.912 (0.851–0.950), or a dash."""
    if found["value"] is None:
        return "–"
    return f"{found['value']:.3f} ({found['low']:.3f}–{found['high']:.3f})"
