"""polyclinic simulate and polyclinic demo."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from polyclinic.core.study import Study
    from polyclinic.simulations.simulate import Options

StudyFile = Annotated[Path, typer.Argument(help="The study file (TOML).", show_default=False)]
Manifest = Annotated[Path, typer.Option("--data", help="CSV: image path, site, label, … one line an image.")]
Folder = Annotated[Path | None, typer.Option("--run", help="Run folder. Default: runs/NAME-DATE.", show_default=False)]
Workers = Annotated[int, typer.Option(help="Worker processes; 0: one a core.", min=0)]


def simulate(
    study_file: StudyFile,
    data: Manifest,
    engine: Annotated[Literal["inprocess", "flower"], typer.Option(help="Who carries the messages.")] = "inprocess",
    ray_address: Annotated[str | None, typer.Option(help="A Ray cluster that exists (engine flower).")] = None,
    workers: Workers = 0,
    baselines: Annotated[bool, typer.Option("--baselines", help="Also train each site alone, and all pooled.")] = False,
    seed: Annotated[int | None, typer.Option(help="Instead of the study's seed.", min=0)] = None,
    run: Folder = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a run stopped.")] = False,
    policy: Annotated[Path | None, typer.Option(help="Rules that every site follows (TOML).")] = None,
) -> None:
    """Simulate a whole multi-centre federation on this machine, and write its run folder and report."""
    from polyclinic.client.policy import Policy, read_policy
    from polyclinic.core import study as studies
    from polyclinic.simulations.simulate import Options

    study = studies.load(study_file)
    study = study if seed is None else study.with_seed(seed)
    rules = Policy() if policy is None else read_policy(policy)
    options = Options(engine, workers or cores(study), ray_address, baselines, resume, rules)
    carry_out(study, data, run or default_folder(study), options)


def demo(
    run: Annotated[Path, typer.Option("--run", help="Run folder.")] = Path("runs/demo"),
    workers: Workers = 0,
    images: Annotated[Path, typer.Option(help="Where the synthetic images go.")] = Path("runs/demo-images"),
    open_report: Annotated[bool, typer.Option("--open", help="Open the report in a browser.")] = False,
) -> None:
    """Run a federation of five synthetic centres to its report; needs no data and no network."""
    import shutil

    from polyclinic.simulations.centres import demo_centres, write_centres
    from polyclinic.simulations.demo import demo_study
    from polyclinic.simulations.simulate import Options

    study = demo_study()
    manifest = write_centres(images, demo_centres(), seed=study.study.seed, size=study.data.image_size)
    shutil.rmtree(run, ignore_errors=True)
    carry_out(study, manifest, run, Options(workers=workers or cores(study), baselines=True))
    if open_report:
        typer.launch(str((run / "report.html").resolve()))


def carry_out(study: Study, data: Path, folder: Path, options: Options) -> None:
    """Simulates with progress on the terminal, and says at the end, or when stopped, what comes next."""
    from polyclinic.cli.progress import progress
    from polyclinic.simulations.simulate import simulate as simulate_run

    try:
        with progress(study, options.baselines) as observe:
            finished = simulate_run(study, data, folder, options, observe)
    except KeyboardInterrupt:
        typer.echo(f"\nStopped. Nothing is lost: run the same command with --run {folder} --resume to go on.", err=True)
        raise typer.Exit(130) from None
    typer.echo(f"Run folder: {finished.folder}")
    typer.echo(f"Report:     {finished.report.resolve()}")


def cores(study: Study) -> int:
    """Workers for this machine: one for every ``training.threads`` cores."""
    import os

    return max(1, len(os.sched_getaffinity(0)) // study.training.threads)


def default_folder(study: Study) -> Path:
    """runs/NAME-DATE-TIME."""
    name = study.study.name.lower().replace(" ", "-")
    return Path("runs", f"{name}-{datetime.now():%Y%m%d-%H%M%S}")
