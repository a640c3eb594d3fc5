"""The Flower engine: the same bits, nothing left behind, and every end of a run a clean one."""

from __future__ import annotations

import gc
import inspect
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from flwr.server.superlink.fleet.vce.backend.raybackend import RayBackend
from flwr.server.superlink.fleet.vce.vce_api import run_api
from flwr.server.superlink.linkstate import InMemoryLinkState
from flwr.simulation.ray_transport.ray_actor import BasicActorPool
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.superlink.federation import NoOpFederationManager
from ray.cluster_utils import Cluster

from polyclinic.core.errors import EngineError
from polyclinic.core.study import Study
from polyclinic.server.rounds import Event, Observer
from polyclinic.simulations import flower
from polyclinic.simulations.simulate import Options, simulate

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*(subprocess .* is still running|unclosed file):ResourceWarning"),  # Ray's own
]


def run(study: Study, manifest: Path, folder: Path, observe: Observer | None = None, **options: object) -> str:
    """The digest of the adapter."""
    chosen = Options(**{"engine": "flower", "workers": 1, **options})  # type: ignore[arg-type]
    summary = simulate(study, manifest, folder, chosen, observe or (lambda event: None)).summary
    return str(summary["adapter_sha256"])


@pytest.fixture(scope="module")
def expected(tiny_study: Study, tiny_manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return run(tiny_study, tiny_manifest, tmp_path_factory.mktemp("expected"), engine="inprocess")


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    before = set(descendants()), signal.getsignal(signal.SIGTERM), os.environ.get("FLWR_HOME")
    yield
    gc.collect()  # what Ray left open is told here, where it is expected, not in some other test
    assert not set(descendants()) - before[0]
    assert (signal.getsignal(signal.SIGTERM), os.environ.get("FLWR_HOME")) == before[1:]
    assert not ray.is_initialized()


def descendants() -> dict[int, str]:
    """Processes below this one: id → command line."""
    found: dict[int, tuple[int, str]] = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (place / "stat").read_text().rpartition(")")[2].split()[:2]
            if state != "Z":  # ended, and not yet waited for
                found[int(place.name)] = int(parent), (place / "cmdline").read_text().replace("\0", " ")
        except (OSError, ValueError):
            continue
    below, grown = {os.getpid()}, True
    while grown:
        more = {pid for pid, (parent, _) in found.items() if parent in below} - below
        below, grown = below | more, bool(more)
    return {pid: found[pid][1] for pid in below - {os.getpid()}}


def test_the_parts_of_flower_that_are_put_together_are_there() -> None:
    state = InMemoryLinkState(NoOpFederationManager(), ObjectStoreFactory().store())
    assert state.run_ids == state.task_store == {}
    wanted = ["app_fn", "backend_fn", "nodes_mapping", "state_factory", "node_info_stores", "f_stop", "metrics"]
    assert list(inspect.signature(run_api).parameters) == wanted
    assert {"build", "process_message", "terminate", "init_ray"} <= vars(RayBackend).keys()
    assert "self._future_to_actor" in inspect.getsource(BasicActorPool)


@pytest.mark.parametrize("workers", [1, 2])
def test_same_bits_as_in_process(
    workers: int,
    expected: str,
    tiny_study: Study,
    tiny_manifest: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    events: list[Event] = []
    assert run(tiny_study, tiny_manifest, tmp_path / "run", events.append, workers=workers) == expected
    assert [event.site for event in events if event.kind == "site" and event.failure] == []
    assert [event.round for event in events if event.kind == "done"] == [1, 2]
    assert capfd.readouterr() == ("", "")  # nothing of Flower's or Ray's on the terminal
    assert "Backend" in (tmp_path / "run" / "flower.log").read_text()
    assert not (tmp_path / "run" / "initial.safetensors").exists()


def test_on_a_cluster_of_two_nodes(
    expected: str, tiny_study: Study, tiny_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed: set[str] = set()
    peak_mb = flower.Runtime.peak_mb

    def look(runtime: flower.Runtime) -> float:
        actors = runtime._backend.pool.pool if runtime._backend.pool else []
        placed.update(ray.get([actor.__ray_call__.remote(_node_id) for actor in actors]))  # type: ignore[attr-defined]
        return peak_mb(runtime)

    monkeypatch.setattr(flower.Runtime, "peak_mb", look)
    handler = signal.getsignal(signal.SIGTERM)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        found = run(tiny_study, tiny_manifest, tmp_path / "run", workers=2, ray_address=cluster.address)
    finally:
        cluster.shutdown()
        signal.signal(signal.SIGTERM, handler)  # the cluster puts its own in place
    assert found == expected
    assert len(placed) == 2


def _node_id(actor: object) -> str:
    return str(ray.get_runtime_context().get_node_id())


def test_stopped_and_resumed_it_gives_the_same_bits(
    expected: str, tiny_study: Study, tiny_manifest: Path, tmp_path: Path
) -> None:
    def stop(event: Event) -> None:
        if event.kind == "site" and event.round == 2:
            raise KeyboardInterrupt  # the other sites are at work

    with pytest.raises(KeyboardInterrupt):
        run(tiny_study, tiny_manifest, tmp_path / "run", stop, workers=2)
    assert run(tiny_study, tiny_manifest, tmp_path / "run", resume=True) == expected


def test_a_client_that_is_killed_ends_the_run_with_the_reason(
    expected: str, tiny_study: Study, tiny_manifest: Path, tmp_path: Path
) -> None:
    def kill(event: Event) -> None:
        if event.kind == "round" and event.round == 2:
            for pid, command in descendants().items():
                if command.startswith("ray::ClientAppActor"):
                    os.kill(pid, signal.SIGKILL)

    with pytest.raises(EngineError, match="Flower's simulation failed: Actor"):
        run(tiny_study, tiny_manifest, tmp_path / "run", kill)
    assert run(tiny_study, tiny_manifest, tmp_path / "run", engine="inprocess", resume=True) == expected


def test_a_crash_in_the_server_app_is_told_plainly(tiny_study: Study, tiny_manifest: Path, tmp_path: Path) -> None:
    def crash(event: Event) -> None:
        raise ValueError("what went wrong")

    with pytest.raises(EngineError, match="the ServerApp failed: ValueError: what went wrong"):
        run(tiny_study, tiny_manifest, tmp_path / "run", crash)


def test_an_address_where_no_cluster_is(tiny_study: Study, tiny_manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"127\.0\.0\.1:9: no Ray cluster answers"):
        run(tiny_study, tiny_manifest, tmp_path / "run", ray_address="127.0.0.1:9")
