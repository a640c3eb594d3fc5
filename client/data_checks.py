"""What the doctor looks at on this side of the network: images, backbones, who may read what."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from polyclinic.client.approvals import decisions
from polyclinic.client.data.manifest import scan
from polyclinic.client.data.quarantine import kept
from polyclinic.client.data.table import read_table
from polyclinic.client.finding import Finding
from polyclinic.client.home import Home
from polyclinic.client.offer import Offer, read_offer
from polyclinic.core.errors import DataError, PolicyError

SAMPLE = 500
"""Images that are looked at for who may read them, spread over the manifest."""
_COLUMN = "path"


def manifest(home: Home) -> Iterator[Finding]:
    """Whether the manifest can be read at all."""
    table = read_table(home.manifest)
    for problem in table.problems[:3]:
        yield Finding("manifest", "error", f"{home.manifest}: {problem}", problem.remedy)
    if not table.problems:
        count = len(table.records)
        remedy = "" if count else "write one line an image"
        yield Finding("manifest", "ok" if count else "error", f"{home.manifest}: {count:,} lines", remedy)


def studies(home: Home) -> Iterator[Finding]:
    """Of every approved study: its offer, its images, its backbone."""
    approved = [found for found in decisions(home).values() if found.verb == "approve"]
    if not approved:
        yield Finding("studies", "ok", "none is approved: nothing is trained", "see: polyclinic site studies")
    for decided in approved:
        name = f"study {decided.study[:12]}"
        offer = read_offer(home, decided.study)
        if offer.version != decided.version or offer.backbone_sha256 != decided.backbone_sha256:
            problem = "is offered with another version or backbone than was approved"
            raise PolicyError(problem, where=name, remedy=f"look again: polyclinic site show {decided.study[:12]}")
        yield Finding(name, "ok", f"'{offer.study.study.name}' is approved: {decided.limits.words()}")
        yield from _images(home, offer, name)
        yield _backbone(offer, name)


def network_user(home: Home) -> Iterator[Finding]:
    """Whether what faces the network could read the images."""
    name, wanted = "network user", "set network_user in site.toml, and start the site as root"
    if (user := home.settings.network_user) is None:
        yield Finding(name, "warning", "what faces the network runs as the user who reads the images", wanted)
        return
    import pwd

    try:
        found = pwd.getpwnam(user)
    except KeyError:
        yield Finding(name, "error", f"there is no user '{user}'", f"make it: useradd --system {user}")
        return
    groups = set(os.getgrouplist(user, found.pw_gid))
    open_to = [path for path in _sampled(home) if may_read(path, found.pw_uid, groups)]
    if open_to:
        problem = f"{user} may read images, such as {open_to[0]}"
        yield Finding(name, "warning", problem, f"take away the right: chmod o-rwx on a folder above, or {wanted}")
    elif not _may(home.folder, 0o1, found.pw_uid, groups):
        problem = f"{user} cannot enter {home.folder}"
        yield Finding(name, "error", problem, "chmod o+x it, and every folder above it")
    else:
        yield Finding(name, "ok", f"{user} can enter {home.folder}, and read none of the images that were looked at")


def may_read(path: Path, user: int, groups: Collection[int]) -> bool:
    """Whether a user may read a file, as the permission bits of it and of every folder above say; lists are ignored."""
    return _may(path, 0o4, user, groups)


def _may(path: Path, bit: int, user: int, groups: Collection[int]) -> bool:
    def may(place: Path, bit: int) -> bool:
        try:
            found = place.stat()
        except OSError:
            return False
        shift = 6 if found.st_uid == user else 3 if found.st_gid in groups else 0
        return bool(stat.S_IMODE(found.st_mode) >> shift & bit)

    whole = path.resolve()
    return user == 0 or (may(whole, bit) and all(may(folder, 0o1) for folder in whole.parents))


def _sampled(home: Home) -> Sequence[Path]:
    table = read_table(home.manifest)
    if _COLUMN not in table.header:
        return [home.manifest]
    column = table.header.index(_COLUMN)
    names = [cells[column] for _, cells in table.records]
    step = max(1, len(names) // SAMPLE)
    return [home.manifest, *(home.manifest.parent / name for name in names[::step])]


def _images(home: Home, offer: Offer, name: str) -> Iterator[Finding]:
    study = offer.study
    rows, problems = scan(home.manifest, study.data, study.task, study.study.seed, home.settings.name)  # type: ignore[arg-type]
    errors = [problem for problem in problems if problem.severity == "error"]
    if errors:
        more = f", and {len(errors) - 1} problems more" if len(errors) > 1 else ""
        raise DataError(f"{errors[0]}{more}", where=name, remedy="see: polyclinic site data check")
    rows, left_out = kept(rows, home.quarantine)
    unread = [row.path for row in rows if not os.access(row.path, os.R_OK)]
    if unread:
        raise DataError(f"cannot be read by this user, and {len(unread) - 1} more", where=str(unread[0]))
    train = sum(row.split == "train" for row in rows)
    if not train:
        raise DataError("this site has no training images for it", where=name)
    yield Finding(name, "ok", f"{len(rows):,} images, {train:,} of them to train on")
    if left_out:
        yield Finding(
            name, "warning", left_out, "mend them, and check anew: polyclinic site data check --quarantine FILE"
        )


def _backbone(offer: Offer, name: str) -> Finding:
    """Loads it: the only way to know."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported: a site asks no hub
    from polyclinic.models import backbones

    found, reference = backbones.load(offer.study), offer.study.backbone.reference
    if found.sha256 != offer.backbone_sha256:
        remedy = "put the file there whose SHA-256 the study names"
        return Finding(name, "error", f"{reference} has the SHA-256 {found.sha256}, another was approved", remedy)
    return Finding(name, "ok", f"{reference} is here, with the SHA-256 that was approved")
