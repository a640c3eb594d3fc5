"""The process in which decoders run: it reads files one after another, may die of any of them, and can do little else.

``python -m polyclinic.client.data.worker LIMITS``: requests are lines of JSON on its standard input; answers are frames
on what was its standard output: the lengths of head and body (4 and 8 bytes, big-endian), a head in JSON, a body of
plain array bytes.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import struct
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

LENGTHS = struct.Struct(">IQ")


@dataclass(frozen=True, slots=True)
class Limits:
    """What one file may cost.

    Attributes:
        memory: bytes of address space of the whole process.
        values: bytes of the values of one picture.
        processor: seconds of processor time for one file; a folder may take ten times that.
        wall: seconds until it counts as hung; for a folder likewise.
        files: after this many the process makes room for a fresh one, so that what decoders leak is freed.
    """

    memory: int = 3 << 30
    values: int = 512 << 20
    processor: int = 30
    wall: int = 60
    files: int = 2000


def main(limits: Limits) -> None:
    """Answers requests until there are no more."""
    answers = os.fdopen(os.dup(1), "wb")
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)  # what a decoder prints is no answer
    try:
        from polyclinic.client.data.readers import dicom, masks, nifti, picture, series  # noqa: F401
    except ImportError as failure:
        _send(answers, {"failed": f"{failure}"})
        return
    confine(limits)
    _send(answers, {"ready": True})
    for line in sys.stdin.buffer:
        request = json.loads(line)
        _allow(limits, patience(Path(request["path"])))
        head, body = _answer(request, limits)
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        _send(answers, head, body)


def confine(limits: Limits) -> None:
    """Takes away what reading a picture does not need: memory without end, writing files, starting programs."""
    for what, most in (
        (resource.RLIMIT_AS, limits.memory),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 64),
    ):
        _, hard = resource.getrlimit(what)
        resource.setrlimit(what, (most, most if hard == resource.RLIM_INFINITY else min(most, hard)))
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS


def patience(path: Path) -> int:
    """How many times the seconds of one file a path may take: a folder is many slices."""
    return 10 if path.is_dir() else 1


def _allow(limits: Limits, times: int) -> None:
    """Starts the clocks for one file; when one runs out, the system ends the process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + 1 + limits.processor * times, hard))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, limits.wall * times + 5.0)  # in case nobody is there any more to end it


def _answer(request: dict[str, Any], limits: Limits) -> tuple[dict[str, Any], Any]:
    from polyclinic.core.errors import DataError

    try:
        return _done(request, limits)
    except DataError as failure:
        return {"problem": failure.problem, "where": failure.where, "remedy": failure.remedy}, b""


def _done(request: dict[str, Any], limits: Limits) -> tuple[dict[str, Any], Any]:
    from polyclinic.client.data.examine import examine
    from polyclinic.client.data.flatten import flattened
    from polyclinic.client.data.masked import laid
    from polyclinic.client.data.readers import reading
    from polyclinic.core.study import Data

    path = Path(request["path"])
    other = Path(request["other"]) if request.get("other") else None
    if request["job"] == "volume":
        return encoded(reading.read(path, limits.values))
    if request["job"] == "mask":
        return encoded(reading.read_mask(path, other, limits.values))
    data = Data.model_validate(request["data"])
    if request["job"] == "examine":
        return {"examined": asdict(reading.explained(lambda: examine(path, data, other, limits.values), path))}, b""
    if request["job"] == "laid":
        assert other is not None
        numbers, spacing = laid(path, other, data, limits.values)
        return {"dtype": numbers.dtype.str, "shape": numbers.shape, "spacing": spacing}, numbers.tobytes()
    volume = reading.read(path, limits.values)
    pixels = reading.explained(lambda: flattened(volume, data), path)
    taken = dict(volume.facts.acquisition)
    return {"dtype": pixels.dtype.str, "shape": pixels.shape, "acquisition": taken}, pixels.tobytes()


def encoded(volume: Any) -> tuple[dict[str, Any], Any]:
    """A volume as the head and the body of a frame."""
    held = {"facts": asdict(volume.facts), "spacing": volume.spacing, "dtype": volume.values.dtype.str}
    affine = None if volume.affine is None else volume.affine.tolist()
    return held | {"shape": volume.values.shape, "affine": affine}, volume.values.tobytes()


def _send(answers: BinaryIO, head: dict[str, Any], body: bytes = b"") -> None:
    written = json.dumps(head).encode()
    answers.write(LENGTHS.pack(len(written), len(body)) + written)
    answers.write(body)
    answers.flush()


if __name__ == "__main__":
    main(Limits(**json.loads(sys.argv[1])))
