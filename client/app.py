"""The Flower ClientApp: one message in, one reply out."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from flwr.app import Array, ArrayRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from polyclinic.client.cache import Cache
from polyclinic.client.data.dataset import SiteData
from polyclinic.client.data.manifest import read_manifest, sites
from polyclinic.client.keep import Keep
from polyclinic.client.policy import Policy
from polyclinic.client.respond import Site, Workbench, respond, sayable
from polyclinic.core import study as studies
from polyclinic.core.config import parse
from polyclinic.core.errors import EngineError, PolicyError, PolyclinicError, UpdateError
from polyclinic.core.messages import REFUSED, Instruction, decode_instruction, encode_reply

Find = Callable[[Context, Instruction], tuple[Workbench, Site]]
"""Whose turn it is and with what: a simulation looks into a manifest, a hospital's agent knows."""


def serve(message: Message, context: Context, find: Find) -> Message:
    """The reply to one message; what a site refuses, it refuses in an error reply that says why."""
    try:
        instruction = decode_instruction(opened(message))
        bench, site = find(context, instruction)
        reply = encode_reply(respond(bench, site, instruction))
    except PolyclinicError as refusal:
        return Message(Error(REFUSED, sayable(refusal, "this site")), reply_to=message)
    record = ArrayRecord({"bytes": Array("uint8", (len(reply),), "polyclinic", reply)})
    return Message(RecordDict({"message": record}), reply_to=message)


def opened(message: Message) -> bytes:
    """The bytes that a message carries."""
    record = message.content.get("message")
    if not isinstance(record, ArrayRecord) or "bytes" not in record:
        raise UpdateError("this is no message of this protocol version")
    return record["bytes"].data


def by_partition(context: Context, instruction: Instruction) -> tuple[Workbench, Site]:
    """In a simulation: the site that the node's number means, in the order of names."""
    told = context.node_config
    if absent := {"study", "manifest", "partition-id"} - told.keys():
        raise EngineError("is missing in the node's configuration", where=min(absent))
    policy, own = str(told.get("policy", "{}")), str(told.get("own", ""))
    cache = (str(told.get("cache", "")), int(told.get("cache_mb", 0)))
    bench, held = loaded(str(told["study"]), instruction.study, str(told["manifest"]), policy, own, *cache)
    return bench, held[int(told["partition-id"])]


@lru_cache(maxsize=1)
def loaded(
    study_file: str, digest: str, manifest: str, policy: str, own: str, cache: str, cache_mb: int
) -> tuple[Workbench, tuple[Site, ...]]:
    """Once a process: the model, and all sites by name; each decodes its images when first asked, and keeps them."""
    study = studies.load(study_file)
    if study.digest != digest:  # before anything is loaded for it
        raise PolicyError("the instruction is for another study than the one in force at this site")
    remembered = Cache(Path(cache), cache_mb * 2**20) if cache and cache_mb else None
    bench, rules = Workbench(study, cache=remembered), parse(Policy, json.loads(policy), "policy")
    rows = sites(read_manifest(Path(manifest), study.data, bench.task, study.study.seed))
    keeps = {name: Keep(Path(own) / name if own else None) for name in rows}
    held = ((name, SiteData(name, group, study.data, bench.task)) for name, group in rows.items())
    return bench, tuple(Site(name, data, rules, keeps[name]) for name, data in held)


app = ClientApp()


@app.train()
def answer(message: Message, context: Context) -> Message:
    """Every instruction, the last evaluation's too, comes this way."""
    return serve(message, context, by_partition)
