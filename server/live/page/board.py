"""What the pages show now: made once for all who look, and only where a file has changed."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from polyclinic.server.live.page.fragments import Fragment, Renderer, View
from polyclinic.server.live.page.live import ON
from polyclinic.server.live.page.watched import Glance, Seen, Watched, stamp

REMEMBERED = 64
"""Versions of a page of which it is known what they said."""
RUNS = 200
"""Runs that are listed, the newest."""

Runs = Callable[[], Sequence[Path]] | Path
"""The run folders, or the folder in which they lie."""


@dataclass
class Shown:
    """One page: what it showed last, and what its earlier versions said."""

    latest: tuple[Seen, View] | None = None
    versions: OrderedDict[str, Mapping[str, str]] = field(default_factory=OrderedDict)

    def remember(self, view: View) -> None:
        """So that who comes back with this version is sent only what changed since."""
        self.versions[view.version] = view.digests
        self.versions.move_to_end(view.version)
        while len(self.versions) > REMEMBERED:
            self.versions.popitem(last=False)


class Board:
    """All runs. May be asked by several threads: one at a time is served."""

    def __init__(self, runs: Runs, renderer: Renderer) -> None:
        self._runs, self._renderer, self._lock = runs, renderer, threading.Lock()
        self._watched: dict[Path, Watched] = {}
        self._shown: dict[str, Shown] = {}

    def folder(self, name: str) -> Path | None:
        """The run folder of that name, if it is one of those known: a name is looked up, never made into a path."""
        return {path.name: path for path in self._folders()}.get(name)

    def run(self, name: str) -> View | None:
        """The page of a run; None if there is no such run."""
        folder = self.folder(name)
        if folder is None:
            return None
        with self._lock:
            seen, shown = self._watch(folder).look(), self._shown.setdefault(name, Shown())
            if shown.latest is None or shown.latest[0] is not seen:
                view = self._renderer.run(seen, shown.latest)
                shown.latest = seen, view
                shown.remember(view)
            return shown.latest[1]

    def runs(self) -> View:
        """The list of runs, the newest above."""
        folders = self._folders()
        with self._lock:
            known = sorted((self._watch(folder).glance() for folder in folders), key=began, reverse=True)
            view, shown = self._renderer.runs(known), self._shown.setdefault("", Shown())
            shown.remember(view)
            return view

    def on(self) -> str | None:
        """The name of the run that is on, if there is exactly one."""
        folders = self._folders()
        with self._lock:
            found = [folder.name for folder in folders if self._watch(folder).glance().live.phase in ON]
        return found[0] if len(found) == 1 else None

    def since(self, name: str, view: View, version: str) -> list[Fragment]:
        """What changed in ``view`` since ``version``; all of it where that version is not known."""
        with self._lock:
            known = self._shown.get(name, Shown()).versions.get(version, {})
        return [] if version == view.version else [f for f in view.fragments if known.get(f.id) != f.digest]

    def _folders(self) -> list[Path]:
        if not isinstance(self._runs, Path):
            return list(self._runs())[-RUNS:]
        try:
            found = {path: stamp(path / "study.toml") for path in self._runs.iterdir() if path.name[0] != "."}
        except OSError:
            return []
        dated = {path: made[0] for path, made in found.items() if made is not None}
        return sorted(dated, key=dated.__getitem__)[-RUNS:]

    def _watch(self, folder: Path) -> Watched:
        if folder not in self._watched:
            self._watched[folder] = Watched(folder)
        return self._watched[folder]


def began(known: Glance) -> float:
    """When a run began; one that is on and has not begun is the newest."""
    return float("inf") if known.live.began is None and known.live.phase in ON else known.live.began or 0.0
