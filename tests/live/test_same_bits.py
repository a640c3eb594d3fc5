"""A run between machines gives the bits of the simulation, and everybody's papers agree."""

from __future__ import annotations

from tests.live.conftest import World
from tests.live.harness import PATIENCE, demand_receipts, demand_sound, go

LISTEN, UNBOUND = "0A", "07"


def test_live_is_simulated_and_all_ledgers_agree(world: World) -> None:
    run = go(world.local, world.study)
    summary = world.local.wait(run, PATIENCE)
    demand_sound(world.local, run, world.expected, summary)
    demand_receipts(world.local, run)
