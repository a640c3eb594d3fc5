from __future__ import annotations

import os
import struct
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.uid import DeflatedExplicitVRLittleEndian

from polyclinic.client.data.decoder import Decoder
from polyclinic.client.data.images import read_image
from polyclinic.client.data.pictures import pictures
from polyclinic.client.data.worker import Limits
from polyclinic.core.errors import DataError, EngineError
from polyclinic.core.study import Data
from tests.client.data.medical import dataset, ramp, saved

DATA = Data(image_size=16)


@pytest.fixture(scope="module")
def decoder():
    with Decoder() as made:
        yield made


def test_a_volume_comes_back_whole(decoder, tmp_path):
    path = saved(dataset(ramp(4, 6), RescaleIntercept="-9", WindowCenter="5", WindowWidth="8"), tmp_path / "a")
    found = decoder.volume(path)
    assert np.array_equal(found.values[0, 0], ramp(4, 6) - 9)
    assert found.axes == "SPL"
    assert found.spacing == (2.0, 0.5, 0.25)
    assert found.facts.window == (1.0, 8.0)
    assert decoder.mask(saved(dataset(ramp(4, 6)), tmp_path / "m")).values.max() == 23


def test_an_error_crosses_with_place_and_remedy(decoder, tmp_path):
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(DataError, match="is empty") as failure:
        decoder.volume(tmp_path / "a")
    assert (failure.value.where, failure.value.remedy) == (str(tmp_path / "a"), "copy it again")


def test_pictures_of_pillows_are_read_as_ever_and_start_no_process(tmp_path, picture, monkeypatch):
    for name, shape in (("a.png", (20, 30)), ("b.png", (16, 16, 3)), ("c.bmp", (9, 40))):
        path = picture(name, shape)
        monkeypatch.setattr(Decoder, "_started", lambda self: pytest.fail("started a process"))
        with pictures(DATA) as reading:
            assert np.array_equal(reading(path), read_image(path, DATA, None))
    (tmp_path / "text.png").write_text("hello")
    with pictures(DATA) as reading, pytest.raises(DataError, match="is no PNG"):
        reading(tmp_path / "text.png")


def test_one_process_serves_many_and_a_fresh_one_follows(tmp_path):
    path = saved(dataset(ramp(4, 6)), tmp_path / "a")
    with Decoder(Limits(files=3)) as decoder:
        processes = []
        for _ in range(7):
            decoder.picture(path, DATA)
            processes.append(decoder._process.pid)
        assert len(set(processes)) == 3
        last = processes[-1]
    assert not Path(f"/proc/{last}").exists() or os.uname().sysname != "Linux"


@pytest.mark.parametrize(
    ("trap", "said"),
    [
        ("os.kill(os.getpid(), 11)", "crashed its decoder \\(SIGSEGV\\)"),
        ("os._exit(3)", "exit code 3"),
        ("import time; time.sleep(60)", "hung its decoder: no answer within 5 s"),
        ("while True: pass", "more than 1 s of processor time|hung its decoder"),
        ("held = []\nwhile True: held.append(bytearray(1 << 24))", "more memory than a picture may take"),
        ("os.write(answers, b'\\xff' * 400)", "nonsense"),
        ("open('{folder}/written', 'w').write('x' * 9999)", "SIGXFSZ|cannot be read|File too large"),
    ],
)
def test_what_kills_hangs_or_floods_its_decoder_costs_one_file(tmp_path, trap, said):
    """A decoder that does it, in the worker's own process: sitecustomize puts it in pydicom's place for one file."""
    good = saved(dataset(ramp(4, 6)), tmp_path / "good")
    bad = saved(dataset(ramp(4, 6)), tmp_path / "bad")
    body = "\n        ".join(trap.format(folder=tmp_path).split("\n"))
    (tmp_path / "traps").mkdir()
    (tmp_path / "traps/sitecustomize.py").write_text(f"""
import os, threading, sys
answers = 1
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "polyclinic.client.data.examine":
            sys.meta_path.remove(self)
            import polyclinic.client.data.readers.dicom as dicom
            opened = dicom.opened
            def trapped(path, header_only=False):
                if path.name == "bad":
                    trap(path)
                return opened(path, header_only)
            dicom.opened = trapped
def trap(path):
    answers = max(int(n) for n in os.listdir("/proc/self/fd") if pipe(n)) if os.path.isdir("/proc/self/fd") else 3
    if True:
        {body}
def pipe(n):
    try:
        return os.readlink("/proc/self/fd/" + n).startswith("pipe")
    except OSError:
        return False
sys.meta_path.insert(0, Finder())
""")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "traps"), os.environ.get("PYTHONPATH", "")]))
        with Decoder(Limits(processor=1, wall=5, memory=384 << 20)) as decoder:
            assert decoder.picture(good, DATA).shape == (1, 16, 16)
            with pytest.raises(DataError, match=said) as failure:
                decoder.picture(bad, DATA)
            assert failure.value.where == str(bad)
            assert decoder.picture(good, DATA).shape == (1, 16, 16)
    assert not (tmp_path / "written").exists() or (tmp_path / "written").stat().st_size == 0


def test_bombs_are_refused_and_memory_is_bounded(tmp_path):
    made = dataset(np.zeros((4, 6), np.int16))
    made.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    raw = saved(made, tmp_path / "bomb").read_bytes()
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    start = raw.index(b"DICM") + 4 + 12 + struct.unpack_from("<I", raw, 140)[0]
    body = b"".join(packer.compress(b"\0" * (1 << 24)) for _ in range(64)) + packer.flush()  # 1 GiB
    (tmp_path / "bomb").write_bytes(raw[:start] + body)
    with Decoder(Limits(memory=512 << 20)) as decoder, pytest.raises(DataError, match=r"more memory|damaged|without"):
        decoder.volume(tmp_path / "bomb")
    header = b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + struct.pack(">IIBBBBB", 90000, 90000, 8, 0, 0, 0, 0)
    packed = b"IDAT" + zlib.compress(b"\0" * 40)
    chunk = struct.pack(">I", len(packed) - 4) + packed + struct.pack(">I", zlib.crc32(packed))
    (tmp_path / "png").write_bytes(header + struct.pack(">I", zlib.crc32(header[12:])) + chunk)
    with Decoder() as decoder, pytest.raises(DataError, match="too large"):
        decoder.volume(tmp_path / "png")


def test_a_worker_that_does_not_start_is_no_fault_of_the_file(tmp_path, monkeypatch):
    (tmp_path / "pydicom").mkdir()
    (tmp_path / "pydicom/__init__.py").write_text("raise ImportError('no pydicom here')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    with Decoder() as decoder, pytest.raises(EngineError, match="does not start"):
        decoder.volume(saved(dataset(ramp(4, 6)), tmp_path / "a"))


def test_random_damage_never_ends_in_anything_but_a_picture_or_a_reason(decoder, tmp_path):
    rng = np.random.default_rng(5)
    raws = [saved(dataset(ramp(12, 16)), tmp_path / "a").read_bytes()]
    Image.fromarray(ramp(12, 16, dtype=np.uint8)).save(tmp_path / "a.png")
    raws.append((tmp_path / "a.png").read_bytes())
    for _ in range(60):
        for raw in raws:
            held = bytearray(raw)
            for place in rng.integers(0, len(held), 4):
                held[place] = rng.integers(0, 256)
            (tmp_path / "b").write_bytes(held[: rng.integers(1, len(held) + 1)] if rng.random() < 0.3 else held)
            with suppress(DataError):
                decoder.volume(tmp_path / "b")
