"""A study is published once: with the weights that it starts from, by hash, and all that will travel, by name."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from polyclinic.core import files
from polyclinic.core.errors import StudyError
from polyclinic.core.privacy.central import demand_no_audience
from polyclinic.core.signing import Signed, SigningKey, sign
from polyclinic.core.study import Study
from polyclinic.core.update import Tensors, digest, encode
from polyclinic.core.version import VERSION
from polyclinic.models import network


def publish(
    study: Study, folder: Path, key: SigningKey, clock: Callable[[], float] = time.time
) -> tuple[Signed, Tensors]:
    """The signed offer of a study, and the global state before round 1, which is also written to ``folder``.

    Raises:
        BackboneError: the backbone cannot be loaded here, or is not the one that the study pins.
        StudyError: the study refers to files by a path, which another machine cannot find, or has noise at the server.
    """
    demand_no_audience(study)
    if study.privacy is not None and study.privacy.generator == "simulated":
        problem = "noise from a seed hides nobody: every site and whoever reads the study knows it"
        raise StudyError(problem, where="privacy.generator", remedy='write generator = "system"')
    scheme, _, _ = study.backbone.reference.partition(":")
    if scheme == "file" and not study.backbone.sha256:
        remedy = "write backbone.sha256, so that every site can tell that it has the same file"
        raise StudyError("a file is told by its path alone", where="backbone.reference", remedy=remedy)
    adapted = network.build(study)
    initial = adapted.read()
    files.write(folder, encode(initial))
    manifest = [{"name": name, "shape": list(a.shape), "dtype": str(a.dtype)} for name, a in sorted(initial.items())]
    offer = {
        "kind": "offer",
        "study": study.digest,
        "toml": study.toml(),
        "name": study.study.name,
        "version": VERSION,
        "backbone": {"reference": study.backbone.reference, "sha256": adapted.network.backbone.sha256},
        "initial": digest(initial),
        "manifest": manifest,
        "bytes_up": len(encode(initial)),
        "published": clock(),
    }
    return sign(offer, key), initial
