"""Sites that answer without training: ``python -m polyclinic.simulations.bench.noop site|agent|bare FOLDER``.

``site`` is all of a site – supervisor, stock SuperNode, link, agent with its book, its seals and its kept replies – and
only what the model would do is left out. ``bare`` is an agent without torch, for many sites on one machine.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict

from polyclinic.client.home import Home
from polyclinic.client.tasks import Executor
from polyclinic.core import seeds
from polyclinic.core.envelope import seal
from polyclinic.core.messages import Instruction, Reply, decode_instruction, encode_reply
from polyclinic.core.statistics.monoid import Withheld
from polyclinic.core.supervise import Child
from polyclinic.core.update import Tensors, Update
from polyclinic.core.version import VERSION

if TYPE_CHECKING:
    from polyclinic.client.respond import Site, Workbench

NAMED = ("study", "run", "round", "nonce", "base")
COUNTS = {"train": (100, 100)}
"""Images and patients of a bare site."""


def reply(site: str, asked: Instruction, sizes: dict[str, tuple[int, int]]) -> Reply:
    """What came, every number a little changed, so that nothing on the way can be spared for being known."""
    moments = ["incoming/" + split for split in asked.evaluate] + ["fitted/val"] * asked.fit
    told = {moment: Withheld("outcome", 10) for moment in moments}
    update = Update(site, sizes["train"][0], changed(site, asked)) if asked.fit else None
    named = {name: getattr(asked, name) for name in NAMED}
    return Reply(site, **named, update=update, statistics=told, sizes=sizes, seconds=0.0)


def changed(site: str, asked: Instruction) -> Tensors:
    """Noise of a millionth, at random in all bits that it reaches."""
    rng = seeds.generator("noop", site, asked.base)
    noise = {name: rng.random(array.shape, np.float32) * np.float32(1e-6) for name, array in asked.tensors.items()}
    return {name: np.add(array, noise.pop(name)) for name, array in asked.tensors.items()}


def untrained(bench: Workbench, site: Site, instruction: Instruction) -> Reply:
    """In the place of ``polyclinic.client.respond.respond``."""
    return reply(site.name, instruction, dict(site.data.sizes()))


def run_site(home: Home) -> None:
    """As ``polyclinic site start``, until SIGTERM."""
    from polyclinic.client import site

    children = site.children

    def ours(home: Home, part: site.Part) -> Sequence[Child]:
        command = [sys.executable, "-m", __spec__.name, "agent", str(home.folder)]
        return [replace(c, command=command) if c.name == "agent" else c for c in children(home, part)]

    came: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda got, _: came.append(got))
    vars(site)["children"] = ours
    site.start(home, "all", print, lambda: bool(came))


def run_agent(home: Home) -> None:
    """The site's agent, but for the model's work."""
    from polyclinic.client import agent

    vars(agent)["respond"] = untrained
    agent.main(home)


def run_bare(home: Home) -> None:
    """Takes tasks and answers them, signed; decides nothing and writes nothing down."""
    key, site = home.key(), home.settings.name

    def answer(message: Message, context: Context) -> Message:
        record: Any = message.content["message"]
        asked = decode_instruction(record["bytes"].data)
        body = encode_reply(reply(site, asked, COUNTS))
        named = {name: getattr(asked, name) for name in NAMED}
        sealed = seal(site=site, **named, kind="reply", version=VERSION, body=body, key=key)
        content = ArrayRecord({"bytes": Array("uint8", (len(sealed),), "polyclinic", sealed)})
        return Message(RecordDict({"message": content}), reply_to=message)

    secret = (home.shared / "runtime.secret").read_bytes()
    Executor(f"127.0.0.1:{home.settings.local_port}", secret, answer).serve(lambda: None, lambda failure: None)


if __name__ == "__main__":
    {"site": run_site, "agent": run_agent, "bare": run_bare}[sys.argv[1]](Home(Path(sys.argv[2])))
