"""One federation for the tests that leave it as they found it; others make their own."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from polyclinic.core.study import Study
from polyclinic.simulations.live import Local
from tests.live.harness import PATIENTS, Pictures, Undisturbed, running, small_study, undisturbed


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of this needs minutes and a Linux machine."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.slow)
            if sys.platform != "linux":
                item.add_marker(pytest.mark.skip(reason="reads /proc"))


@pytest.fixture(scope="session", autouse=True)
def few_threads() -> None:
    """Several processes share few cores here."""
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Pictures:
    """Three sites' images."""
    return Pictures.make(tmp_path_factory.mktemp("pictures"))


@dataclass(frozen=True)
class World:
    """A running federation, a study that it runs in seconds, and what that comes to."""

    local: Local
    study: Study
    expected: Undisturbed


@pytest.fixture(scope="session")
def study() -> Study:
    """Three short rounds."""
    return small_study()


@pytest.fixture(scope="session")
def expected(study: Study, pictures: Pictures, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """What the study comes to at all three sites."""
    return undisturbed(study, pictures, sorted(PATIENTS), tmp_path_factory.mktemp("simulated") / "run")


@pytest.fixture(scope="session")
def world(
    study: Study, expected: Undisturbed, pictures: Pictures, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    """Three sites; every test must leave all processes running and no run on."""
    with running(tmp_path_factory.mktemp("world"), pictures, sorted(PATIENTS)) as local:
        yield World(local, study, expected)
