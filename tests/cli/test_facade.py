"""The Python API's examples are run as they stand."""

from __future__ import annotations

import doctest
import tempfile
from pathlib import Path

import pytest

import polyclinic


def test_the_examples_do_what_they_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    result = doctest.testmod(polyclinic, raise_on_error=True)
    assert result.attempted >= 15
    assert result.failed == 0


def test_everything_public_is_described() -> None:
    assert all(getattr(polyclinic, name).__doc__ for name in polyclinic.__all__)
