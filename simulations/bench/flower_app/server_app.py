"""Flower's own FedAvg, with a clock beside it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg


class Timed(FedAvg):
    """FedAvg; notes when each round begins (seconds since the epoch), and what its slowest site worked (seconds)."""

    def __init__(self) -> None:
        super().__init__(fraction_evaluate=0.0)
        self.begun: list[float] = []
        self.worked: list[float] = []

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As FedAvg does."""
        self.begun.append(time.time())
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """As FedAvg does."""
        told = list(replies)
        worked = [reply.content["metrics"]["seconds"] for reply in told if reply.has_content()]
        if len(worked) < 2:
            raise RuntimeError(f"{[reply.error.reason for reply in told if reply.has_error()]}")
        self.worked.append(max(float(seconds) for seconds in worked if isinstance(seconds, float)))
        return super().aggregate_train(server_round, told)


app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """All rounds; times, or why there are none, are left in a file."""
    config = context.run_config
    strategy = Timed()
    try:
        strategy.start(grid, initial(config), num_rounds=int(config["rounds"]))
        told: dict[str, list[float] | str] = {"begun": [*strategy.begun, time.time()], "worked": strategy.worked}
    except Exception as failure:
        told = {"why": str(failure)}
        raise
    finally:
        out = Path(str(config["out"]))
        out.with_suffix(".part").write_text(json.dumps(told))
        out.with_suffix(".part").replace(out)


def initial(config: Mapping[str, bool | float | int | str]) -> ArrayRecord:
    """What round 1 starts from: zeros, or the model's own weights."""
    if values := int(config["values"]):
        return ArrayRecord({"weights": Array(np.zeros(values, np.float32))})
    from client_app import build  # type: ignore[import-not-found]

    weights = build(str(config["weights"]), int(config["rank"]))[1]
    return ArrayRecord({name: Array(weight.detach().numpy()) for name, weight in weights.items()})
