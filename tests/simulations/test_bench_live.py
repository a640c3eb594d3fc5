"""What the live benchmarks measure with: each piece does what it says; how fast is theirs to say, not a test's."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from flwr.cli.build import build_fab_from_disk

from polyclinic.core.errors import EngineError
from polyclinic.core.memory import peak_mb
from polyclinic.core.messages import Instruction, decode_instruction, encode_reply
from polyclinic.core.update import encode
from polyclinic.server import rounds
from polyclinic.server.governance.runs import Run
from polyclinic.server.journal import Journal
from polyclinic.server.receive import Delivery
from polyclinic.simulations.bench import figure, live, live_memory, noop, opponent
from polyclinic.simulations.bench.flower_app import client_app
from polyclinic.simulations.bench.opponent import Times
from polyclinic.simulations.bench.relay import relays
from polyclinic.simulations.live import until


def test_a_round_lasts_until_the_next_one_begins() -> None:
    times = Times([10.0, 13.0, 20.0], [1.0, 6.5])
    assert times.rounds() == [3.0, 7.0]
    assert times.beyond() == [2.0, 0.5]


def test_our_rounds_are_timed_by_what_the_run_left(tmp_path: Path) -> None:
    kinds = ["start", "round", "paused", "round", "evaluation"]
    entries = [{"kind": kind, "time": 100.0 + number**2} for number, kind in enumerate(kinds)]
    records = [{"sites": {"a": {"seconds": 0.25}, "b": {"seconds": 0.5}}}, {"sites": {"a": {"seconds": 2.0}}}]
    for name, lines in (("ledger.jsonl", entries), ("rounds.jsonl", records)):
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    times = live.live_times(Run("x", "d", str(tmp_path), "finished", "", 0.0))
    assert (times.rounds(), times.beyond()) == ([1.0, 8.0], [0.5, 6.0])


@pytest.mark.parametrize("megabytes", [1, 16])
def test_an_update_is_as_large_as_is_said(megabytes: int) -> None:
    assert len(encode(live.initial(live.study(1, megabytes)))) == pytest.approx(megabytes * 1e6, rel=0.01)


class Untrained:
    """Sites that answer as those of the benchmark do."""

    def names(self) -> Sequence[str]:
        """Two."""
        return live.SITES

    def send(self, message: bytes, to: Sequence[str], deadline: float) -> Iterator[Delivery]:
        """A reply each."""
        for site in to:
            yield Delivery(site, encode_reply(noop.reply(site, decode_instruction(message), noop.COUNTS)))


def test_the_server_takes_what_untrained_sites_answer() -> None:
    agreed = live.study(2, 1)
    initial = live.initial(agreed)
    journal = Journal.create(None, {"run": "bench", "study": agreed.digest})
    state = rounds.run(agreed, Untrained(), initial, journal, lambda event: None)
    assert [(sorted(r["sites"]), r["excluded"]) for r in journal.rounds()] == [([*live.SITES], {})] * 2
    moved = [float(np.abs(state.tensors[name] - array).max()) for name, array in initial.items()]
    assert 0.0 < min(moved) <= max(moved) <= 4e-6  # twice at most a millionth, and what float32 rounds


def test_no_two_answers_share_a_chunk() -> None:
    zeros = {"w": np.zeros(1000, np.float32)}
    asked = [Instruction("d", "r", n, "n", f"base{n}", True, ("val",), False, "1", zeros) for n in (1, 2)]
    answers = [noop.changed(site, a)["w"] for site in live.SITES for a in asked]
    assert len({answer.tobytes() for answer in answers}) == 4
    assert all(len(np.unique(answer)) > 900 for answer in answers)


def test_a_relay_counts_each_way() -> None:
    def echo_twice(listener: socket.socket) -> None:
        caller, _ = listener.accept()
        with caller:
            while piece := caller.recv(1000):
                caller.sendall(2 * piece)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=echo_twice, args=(listener,), daemon=True).start()
        with relays(listener.getsockname()[1]) as (relay,):
            port = relay.port
            with socket.create_connection(("127.0.0.1", port)) as caller:
                caller.sendall(bytes(70_000))
                caller.shutdown(socket.SHUT_WR)
                got = sum(iter(lambda: len(caller.recv(2**16)), 0))
            assert (got, relay.up, relay.down) == (140_000, 70_000, 140_000)
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", port), 1.0)


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # flwr's, about pathspec
def test_flower_takes_the_opponents_app_as_it_is_installed() -> None:
    app = files("polyclinic.simulations.bench").joinpath("flower_app")
    fab = build_fab_from_disk(Path(str(app)))
    assert {"pyproject.toml", "server_app.py", "client_app.py"} <= {*zipfile.ZipFile(io.BytesIO(fab)).namelist()}


def test_the_opponent_trains_the_weights_that_we_train(tmp_path: Path) -> None:
    manifest = live.centres(tmp_path, 12)["site000"]
    weights = str(figure.work(manifest, 1).weights)
    _, trained = client_app.build(weights, 8)
    ours = live.initial(figure.study(1))
    assert sorted(np.shape(w) for w in ours.values()) == sorted(tuple(w.shape) for w in trained.values())
    state = {name: weight.detach().numpy().copy() for name, weight in trained.items()}
    after, images, seconds = client_app.train(state, weights, 8, manifest, "site000")
    assert images > 0
    assert seconds > 0
    assert all((after[name] != before).any() for name, before in state.items())


def test_a_program_that_is_not_there_is_named() -> None:
    with pytest.raises(EngineError, match="flower-nothing"):
        opponent.program("flower-nothing")


def test_sigterm_ends_what_was_begun() -> None:
    ended: list[bool] = []
    before = signal.getsignal(signal.SIGTERM)

    def interrupted() -> None:
        with live.ends_well():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(5.0)
            finally:
                ended.append(True)

    with pytest.raises(SystemExit):
        interrupted()
    assert ended == [True]
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_coordinators_processes_are_found_and_their_peaks_read() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", "import sys; x = b'x' * 2**26; sys.stdin.read()", "runner"], stdin=-1
    )
    try:
        until(lambda: live_memory.processes(os.getpid()) == {"runner": child.pid}, 10.0, "the child")
        until(lambda: peak_mb(child.pid) > 64.0, 10.0, "the child's memory")
    finally:
        child.communicate()
    assert peak_mb(child.pid) == 0.0


@pytest.mark.slow
def test_both_sides_run_for_real_and_nothing_stays_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found = live.noop(2, 1)
    assert all(len(found.detail[side]) == 1 for side in ("ours", "theirs"))  # type: ignore[arg-type]
    assert found.value > 0.0
    left = [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path) in live_memory._read(path)]
    assert left == []
