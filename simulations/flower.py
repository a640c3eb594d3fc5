"""The Flower engine: the ServerApp and ClientApp of live runs, over Flower's own simulation on Ray.

Flower's command line would leave a SuperLink running and its ``run_simulation`` can neither be stopped nor configured,
so its parts are put together here: the ServerApp runs in the main thread, the simulation runtime in another. All
internal names of flwr 1.41 that this needs are imported here and nowhere else.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import (
    HEARTBEAT_INTERVAL_INF,
    NOOP_ACCOUNT_NAME,
    NOOP_FLWR_AID,
    PARTITION_ID_KEY,
    SUPERLINK_NODE_ID,
)
from flwr.compat.client.run_info_store import DeprecatedRunInfoStore
from flwr.proto.task_pb2 import Task
from flwr.server.superlink.fleet.vce.backend.raybackend import RayBackend
from flwr.server.superlink.fleet.vce.metrics import VceMetrics
from flwr.server.superlink.fleet.vce.vce_api import run_api
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.server.superlink.linkstate.in_memory_linkstate import RunRecord
from flwr.simulation.ray_transport.ray_actor import BasicActorPool, ClientAppActor
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.grid import InMemoryGrid

from polyclinic.client.respond import Site
from polyclinic.core import files
from polyclinic.core.errors import EngineError, PolyclinicError
from polyclinic.core.memory import peak_mb
from polyclinic.core.study import Study
from polyclinic.core.update import encode
from polyclinic.models import network
from polyclinic.server.app import INITIAL, build
from polyclinic.server.journal import Journal
from polyclinic.server.rounds import Observer
from polyclinic.server.transport import brief
from polyclinic.simulations import inprocess
from polyclinic.simulations.ray_session import cluster, quiet
from polyclinic.simulations.simulate import CACHE, OWN

PATIENCE = 30.0
"""Seconds in which the runtime's threads must have ended once they are asked to."""


class FlowerEngine:
    """See ``polyclinic.simulations.inprocess.Engine``.

    ``workers`` client processes at most run at once, each with ``training.threads`` CPUs: on this machine, or on the
    Ray cluster at ``ray_address``, whose machines must all see manifest and run folder under the same paths.
    """

    name = "flower"

    def __init__(
        self,
        study: Study,
        manifest: Path,
        folder: Path,
        cohort: Mapping[str, Site],
        workers: int,
        ray_address: str | None = None,
        quarantine: Path | None = None,
        cache_mb: int = 0,
    ) -> None:
        self._study, self._manifest, self._folder, self._cohort = study, manifest.absolute(), folder.absolute(), cohort
        self._quarantine = "" if quarantine is None else str(quarantine.absolute())
        self._workers, self._address = max(1, min(workers, len(cohort))), ray_address
        self._cache_mb = cache_mb
        adapted = network.build(study)
        self._initial, self.backbone = adapted.read(), adapted.network.backbone.sha256
        self._local: inprocess.Sequential | inprocess.Parallel | None = None
        self._peak = 0.0

    def names(self) -> Sequence[str]:
        """See ``Engine``."""
        return sorted(self._cohort)

    def run(self, journal: Journal, observe: Observer) -> None:
        """What is left of the run, by the ServerApp; it opens the journal in the run folder by itself."""
        if journal.state() is None:
            files.write(self._folder / INITIAL, encode(self._initial))
        with quiet(self._folder / "flower.log") as scratch, cluster(self._address, self._cpus(), scratch):
            runtime = Runtime(self._nodes(), self._workers, self._study.training.threads)
            try:
                runtime.serve(str(self._folder), observe)
                self._peak = peak_mb() + runtime.peak_mb()
            finally:
                runtime.stop()
        (self._folder / INITIAL).unlink(missing_ok=True)

    def baselines(self, wanted: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        """By the in-process engine, in this process: Ray's threads forbid a fork."""
        self._local = self._local or inprocess.engine(self._study, self._cohort, 1)
        yield from self._local.baselines(wanted)

    def peak_mb(self) -> float:
        """Summed over this process and the clients'."""
        return max(self._peak, self._local.peak_mb() if self._local else peak_mb())

    def close(self) -> None:
        """Lets go of the baselines' processes; those of Flower ended with the run."""
        if self._local:
            self._local.close()

    def _cpus(self) -> int:
        return self._workers * self._study.training.threads

    def _nodes(self) -> dict[str, dict[str, str | int | float | bool]]:
        """What each site's node is told, by site."""
        return {
            site: {
                PARTITION_ID_KEY: number,
                "study": str(self._folder / "study.toml"),
                "manifest": str(self._manifest),
                "own": str(self._folder / OWN),
                "quarantine": self._quarantine,
                "cache": str(self._folder / CACHE),
                "cache_mb": self._cache_mb,
                "policy": self._cohort[site].policy.model_dump_json(),
            }
            for number, site in enumerate(self.names())
        }


class Runtime:
    """Flower's simulation runtime in a thread, and the grid that a ServerApp reaches it by; Ray must be there.

    Args:
        nodes: site → its node's configuration.
        workers: client processes at once.
        threads: CPUs of each.
    """

    def __init__(self, nodes: Mapping[str, Mapping[str, str | int | float | bool]], workers: int, threads: int) -> None:
        self._fault: BaseException | None = None
        self._stop = threading.Event()
        factory = LinkStateFactory(FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager(), ObjectStoreFactory())
        run = _registered(factory)
        self.grid = _Grid(factory, self.demand)
        self.grid.set_run(run)
        ids = [_node(factory, site) for site in nodes]
        stores = {i: DeprecatedRunInfoStore(i, dict(told)) for i, told in zip(ids, nodes.values(), strict=True)}
        for store in stores.values():
            store.register_context(run.run_id, run)
        self._backend = _Backend(workers, threads, self._note)
        parts = (_client_app, lambda: self._backend, dict(zip(ids, range(len(ids)), strict=True)), factory, stores)
        self._thread = threading.Thread(target=self._live, args=(*parts, self._stop, VceMetrics()), daemon=True)
        self._thread.start()

    def serve(self, folder: str, observe: Observer) -> None:
        """Runs the ServerApp on the run in ``folder``.

        Raises:
            PolyclinicError: as ``rounds.run``.
            EngineError: a client process died, the runtime failed, or the ServerApp raised what is none of ours.
        """
        identity = self.grid.run.run_id
        context = Context(identity, SUPERLINK_NODE_ID, {}, RecordDict(), {"run": folder})
        try:
            build(observe)(grid=self.grid, context=context)
        except PolyclinicError:
            raise
        except Exception as failure:
            raise EngineError(
                f"the ServerApp failed: {type(failure).__name__}: {brief(str(failure))}",
                where=folder,
                remedy="this is a fault of ours: report it",
            ) from failure

    def demand(self) -> None:
        """Nothing, while all is well.

        Raises:
            EngineError: a client process or the runtime failed.
        """
        if self._fault is not None or not self._thread.is_alive():
            cause = self._fault.__cause__ or self._fault if self._fault else None
            raise EngineError(
                f"Flower's simulation failed: {type(cause).__name__}: {brief(str(cause))}",
                remedy="flower.log says more; if memory ran out, resume with fewer --workers; nothing is lost",
            ) from cause

    def peak_mb(self) -> float:
        """Summed over the client processes."""
        actors = self._backend.pool.pool if self._backend.pool else []
        asked = [actor.__ray_call__.remote(_own_peak) for actor in actors]  # type: ignore[attr-defined]
        ready, _ = ray.wait(asked, num_returns=len(asked), timeout=PATIENCE) if asked else ([], [])
        return float(sum(ray.get(ready)))

    def stop(self) -> None:
        """Ends the runtime, busy or not."""
        self._stop.set()
        self._backend.kill()
        self._thread.join(PATIENCE)

    def _note(self, fault: BaseException) -> None:
        if not self._stop.is_set():
            self._fault = self._fault or fault

    def _live(self, *parts: Any) -> None:
        try:
            run_api(*parts)
        except Exception as fault:
            self._note(fault)


class _Grid(InMemoryGrid):
    """Looks whether the runtime lives before it looks for replies, or a dead one would be waited for."""

    def __init__(self, factory: LinkStateFactory, demand: Callable[[], None]) -> None:
        super().__init__(factory)
        self._demand = demand

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self._demand()
        return super().pull_messages(message_ids)


class _Backend(RayBackend):
    """Flower's, with no more clients than asked for, and telling when one fails instead of losing its site."""

    def __init__(self, workers: int, threads: int, note: Callable[[BaseException], None]) -> None:
        gpus = ray.cluster_resources().get("GPU", 0.0)
        super().__init__({"client_resources": {"num_cpus": threads, "num_gpus": min(1.0, gpus / workers)}})
        self._most, self._note = workers, note

    def build(self, app_fn: Callable[[], ClientApp]) -> None:
        self.pool = BasicActorPool(ClientAppActor, self.client_resources, self.actor_kwargs)
        self.pool.add_actors_to_pool(min(self._most, self.pool.actors_capacity))
        self.app_fn = app_fn

    def process_message(self, message: Message, context: Context) -> tuple[Message, Context]:
        try:
            return super().process_message(message, context)
        except Exception as fault:
            self._note(fault)
            raise

    def kill(self) -> None:
        """Ends the clients, so that nobody waits for what they are doing."""
        if self.pool:
            for actor in [*self.pool._future_to_actor.values(), *self.pool.pool]:
                ray.kill(actor)


def _registered(factory: LinkStateFactory) -> Run:
    """A run that the link state knows, and this process as its server."""
    run = Run.create_empty(secrets.randbits(62))
    run.primary_task_id, run.federation_id = 1, NOOP_FEDERATION_ID
    state: Any = factory.state()
    state.run_ids[run.run_id] = RunRecord(run=run)
    state.task_store[1] = Task(task_id=1, run_id=run.run_id)
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run.run_id, SUPERLINK_NODE_ID
    return run


def _node(factory: LinkStateFactory, site: str) -> int:
    """The id of a new node that bears the site's name and is there for good."""
    state = factory.state()
    key = secrets.token_bytes(32)
    node = state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, key, HEARTBEAT_INTERVAL_INF, name=site)
    state.acknowledge_node_heartbeat(node, HEARTBEAT_INTERVAL_INF)
    return node


def _client_app() -> ClientApp:
    """Called in the client processes."""
    from polyclinic.client.app import app

    return app


def _own_peak(actor: Any) -> float:
    """Called in the client processes."""
    return peak_mb()
