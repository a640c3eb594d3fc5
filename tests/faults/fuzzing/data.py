"""Targets without a signature: messages, statistics, study files. Whatever is accepted must be harmless."""

from __future__ import annotations

import json
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest import mock

from polyclinic.core import registry
from polyclinic.core import study as studies
from polyclinic.core.messages import decode_instruction, decode_reply, encode_instruction, encode_reply
from polyclinic.core.statistics import codec
from polyclinic.server import monitor, rounds, shift
from polyclinic.server.journal import Journal, State
from polyclinic.server.receive import OVERHEAD, Delivery, Receiver
from tests.faults.fuzzing import mutate
from tests.faults.fuzzing.mutate import Rng
from tests.faults.fuzzing.target import OTHER, REFUSED, SAME, Target, demand, refusing, round_trip
from tests.faults.hostile.bench import INITIAL, agreed, honest, opened, packed

KEPT = {"kind", "classes", "seed", "exclusive"}
"""Fields of statistics that are configuration."""


def asked() -> tuple[Any, Journal, State]:
    """The instruction of a first round, with the journal behind it."""
    journal = Journal.create(None, {"run": "run"})
    state = State(0, INITIAL, {})
    return rounds.instruct(agreed(), "run", state, fit=True, describe=True), journal, state


def reply_target() -> Target:
    """A reply with an update and every statistic."""
    original = encode_reply(honest("eve", asked()[0]))
    limit = sum(array.nbytes for array in INITIAL.values()) + OVERHEAD
    judge = round_trip(original, lambda data: decode_reply(data, limit), encode_reply)
    return Target("reply", 23, original, mutate.message, judge)


def instruction_target() -> Target:
    """What every site is asked."""
    original = encode_instruction(asked()[0])
    judge = round_trip(original, decode_instruction, encode_instruction)
    return Target("instruction", 12, original, mutate.message, judge)


def statistic_target() -> Target:
    """A packed statistic, as the journal keeps it: an outcome."""
    original = codec.pack(honest("eve", asked()[0]).statistics["incoming/val"])

    def damage(data: bytes, rng: Rng) -> bytes:
        if rng.random() < 0.1:
            return mutate.blind(data, rng)
        return zlib.compress(mutate.json_text(zlib.decompress(data), rng), 1)

    return Target("packed statistic", 9, original, damage, round_trip(original, codec.unpack, codec.pack))


def received_target() -> Target:
    """A reply whose statistics alone are forged, all the way through a round; honest sites must not suffer."""
    instruction, journal, state = asked()
    study: Any = agreed()
    blanks, expects = rounds.blanks(study), study.strategy.build().expects(state.tensors)
    original = encode_reply(honest("eve", instruction))
    others = {site: encode_reply(honest(site, instruction)) for site in ("bob", "zoe")}

    def judge(data: bytes) -> str:
        receiver = Receiver(study, instruction, ("bob", "eve", "zoe"), expects, blanks)
        receiver.check(Delivery("eve", data))
        for site, good in others.items():
            receiver.check(Delivery(site, good))
        receiver.close()
        suffering = {site: why for site, why in receiver.excluded.items() if site != "eve"}
        demand(not suffering, f"honest sites were set aside: {suffering}")
        record = monitor.round_record(receiver, 1, 1.0)
        record["shift"] = shift.renewed(journal, receiver.told())
        json.dumps(record, allow_nan=False)
        receiver.entry(record)
        return f"{REFUSED}: UpdateError" if "eve" in receiver.excluded else SAME if data == original else OTHER

    return Target("forged statistics", 2, original, forged_statistics, refusing(judge))


def forged_statistics(data: bytes, rng: Rng) -> bytes:
    """One statistic multiplied, emptied or changed; multiples of an honest one pass every test of its inner sense."""
    header, body = opened(data)
    told = header["statistics"]
    name = rng.choice(sorted(told))
    fields = told[name]["fields"]
    if rng.random() < 0.25:
        factor = rng.choice((0, 2, 3, 1000, 2**15, 2**20, 2**26, 2**29, 2**33, -1))
        told[name]["fields"] = {k: v if k in KEPT else multiplied(v, factor) for k, v in fields.items()}
        return packed(header, body)
    for _ in range(rng.choice((1, 1, 2, 3))):
        mutate.json_value(told[name] if rng.random() < 0.2 else fields, rng)
    return packed(header, body)


def multiplied(value: Any, factor: int) -> Any:
    """Every number of nested lists times ``factor``."""
    return [multiplied(item, factor) for item in value] if isinstance(value, list) else value * factor


def study_target(folder: Path) -> Target:
    """A study file with every kind of section: refused, or another study by another digest, or the same."""
    text = agreed().toml().encode() + b"# a remark\n"
    digest, path, plugins = agreed().digest, folder / "study.toml", lru_cache(registry._points)

    def judge(data: bytes) -> str:
        path.write_bytes(data)
        with mock.patch.object(registry, "_points", plugins):  # looking through all packages takes most of the time
            found = studies.load(path)
            again = studies.loads(found.toml())
        demand(again.digest == found.digest and again.canonical == found.canonical, "it does not come back")
        demand((found.digest == digest) == (found == agreed()), "two studies have one digest")
        return SAME if found.digest == digest else OTHER

    return Target("study file", 6, text, mutate.toml, refusing(judge))
