"""Bad lines between a site and the coordinator: slow, cut, silent for a minute, said twice. The bits stay the same."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from polyclinic.server.governance.runs import Run
from polyclinic.simulations.live import Local, until
from tests.faults.http_proxy import ConnectProxy
from tests.faults.proxy import FaultProxy, plan, play
from tests.live.conftest import World
from tests.live.harness import (
    PATIENCE,
    Pictures,
    Undisturbed,
    demand_receipts,
    demand_sound,
    go,
    in_round,
    injected,
    live_json,
    repointed,
    running,
    small_study,
    started,
    stopped,
    undisturbed,
)
from tests.live.processes import roles, sockets

pytestmark = pytest.mark.faults

SITES = ["north", "south"]


@contextmanager
def behind(local: Local, site: str) -> Iterator[tuple[FaultProxy, FaultProxy]]:
    """Moves a site behind proxies, one before each of the coordinator's two ports."""
    at = local.coordinator.settings
    with (
        FaultProxy(("127.0.0.1", at.fleet_port)) as fleet,
        FaultProxy(("127.0.0.1", at.governance_port)) as governance,
    ):
        stopped(local, site)
        repointed(local, site, fleet_port=fleet.port, governance_port=governance.port)
        local.start_site(site)
        yield fleet, governance
        stopped(local, site)
        repointed(local, site, fleet_port=at.fleet_port, governance_port=at.governance_port)
        local.start_site(site)


@pytest.fixture(scope="module")
def federation(pictures: Pictures, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Local]:
    """Two sites."""
    with running(tmp_path_factory.mktemp("network"), pictures, SITES) as local:
        yield local


@pytest.fixture(scope="module")
def calm(pictures: Pictures, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """What five rounds come to on good lines."""
    return undisturbed(five(), pictures, SITES, tmp_path_factory.mktemp("calm") / "run")


def five() -> object:
    """Five rounds."""
    return small_study("lines", rounds=5, epochs=2)


def ends_well(local: Local, run: Run, expected: Undisturbed, seconds: float = PATIENCE) -> None:
    """Waits for the run, and looks at everything."""
    summary = local.wait(run, seconds)
    demand_sound(local, run, expected, summary)
    demand_receipts(local, run, 60.0)


def test_a_slow_line_that_is_cut_in_the_middle_of_bodies(federation: Local, calm: Undisturbed) -> None:
    with behind(federation, "south") as (fleet, governance):
        for proxy in (fleet, governance):
            proxy.latency(300, 300)
        run = go(federation, five())
        fleet.reset_after(60_000, "up", times=2)  # a reply is about 300 kB
        fleet.reset_after(150_000, "down", times=2)
        governance.reset_after(500, "up")
        governance.reset_after(2_000, "down")
        ends_well(federation, run, calm)
        assert fleet.counts.resets >= 4
        assert governance.counts.resets >= 2


def test_a_partition_of_some_seconds(federation: Local, calm: Undisturbed) -> None:
    partitioned(federation, calm, hold=8.0, refuse=5.0)


@pytest.mark.faults
def test_a_partition_of_a_minute(federation: Local, calm: Undisturbed) -> None:
    partitioned(federation, calm, hold=65.0, refuse=65.0)


def partitioned(local: Local, expected: Undisturbed, hold: float, refuse: float) -> None:
    """Lines that go dead in round 1, and are refused in a later one."""
    with behind(local, "south") as proxies:
        run = go(local, five())
        in_round(run, 1)
        for seconds, how in ((hold, "hold"), (refuse, "refuse")):
            before = live_json(run)["round"]
            for proxy in proxies:
                proxy.partition(how)  # type: ignore[arg-type]
            time.sleep(seconds)
            assert live_json(run)["round"] <= before + 1, "nobody waited for the site that was cut off"
            healed = time.monotonic()
            for proxy in proxies:
                proxy.heal()
            until(lambda before=before: live_json(run).get("round", 0) > before, 90.0, "the next round")  # type: ignore[misc]
            print(f"{how} for {seconds:.0f} s: the next round came {time.monotonic() - healed:.1f} s after its end")
        ends_well(local, run, expected, 300.0)


@pytest.mark.faults
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_everything_that_lines_do_in_a_row(federation: Local, calm: Undisturbed, seed: int) -> None:
    with behind(federation, "south") as (fleet, _):
        run = go(federation, five())
        in_round(run, 1)
        play(plan(seed, 60.0, 10), fleet)
        ends_well(federation, run, calm, 300.0)


def test_deliveries_twice_and_in_disorder(federation: Local, calm: Undisturbed) -> None:
    stopped(federation, "coordinator")
    started(federation, "coordinator", environment=injected(disorder=7))
    try:
        run = go(federation, five())
        ends_well(federation, run, calm)
        assert "said again" not in federation.coordinator.logs.joinpath("runner.log").read_text()
    finally:
        stopped(federation, "coordinator")
        federation.start_coordinator()


def test_outbound_only(world: World) -> None:
    local = world.local
    at = local.coordinator.settings
    ports = {at.fleet_port, at.governance_port}
    run = go(local, world.study)
    used: set[int] = set()
    looks = 0
    while live_json(run).get("phase") != "finished":
        for site, home in local.sites.items():
            own = home.settings.local_port
            for role, process in roles(local, site).items():
                for socket in sockets(process.pid):
                    host, port = socket.here.rsplit(":", 1)
                    there, remote = socket.there.rsplit(":", 1)
                    if socket.state == "0A":
                        assert (host, int(port), role) == ("127.0.0.1", own, "supernode"), (
                            f"{site}'s {role} listens: {socket}"
                        )
                    elif int(port) != own:
                        assert there == "127.0.0.1", socket
                        assert int(remote) in ports | {own, 0}, f"{site}'s {role} talks to {socket.there}"
                        used.add(int(remote))
                        assert role in ("supernode", "link") or int(remote) in (own, 0), (
                            f"{site}'s {role} faces the network"
                        )
        looks += 1
        time.sleep(0.2)
    local.wait(run, PATIENCE)
    assert looks > 5
    assert used >= ports, "nothing was seen at all"


NAME = "coordinator.invalid"
"""A name that nobody can resolve, but for the proxy: there is no direct way."""


def test_through_a_web_proxy_and_no_other_way(pictures: Pictures, tmp_path: Path) -> None:
    study = small_study("proxied", rounds=2)
    expected = undisturbed(study, pictures, SITES, tmp_path / "simulated")
    with (
        ConnectProxy(hosts={NAME: "127.0.0.1"}) as proxy,
        running(tmp_path / "f", pictures, [], host=NAME) as local,
    ):
        for site in SITES:
            local.join(site, pictures.of(site), proxy=proxy.url())
            local.start_site(site)
        run = go(local, study)
        demand_sound(local, run, expected, local.wait(run, PATIENCE))
        demand_receipts(local, run)
        at = local.coordinator.settings
        assert set(proxy.targets) == {f"{NAME}:{at.fleet_port}", f"{NAME}:{at.governance_port}"}
        assert not proxy.refusals
        assert proxy.carried > 1_000_000
