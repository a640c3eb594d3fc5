"""Canaries: strings that stand wherever a site's data name somebody, and a search for them in whatever left it.

Each begins and ends alike, so that one search finds them all, whole or cut off at either end, and in other clothes:
UTF-16, hexadecimal, base64 at any offset, percent-encoded, behind zlib or gzip, and in the cells of SQLite files.
"""

from __future__ import annotations

import base64
import csv
import gzip
import re
import sqlite3
import zlib
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

HEAD, TAIL = "KanarIen", "vOgelBaq"
DEEP = 4
"""Layers of compression within one another that are opened."""
OPENED = 2**24
"""Bytes of a compressed stream that are looked at."""


@dataclass
class Aviary:
    """Makes canaries, each unlike the others, and knows where each was put."""

    put: dict[str, str] = field(default_factory=dict)

    def new(self, where: str) -> str:
        """A canary for ``where``; letters and digits alone."""
        canary = f"{HEAD}{len(self.put):04d}{TAIL}"
        self.put[canary] = where
        return canary


def write_sites(folder: Path, sites: Iterable[str], patients: int, aviary: Aviary, size: int = 32) -> Path:
    """Pictures of ``patients`` patients a site, with a canary in every place that could name one.

    Folder and file names, patient ids, two free columns, the text, the EXIF block and the comment of every PNG.
    Half of the patients train, a quarter is for validation, a quarter for testing; labels are 0 and 1.

    Returns:
        The manifest, in a folder that is named by a canary, too.
    """
    home, rng, rows = folder / aviary.new("folder of the data"), np.random.default_rng(5), []
    for site in sites:
        for number in range(patients):
            if number % 8 == 0:
                place = home / aviary.new(f"folder of {site}")
                place.mkdir(parents=True)
            label = number % 2
            split = "train" if number < patients / 2 else "val" if number < patients * 0.75 else "test"
            path = place / f"{aviary.new(f'file name of {site}')}.png"
            _write_picture(path, rng.normal(100 + 40 * label, 30, (size, size)), aviary, site)
            rows.append({
                "path": path.relative_to(home).as_posix(), "site": site, "label": label, "split": split,
                "patient_id": aviary.new(f"patient of {site}"), "name": aviary.new(f"name column of {site}"),
            })  # fmt: skip
    manifest = home / "manifest.csv"
    with manifest.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return manifest


def _write_picture(path: Path, values: np.ndarray, aviary: Aviary, site: str) -> None:
    notes = PngInfo()
    notes.add_text("Comment", aviary.new(f"PNG comment of {site}"))
    notes.add_itxt("Patient", aviary.new(f"PNG text of {site}"), zip=True)
    image = Image.fromarray(values.clip(0, 255).astype(np.uint8))
    exif = image.getexif()
    exif[0x010E] = aviary.new(f"EXIF description of {site}")
    image.save(path, pnginfo=notes, exif=exif)


def _clothes(word: str) -> Iterator[bytes]:
    """Every form in which ``word`` may stand in bytes."""
    plain = word.encode()
    yield plain
    yield word.encode("utf-16-le")
    yield word.encode("utf-16-be")
    yield plain.hex().encode()
    yield "".join(f"%{byte:02x}" for byte in plain).encode()
    yield "".join(f"\\u{ord(char):04x}" for char in word).encode()
    yield plain[::-1]
    for offset in range(3):  # the letters that depend on what stands before and after are cut off
        coded = base64.b64encode(b"\0" * offset + plain)
        yield coded[(0, 2, 3)[offset] : len(plain) * 8 // 6]


PATTERN = re.compile(b"|".join(re.escape(form) for word in (HEAD, TAIL) for form in _clothes(word)), re.IGNORECASE)


def leaks(things: Iterable[bytes | str | Path]) -> list[str]:
    """Where canaries sit: in bytes, in texts, in files and in all files of folders; empty if nowhere.

    Raises:
        FileNotFoundError: a path that is not there could hide anything.
    """
    found: list[str] = []
    for number, thing in enumerate(things):
        if isinstance(thing, Path):
            files = sorted(path for path in thing.rglob("*") if path.is_file()) if thing.is_dir() else [thing]
            for path in files:
                found += [f"{path}: {what}" for what in _in_file(path)]
            found += [f"{path}: its name" for path in files if PATTERN.search(str(path.relative_to(thing)).encode())]
        else:
            data = thing.encode("utf-8", "surrogatepass") if isinstance(thing, str) else thing
            found += [f"thing {number}: {what}" for what in _in_bytes(data)]
    return found


def _in_file(path: Path) -> Iterator[str]:
    yield from _in_bytes(path.read_bytes())
    if path.read_bytes()[:16] == b"SQLite format 3\0":
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
            for (table,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
                for row in db.execute(f'SELECT * FROM "{table}"'):
                    for cell in row:
                        data = cell if isinstance(cell, bytes) else str(cell).encode()
                        yield from (f"table {table}: {what}" for what in _in_bytes(data))


def _in_bytes(data: bytes, depth: int = 0) -> Iterator[str]:
    for hit in PATTERN.finditer(data):
        yield f"{'compressed ' * depth}byte {hit.start()}: {data[max(0, hit.start() - 20) : hit.end() + 20]!r}"
    if depth < DEEP:
        for start, inner in _streams(data):
            yield from (f"stream at {start}: {what}" for what in _in_bytes(inner, depth + 1))


def _streams(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Everything in ``data`` that can be decompressed, also if it is cut short."""
    for hit in re.finditer(rb"\x1f\x8b\x08|\x78[\x01\x5e\x9c\xda]", data):
        start = hit.start()
        unzip = zlib.decompressobj(31 if data[start : start + 1] == b"\x1f" else 15)
        with suppress(zlib.error):
            inner = unzip.decompress(data[start:], OPENED)
            if len(inner) >= len(TAIL):
                yield start, inner


def squeezed(text: str) -> Iterator[bytes]:
    """``text`` in the ways in which it could hide, for testing the search itself."""
    plain = f"x{text}y".encode()
    yield from (plain, f"é{text}".encode("utf-16-le"), f"é{text}".encode("utf-16-be"), plain.hex().encode())
    yield from (base64.b64encode(b"a" * offset + plain) for offset in range(3))
    yield base64.urlsafe_b64encode(plain)
    yield from (zlib.compress(plain), gzip.compress(plain), b"junk" + zlib.compress(zlib.compress(plain)) + b"junk")
    yield plain.lower()
    yield plain.upper()
