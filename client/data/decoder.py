"""Files are decoded in a process of their own: what kills, hangs or floods it costs one file, and nothing else."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from pydantic import TypeAdapter, ValidationError

from polyclinic.client.data.examined import Examined
from polyclinic.client.data.images import Pixels
from polyclinic.client.data.volume import Array, Facts, Volume
from polyclinic.client.data.worker import LENGTHS, Limits, patience
from polyclinic.core.errors import DataError, EngineError
from polyclinic.core.study import Data

_ENVIRONMENT = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "VIRTUAL_ENV", "PYTHONHOME", "TMPDIR")
_HEAD = 1 << 20
_KINDS = ("|u1", "|i1", "<u2", "<i2", "<i4", "<f4")
_START = 120.0
_EXAMINED, _FACTS = TypeAdapter(Examined), TypeAdapter(Facts)
Taken = Mapping[str, str]
_TAKEN: TypeAdapter[dict[str, str]] = TypeAdapter(dict[str, str])
_SPACING: TypeAdapter[tuple[float, float, float] | None] = TypeAdapter(tuple[float, float, float] | None)


@dataclass(eq=False)
class Decoder:
    """A worker process that reads files, started when it is first needed and again when a file killed it.

    One for many files: starting it takes a second, a small file a few milliseconds. Not for several threads at once.

    >>> with Decoder() as decoder:  # doctest: +SKIP
    ...     volume = decoder.volume(Path("ct.dcm"))
    """

    limits: Limits = field(default_factory=Limits)
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False, repr=False)
    _files: int = field(default=0, init=False, repr=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def volume(self, path: Path) -> Volume:
        """What a file, or a folder's DICOM slices, hold: see ``readers.reading.read``.

        Raises:
            DataError: it cannot be read; among the reasons: it killed, hung or flooded its decoder.
            EngineError: the worker process cannot be started.
        """
        return _volume(*self._ask({"job": "volume", "path": str(path)}), path)

    def mask(self, path: Path, reference: Path | None = None) -> Volume:
        """See ``readers.reading.read_mask``; errors as for ``volume``."""
        request = {"job": "mask", "path": str(path), "other": str(reference) if reference else None}
        return _volume(*self._ask(request), path)

    def picture(self, path: Path, data: Data, tell: Callable[[Taken], None] = lambda taken: None) -> Pixels:
        """uint8 [C, S, S], as ``flatten.flattened`` makes it; errors as for ``volume``.

        ``tell`` is given what the file says of how it was taken: see ``volume.Facts``.
        """
        head, body = self._ask({"job": "picture", "path": str(path), "data": data.model_dump(mode="json")})
        try:
            taken = _TAKEN.validate_python(head.get("acquisition"))
        except ValidationError as failure:
            raise _babble(path) from failure
        pixels = _array(head, body, path)
        tell(taken)
        return pixels

    def laid(self, path: Path, mask: Path, data: Data) -> tuple[Array, tuple[float, ...]]:
        """A picture's mask as the model is to paint it, and mm between neighbours: see ``masked.laid``."""
        request = {"job": "laid", "path": str(path), "other": str(mask), "data": data.model_dump(mode="json")}
        head, body = self._ask(request)
        spacing = head.get("spacing")
        if not isinstance(spacing, list) or not all(isinstance(step, float) for step in spacing):
            raise _babble(path)
        return _array(head, body, path), tuple(spacing)

    def examine(self, path: Path, data: Data, mask: Path | None = None) -> Examined:
        """See ``examine.examine``; errors as for ``volume``."""
        other = str(mask) if mask else None
        request = {"job": "examine", "path": str(path), "other": other, "data": data.model_dump(mode="json")}
        head, _ = self._ask(request)
        try:
            return _EXAMINED.validate_python(head.get("examined"))
        except ValidationError as failure:
            raise _babble(path) from failure

    def close(self) -> None:
        """Ends the worker process."""
        process, self._process, self._files = self._process, None, 0
        if process is None:
            return
        process.kill()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        process.wait()

    def _ask(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        path = Path(request["path"])
        if self._files >= self.limits.files:
            self.close()
        process = self._process or self._started()
        self._process, self._files = process, self._files + 1
        deadline = time.monotonic() + self.limits.wall * patience(path)
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            head, body = self._frame(process, deadline, path)
        except (BrokenPipeError, EOFError) as failure:
            code = self._code(process)
            raise _death(code, path, self.limits) from failure
        except (TimeoutError, DataError) as failure:
            self.close()
            if isinstance(failure, DataError):
                raise
            what = f"hung its decoder: no answer within {self.limits.wall} s"
            raise DataError(what, where=str(path), remedy="leave it out") from failure
        if "problem" in head:
            said = [str(head.get(name, "")) for name in ("problem", "where", "remedy")]
            raise DataError(said[0], where=said[1] or str(path), remedy=said[2])
        return head, body

    def _code(self, process: subprocess.Popen[bytes]) -> int:
        """With which code it ended, -9 if it fell silent without ending and had to be ended."""
        with suppress(subprocess.TimeoutExpired):
            process.wait(1.0)
        self.close()
        return int(process.returncode)

    def _started(self) -> subprocess.Popen[bytes]:
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        command = [sys.executable, "-P", "-m", "polyclinic.client.data.worker", json.dumps(asdict(self.limits))]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env=environment | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}, start_new_session=True,
        )  # fmt: skip
        self._process, self._files = process, 0
        try:
            head, _ = self._frame(process, time.monotonic() + _START, Path())
        except (EOFError, TimeoutError, DataError) as failure:
            self.close()
            remedy = "try: python -m polyclinic.client.data.worker '{}'"
            raise EngineError("the process that decodes images does not start", remedy=remedy) from failure
        if "ready" not in head:
            self.close()
            remedy = "install what requirements.lock lists"
            raise EngineError(f"the process that decodes images does not start: {head.get('failed')}", remedy=remedy)
        return process

    def _frame(self, process: subprocess.Popen[bytes], deadline: float, path: Path) -> tuple[dict[str, Any], bytes]:
        assert process.stdout is not None
        source = process.stdout.fileno()
        head_length, body_length = LENGTHS.unpack(_bytes(source, LENGTHS.size, deadline))
        if head_length > _HEAD or body_length > self.limits.values:
            raise _babble(path)
        try:
            head = json.loads(_bytes(source, head_length, deadline))
        except ValueError as failure:
            raise _babble(path) from failure
        if not isinstance(head, dict):
            raise _babble(path)
        return head, _bytes(source, body_length, deadline)


def _bytes(source: int, count: int, deadline: float) -> bytes:
    """``count`` bytes; EOFError if the process ends first, TimeoutError if they are not there in time."""
    held = bytearray()
    while len(held) < count:
        if not select.select([source], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise TimeoutError
        piece = os.read(source, min(count - len(held), 1 << 20))
        if not piece:
            raise EOFError
        held += piece
    return bytes(held)


def _array(head: dict[str, Any], body: bytes, path: Path) -> Array:
    shape, kind = head.get("shape"), head.get("dtype")
    if kind not in _KINDS or not isinstance(shape, list) or not all(isinstance(n, int) and n > 0 for n in shape):
        raise _babble(path)
    try:
        return np.frombuffer(body, dtype=np.dtype(str(kind))).reshape(shape).copy()
    except ValueError as failure:
        raise _babble(path) from failure


def _volume(head: dict[str, Any], body: bytes, path: Path) -> Volume:
    try:
        facts, spacing = _FACTS.validate_python(head["facts"]), _SPACING.validate_python(head["spacing"])
        affine = None if head["affine"] is None else np.array(head["affine"], dtype=np.float64)
        return Volume(_array(head, body, path), facts, affine, spacing)
    except (KeyError, TypeError, ValueError) as failure:  # pydantic's errors are ValueErrors
        raise _babble(path) from failure


def _babble(path: Path) -> DataError:
    return DataError("made its decoder answer nonsense", where=str(path), remedy="leave it out")


def _death(code: int, path: Path, limits: Limits) -> DataError:
    if code in (-signal.SIGXCPU, -signal.SIGALRM):
        what = f"took its decoder more than {limits.processor} s of processor time"
    elif code < 0:
        what = f"crashed its decoder ({signal.Signals(-code).name})"
    else:
        what = f"ended its decoder (exit code {code})"
    return DataError(what, where=str(path), remedy="leave it out, or export it again")
