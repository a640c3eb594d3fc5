"""What a file is, by what it holds; its name says nothing."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

from polyclinic.core.errors import DataError

HEAD = 540
"""Bytes of a file's start that tell: the header of NIfTI-2 is the longest."""
_PACKED = 1 << 14
_PICTURES = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"BM": "BMP",
}
_STRANGERS = {
    b"%PDF": "a PDF document",
    b"PK\x03\x04": "a ZIP archive: unpack it",
    b"\x1f\x8b": "something packed with gzip that is no NIfTI and no MGH",
    b"GIF8": "a GIF picture: export it as PNG",
    b"\x89HDF": "an HDF5 file",
    b"NRRD": "an NRRD file: export it as NIfTI",
    b"\x7fELF": "a program",
    b"RIFF": "a RIFF file (WebP, sound or film): export it as PNG",
}


def head(path: Path) -> bytes:
    """The first bytes of a file, unpacked if it was packed with gzip."""
    with path.open("rb") as stream:
        raw = stream.read(_PACKED)
    if not raw.startswith(b"\x1f\x8b"):
        return raw[:HEAD]
    try:
        return zlib.decompressobj(31).decompress(raw, HEAD) or raw[:HEAD]
    except zlib.error:
        return raw[:HEAD]


def sniff(start: bytes, where: str) -> str:
    """The format that ``start``, the first HEAD bytes, belongs to: see ``Facts.format``; "DICOM" covers all of its kin.

    Raises:
        DataError: naming what the file is, as far as that can be said.
    """
    if start[128:132] == b"DICM" or _bare_dicom(start):
        return "DICOM"
    if _nifti(start):
        return "NIfTI"
    if len(start) >= 348 and 348 in (_number(start, "<i", 0), _number(start, ">i", 0)):
        return "Analyze"
    for magic, name in _PICTURES.items():
        if start.startswith(magic):
            return name
    # version 1, then three sizes and frames that are small numbers, and a type of MGH's
    if len(start) >= 284 and _number(start, ">i", 0) == 1 and _number(start, ">i", 20) in (0, 1, 3, 4):
        return "MGH"
    raise _stranger(start, where)


def _nifti(start: bytes) -> bool:
    first = start[344:348] in (b"n+1\0", b"ni1\0") and len(start) >= 348
    return first or (start[4:8] in (b"n+2\0", b"ni2\0") and len(start) >= HEAD)


def _bare_dicom(start: bytes) -> bool:
    """DICOM without its preamble: an element of group 2 or 8 comes first, in either byte order."""
    if len(start) < 8:
        return False
    group, element = struct.unpack("<HH", start[:4])
    if (group, element) in ((0x0800, 0x0000), (0x0800, 0x0500), (0x0800, 0x0800)):
        return start[4:6].isalpha() and start[4:6].isupper()  # big endian, VR written out
    if group not in (0x0002, 0x0008) or element > 0x0100:
        return False
    spelled = start[4:6].isalpha() and start[4:6].isupper()
    return spelled or struct.unpack("<I", start[4:8])[0] <= 256  # else a short length, VR not written out


def _number(start: bytes, form: str, place: int) -> int:
    return int(struct.unpack_from(form, start, place)[0])


def _stranger(start: bytes, where: str) -> DataError:
    if not start:
        return DataError("is empty (0 bytes)", where=where, remedy="copy it again")
    known = next((name for magic, name in _STRANGERS.items() if start.startswith(magic)), "")
    if known:
        return DataError(f"is no picture but {known}", where=where, remedy="leave it out")
    if all(byte >= 32 or byte in b"\t\n\r" for byte in start) and start.isascii():
        return DataError("is text, no picture", where=where, remedy="leave it out")
    remedy = "DICOM, NIfTI, Analyze, MGH, PNG, JPEG, TIFF and BMP are read; it may be damaged at its start"
    return DataError("is of no format that is read here", where=where, remedy=remedy)
