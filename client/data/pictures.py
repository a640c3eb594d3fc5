"""Pictures for training: PNG and the like at once, everything else through the process that may die of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from polyclinic.client.data.decoder import Decoder, Taken
from polyclinic.client.data.images import FORMATS, Pixels, read_image
from polyclinic.client.data.readers.sniff import head, sniff
from polyclinic.core.errors import DataError
from polyclinic.core.study import Data


@contextmanager
def pictures(data: Data, tell: Callable[[Taken], None] = lambda taken: None) -> Iterator[Callable[[Path], Pixels]]:
    """A function from a path to uint8 [C, S, S], 1 channel for a grey picture and 3 for one in colour.

    It raises a DataError for what cannot be read; what a file is, is told by what it holds. The worker process is
    started with the first file that needs it, and ends with the block. ``tell`` is given, picture by picture, what the
    file says of how it was taken; PNG and the like say nothing.
    """
    with Decoder() as decoder:

        def read(path: Path) -> Pixels:
            # a picture that Pillow reads is no volume: the decoder has to say so
            if data.volume == "whole" or not plain(path):
                return decoder.picture(path, data, tell)
            pixels = read_image(path, data, None)
            tell({})
            return pixels

        yield read


def plain(path: Path) -> bool:
    """Whether Pillow reads it, or has to say why not."""
    try:
        return not path.is_dir() and sniff(head(path), str(path)) in FORMATS
    except (DataError, OSError):
        return True
