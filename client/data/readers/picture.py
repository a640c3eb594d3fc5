"""PNG, JPEG, TIFF and BMP as volumes, through Pillow: as they are, without a change of size or depth."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from polyclinic.client.data.images import upright
from polyclinic.client.data.volume import Facts, Volume, real
from polyclinic.core.errors import DataError


def read(path: Path, most: int) -> Volume:
    """The picture [1 or 3, 1, H, W]: 8 bits, or for deep greys the values as they stand. No place, no spacing.

    Raises:
        DataError: it cannot be read, with the true reason.
    """
    with path.open("rb") as stream:
        image, format_ = upright(stream, str(path))
        values, remarks = real(np.asarray(image))
    if values.nbytes > most:
        raise DataError(f"is too large: {image.size[0]} x {image.size[1]} pixels", where=str(path))
    colour = values.ndim == 3
    held = values.transpose(2, 0, 1) if colour else values[np.newaxis]
    facts = Facts(format_, repeats="colour" if colour else "", remarks=remarks)
    return Volume(np.ascontiguousarray(held[:, np.newaxis]), facts)
