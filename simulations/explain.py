"""A study in plain words: what trains, what leaves a site, what does not."""

from __future__ import annotations

from polyclinic.core.explain import NO_PRIVACY, STAYS, course
from polyclinic.core.study import Study
from polyclinic.core.update import encode
from polyclinic.models.network import build, task


def explain(study: Study) -> dict[str, list[str]]:
    """Title → sentences. Builds the model, so sizes are counted and not guessed."""
    adapted = build(study)
    tensors = adapted.read()
    trained = sum(array.size for array in tensors.values())
    whole = sum(weight.numel() for weight in adapted.network.parameters())
    factors = sum(array.size for name, array in tensors.items() if not name.startswith("head."))
    return {
        "What is learned": [study.study.description or study.study.name, study.task.explain()],
        "What trains": [
            origin(study, pretrained=adapted.network.backbone.pretrained),
            *(method.explain() for method in study.adaptation),
            task(study).trained(study.backbone.pooling),
            f"Together {trained:,} of {whole:,} weights train ({trained / whole:.1%}): {factors:,} in the backbone's "
            f"adapters, {trained - factors:,} in the head.",
        ],
        "How it goes": course(study),
        "What leaves a site": leaving(study, len(encode(tensors))),
        "What does not leave a site": [STAYS],
        "What this does not promise": [NO_PRIVACY],
        "Digest": [study.digest],
    }


def origin(study: Study, *, pretrained: bool) -> str:
    """What the backbone is, and what becomes of the parts of it that nothing trains."""
    reference = study.backbone.reference
    if pretrained:
        return f"The backbone is {reference}; what of it is not named here stays as it was pretrained."
    return (
        f"The backbone is {reference}. It was NOT pretrained: its weights are random, the same at every site, and what "
        "of it is not named here stays random."
    )


def leaving(study: Study, size: int) -> list[str]:
    """Sentences on everything that a site sends; ``size`` is that of the trained weights, in bytes."""
    monitoring = study.monitoring
    drawn = study.rounds.sites_per_round
    once = "In every round with a site that has not told it" if drawn else "Once (anew while a site's has not arrived)"
    return [
        f"The trained weights above: {size:,} bytes a round.",
        "Counts of images and patients by split, and the seconds that the work took.",
        f"How the model did on validation images (each round) and on validation and test images (at the end): "
        f"{task(study).told(bins=monitoring.bins, score_bins=monitoring.score_bins)}.",
        f"{once}, how the training data are spread: mean and covariance of {monitoring.feature_dims} projections "
        f"of frozen features and of {monitoring.kernel_features} random Fourier features (one image a patient), a "
        "histogram of intensities, counts of labels.",
        "How the model did and how the data are spread: only where they tell of as many patients as the site's "
        "policy says (10, unless the site says otherwise). Weights and counts leave in any case.",
    ]
