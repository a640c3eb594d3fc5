"""Backbones by reference: a scheme, a colon and what it means there; pinned by hash, no code from a checkpoint.

One file a kind of network: ``tokens`` (plain transformers), ``hierarchical`` (Swin, ConvNeXt), ``sam``, ``volumes``
(MONAI's), ``package`` (weights that a pinned package ships).
"""

from __future__ import annotations

from polyclinic.core import registry
from polyclinic.core.errors import BackboneError, PluginError
from polyclinic.core.study import Backbone, Study
from polyclinic.models.backbones.checkpoints import embedded, file, hf
from polyclinic.models.backbones.encoder import IMAGENET, Cut, Encoder, Loader, Seen, View
from polyclinic.models.backbones.families import quiet
from polyclinic.models.backbones.tokens import resize_positions


def load(study: Study) -> Encoder:
    """The encoder that the study names, its position embeddings fitted to the study's image size.

    Raises:
        BackboneError: unknown reference, missing or unsuitable files, or another hash than the pinned one.
    """
    scheme, _, rest = study.backbone.reference.partition(":")
    try:
        loader: Loader = registry.load("backbones", scheme)
    except PluginError as failure:
        raise BackboneError(
            f"unknown kind of backbone '{scheme}:'", where="backbone.reference", remedy=failure.remedy
        ) from failure
    return loader(rest, study.data.image_size, study.backbone.sha256, study.data.depth)


def normalisation(study: Study, encoder: Encoder) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) per channel of the encoder: the study's, or those that the backbone was trained with.

    Raises:
        BackboneError: they are for another number of channels.
    """
    chosen = study.data.normalisation
    pair = (encoder.mean, encoder.std) if chosen == "backbone" else (chosen.mean, chosen.std)
    if len(pair[0]) not in (1, encoder.channels):
        raise BackboneError(
            f"the normalisation has {len(pair[0])} channels and the backbone {encoder.channels}",
            where="data.normalisation",
            remedy=f"give {encoder.channels} numbers each for mean and std",
        )
    mean, std = (numbers if len(numbers) > 1 else numbers * encoder.channels for numbers in pair)
    return mean, std


__all__ = [
    "IMAGENET",
    "Backbone",
    "Cut",
    "Encoder",
    "Loader",
    "Seen",
    "View",
    "embedded",
    "file",
    "hf",
    "load",
    "normalisation",
    "quiet",
    "resize_positions",
]
