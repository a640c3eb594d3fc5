"""The stored values of a DICOM picture, unpacked from whatever it is packed in."""

from __future__ import annotations

import zlib
from contextlib import suppress
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import generate_frames
from pydicom.pixels import get_decoder, pixel_array
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
)

from polyclinic.client.data.volume import Array
from polyclinic.core.errors import DataError

DECODERS: dict[str, tuple[str, ...]] = {
    JPEGBaseline8Bit: ("pillow", "gdcm"),
    JPEGExtended12Bit: ("gdcm", "pillow"),
    JPEGLossless: ("gdcm",),
    JPEGLosslessSV1: ("gdcm",),
    JPEGLSLossless: ("pyjpegls",),
    JPEGLSNearLossless: ("pyjpegls",),
    JPEG2000Lossless: ("pylibjpeg",),
    JPEG2000: ("pylibjpeg",),
    HTJ2K: ("pylibjpeg",),
    HTJ2KLossless: ("pylibjpeg",),
    HTJ2KLosslessRPCL: ("pylibjpeg",),
}
"""Which of pydicom's plugins decode a syntax, the first choice first; syntaxes that are not listed: pydicom's own."""

DEFLATED_FRAMES = "1.2.840.10008.1.2.8.1"
"""Deflated Image Frame Compression, of which pydicom knows nothing yet."""


def count(written: Any, what: str) -> int:
    """A count of at least 1 that a header names; 1 where it names none."""
    if written is None or written == "":
        return 1
    try:
        number = int(written)
    except (TypeError, ValueError):
        number = 0
    if number < 1:
        raise DataError(f"does not say in numbers how many {what} it has", remedy="export it again")
    return number


def unpacked(dataset: Dataset) -> Array:
    """The stored values as pydicom gives them: [H, W], [H, W, C], [N, H, W] or [N, H, W, C]; YBR as RGB."""
    syntax = _syntax(dataset)
    if "BitsAllocated" not in dataset or ("PixelRepresentation" not in dataset and "PixelData" in dataset):
        raise DataError("does not say how its values are stored", remedy="export it again")
    chosen = DECODERS.get(syntax, ("",))
    if syntax == DEFLATED_FRAMES:
        _inflate(dataset)
        syntax = ExplicitVRLittleEndian
    try:
        known = get_decoder(syntax)
    except NotImplementedError as failure:
        remedy = "export it uncompressed"
        raise DataError(f"is packed in a way that is not read ({syntax.name})", remedy=remedy) from failure
    usable = [plugin for plugin in chosen if not plugin or plugin in known.available_plugins]
    if not usable:
        raise DataError(f"needs a decoder that is not installed ({syntax.name})", remedy=f"install {chosen[0]}")
    if syntax == JPEGExtended12Bit and int(dataset.get("BitsStored") or 0) > 8:
        remedy = "export it uncompressed or as JPEG 2000"
        raise DataError("is packed as lossy JPEG of 12 bits, for which there is no decoder here", remedy=remedy)
    for plugin in usable[:-1]:
        with suppress(RuntimeError, ValueError, AttributeError):  # the next may do better
            return np.asarray(pixel_array(dataset, decoding_plugin=plugin))
    try:
        return np.asarray(pixel_array(dataset, decoding_plugin=usable[-1]))
    except ValueError as failure:
        if "less than expected" not in str(failure):
            raise
        raise DataError("is cut short: it has fewer pixels than it promises", remedy="copy it again") from failure


def _inflate(dataset: Dataset) -> None:
    """Replaces frames that are deflated one by one by plain ones."""
    bits, pixels = int(dataset.BitsAllocated), int(dataset.Rows) * int(dataset.Columns)
    size = (pixels * count(dataset.get("SamplesPerPixel"), "channels") * bits + 7) // 8
    plain = []
    for packed in generate_frames(dataset.PixelData, number_of_frames=count(dataset.get("NumberOfFrames"), "frames")):
        frame = zlib.decompressobj(-15).decompress(packed, size)
        if len(frame) < size:
            raise DataError("is cut short: a frame ends within its pixels", remedy="copy it again")
        plain.append(frame)
    if bits == 1:  # plain frames follow each other without a gap, within a byte
        held = [np.unpackbits(np.frombuffer(frame, np.uint8), bitorder="little")[:pixels] for frame in plain]
        body = np.packbits(np.concatenate(held), bitorder="little").tobytes()
    else:
        body = b"".join(plain)
    dataset.PixelData = body + b"\0" * (len(body) % 2)
    dataset["PixelData"].VR = "OB" if bits <= 8 else "OW"
    dataset["PixelData"].is_undefined_length = False
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian


def _syntax(dataset: Dataset) -> UID:
    meta = getattr(dataset, "file_meta", None)
    written = None if meta is None else meta.get("TransferSyntaxUID")
    if written is None:
        implicit, little = dataset.original_encoding
        written = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
        if not little:
            raise DataError("does not say how it is written (no transfer syntax)", remedy="export it again")
        if meta is None:
            dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = written
    return UID(written)
