"""``polyclinic data``: what a hospital's images look like to a study, before anything is trained."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polyclinic.cli.described import Command

if TYPE_CHECKING:
    from polyclinic.client.data.check import Report

_SHOWN = 20
_VALUES = 8

app = typer.Typer(help="Look at a manifest and its images.", no_args_is_help=True)


@app.callback()
def _data() -> None:
    """Look at a manifest and its images."""  # a callback keeps "check" a command of its own


@app.command("check", cls=Command)
def check(
    manifest: Annotated[
        Path, typer.Argument(metavar="MANIFEST.csv", help="One line an image; or a folder, to look at all its files.")
    ],
    study: Annotated[
        Path | None,
        typer.Option(metavar="STUDY.toml", help="What the images are for; without it, labels are not checked."),
    ] = None,
    one_site: Annotated[
        bool, typer.Option("--one-site", help="The manifest is one hospital's own, so one site is enough.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Look for the images without opening them.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the whole report as JSON.")] = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the report as a page, for this site's eyes only.")
    ] = None,
    quarantine: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a list of the images that cannot be read, and why.")
    ] = None,
) -> None:
    """Find everything that is wrong with a manifest, its images and its sites. Exit code 1 if a study cannot run.

    Nothing leaves this machine. Of how images were taken, only a short list of fields is counted; no date, name or
    identifier is read.
    """
    from rich.console import Console
    from rich.progress import track

    from polyclinic.client.data import check as preflight
    from polyclinic.core import files
    from polyclinic.core import study as studies

    settings = None if study is None else studies.load(study)
    terminal = Console(stderr=True)
    progress = partial(track, description="Opening images", console=terminal, disable=not terminal.is_terminal)
    if manifest.is_dir():
        report = preflight.check_folder(manifest, watch=progress)
    else:
        report = preflight.check(manifest, settings, decode=not quick, one_site=one_site, watch=progress)
    if html is not None:
        from polyclinic.client.data.page import page

        files.write(html, page(report))
    if quarantine is not None:
        files.write(quarantine, report.quarantine_list())
    if json:
        typer.echo(report.json())
    else:
        _show(report)
    raise typer.Exit(0 if report.ok else 1)


def _show(report: Report) -> None:
    from rich.console import Console

    console = Console()
    if console.is_terminal:
        console.print(_table(report))
    else:
        for count in report.counts:
            classes = ", ".join(f"{name}: {images}" for name, images in count.classes)
            typer.echo(f"{count.site} {count.split}: {count.images} images, {count.patients} patients ({classes})")
    for field, values in _acquisition(report).items():
        typer.echo(f"{field}: {values}")
    for severity in ("warning", "error"):
        problems = [problem for problem in report.problems if problem.severity == severity]
        for problem in problems[:_SHOWN]:
            typer.echo(f"{severity}: {problem}")
        if len(problems) > _SHOWN:
            typer.echo(f"and {len(problems) - _SHOWN} {severity}s more: --json lists all")
    typer.echo(_verdict(report))


def _table(report: Report) -> object:
    from rich.table import Table
    from rich.text import Text

    table = Table("site", "split", "images", "patients", "classes")
    for count in report.counts:
        classes = ", ".join(f"{name}: {images}" for name, images in count.classes)
        cells = (count.site, count.split, f"{count.images}", f"{count.patients}", classes)
        table.add_row(*map(Text, cells), end_section=count.split == "test")  # Text: a label is no markup
    return table


def _acquisition(report: Report) -> dict[str, str]:
    """How DICOM images were taken: for each field its values and counts over all sites, the most frequent first."""
    sums: dict[str, dict[str, int]] = {}
    for one in report.acquisition:
        held = sums.setdefault(one.field, {})
        held[one.value] = held.get(one.value, 0) + one.images
    return {
        field: ", ".join(
            f"{value} ({images})" for value, images in sorted(held.items(), key=lambda pair: -pair[1])[:_VALUES]
        )
        for field, held in sums.items()
    }


def _verdict(report: Report) -> str:
    errors = len(report.errors)
    warnings = len(report.problems) - errors
    said = f"{errors} error{'' if errors == 1 else 's'}, {warnings} warning{'' if warnings == 1 else 's'}"
    if not report.counts and report.formats:
        read = ", ".join(f"{images} {name}" for name, images in report.formats)
        return f"{said}: {read} read, {len(report.quarantine)} files quarantined."
    if errors:
        return f"{said}: mend what is named above, then run this check again."
    images, sites = sum(count.images for count in report.counts), len({count.site for count in report.counts})
    return f"{said}: ready, {images} images of {sites} site{'' if sites == 1 else 's'}."
