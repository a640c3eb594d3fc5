"""Files are whole or as they were, even on a full disk."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from polyclinic.core import files
from polyclinic.core.errors import RunError


def test_replaces_whole_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "x"
    files.write(path, "one")
    files.write(path, b"two\xff")
    assert path.read_bytes() == b"two\xff"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("call", ["fsync", "open", "replace"])
def test_a_failure_keeps_what_was_there_and_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "x"
    files.write(path, "before")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*{"fsync": (os, "fsync"), "open": (Path, "open"), "replace": (Path, "replace")}[call], full)
    with pytest.raises(RunError, match=r"No space left on device .*free some space"):
        files.write(path, "after")
    monkeypatch.undo()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot be written"):
        files.write(tmp_path / "absent" / "x", "text")
