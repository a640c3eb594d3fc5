from __future__ import annotations

import io
import struct
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from polyclinic.client.data.images import LARGEST, decode, read_image
from polyclinic.core.errors import DataError
from polyclinic.core.study import Data

S = 32
DATA = Data(image_size=S)
RGB = np.random.default_rng(0).integers(0, 256, (S, S, 3), dtype=np.uint8)
GREY = RGB[..., 0]


def saved(path: Path, pixels: np.ndarray | Image.Image, **options) -> Path:
    (Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_a_picture_of_the_right_size_is_kept_bit_for_bit(tmp_path, suffix):
    colour = read_image(saved(tmp_path / f"c.{suffix}", RGB), DATA)
    assert colour.dtype == np.uint8
    assert np.array_equal(colour, RGB.transpose(2, 0, 1))
    grey = saved(tmp_path / f"g.{suffix}", GREY)
    assert np.array_equal(read_image(grey, DATA), np.stack([GREY] * 3))
    assert np.array_equal(read_image(grey, DATA, channels=1), GREY[None])
    assert np.array_equal(read_image(grey, DATA, channels=None), GREY[None])


def test_jpeg_is_close_to_what_was_saved(tmp_path):
    smooth = np.add.outer(np.arange(S), np.arange(S)).astype(np.uint8) * 4
    read = read_image(saved(tmp_path / "a.jpg", smooth, quality=95), DATA, channels=1)
    assert np.abs(read[0].astype(int) - smooth).max() <= 6


def test_colour_becomes_luma(tmp_path):
    path = saved(tmp_path / "c.png", RGB)
    luma = RGB @ np.array([0.299, 0.587, 0.114])
    for read in (read_image(path, DATA, channels=1), read_image(path, Data(image_size=S, colour="grey"))[:1]):
        assert np.abs(read[0] - luma).max() <= 1.0
    assert read_image(path, Data(image_size=S, colour="grey")).shape == (3, S, S)


TURNED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("orientation", TURNED)
def test_exif_orientation_is_applied_once(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / f"a.{suffix}", RGB, exif=exif)
    assert np.array_equal(read_image(path, DATA), TURNED[orientation](RGB).transpose(2, 0, 1))


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("top", [4095, 65535])
def test_deep_greys_use_the_whole_range_whatever_their_depth(tmp_path, suffix, top):
    ramp = np.linspace(0, top, S * S).round().astype(np.uint16).reshape(S, S)
    read = read_image(saved(tmp_path / f"a.{suffix}", ramp), DATA, channels=1)[0]
    low, high = np.quantile(ramp, [0.005, 0.995])
    assert np.abs(read - np.clip((ramp - low) / (high - low), 0, 1) * 255).max() <= 0.5
    assert read.min() == 0
    assert read.max() == 255


def test_deep_greys_in_floats_and_signed_integers(tmp_path):
    ramp = np.linspace(-3, 5, S * S).reshape(S, S)
    floats = read_image(saved(tmp_path / "f.tif", ramp.astype(np.float32)), DATA, channels=1)
    whole = read_image(saved(tmp_path / "i.tif", (ramp * 1e6).astype(np.int32)), DATA, channels=1)
    assert np.array_equal(floats, whole)
    assert (np.diff(floats.ravel().astype(int)) >= 0).all()


def test_a_few_bright_pixels_do_not_darken_a_deep_picture_and_a_sparse_one_is_not_lost(tmp_path):
    ramp = np.arange(S * S, dtype=np.uint16).reshape(S, S)
    ramp[0, :3] = 65535
    assert read_image(saved(tmp_path / "marker.png", ramp), DATA)[0, S // 2].mean() > 100
    sparse = np.zeros((S, S), np.uint16)
    sparse[3, 4] = 900
    assert read_image(saved(tmp_path / "sparse.png", sparse), DATA)[0].sum() == 255
    assert read_image(saved(tmp_path / "flat.png", np.full((S, S), 900, np.uint16)), DATA).max() == 0


def test_white_is_zero_is_turned_the_right_way_round(tmp_path):
    for name, ramp in (("8", np.arange(256, dtype=np.uint8)), ("16", np.arange(256, dtype=np.uint16) * 200)):
        path = saved(tmp_path / f"{name}.tif", np.tile(ramp, (256, 1)))
        raw = bytearray(path.read_bytes())
        at = raw.index(struct.pack("<HHIHH", 262, 3, 1, 1, 0))
        raw[at + 8] = 0  # PhotometricInterpretation: WhiteIsZero
        path.write_bytes(raw)
        row = read_image(path, Data(image_size=256), channels=1)[0, 0].astype(int)
        assert (np.diff(row) <= 0).all()
        assert row[0] > 250
        assert row[-1] < 5


def test_numbers_that_are_none_are_refused(tmp_path):
    values = np.ones((S, S), np.float32)
    values[0, 0] = np.nan
    with pytest.raises(DataError, match="no numbers"):
        read_image(saved(tmp_path / "a.tif", values), DATA)


def test_palettes_masks_and_inks_become_pixels(tmp_path):
    few = (RGB // 128 * 255).astype(np.uint8)
    palette = Image.fromarray(few).quantize(8)
    truth = np.asarray(palette.convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(read_image(saved(tmp_path / "p.png", palette), DATA), truth)
    bits = Image.fromarray(GREY > 127)
    assert np.array_equal(read_image(saved(tmp_path / "1.png", bits), DATA, 1)[0], np.where(GREY > 127, 255, 0))
    red = Image.new("CMYK", (S, S), (0, 255, 255, 0))
    mean = read_image(saved(tmp_path / "k.jpg", red), DATA).mean(axis=(1, 2))
    assert mean[0] > 240
    assert mean[1:].max() < 15


def test_what_is_transparent_is_black(tmp_path):
    alpha = np.random.default_rng(1).integers(0, 256, (S, S, 1), dtype=np.uint8)
    colour = saved(tmp_path / "rgba.png", np.concatenate([RGB, alpha], axis=2))
    assert np.abs(read_image(colour, DATA).transpose(1, 2, 0) - RGB * (alpha / 255)).max() <= 1
    grey = saved(tmp_path / "la.png", Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(alpha[..., 0])]))
    read = read_image(grey, DATA, channels=None)
    assert read.shape == (1, S, S)
    assert np.abs(read[0] - GREY * (alpha[..., 0] / 255)).max() <= 1
    keyed = saved(tmp_path / "keyed.png", Image.fromarray(GREY), transparency=int(GREY[0, 0]))
    assert np.array_equal(read_image(keyed, DATA, channels=1)[0], np.where(GREY[0, 0] == GREY, 0, GREY))
    palette = Image.fromarray(RGB).quantize(4)
    cut = read_image(saved(tmp_path / "p.png", palette, transparency=bytes([0, 255, 255, 255])), DATA)
    assert (cut[:, np.asarray(palette) == 0] == 0).all()


def test_fits(tmp_path):
    wide = np.full((20, 80), 50, np.uint8)
    wide[:, 30:50] = 200  # the middle square, with a rim that is darker on both sides
    path = saved(tmp_path / "wide.png", wide)
    pad = read_image(path, DATA, channels=1)[0]
    assert (pad[:12] == 0).all()
    assert (pad[20:] == 0).all()
    assert (pad[12:20] >= 50).all()
    assert (read_image(path, Data(image_size=S, fit="crop"), channels=1) == 200).all()
    squash = read_image(path, Data(image_size=S, fit="squash"), channels=1)[0]
    assert (squash == squash[0]).all()
    assert squash[0, 0] == squash[0, -1] == 50
    assert squash[0, 16] == 200


def test_pad_keeps_the_proportions_of_very_long_pictures(tmp_path):
    path = saved(tmp_path / "line.png", np.full((1, 1000), 255, np.uint8))
    for fit in ("pad", "crop", "squash"):
        assert read_image(path, Data(image_size=S, fit=fit)).max() == 255
    assert (read_image(path, DATA, channels=1)[0].max(axis=1) > 0).sum() == 1


def test_shrinking_averages_instead_of_picking(tmp_path):
    board = (np.indices((8 * S, 8 * S)).sum(axis=0) % 2 * 255).astype(np.uint8)
    read = read_image(saved(tmp_path / "board.png", board), DATA, channels=1)
    assert np.abs(read.astype(int) - 127).max() <= 2


def test_phone_photographs_and_several_pictures(tmp_path):
    depth = Image.fromarray(255 - RGB)
    photo = saved(tmp_path / "a.jpg", RGB, format="MPO", save_all=True, append_images=[depth], quality=95)
    with Image.open(photo) as first:
        assert first.format == "MPO"
        assert np.array_equal(read_image(photo, DATA), np.asarray(first).transpose(2, 0, 1))
    for suffix in ("png", "tif"):
        other = Image.fromarray(255 - RGB)
        several = saved(tmp_path / f"a.{suffix}", RGB, save_all=True, append_images=[other])
        with pytest.raises(DataError, match="holds 2 pictures"):
            read_image(several, DATA)


def encoded(form: str, pixels: np.ndarray = RGB, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "BMP"])
def test_a_truncated_file_is_refused_with_its_path(tmp_path, form):
    whole = encoded(form)
    path = tmp_path / "cut.img"
    for kept in (1, 40, len(whole) // 2, len(whole) - 60):
        path.write_bytes(whole[:kept])
        with pytest.raises(DataError) as caught:
            read_image(path, DATA)
        assert caught.value.where == str(path)
        assert caught.value.remedy
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


ENCODED = [encoded(form) for form in ("PNG", "JPEG", "TIFF", "BMP")]
ENCODED.append(encoded("TIFF", RGB, compression="tiff_lzw"))
ENCODED.append(encoded("PNG", GREY.astype(np.uint16) * 250))


@settings(max_examples=150, deadline=None)
@given(data=st.data(), whole=st.sampled_from(ENCODED))
def test_whatever_bytes_come_only_our_error_is_raised(data, whole):
    raw = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, min(len(raw), 400) - 1))] = data.draw(st.integers(0, 255))
    with suppress(DataError):
        assert decode(io.BytesIO(raw), DATA, "x").shape[1:] == (S, S)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.png", b"", "is empty"),
        ("text.png", b"not a picture at all", "is no PNG, JPEG, TIFF or BMP"),
        ("dicom.png", bytes(128) + b"DICM" + bytes(64), "is no PNG"),
        ("gif.png", encoded("GIF"), "is no PNG"),
        ("eps.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n", "is no PNG"),
    ],
)
def test_what_is_no_picture_is_refused_with_the_true_reason(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=reason) as caught:
        read_image(tmp_path / name, DATA)
    assert name in str(caught.value)


def test_a_file_that_is_missing_or_a_folder(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        read_image(tmp_path / "none.png", DATA)
    with pytest.raises(DataError, match="directory"):
        read_image(tmp_path, DATA)


def bomb(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [8945, 9500, 12000, 40000])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(side):
    assert side * side > LARGEST
    with pytest.raises(DataError, match="too large"):
        decode(io.BytesIO(bomb(side, side)), DATA, "x")


def test_a_damaged_exif_block_warns_nobody(tmp_path):
    path = saved(tmp_path / "a.jpg", RGB, exif=b"Exif\0\0II*\0\x08\0\0\0\x02\0\x12\x01\x03\0\x01\0\0\0\x01\0")
    assert read_image(path, DATA).shape == (3, S, S)
