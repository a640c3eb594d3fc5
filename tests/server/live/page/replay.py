"""A run that goes on: the files of a run folder as the runner would write them, step by step."""

from __future__ import annotations

import http.client
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polyclinic.server.live.page import serve
from tests.server.report.conftest import Made

TOKEN = "a-token-that-nobody-guesses-0123"


def put(path: Path, text: str) -> None:
    """Replaces a file at once, as the runner does."""
    beside = path.with_name(f".{path.name}.part")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


@dataclass
class Replay:
    """A made run's folder, and how far it has come."""

    made: Made
    folder: Path
    state: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        put(self.folder / "study.toml", self.made.study)
        now, names = time.time(), sorted(self.made.summary["sites"])
        self.state = {
            "run": self.folder.name, "study": "made", "digest": "ab" * 32, "phase": "waiting",
            "why": "sites are being waited for", "round": 0, "rounds": len(self.made.rounds), "round_began": None,
            "deadline": None, "began": now, "updated": now, "quorum": 2, "left": None, "sites": {}, "events": [],
        }  # fmt: skip
        for name in names:
            self.site(name, "waiting")

    def write(self, **changes: Any) -> None:
        """Writes live.json."""
        self.state |= changes | {"updated": time.time()}
        put(self.folder / "live.json", json.dumps(self.state))

    def site(self, name: str, state: str, why: str = "", **more: Any) -> None:
        """What a site is doing."""
        row = {"state": state, "since": time.time(), "why": why, "missed": 0, "certificate_days": 80, "last": None}
        self.state["sites"][name] = row | more
        self.write()

    def event(self, kind: str, text: str, site: str = "") -> None:
        """A line of the log."""
        line = {"at": time.time(), "kind": kind, "round": self.state["round"], "site": site, "text": text}
        self.write(events=[*self.state["events"], line])

    def begin(self, number: int) -> None:
        """A round begins."""
        self.write(phase="running", why="", round=number, round_began=time.time(), deadline=time.time() + 7200)

    def commit(self, number: int) -> None:
        """A round ends: its record is added as the journal adds it."""
        with (self.folder / "rounds.jsonl").open("a", encoding="utf-8") as out:
            out.write(json.dumps(self.made.rounds[number - 1]) + "\n")
            out.flush()
            os.fsync(out.fileno())
        self.write(left=60.0 * (len(self.made.rounds) - number))

    def finish(self) -> None:
        """The run ends."""
        from polyclinic.server.report.page import write_report

        put(self.folder / "summary.json", json.dumps(self.made.summary))
        write_report(self.folder)
        self.write(phase="finished", why="", round=len(self.made.rounds) + 1, deadline=None, left=None)


@contextmanager
def served(runs: Any, token: str = TOKEN) -> Iterator[int]:
    """A server in a thread; gives its port."""
    found: list[int] = []
    stop, begun = threading.Event(), threading.Event()

    def ready(port: int) -> None:
        found.append(port)
        begun.set()

    def work() -> None:
        serve(runs, port=0, token=token, stop=stop.is_set, ready=ready)

    thread = threading.Thread(target=work)
    thread.start()
    assert begun.wait(20)
    try:
        yield found[0]
    finally:
        stop.set()
        thread.join(20)
        assert not thread.is_alive()


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: http.client.HTTPMessage
    text: str


def get(port: int, path: str, *, method: str = "GET", cookie: bool = True, **headers: str) -> Answer:
    """One request, with the cookie of who has the token unless said otherwise; ``_`` in headers stands for ``-``."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    sent |= {"cookie": pass_of(port)} if cookie else {}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.putrequest(method, path, skip_host="host" in sent)
        for name, value in sent.items():
            connection.putheader(name, value)
        connection.endheaders()
        response = connection.getresponse()
        return Answer(response.status, response.msg, response.read().decode())
    finally:
        connection.close()


def pass_of(port: int, token: str = TOKEN) -> str:
    """The cookie that the first visit brings."""
    answer = get(port, f"/?token={token}", cookie=False)
    assert answer.status == 303, answer.text
    return answer.headers["set-cookie"].partition(";")[0]


class Stream:
    """An open stream of server-sent events, read line by line."""

    def __init__(self, port: int, path: str, **headers: str) -> None:
        sent = {"Host": f"127.0.0.1:{port}", "Cookie": pass_of(port)}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        lines = "".join(f"{name}: {value}\r\n" for name, value in sent.items())
        self._socket = socket.create_connection(("127.0.0.1", port), 20)
        self._socket.sendall(f"GET {path} HTTP/1.1\r\n{lines}\r\n".encode())
        self._file = self._socket.makefile("rb")
        self.status = int(self._file.readline().split()[1])
        self.headers = http.client.parse_headers(self._file)
        self.raw = b""

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends it from this side."""
        self._file.close()
        self._socket.close()

    def blocks(self) -> Iterator[dict[str, str]]:
        """Events as they come: fields by name, the comment under ""."""
        held = b""
        while size := self._file.readline().strip():
            chunk = self._file.read(int(size, 16))
            self._file.readline()
            if not chunk:
                return
            self.raw += chunk
            held += chunk
            *whole, held = held.split(b"\n\n")
            for block in whole:
                yield fields(block.decode("ascii"))

    def until(self, kind: str) -> list[dict[str, str]]:
        """All blocks up to and with the first of that kind of event."""
        found = []
        for block in self.blocks():
            found.append(block)
            if block.get("event") == kind:
                return found
        raise AssertionError(f"the stream ended without {kind}")

    def batch(self) -> dict[str, str]:
        """The next fragments up to the one that bears the version: html by id."""
        found = {}
        for block in self.blocks():
            if block.get("event") == "fragment":
                told = json.loads(block["data"])
                found[told["id"]] = told["html"]
                if "id" in block:
                    self.version = block["id"]
                    return found
        raise AssertionError("the stream ended")


def fields(block: str) -> dict[str, str]:
    """The fields of one event, by the letter of the HTML standard: no line without a colon, one value a name."""
    found: dict[str, str] = {}
    for line in block.split("\n"):
        name, colon, value = line.partition(":")
        assert colon, block
        assert name not in found, block
        found[name] = value.removeprefix(" ")
    return found
