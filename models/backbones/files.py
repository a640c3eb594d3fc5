"""Weights and descriptions from disk: whole, pinned by hash, and with an error that says what is missing."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from polyclinic.core.errors import BackboneError


def read(weights: Path, card: Path, where: str, remedy: str) -> tuple[bytes, dict[str, Any]]:
    """(bytes of the weights, configuration).

    Raises:
        BackboneError: one of them cannot be read.
    """
    return body(weights, where, remedy), document(card, where, remedy)


def body(weights: Path, where: str, remedy: str) -> bytes:
    """The bytes of a file; BackboneError if it cannot be read."""
    try:
        return weights.read_bytes()
    except OSError as failure:
        raise BackboneError(f"cannot be read: {failure}", where=where, remedy=remedy) from failure


def document(path: Path, where: str, remedy: str) -> dict[str, Any]:
    """The JSON object in a file; BackboneError if there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as failure:
        raise BackboneError(f"{path.name} cannot be read: {failure}", where=where, remedy=remedy) from failure
    if not isinstance(found, dict):
        raise BackboneError(f"{path.name} holds no JSON object", where=where, remedy=remedy)
    return found


def check_hash(weights: bytes, pinned: str | None, where: str) -> str:
    """The SHA-256 of ``weights``; BackboneError if another one is pinned."""
    found = hashlib.sha256(weights).hexdigest()
    if pinned is not None and found != pinned:
        raise BackboneError(
            f"SHA-256 is {found}, pinned is {pinned}",
            where=where,
            remedy="these are other weights than the study was made for: get the right file",
        )
    return found


def demand_multiple(side: int, step: int, what: str, key: str = "image_size") -> None:
    """Nothing, if pictures of that side can be seen in whole steps; else BackboneError with the nearest side."""
    if side % step:
        raise BackboneError(
            f"{key} {side} is no multiple of the {what} {step}",
            where=f"data.{key}",
            remedy=f"take {max(1, round(side / step)) * step}",
        )


def unfit(failure: Exception, where: str) -> BackboneError:
    """What is said of weights and a configuration that are not for each other."""
    problem = f"weights and configuration do not fit: {' '.join(str(failure).split())}"
    return BackboneError(problem, where=where, remedy="get both from the same place, whole")
