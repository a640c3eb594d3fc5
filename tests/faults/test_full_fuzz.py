"""A million mutations: ``make faults``."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.faults import fuzz

CASES, SEED = 1_000_000, 1


@pytest.mark.faults
@pytest.mark.timeout(4 * 3600)
def test_a_million_mutations_break_nothing(tmp_path: Path) -> None:
    seed = int(os.environ.get("POLYCLINIC_FUZZ_SEED", SEED))
    print(f"\nPOLYCLINIC_FUZZ_SEED={seed}")
    found = fuzz.full(CASES, seed, os.cpu_count() or 1, tmp_path / "state.json")
    print(fuzz.table(found))
    assert found.cases == CASES
    assert not found.failures
