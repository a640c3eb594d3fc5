"""polyclinic simulate and polyclinic demo."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from polyclinic.core.study import Study
    from polyclinic.simulations.simulate import Options

StudyFile = Annotated[
    Path, typer.Argument(metavar="STUDY.toml", help="What is trained and how: see 'polyclinic study'.")
]
Manifest = Annotated[
    Path,
    typer.Option(
        "--data",
        metavar="MANIFEST.csv",
        help="One line an image, with columns path, site, label and, if known, split and patient_id.",
    ),
]
Folder = Annotated[
    Path | None,
    typer.Option("--run", metavar="FOLDER", help="Where the run goes.", show_default="runs/NAME-DATE-TIME"),
]
Workers = Annotated[int, typer.Option(help="Processes that work at once; 0: as many as there are cores.", min=0)]


def simulate(
    study_file: StudyFile,
    data: Manifest,
    run: Folder = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --run, which was stopped.")] = False,
    baselines: Annotated[
        bool, typer.Option("--baselines", help="For comparison, also train every site alone and all images together.")
    ] = False,
    workers: Workers = 0,
    seed: Annotated[int | None, typer.Option(help="Another seed than the study's.", min=0, max=2**32 - 1)] = None,
    policy: Annotated[
        Path | None, typer.Option(metavar="POLICY.toml", help="What every site holds back, such as small groups.")
    ] = None,
    engine: Annotated[
        Literal["inprocess", "flower"], typer.Option(help="Plain processes, or Flower's simulation on Ray.")
    ] = "inprocess",
    ray_address: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="A Ray cluster that is up already (with --engine flower).")
    ] = None,
    cache_mb: Annotated[
        int, typer.Option(help="MiB for features of frozen parts of the backbone while the run lasts; 0: none.", min=0)
    ] = 2048,
) -> None:
    """Simulate a federation of many sites on this machine, and write its run folder with a report.

    The same study, seed and images give the same adapter to the last bit, whatever the number of workers.
    """
    from polyclinic.client.policy import Policy, read_policy
    from polyclinic.core import study as studies
    from polyclinic.simulations.simulate import Options

    if resume and run is None:
        raise typer.BadParameter("say which run to go on with: --run FOLDER", param_hint="--resume")
    if ray_address and engine != "flower":
        raise typer.BadParameter("only Flower runs on Ray: add --engine flower", param_hint="--ray-address")
    study = studies.load(study_file)
    study = study if seed is None else study.with_seed(seed)
    rules = Policy() if policy is None else read_policy(policy)
    folder = run or default_folder(study)
    demand_place(folder, resume=resume)
    options = Options(engine, workers or cores(study), ray_address, baselines, resume, rules, cache_mb)
    again = f"Nothing is lost: run the same command with --run {folder} --resume to go on."
    carry_out(study, data, folder, options, again)


def demo(
    run: Annotated[
        Path, typer.Option("--run", metavar="FOLDER", help="Where the run goes; an old run there is replaced.")
    ] = Path("runs/demo"),
    workers: Workers = 0,
    images: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the made-up images go.")] = Path(
        "runs/demo-images"
    ),
    open_report: Annotated[bool, typer.Option("--open", help="Open the report in a browser.")] = False,
) -> None:
    """Simulate five made-up centres, from images to report, in some minutes; needs no data and no network."""
    import shutil
    import webbrowser

    from polyclinic.core import files
    from polyclinic.simulations.centres import demo_centres, write_centres
    from polyclinic.simulations.demo import demo_study
    from polyclinic.simulations.simulate import Options

    study, centres = demo_study(), demo_centres()
    demand_place(run, resume=run.exists())
    demand_ours(images)
    pictures = sum(centre.patients * centre.images_per_patient for centre in centres)
    typer.echo(f"Making {pictures} images of {len(centres)} made-up centres in {images}")
    with files.explained(images):
        manifest = write_centres(images, centres, seed=study.study.seed, size=study.data.image_size)
    shutil.rmtree(run, ignore_errors=True)
    options = Options(workers=workers or cores(study), baselines=True)
    report = carry_out(study, manifest, run, options, "The demo starts anew when it is called again.")
    if open_report:
        webbrowser.open(report.as_uri())  # silently nothing where there is no desktop


def carry_out(study: Study, data: Path, folder: Path, options: Options, again: str) -> Path:
    """Simulates with progress on the terminal, says how it went or, when stopped, what comes next: the report."""
    from contextlib import suppress

    from polyclinic.cli.progress import progress
    from polyclinic.cli.result import sentences
    from polyclinic.simulations.simulate import simulate as simulate_run

    try:
        with progress(study, options.baselines) as observe:
            finished = simulate_run(study, data, folder, options, observe)
    except KeyboardInterrupt:
        typer.echo(f"\nStopped. {again if folder.exists() else 'Nothing had been written.'}", err=True)
        raise typer.Exit(130) from None
    finally:
        with suppress(OSError):
            folder.rmdir()  # goes only if it is empty: the disk was full before anything was written
    for line in sentences(finished.summary):
        typer.echo(line)
    typer.echo(f"Run folder: {finished.folder}")
    typer.echo(f"Report:     {finished.report.resolve()}")
    return finished.report.resolve()


def demand_place(folder: Path, *, resume: bool) -> None:
    """Refuses a folder that holds something else than a run; to resume, there must be one.

    Raises:
        RunError: naming the folder.
    """
    from polyclinic.core.errors import RunError

    if folder.is_dir():
        begun = (folder / "study.toml").exists() or (folder / "journal").exists()
        if begun or not any(folder.iterdir()):
            return
        raise RunError("holds something else than a run", where=str(folder), remedy="choose another --run folder")
    if folder.exists():
        raise RunError("is no folder", where=str(folder), remedy="choose another --run folder")
    if resume:
        raise RunError("there is no such run", where=str(folder), remedy="check the name, or begin without --resume")


def demand_ours(images: Path) -> None:
    """Refuses a folder whose manifest the demo did not write: it would be replaced."""
    from polyclinic.core.errors import DataError
    from polyclinic.simulations.centres import COLUMNS

    manifest = images / "manifest.csv"
    if manifest.exists() and not manifest.read_bytes().startswith(",".join(COLUMNS).encode()):
        raise DataError("is not the demo's own", where=str(manifest), remedy="choose another --images folder")


def cores(study: Study) -> int:
    """Workers for this machine: one for every ``training.threads`` cores."""
    import os

    free = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, free // study.training.threads)


def default_folder(study: Study) -> Path:
    """runs/NAME-DATE-TIME."""
    name = study.study.name.lower().replace(" ", "-")
    return Path("runs", f"{name}-{datetime.now():%Y%m%d-%H%M%S}")
