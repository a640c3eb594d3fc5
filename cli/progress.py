"""What the terminal shows while a federation runs: rich where there is a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from polyclinic.core.statistics.metrics import kind_of
from polyclinic.core.study import Study
from polyclinic.server.rounds import Event, Observer

HOUR = 3600.0
"""Seconds over which the bar's speed is averaged: work comes in lumps, and a short memory would jump."""


@contextmanager
def progress(study: Study, baselines: bool) -> Iterator[Observer]:
    """An observer for ``simulate``; what it shows is taken down at the end, the lines of rounds remain."""
    console = Console(highlight=False)
    if not console.is_terminal:
        yield Lines(study, console)
        return
    bar = Progress(
        BarColumn(24), TextColumn("{task.percentage:>3.0f} %"), TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[left]}"),
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, ratio=1)),
        console=console, transient=True, expand=True, speed_estimate_period=HOUR,
    )  # fmt: skip
    with bar:
        yield Bar(study, console, bar, baselines)


class Lines:
    """One line a round."""

    def __init__(self, study: Study, console: Console) -> None:
        self._study, self._console = study, console
        self._begun, self._first = time.monotonic(), 0

    def __call__(self, event: Event) -> None:
        if event.kind == "warning":
            self._say(f"warning: {event.failure}")
        if event.kind == "site" and event.failure:
            self._say(f"  set aside: {event.site}: {event.failure}")
        if event.kind == "round" and not self._first:
            self._begun, self._first = time.monotonic(), event.round
        if event.kind == "done":
            self._say(sentence(self._study, event) + self.left(event.round))
        if event.kind == "round" and event.round > self._study.rounds.count:
            self._say("judging the final model at every site")
        if event.kind == "baselines" and event.sites:
            self._say(f"training {len(event.sites)} models for comparison")
        if event.kind == "baseline":
            self._say(f"  {event.site} done")

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, soft_wrap=True)

    def left(self, done: int) -> str:
        """ ", rounds end in about 20 s", or nothing after the last."""
        each = (time.monotonic() - self._begun) / (done - self._first + 1)
        seconds = each * (self._study.rounds.count - done)
        return f"; rounds end in about {seconds:.0f} s" if seconds else ""


class Bar(Lines):
    """The same lines above a bar that shows what is left and names who is being waited for."""

    def __init__(self, study: Study, console: Console, bar: Progress, baselines: bool) -> None:
        super().__init__(study, console)
        self._bar, self._baselines, self._sites, self._waiting = bar, baselines, 1, list[str]()
        self._task = bar.add_task("reading images and loading the backbone", total=None, left="")

    def __call__(self, event: Event) -> None:
        first = not self._first
        super().__call__(event)
        count = self._study.rounds.count
        if event.kind in ("round", "baselines"):
            self._waiting = list(event.sites)
        if event.kind == "round" and first:
            self._sites = len(event.sites)
            rounds = count - event.round + 2  # the last evaluation counts as one
            self._restart(self._sites * (rounds + 2 * count * self._baselines))
        if event.kind == "baselines":
            self._restart(sum(map(self._work, event.sites)))
        if event.kind in ("site", "baseline"):
            self._waiting = [site for site in self._waiting if site != event.site]
            self._bar.advance(self._task, self._work(event.site) if event.kind == "baseline" else 1)
        stage = f"round {event.round} of {count}" if event.round <= count else "last evaluation"
        self._bar.update(self._task, description=waiting(stage if event.round else "for comparison", self._waiting))

    def left(self, done: int) -> str:
        """Nothing: the bar says it."""
        return ""

    def _work(self, name: str) -> int:
        """How many local trainings a baseline is worth: "alone/SITE" one a round, all sites' images together many."""
        return self._study.rounds.count * (1 if name.startswith("alone/") else self._sites)

    def _restart(self, left: int) -> None:
        done = self._bar.tasks[0].completed
        if done:
            self._bar.update(self._task, total=done + left)
        else:
            self._bar.reset(self._task, total=left, left="left,")  # from here on the clock runs


def waiting(stage: str, names: list[str]) -> str:
    """ "round 2 of 8: north, south and 3 more at work"."""
    if not names:
        return stage
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return f"{stage}: waiting for {', '.join(names[:2])}{more}"


def sentence(study: Study, event: Event) -> str:
    """ "round 3/10: began from AUROC 0.812 pooled, 0.701 at worst (harbour); 5 sites, 1.2 MB, 4.1 s"."""
    record = event.record or {}
    incoming, worst = record["pooled"]["incoming"], record["worst_site"]
    parts = list[str]()
    kind = kind_of(incoming or ())
    named = {} if kind is None else {metric.key: metric.inline for metric in kind.metrics}
    for key in () if kind is None else kind.leading:
        if not parts and incoming.get(key, {}).get("value") is not None:
            parts.append(f"began from {named[key]} {incoming[key]['value']:.3f} pooled")
    if worst:
        parts.append(f"{worst['value']:.3f} at worst ({worst['site']})")
    said = f"{', '.join(parts)}; " if parts else ""
    megabytes = (record["bytes_up"] + record["bytes_down"]) / 1e6
    many = len(record["sites"])
    sites = f"{many} site{'' if many == 1 else 's'}"
    return f"round {event.round}/{study.rounds.count}: {said}{sites}, {megabytes:.1f} MB, {record['seconds']:.1f} s"
