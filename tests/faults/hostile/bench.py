"""A federation without a network: an agreed study, honest sites that tell everything, and one that may be bent."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from polyclinic.core import seeds
from polyclinic.core import study as studies
from polyclinic.core.messages import MAGIC, Instruction, Reply, decode_instruction, encode_reply
from polyclinic.core.statistics import shift
from polyclinic.core.statistics.outcome import tally
from polyclinic.core.study import Study
from polyclinic.core.update import Tensors, Update
from polyclinic.server import rounds
from polyclinic.server.journal import Journal
from polyclinic.server.receive import Delivery

TEXT = """
[study]
name = "hostile"
[[adaptation]]
method = "lora"
[monitoring]
bins = 4
score_bins = 16
feature_dims = 3
kernel_features = 8
[rounds]
count = 2
"""
INITIAL: Tensors = {"head.bias": np.zeros(2, np.float32), "head.weight": np.zeros((2, 3), np.float32)}
SEED = 20
"""From which every site draws its projection and kernel: see ``polyclinic.client.evaluate.SHIFT_SEED``."""
Bend = Callable[[Reply], Reply | bytes | Delivery | None]
"""What a hostile site makes of its honest reply: another, bytes, a delivery as it comes, or silence."""


@lru_cache(maxsize=4)
def agreed(extra: str = "") -> Study:
    """The study."""
    return studies.loads(TEXT + extra)


def statistics(site: str, asked: Instruction, patients: int = 24) -> dict[str, Any]:
    """Everything that an honest site tells, of made-up patients."""
    study, rng = agreed(), seeds.generator("patients", site)
    truth = np.arange(patients) % 2
    names = [f"p{i}" for i in range(patients)]
    scores = rng.uniform(0.05, 0.95, patients)
    loss = -np.log(np.where(truth == 1, scores, 1 - scores))
    outcome = tally(
        "binary", scores, truth, names, loss, bins=study.monitoring.bins, score_bins=study.monitoring.score_bins
    )
    told: dict[str, Any] = {f"incoming/{split}": outcome for split in asked.evaluate}
    if asked.fit:
        told["fitted/val"] = outcome
    if asked.describe:
        rows = rng.normal(0.0, 0.5, (patients, study.monitoring.feature_dims))
        pixels = rng.integers(0, 256, (patients, 1, 8, 8)).astype(np.uint8)
        told["describe/features"] = shift.FeatureMoments.of(rows)
        told["describe/kernel"] = shift.KernelMeans.of(rows, study.monitoring.kernel_features, SEED)
        told["describe/intensities"] = shift.Intensities.of(pixels, names)
        told["describe/labels"] = shift.Labels.of(truth, names, ("0", "1"))
        told["describe/acquisition"] = shift.Acquisition.of([{"maker": "GE", "kVp": "120"}] * patients, names)
    return told


def honest(site: str, asked: Instruction) -> Reply:
    """What an honest site answers: the same for the same instruction."""
    rng = seeds.generator("answer", site, asked.round)
    tensors = {
        name: array + rng.normal(size=array.shape).astype(np.float32) for name, array in sorted(asked.tensors.items())
    }
    update = Update(site, 40, tensors) if asked.fit else None
    told = statistics(site, asked)
    sizes = {"train": (40, 40), "val": (24, 24), "test": (24, 24)}
    return Reply(site, asked.study, asked.run, asked.round, asked.nonce, asked.base, update, told, sizes, 0.5)


class Honest:
    """Sites that answer well, but for those that ``bends`` names; see ``polyclinic.server.rounds.Sites``."""

    def __init__(self, names: Sequence[str], bends: Mapping[str, Bend] | None = None) -> None:
        self._names, self._bends = names, bends or {}

    def names(self) -> Sequence[str]:
        """Sites that can be asked."""
        return self._names

    def send(self, message: bytes, to: Sequence[str], deadline: float) -> Iterator[Delivery]:
        """What comes back, those bent first: whatever they say, the others must still be heard."""
        asked = decode_instruction(message)
        for site in sorted(to, key=lambda name: (name not in self._bends, name)):
            reply = honest(site, asked)
            said = self._bends[site](reply) if site in self._bends else reply
            if isinstance(said, Delivery):
                yield said
            elif said is not None:
                yield Delivery(site, encode_reply(said) if isinstance(said, Reply) else said)


def play(sites: rounds.Sites, study: Study | None = None) -> tuple[rounds.State, Journal]:
    """The whole run in memory."""
    journal = Journal.create(None, {"run": "run"})
    return rounds.run(study or agreed(), sites, INITIAL, journal, lambda event: None), journal


def ledger_of(journal: Journal) -> list[dict[str, Any]]:
    """The ledger's entries."""
    return [json.loads(line) for line in journal._lines("SELECT line FROM ledger ORDER BY sequence")]


def opened(message: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and body of a message."""
    (length,) = struct.unpack("<I", message[4:8])
    return json.loads(zlib.decompress(message[8 : 8 + length])), message[8 + length :]


def packed(header: object, body: bytes = b"", level: int = 1) -> bytes:
    """A message of any header: a JSON value, or the text itself as bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    squeezed = zlib.compress(text, level)
    return MAGIC + struct.pack("<I", len(squeezed)) + squeezed + body


def tensor_file(entries: Mapping[str, Any] | bytes, data: bytes, length: int | None = None) -> bytes:
    """safetensors bytes of any header."""
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data
