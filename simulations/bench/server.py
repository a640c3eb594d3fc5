"""The server alone: its memory as sites grow in number, and the bytes of a round against the adapter's own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from polyclinic.core import seeds
from polyclinic.core.memory import peak_mb
from polyclinic.core.messages import Reply, decode_instruction, encode_reply
from polyclinic.core.statistics.monoid import Withheld
from polyclinic.core.update import Tensors, Update
from polyclinic.server import rounds
from polyclinic.server.journal import Journal
from polyclinic.server.receive import Delivery
from polyclinic.simulations.bench.figure import Measured, federation, study
from polyclinic.simulations.simulate import Options, simulate

GOAL_FLAT, GOAL_BYTES = 1.1, 1.02


class Echo:
    """Sites that exist only as bytes: each sends back the global state, a little changed."""

    def __init__(self, count: int) -> None:
        self._names = [f"site{i:04d}" for i in range(count)]

    def names(self) -> Sequence[str]:
        """Sites, sorted."""
        return self._names

    def send(self, message: bytes, to: Sequence[str], deadline: float) -> Iterator[Delivery]:
        """One reply at a time."""
        asked = decode_instruction(message)
        named = {key: getattr(asked, key) for key in ("study", "run", "round", "nonce", "base")}
        for site in to:
            rng = seeds.generator("echo", site, asked.round)
            tensors = {name: array + rng.random(dtype=np.float32) for name, array in asked.tensors.items()}
            update = Update(site, 100, tensors) if asked.fit else None
            told = {"incoming/val": Withheld("outcome", 10)}
            counts = {"train": (100, 100)}
            reply = Reply(site, **named, update=update, statistics=told, sizes=counts, seconds=0.0)
            yield Delivery(site, encode_reply(reply))


def serve(sites: int, folder: Path) -> float:
    """Two rounds with ``sites`` sites of 4 MB updates; peak memory of this process, MiB."""
    initial: Tensors = {f"layer{i}.weight": np.zeros((512, 512), np.float32) for i in range(4)}
    agreed = study(2)
    journal = Journal.create(folder, {"run": "bench", "study": agreed.digest})
    rounds.run(agreed, Echo(sites), initial, journal, lambda event: None)
    journal.close()
    return peak_mb()


def flat(few: int, many: int) -> Measured:
    """Peak memory of a server with ``many`` sites ÷ with ``few``, each in a process of its own."""
    peaks: dict[int, float] = {}
    code = (
        "import sys; from pathlib import Path; from polyclinic.simulations.bench.server import serve; "
        "print(serve(int(sys.argv[1]), Path(sys.argv[2])))"
    )
    for count in (few, many):
        with TemporaryDirectory() as place:
            command = [sys.executable, "-c", code, str(count), place]
            peaks[count] = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    ratio = peaks[many] / peaks[few]
    detail: dict[str, float | list[float]] = {f"{count} sites, MiB": round(peak, 1) for count, peak in peaks.items()}
    return Measured("server memory", round(ratio, 4), f"<= {GOAL_FLAT}", ratio <= GOAL_FLAT, detail=detail)


def bytes_a_round(sites: int, patients: int, count: int) -> Measured:
    """Bytes that a site sends in a round, statistics and all, ÷ the bytes of the adapter's file."""
    with TemporaryDirectory() as place:
        manifest = federation(Path(place, "images"), sites, patients)
        run = simulate(study(count), manifest, Path(place, "run"), Options())
        adapter = (run.adapter / "adapter_model.safetensors").stat().st_size
        up = sum(record["bytes_up"] for record in run.rounds) / (count * sites)
    ratio = up / adapter
    detail: dict[str, float | list[float]] = {"adapter": adapter, "up": round(up)}
    return Measured("bytes a round", round(ratio, 4), f"<= {GOAL_BYTES}", ratio <= GOAL_BYTES, detail=detail)
