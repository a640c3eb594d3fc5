"""Loaded by Python itself in processes that get this folder in PYTHONPATH: faults that nothing else can bring about.

Environment: ``FAULT_CLOCK``, a file with the seconds by which every clock of the process is ahead (looked at again
and again, so that somebody can set the clock right); ``FAULT_DISORDER``, the seed of ``tests.faults.duplicating``,
which the sites of the coordinator's runner are wrapped in; ``FAULT_CANARY``, a file that code in the app bundle
would make if anybody ran it.
"""

import importlib.util
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


def shift(path: str) -> None:
    """Puts ``time.time`` and ``datetime.now`` off by what the file says."""
    import datetime
    import time

    true, true_ns, seen = time.time, time.time_ns, [0.0, 0.0]

    def off() -> float:
        if time.monotonic() - seen[0] > 0.2:
            seen[0] = time.monotonic()
            try:
                with open(path) as source:  # noqa: PTH123 -- pathlib is not needed by every process
                    seen[1] = float(source.read() or 0.0)
            except (OSError, ValueError):
                pass
        return seen[1]

    time.time = lambda: true() + off()
    time.time_ns = lambda: true_ns() + int(1e9 * off())

    class Shifted(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return cls.fromtimestamp(time.time(), tz)

    datetime.datetime = Shifted  # type: ignore[misc]


def after_import(name: str, change: Callable[[ModuleType], None]) -> None:
    """Has a module changed as soon as it has been imported."""

    class Finder:
        @staticmethod
        def find_spec(wanted: str, path: Any = None, target: Any = None) -> Any:
            if wanted != name:
                return None
            sys.meta_path.remove(Finder)
            spec = importlib.util.find_spec(name)
            assert spec is not None
            assert spec.loader is not None
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                change(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
            return spec

    sys.meta_path.insert(0, Finder)


def disorder(runner: ModuleType) -> None:
    """Wraps the sites of a run."""
    from tests.faults.duplicating import Duplicating

    sites, seed = runner.LiveSites, int(os.environ["FAULT_DISORDER"])
    runner.LiveSites = lambda *args, **more: Duplicating(sites(*args, **more), seed)  # type: ignore[attr-defined]


def poison(flower_run: ModuleType) -> None:
    """Puts code into the app bundle."""
    from pathlib import Path

    from tests.live.poison import poisoned

    canary = Path(os.environ["FAULT_CANARY"])

    def build(files: Any) -> Any:
        canary.with_suffix(".sent").touch()
        return poisoned(files, canary)

    flower_run.build_fab_from_files = build  # type: ignore[attr-defined]


if "FAULT_CLOCK" in os.environ:
    shift(os.environ["FAULT_CLOCK"])
if "FAULT_DISORDER" in os.environ:
    after_import("polyclinic.server.live.runner", disorder)
if "FAULT_CANARY" in os.environ:
    after_import("polyclinic.server.live.flower_run", poison)
