"""A study that is offered to a site: checked to be what the coordinator signed, read without loading any weights."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyclinic.client.approvals import demand_manifest
from polyclinic.client.home import Home
from polyclinic.core import study as studies
from polyclinic.core.errors import PolicyError, PolyclinicError, TrustError
from polyclinic.core.signing import LIMIT, Signed, opened
from polyclinic.core.study import Study
from polyclinic.core.version import VERSION

_DIGEST = re.compile(r"[0-9a-f]{64}")
_SHAPE: Mapping[str, Any] = {
    "kind": str, "study": str, "toml": str, "name": str, "version": str, "backbone": dict, "initial": str,
    "manifest": list, "bytes_up": int, "published": int | float,
}  # fmt: skip
_ROOM = 2**20
"""Bytes that the names of tensors may take beside them."""


@dataclass(frozen=True)
class Offer:
    """What a coordinator offers.

    Attributes:
        study: as the offer's TOML says; its digest is the one that is approved.
        version: of Polyclinic, the only one that takes part.
        backbone_sha256: of the weights that every site must load.
        initial: digest of the global state before round 1.
        manifest: name, shape and dtype of every tensor that travels.
        bytes_up: of the trained weights in one reply.
        published: seconds since the epoch, by the coordinator's clock.
    """

    study: Study
    version: str
    backbone_sha256: str
    initial: str
    manifest: Sequence[Mapping[str, Any]]
    bytes_up: int
    published: float


def opened_offer(signed: Signed, coordinator: str, version: str = VERSION) -> Offer:
    """The offer in a statement.

    Args:
        coordinator: the key that was pinned when this site joined.
        version: of Polyclinic here.

    Raises:
        TrustError: signed by another, or it contradicts itself.
        PolicyError: it is for another version of Polyclinic.
        StudyError, UpdateError: its study or its manifest are malformed.
    """
    told = opened(signed, "offer", coordinator)
    if told.keys() != _SHAPE.keys() or not all(isinstance(told[key], kind) for key, kind in _SHAPE.items()):
        raise TrustError("the offer is not of the agreed form")
    if told["version"] != version:
        remedy = f"install polyclinic {told['version']}, or ask the coordinator to publish it for {version}"
        problem = f"the study is for polyclinic {told['version']}, this site has {version}"
        raise PolicyError(problem, where=told["study"][:64], remedy=remedy)
    study = studies.loads(told["toml"], f"study {told['study'][:12]}")
    if study.digest != told["study"] or study.study.name != told["name"]:
        raise TrustError("the study is not the one whose digest was offered", where=told["study"][:64])
    backbone, pinned = told["backbone"], study.backbone.sha256
    sha256 = backbone.get("sha256")
    if backbone.get("reference") != study.backbone.reference or (pinned is not None and pinned != sha256):
        raise TrustError("the backbone is not the one that the study names", where=study.digest)
    if not all(isinstance(digest, str) and _DIGEST.fullmatch(digest) for digest in (sha256, told["initial"])):
        raise TrustError("names no backbone or no initial state by its SHA-256", where=study.digest)
    size = demand_manifest(told["manifest"]).size
    if not size <= told["bytes_up"] <= size + _ROOM:
        raise TrustError(f"says that {told['bytes_up']} bytes leave, its tensors take {size}", where=study.digest)
    published = float(told["published"])
    return Offer(study, version, sha256, told["initial"], told["manifest"], told["bytes_up"], published)


def read_offer(home: Home, digest: str) -> Offer:
    """The offer of the study ``digest``, as the link left it, checked anew.

    Raises:
        PolicyError: it is not offered here, or for another version; and as for ``opened_offer``.
    """
    if _DIGEST.fullmatch(digest) is None:
        raise PolicyError("is no digest of a study: 64 hexadecimal digits", where=ascii(digest)[1:-1][:80])
    signed = read_signed(home.studies / f"{digest}.json")
    if signed is None:
        raise PolicyError("is not offered to this site", where=digest, remedy="see: polyclinic site studies")
    offer = opened_offer(signed, home.settings.coordinator.key)
    if offer.study.digest != digest:
        raise TrustError("another study's offer stands in its place", where=digest)
    return offer


def offers(home: Home) -> dict[str, Offer | PolyclinicError]:
    """All that is offered, by digest; in place of an offer that is not sound, what is wrong with it."""
    found: dict[str, Offer | PolyclinicError] = {}
    for path in sorted(home.studies.glob("*.json")):
        try:
            found[path.stem] = read_offer(home, path.stem)
        except PolyclinicError as failure:
            found[path.stem] = failure
    return found


def find(home: Home, start: str) -> str:
    """The digest of the one study that is offered, or was decided about, and starts with ``start``.

    Raises:
        PolicyError: none does, or several do.
    """
    from polyclinic.client.approvals import decisions

    known = {path.stem for path in home.studies.glob("*.json")} | decisions(home).keys()
    matching = sorted(digest for digest in known if digest.startswith(start.lower()) and _DIGEST.fullmatch(digest))
    if len(matching) == 1 and start:
        return matching[0]
    problem = "begins the digest of several studies" if matching else "begins no digest of a study that is offered here"
    raise PolicyError(problem, where=ascii(start)[1:-1][:80], remedy="see: polyclinic site studies")


def signed_text(signed: Signed) -> str:
    """A statement as a file holds it."""
    fields = {"document": signed.document.decode(), "signer": signed.signer, "signature": signed.signature.hex()}
    return json.dumps(fields, indent=2) + "\n"


def read_signed(path: Path) -> Signed | None:
    """The statement in a file; nothing about it is checked yet. None if there is no such file.

    Raises:
        TrustError: it cannot be read, or is no statement.
    """
    try:
        with path.open("rb") as source:
            fields = json.loads(source.read(4 * LIMIT))
        return Signed(fields["document"].encode(), fields["signer"] + "", bytes.fromhex(fields["signature"]))
    except FileNotFoundError:
        return None
    except OSError as failure:
        raise TrustError(f"cannot be read: {failure.strerror or failure}", where=str(path)) from failure
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as failure:
        raise TrustError("is no signed statement", where=str(path)) from failure
