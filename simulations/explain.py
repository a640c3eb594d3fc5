"""A study in plain words: what trains, what leaves a site, what does not."""

from __future__ import annotations

from polyclinic.client.words import statistics
from polyclinic.core.explain import beside, course, heads, privacy, staying
from polyclinic.core.privacy.plan import demand
from polyclinic.core.study import Study
from polyclinic.core.update import encode
from polyclinic.models.network import Adapted, build, task


def explain(study: Study) -> dict[str, list[str]]:
    """Title → sentences. Builds the model, so sizes are counted and not guessed."""
    adapted = build(study)
    return {
        "What is learned": [study.study.description or study.study.name, study.task.explain()],
        "What trains": [
            origin(study, pretrained=adapted.network.backbone.pretrained),
            *(method.explain() for method in study.adaptation),
            *heads(study),
            *counted(adapted),
        ],
        "How it goes": course(study),
        "What leaves a site": [*leaving(study, len(encode(adapted.sent()))), *beside(study)],
        "What does not leave a site": staying(study),
        "Privacy" if study.privacy or study.central else "What this does not promise": privacy(study),
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


def counted(adapted: Adapted) -> list[str]:
    """Sentences on how much trains, where it lies, and how much travels that no gradient trains."""
    weights = dict(adapted.network.named_parameters())
    trains = {name: weight.numel() for name, weight in weights.items() if weight.requires_grad}
    own = sum(size for name, size in trains.items() if name in adapted.personal)
    head = sum(size for name, size in trains.items() if name.startswith("head."))
    trained, whole = sum(trains.values()), sum(weight.numel() for weight in weights.values())
    idle = sum(weights[name].numel() for name in adapted.travelling if name not in trains)
    told = (
        f"Together {trained:,} of {whole:,} weights train ({trained / whole:.1%}): {trained - own - head:,} in the "
        f"backbone's adapters, {head:,} in the head" + (f", {own:,} that stay at each site." if own else ".")
    )
    return [told, *([f"Beside them travel {idle:,} numbers that no gradient trains."] if idle else [])]


def leaving(study: Study, size: int) -> list[str]:
    """Sentences on everything that a site sends; ``size`` is that of the trained weights, in bytes."""
    if study.privacy is not None:
        return leaving_privately(study, size)
    monitoring = study.monitoring
    drawn = study.rounds.sites_per_round
    once = "In every round with a site that has not told it" if drawn else "Once (anew while a site's has not arrived)"
    if study.central is not None and study.central.secret:
        once = "In every round"  # else the question would tell of who was drawn
    return [
        f"What travels, as said above: {size:,} bytes a round.",
        "Counts of images and patients by split, and the seconds that the work took.",
        f"How the model did on validation images (each round) and on validation and test images (at the end): "
        f"{task(study).told(bins=monitoring.bins, score_bins=monitoring.score_bins)}.",
        f"{once}, how the training data are spread: mean and covariance of {monitoring.feature_dims} projections "
        f"of frozen features and of {monitoring.kernel_features} random Fourier features (one image a patient), a "
        "histogram of intensities, counts of labels, counts of patients by how their images were taken "
        "(maker, modality, ranges of numbers; no date, name, identifier or free text).",
        "How the model did and how the data are spread: only where they tell of as many patients as the site's "
        "policy says (10, unless the site says otherwise). Weights and counts leave in any case.",
    ]


def leaving_privately(study: Study, size: int) -> list[str]:
    """The same of a private study: what is told beside the update is noised."""
    told = statistics(study)
    policy = (
        "These figures: only where as many patients stand behind them as the site's policy says (10, unless the site "
        "says otherwise). `polyclinic privacy plan` says what noise each will have."
    )
    return [
        f"What travels, as said above, noised: {size:,} bytes a round.",
        f"Counts of {demand(study).unit}s by split, the seconds that the work took, and a receipt of what was spent.",
        *(f"{one.name}, {one.when}: {one.what}; {one.numbers:,} whole numbers." for one in told),
        *([policy] if told else ["No figure of the model or of the images: nothing was set aside for any."]),
    ]
