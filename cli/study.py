"""polyclinic study new, check and explain."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from polyclinic.cli.described import Command

app = typer.Typer(no_args_is_help=True)
StudyFile = Annotated[Path, typer.Argument(metavar="STUDY.toml", help="A study file.")]


@app.command(cls=Command)
def new(
    path: Annotated[Path, typer.Argument(metavar="STUDY.toml", help="The file to write; must not exist yet.")] = Path(
        "study.toml"
    ),
    private: Annotated[bool, typer.Option("--private", help="One whose updates and figures are noised.")] = False,
) -> None:
    """Write a study file with a comment on every setting, to start from."""
    from importlib.resources import files as resources

    from polyclinic.core import files
    from polyclinic.core.errors import StudyError

    if path.exists():
        raise StudyError("exists already", where=str(path), remedy="choose another name")
    template = "private.toml" if private else "template.toml"
    files.write(path, resources("polyclinic.cli").joinpath(template).read_text(encoding="utf-8"))
    typer.echo(f"Wrote {path}. Adjust it to your manifest, then: polyclinic study check {path}")


@app.command(cls=Command)
def check(study_file: StudyFile) -> None:
    """Say a study's digest, which names it everywhere, or everything that is wrong with it."""
    from polyclinic.core import study as studies

    study = studies.load(study_file)
    typer.echo(f"{study_file}: a sound study. Digest: {study.digest}")


@app.command(cls=Command)
def explain(study_file: StudyFile) -> None:
    """Say in plain words what a study trains, what leaves a hospital and what does not."""
    from polyclinic.core import study as studies
    from polyclinic.simulations.explain import explain as sentences

    for title, lines in sentences(studies.load(study_file)).items():
        typer.secho(title, bold=True)
        for line in lines:
            typer.echo(f"  {line}")
