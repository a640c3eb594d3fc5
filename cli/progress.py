"""What the terminal shows while a federation runs: rich where there is a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from polyclinic.core.study import Study
from polyclinic.server.rounds import Event, Observer


@contextmanager
def progress(study: Study, baselines: bool) -> Iterator[Observer]:
    """An observer for ``simulate``; what it shows is taken down at the end, the lines of rounds remain."""
    console = Console(highlight=False)
    if not console.is_terminal:
        yield Lines(study, console)
        return
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("left"), TimeRemainingColumn(), console=console, transient=True,
    )  # fmt: skip
    with bar:
        yield Bar(study, console, bar, baselines)


class Lines:
    """One line a round."""

    def __init__(self, study: Study, console: Console) -> None:
        self._study, self._console = study, console
        self._begun, self._first = time.monotonic(), 0

    def __call__(self, event: Event) -> None:
        if event.kind == "site" and event.failure:
            self._console.print(f"  set aside: {event.site}: {event.failure}", markup=False)
        if event.kind == "round":
            self._first = self._first or event.round
        if event.kind == "done" and event.record is not None:
            self._console.print(sentence(self._study, event) + self._left(event.round), markup=False, soft_wrap=True)
        if event.kind == "baselines" and event.sites:
            self._console.print(f"training {len(event.sites)} baselines: {', '.join(event.sites)}", soft_wrap=True)
        if event.kind == "baseline":
            self._console.print(f"  baseline {event.site} done")

    def _left(self, done: int) -> str:
        each = (time.monotonic() - self._begun) / max(1, done - self._first + 1)
        left = each * (self._study.rounds.count - done)
        return f", about {left:.0f} s left" if left else ""


class Bar(Lines):
    """The same lines above a bar that names who is being waited for."""

    def __init__(self, study: Study, console: Console, bar: Progress, baselines: bool) -> None:
        super().__init__(study, console)
        self._bar, self._waiting = bar, list[str]()
        self._task = bar.add_task("starting", total=None)

    def __call__(self, event: Event) -> None:
        super().__call__(event)
        if event.kind in ("round", "baselines"):
            self._waiting = list(event.sites)
        if event.kind == "round" and event.round == self._first:
            steps = (self._study.rounds.count - event.round + 1) * len(event.sites) + len(event.sites)
            self._bar.reset(self._task, total=steps)
        if event.kind == "baselines":
            self._bar.reset(self._task, total=len(event.sites))
        if event.kind in ("site", "baseline"):
            self._waiting = [site for site in self._waiting if site != event.site]
            self._bar.advance(self._task)
        what = f"round {event.round} of {self._study.rounds.count}" if event.round else "baselines"
        if event.round > self._study.rounds.count:
            what = "last evaluation"
        self._bar.update(self._task, description=f"{what}: {' '.join(self._waiting[:2])}")


def sentence(study: Study, event: Event) -> str:
    """ "round 3/10: AUROC 0.812 pooled, worst harbour 0.701; 1.2 MB in 4.1 s"."""
    record = event.record or {}
    incoming = record["pooled"]["incoming"]
    parts = [f"round {event.round}/{study.rounds.count}:"]
    if incoming:
        metric = "auroc" if incoming["auroc"]["value"] is not None else "nll"
        value = incoming[metric]["value"]
        parts.append(f"model on arrival: {metric.upper()} {value:.3f} pooled" if value is not None else "")
    if record["worst_site"]:
        parts.append(f"(worst {record['worst_site']['site']} {record['worst_site']['value']:.3f}),")
    megabytes = (record["bytes_up"] + record["bytes_down"]) / 1e6
    parts.append(f"{len(record['sites'])} sites, {megabytes:.1f} MB, {record['seconds']:.1f} s")
    return " ".join(part for part in parts if part)
