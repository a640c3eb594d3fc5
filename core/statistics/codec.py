"""Statistics as JSON and as bytes, by the names of their kinds."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any

from polyclinic.core.errors import UpdateError
from polyclinic.core.statistics.acquisition import Acquisition
from polyclinic.core.statistics.contents import Intensities, Labels
from polyclinic.core.statistics.detected import Detected
from polyclinic.core.statistics.features import FeatureMoments
from polyclinic.core.statistics.kernel import KernelMeans
from polyclinic.core.statistics.monoid import Json, Statistic, Sums, Withheld
from polyclinic.core.statistics.noised import NoisedKernel, NoisedLabels
from polyclinic.core.statistics.noised_outcome import NoisedOutcome
from polyclinic.core.statistics.noised_segmented import NoisedSegmented
from polyclinic.core.statistics.outcome import Outcome
from polyclinic.core.statistics.segmented import Segmented

NOISED: tuple[type[Sums], ...] = (NoisedOutcome, NoisedSegmented, NoisedKernel, NoisedLabels)
PLAIN: tuple[type[Sums], ...] = (
    Outcome, Segmented, Detected, FeatureMoments, KernelMeans, Intensities, Labels, Acquisition
)  # fmt: skip
KINDS: Mapping[str, type[Sums]] = {cls.name: cls for cls in (*PLAIN, *NOISED)}
UNPACKED_LIMIT = 8 * 2**20
"""Bytes of a packed statistic after decompression."""


def encode(statistic: Statistic | Withheld) -> dict[str, Any]:
    """{"kind": …, "fields": …} as JSON holds it; of what was withheld {"kind": …, "withheld": minimum}."""
    if isinstance(statistic, Withheld):
        return {"kind": statistic.kind, "withheld": statistic.minimum}
    return {"kind": statistic.name, "fields": statistic.fields()}


def decode(received: object) -> Any:
    """The inverse of ``encode``: a ``Statistic`` of the kind that it names, or ``Withheld``.

    Raises:
        UpdateError: it is neither, or its fields cannot be.
    """
    kind = received.get("kind") if isinstance(received, dict) else None
    if not isinstance(received, dict) or len(received) != 2 or not isinstance(kind, str) or kind not in KINDS:
        raise UpdateError("is no statistic of a known kind", remedy=f"the kinds are {', '.join(KINDS)}")
    if "fields" in received:
        return decode_fields(kind, received["fields"])
    minimum = received.get("withheld")
    if type(minimum) is not int or not 0 < minimum < 2**31:
        raise UpdateError("is no number of patients", where="withheld")
    return Withheld(kind, minimum)


def decode_fields(kind: str, fields: Mapping[str, Json]) -> Any:
    """The statistic of ``kind`` that ``fields`` describe. Raises UpdateError."""
    if kind not in KINDS:
        raise UpdateError(f"'{kind}' is no kind of statistic", remedy=f"the kinds are {', '.join(KINDS)}")
    return KINDS[kind].from_fields(fields)


def pack(statistic: Statistic | Withheld) -> bytes:
    """Compressed canonical JSON: equal statistics give equal bytes."""
    return zlib.compress(json.dumps(encode(statistic), sort_keys=True, separators=(",", ":")).encode(), 9)


def unpack(body: bytes) -> Any:
    """The inverse of ``pack``. Raises UpdateError for whatever is not packed so."""
    unzip = zlib.decompressobj()
    try:
        text = unzip.decompress(body, UNPACKED_LIMIT)
        return decode(json.loads(text) if unzip.eof else None)
    except (zlib.error, ValueError, RecursionError) as failure:
        raise UpdateError("a packed statistic is damaged") from failure
