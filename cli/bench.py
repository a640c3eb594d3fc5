"""polyclinic bench: figures measured side by side in one run; the last line is the figure as JSON."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from polyclinic.cli.described import Command

if TYPE_CHECKING:
    from polyclinic.simulations.bench.figure import Measured

app = typer.Typer(no_args_is_help=True)
Json = Annotated[bool, typer.Option("--json", help="Nothing but the figures, a line of JSON each.")]
Repeats = Annotated[int, typer.Option(min=1, help="Times that each side is measured, in turn.")]
Sites = Annotated[int, typer.Option(min=2, help="Made-up sites.")]
Patients = Annotated[int, typer.Option(min=10, help="Patients a site, one image each.")]
Rounds = Annotated[int, typer.Option(min=1, help="Rounds of the federation.")]


@app.command()
def simulate(
    sites: Sites = 8, patients: Patients = 60, rounds: Rounds = 2, repeats: Repeats = 3, json: Json = False
) -> None:
    """Wall time of a simulation ÷ a bare PyTorch loop doing the same work (goal: at most 1.05)."""
    from polyclinic.simulations.bench import speed

    _say([speed.against_bare(sites, patients, rounds, repeats)], json)


@app.command()
def workers(
    sites: Sites = 50, patients: Patients = 24, rounds: Rounds = 2, repeats: Repeats = 3, json: Json = False
) -> None:
    """Wall time of two worker processes ÷ one (goal: at most 0.60)."""
    from polyclinic.simulations.bench import speed

    _say([speed.workers(sites, patients, rounds, repeats)], json)


@app.command()
def startup(sites: Sites = 8, patients: Patients = 60, repeats: Repeats = 3, json: Json = False) -> None:
    """Seconds to the first local step beyond the bare loop's (goal: 1), and of --help (goal: 0.5)."""
    from polyclinic.simulations.bench import processes

    _say([processes.help_text(repeats), processes.startup(sites, patients, repeats)], json)


@app.command()
def memory(sites: Sites = 8, patients: Patients = 60, repeats: Repeats = 3, json: Json = False) -> None:
    """Peak memory of all processes ÷ the bare loop's, the server's from 10 to 1,000 sites, bytes a round."""
    from polyclinic.simulations.bench import processes, server

    _say([server.bytes_a_round(sites, patients, 10)], json)
    _say([server.flat(10, 1000)], json)
    for workers_ in (2, 1):
        _say([processes.memory(sites, patients, 2, repeats, workers_)], json)


@app.command(cls=Command)
def methods(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="METHOD", help="Methods; all that are installed, if none is named.")
    ] = None,
    repeats: Repeats = 5,
    json: Json = False,
) -> None:
    """A training step of each method of adaptation ÷ one of plain LoRA, in turn in one run; predictions likewise."""
    from polyclinic.simulations.bench import methods as bench

    _say(bench.against_lora(repeats, names or ()), json)


@app.command()
def live(
    patients: Patients = 30,
    rounds: Annotated[int, typer.Option(min=2, help="Rounds of each run; the first is not counted.")] = 6,
    repeats: Repeats = 3,
    json: Json = False,
) -> None:
    """A live round ÷ one of Flower's own app, two sites, TLS: without training (goal: at most 0.5), and what a round
    takes beyond its slowest site's training (goal: at most 1/3). Bytes on the wire ÷ updates (goal: at most 1.02)."""
    from polyclinic.simulations.bench import live as bench

    _say([bench.noop(rounds, repeats)], json)
    _say([bench.training(patients, rounds, repeats)], json)
    _say([bench.wire(1, 10)], json)
    _say([bench.wire(16, 3)], json)


@app.command()
def live_memory(
    sites: Annotated[str, typer.Option(help="How many sites, fewest first.")] = "2,5,20",
    megabytes: Annotated[int, typer.Option(help="MB of an update: 1, 16 or 64.")] = 64,
    rounds: Rounds = 2,
    json: Json = False,
) -> None:
    """A live coordinator's peak memory with most sites ÷ with fewest (goal: at most 1.1). Takes many minutes."""
    from polyclinic.simulations.bench import live_memory as bench

    counts = tuple(int(count) for count in sites.split(","))
    _say([bench.flat(counts, megabytes, rounds)], json)


@app.command()
def private_step(repeats: Repeats = 5, json: Json = False) -> None:
    """A private step ÷ a plain one, time and peak memory (goal: at most 1.00), beside Opacus' ways. Takes minutes."""
    from polyclinic.simulations.bench import private_step as bench

    for case in bench.CASES:
        _say([bench.compared(case, repeats)], json)


@app.command()
def cache(
    pictures: Annotated[int, typer.Option(min=8, help="Training images.")] = 96,
    size: Annotated[int, typer.Option(min=32, help="Side of an image in pixels.")] = 224,
    repeats: Repeats = 3,
    json: Json = False,
) -> None:
    """An epoch without ÷ with remembered features, from the second on; the last 2 of 12 blocks train (goal: 3)."""
    from polyclinic.simulations.bench import cache as bench

    _say([bench.last_blocks(pictures, size, repeats)], json)


def _say(figures: Iterable[Measured], json: bool) -> None:
    for figure in figures:
        if not json:
            verdict = f", goal {figure.goal}: {'reached' if figure.reached else 'missed'}"
            verdict = "" if figure.goal == "none" else verdict
            typer.echo(f"{figure.name}: {figure.value:g} {figure.unit}{verdict} {figure.detail}")
        typer.echo(figure.line())
