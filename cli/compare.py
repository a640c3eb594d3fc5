"""polyclinic compare: ways to adapt, on the same federation and seeds, over six measured axes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from polyclinic.cli.simulate import Folder, Manifest, StudyFile, Workers

if TYPE_CHECKING:
    from polyclinic.simulations.compare.compare import Step
    from polyclinic.simulations.compare.plan import Variant


def compare(
    study_file: StudyFile,
    data: Manifest,
    methods: Annotated[
        str, typer.Option(metavar="A,B,A+C", help="Methods with their defaults, by comma; + makes a chain.")
    ] = "",
    variants: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.toml", help="More of them, with other settings than the defaults: see docs/trade-offs.md."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="How many: the study's and those after it.", min=1, max=100)] = 3,
    axes: Annotated[
        str, typer.Option(metavar="X,Y", help="Which of depth, labels, robustness, cost, audit, burden to measure.")
    ] = "depth,labels,robustness,cost,audit,burden",
    run: Folder = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the comparison in --run: what is finished is used again.")
    ] = False,
    workers: Workers = 0,
    most: Annotated[
        int, typer.Option(help="Trainings that are allowed: methods × seeds, and their parts.", min=1)
    ] = 60,
    as_json: Annotated[bool, typer.Option("--json", help="Print compare.json instead of text.")] = False,
) -> None:
    """Compare methods of adaptation: what each gives, costs, changes and asks for, in a table and a page.

    Each stands in for those of the study's own methods that adapt; sites, images and seeds are the same for all.
    """
    import json

    from polyclinic.cli.simulate import cores
    from polyclinic.core import study as studies
    from polyclinic.simulations.compare import plan
    from polyclinic.simulations.compare.compare import PAGE, Settings
    from polyclinic.simulations.compare.compare import compare as carry_out

    if resume and run is None:
        raise typer.BadParameter("say which comparison to go on with: --run FOLDER", param_hint="--resume")
    study = studies.load(study_file)
    chosen: tuple[Variant, ...] = plan.named(methods) + (() if variants is None else plan.in_file(variants))
    folder = run or default_folder(study.study.name)
    wanted = tuple(axis.strip() for axis in axes.split(",") if axis.strip())
    settings = Settings(seeds, wanted, most, workers or cores(study), resume)
    try:
        document = carry_out(study, data, chosen, folder, settings, _tell)
    except KeyboardInterrupt:
        typer.echo(f"\nStopped. Nothing is lost: run the same command with --run {folder} --resume.", err=True)
        raise typer.Exit(130) from None
    if as_json:
        typer.echo(json.dumps(document, indent=1, ensure_ascii=False))
        return
    _print(document)
    typer.echo(f"Folder: {folder}")
    typer.echo(f"Page:   {(folder / PAGE).resolve()}")


def default_folder(name: str) -> Path:
    """runs/NAME-compared-DATE-TIME."""
    from datetime import datetime

    return Path("runs", f"{name.lower().replace(' ', '-')}-compared-{datetime.now():%Y%m%d-%H%M%S}")


def _tell(step: Step) -> None:
    """A line for every training, on standard error."""
    from polyclinic.server.report.words import duration

    if not step.cell:
        typer.echo(f"All {step.of} are done, in {duration(step.seconds)}.", err=True)
        return
    typer.echo(f"[{step.done + 1}/{step.of}] {step.cell}  ({duration(step.seconds)} so far)", err=True)


def _print(document: dict[str, Any]) -> None:
    """The table and the sentences."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from polyclinic.simulations.compare.matrix import groups

    console = Console(highlight=False)
    for group in groups(document):
        table = Table(title=group.title, title_justify="left", title_style="bold", box=None, pad_edge=False)
        table.add_column("")
        for row in document["variants"]:
            table.add_column(row["name"], justify="right")
        for line in group.lines:
            cells = (f"{escape(cell.text)} [dim]{escape(cell.note)}[/dim]" for cell in line.cells)
            table.add_row(line.name, *cells)
        console.print(table)
        console.print()
    for one in document["findings"]:
        console.print(f"[bold]{one['topic']}[/bold] {escape(one['text'])}")
    console.print()
