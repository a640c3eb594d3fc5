"""A federation of three centres over four rounds, made up once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.live.page.replay import Replay, served
from tests.server.report.conftest import Centre, Made, made

CENTRES = {
    "harbour": Centre(patients=60, skill=1.2, psi=0.3, p_value=1e-5),
    "north": Centre(patients=90),
    "village": Centre(patients=8, withheld=True, p_value=None),
}


@pytest.fixture(scope="session")
def three() -> Made:
    """Three sites, one of which withholds; one is late in round 3."""
    return made(CENTRES, rounds=4, excluded={3: {"harbour": "no answer within 14400 s"}}, seed=5)


@pytest.fixture
def replay(three: Made, tmp_path: Path) -> Replay:
    """The run of those three, about to begin."""
    return Replay(three, tmp_path / "runs" / "made-0a1b2c3d")


@pytest.fixture
def port(replay: Replay) -> Iterator[int]:
    """A server of the run that is about to begin."""
    with served(replay.folder.parent) as found:
        yield found
