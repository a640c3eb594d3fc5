"""A coordinator's backup: one tar file that fits together, taken while its processes go on."""

from __future__ import annotations

import os
import sqlite3
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from polyclinic.server.governance.registry import Registry
    from polyclinic.server.live.home import Home

LEFT_OUT = ("superlink.db", "flower", "logs", "registry.db", "book", "runs")
"""At the top of the folder: what is made anew when it is missing, and what is copied in a way of its own."""
PAGES = 4096
"""Pages of a database that are copied at a time; others may write in between, and then it begins again."""


def back_up(home: Home, registry: Registry, file: Path) -> int:
    """Writes ``file``, readable by its owner alone; how many files it holds.

    Registry and book are copied at one moment, for nobody writes either while the registry is held. A run's journal is
    copied as it is at one moment, too, after the files that are made from it: what they lack is mended on resume.

    Raises:
        RunError: ``file`` exists, or cannot be written; nothing is left of it then.
    """
    from polyclinic.core import files
    from polyclinic.core.errors import RunError

    if file.exists():
        raise RunError("exists already", where=str(file), remedy="a backup is not written over a file")
    beside = file.with_name(f".{file.name}.{os.getpid()}.part")
    with files.explained(file):
        try:
            handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "wb") as out, tempfile.TemporaryDirectory(dir=file.parent) as copies:
                with tarfile.open(fileobj=out, mode="w") as tar:
                    for path, name in _everything(home, registry, Path(copies)):
                        tar.add(path, name, recursive=False)
                    held = sum(member.isfile() for member in tar.getmembers())
                out.flush()
                os.fsync(out.fileno())
            beside.replace(file)
            files.sync_folder(file.parent)
        finally:
            beside.unlink(missing_ok=True)
    return held


def _everything(home: Home, registry: Registry, copies: Path) -> Iterator[tuple[Path, str]]:
    """(what to read, under which name to keep it), folders before what they hold."""
    for path in sorted(home.folder.iterdir()):
        if not path.name.startswith((*LEFT_OUT, ".")):
            yield from _tree(path, path.name)
    with registry.change():
        _copy_database(home.registry, copies / "registry.db")
        _copy_database(home.book / "book", copies / "book")
        lines = (home.book / "ledger.jsonl").read_bytes() if (home.book / "ledger.jsonl").exists() else b""
    (copies / "ledger.jsonl").write_bytes(lines)
    yield copies / "registry.db", "registry.db"
    yield home.book, "book"
    for name in ("book", "ledger.jsonl"):
        yield copies / name, f"book/{name}"
    yield home.runs, "runs"
    for run in sorted(path for path in home.runs.iterdir() if path.is_dir()):
        for path, name in _tree(run, f"runs/{run.name}"):
            if path != run / "journal" and not path.name.startswith("journal-"):
                yield path, name
        if (run / "journal").is_file():
            _copy_database(run / "journal", copies / "journal")
            yield copies / "journal", f"runs/{run.name}/journal"


def _tree(path: Path, name: str) -> Iterator[tuple[Path, str]]:
    """``path`` and all in it, without what is being written at this moment."""
    if path.name.startswith(".") or not path.exists():
        return
    yield path, name
    if path.is_dir():
        for inner in sorted(path.iterdir()):
            yield from _tree(inner, f"{name}/{inner.name}")


def _copy_database(source: Path, to: Path) -> None:
    """A copy as of one moment, whoever writes meanwhile."""
    from polyclinic.core.errors import RunError

    to.unlink(missing_ok=True)
    os.close(os.open(to, os.O_WRONLY | os.O_CREAT, 0o600))
    try:
        reading = sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True, timeout=30.0)
        with closing(reading) as old, closing(sqlite3.connect(to)) as new:
            old.backup(new, pages=PAGES, sleep=0.05)
    except sqlite3.Error as failure:
        raise RunError(f"cannot be copied: {failure}", where=str(source), remedy="see that it is intact") from failure
