"""``embedded:NAME``, ``file:PATH`` and ``hf:ID_OR_FOLDER``: checkpoints of networks that transformers builds."""

from __future__ import annotations

from pathlib import Path

import polyclinic.models
from polyclinic.core.errors import BackboneError
from polyclinic.models.backbones.encoder import IMAGENET, Encoder
from polyclinic.models.backbones.families import assemble
from polyclinic.models.backbones.files import check_hash, document, read


def embedded(name: str, image_size: int, sha256: str | None, depth: int | None = None) -> Encoder:
    """One of the backbones that ship with Polyclinic."""
    home = Path(polyclinic.models.__path__[0]) / "embedded"
    known = {path.stem.replace("_", "-"): path for path in sorted(home.glob("*.safetensors"))}
    if name not in known:
        remedy = f"there is: {', '.join(known)}"
        raise BackboneError(f"no embedded backbone '{name}'", where="backbone.reference", remedy=remedy)
    return file(str(known[name]), image_size, sha256)


def file(path: str, image_size: int, sha256: str | None, depth: int | None = None) -> Encoder:
    """A ``.safetensors`` file with transformers' names, and beside it a ``.json``: configuration, mean and std."""
    weights = Path(path)
    card = weights.with_suffix(".json")
    body, settings = read(weights, card, path, f"needs {weights.name} and {card.name}")
    found = check_hash(body, settings.get("sha256") if sha256 is None else sha256, path)
    return assemble(settings, body, image_size, found, path)


def hf(reference: str, image_size: int, sha256: str | None, depth: int | None = None) -> Encoder:
    """A model on the Hugging Face hub or in a folder of that form; the hub is asked only if it is not forbidden."""
    folder = Path(reference)
    if not folder.is_dir():
        folder = _snapshot(reference)
    if (folder / "model.safetensors.index.json").is_file():
        remedy = "load it with transformers and save it as one: save_pretrained(folder, max_shard_size='100GB')"
        raise BackboneError("its weights lie in several files", where=reference, remedy=remedy)
    remedy = "needs config.json and model.safetensors (one file; pickled weights are refused)"
    body, settings = read(folder / "model.safetensors", folder / "config.json", reference, remedy)
    found = check_hash(body, sha256, reference)
    preprocessor = folder / "preprocessor_config.json"
    norms = document(preprocessor, reference, "mend or delete it") if preprocessor.is_file() else {}
    settings |= {"mean": norms.get("image_mean", IMAGENET[0]), "std": norms.get("image_std", IMAGENET[1])}
    return assemble(settings, body, image_size, found, reference)


def _snapshot(reference: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(reference, allow_patterns=["*.json", "model.safetensors"]))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as failure:
        raise BackboneError(
            "is no folder, is not in the local cache, and the hub did not give it",
            where=f"hf:{reference}",
            remedy="download it on a machine with network and give the folder's path",
        ) from failure
