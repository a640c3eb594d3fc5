"""Regulatory burden: which parts of a predetermined change control plan a method touches, by a rule to be checked.

The parts are those of FDA's final guidance "Marketing Submission Recommendations for a Predetermined Change Control
Plan for Artificial Intelligence-Enabled Device Software Functions" (December 2024, reissued August 2025). The rule is
ours: a property of the method, found in what it does to a model and to training and never in its name, raises points
that a plan must answer; each point belongs to one part. docs/trade-offs.md has the table with the reasons.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from polyclinic.core.study import Study
from polyclinic.models import network
from polyclinic.models.adaptation import keep_nothing, same_batch, same_objective
from polyclinic.models.adaptations.injected import unwrap
from polyclinic.models.network import Network
from polyclinic.simulations.compare.cells import Json

MODIFICATIONS, DATA, TRAINING, EVALUATION, UPDATE, IMPACT = PARTS = (
    "Description of modifications",
    "Modification protocol: data management",
    "Modification protocol: re-training",
    "Modification protocol: performance evaluation",
    "Modification protocol: update procedures",
    "Impact assessment",
)


@dataclass(frozen=True)
class Point:
    """What a plan must answer because of a property."""

    property: str
    part: str
    reason: str


PROPERTIES = {
    "trains": "the weights of a head are trained again",
    "weights": "weights of the pretrained backbone change, or weights are added inside it",
    "inputs": "pictures are changed before the model sees them, in use as in training",
    "structure": "in use the model computes something else than the frozen backbone and a head do",
    "personal": "sites end up with different models",
    "labels": "not all labels are used, or some count more than others",
    "pictures": "pictures are changed in training only",
    "objective": "another loss than the task's is minimised",
    "memory": "sites keep something from round to round",
}

POINTS = (
    Point("trains", MODIFICATIONS, "say that the weights of the head change, and within which performance"),
    Point("trains", DATA, "say which pictures and labels of which sites train and test"),
    Point("trains", TRAINING, "say how the head is trained, and what does not change"),
    Point("trains", EVALUATION, "say by which test and limits a new version is accepted"),
    Point("trains", UPDATE, "say how a new version reaches users, and how one goes back"),
    Point("trains", IMPACT, "weigh benefit and risk of another head"),
    Point("weights", MODIFICATIONS, "say which weights of the backbone change, or are added, and how many"),
    Point("weights", TRAINING, "say when training of the backbone stops, and what guards against forgetting"),
    Point("weights", EVALUATION, "test again all that rested on the frozen features, not only what is new"),
    Point("weights", IMPACT, "weigh that every output can move, for groups of patients that were fine, too"),
    Point("inputs", MODIFICATIONS, "say how pictures are changed: it is a change of the device's input"),
    Point("inputs", DATA, "say from which pictures the change of pictures was learnt or set"),
    Point("inputs", EVALUATION, "test with every scanner that may feed it, changed and unchanged"),
    Point("inputs", IMPACT, "weigh that what is seen may be hidden or made up by the change of pictures"),
    Point("structure", MODIFICATIONS, "say what is computed in addition, or no longer"),
    Point("structure", EVALUATION, "verify the software anew: latency, memory, numerical agreement"),
    Point("structure", UPDATE, "deliver software, not only weights"),
    Point("personal", MODIFICATIONS, "say that the change is local, and how far sites may differ"),
    Point("personal", DATA, "have test data of every site, since one site's test says nothing of another's model"),
    Point("personal", EVALUATION, "test and accept every site's model by itself"),
    Point("personal", UPDATE, "keep, name and roll back one version a site"),
    Point("personal", IMPACT, "weigh that patients are treated differently by where they are"),
    Point("labels", DATA, "say who is labelled or counts more, and what that does to representativeness"),
    Point("labels", IMPACT, "weigh bias from choosing or weighting patients"),
    Point("pictures", DATA, "say how training pictures are changed, and that test pictures are not"),
    Point("objective", TRAINING, "say what is minimised, with its settings"),
    Point("memory", TRAINING, "say what is kept between rounds, and what happens if a site loses it"),
    Point("memory", UPDATE, "say what of it belongs to a version"),
)


def measure(study: Study) -> Json:
    """The properties of a study's chain, the points that they raise, and how many each part has."""
    found = properties(study)
    raised = [point for point in POINTS if found[point.property]]
    return {
        "properties": found,
        "points": [{"property": one.property, "part": one.part, "reason": one.reason} for one in raised],
        "parts": {part: sum(one.part == part for one in raised) for part in PARTS},
    }


def properties(study: Study) -> dict[str, bool]:
    """Which properties the chain of a study has, each found in the built model and its adaptation."""
    adapted, plain = network.build(study), network.plain(study)
    chain, names = adapted.chain, (*adapted.travelling, *adapted.personal)
    return {
        "trains": True,
        "weights": any(name.startswith("backbone.") for name in names),
        "inputs": not isinstance(adapted.network.entry, nn.Identity),
        "structure": not all(method.merges for method in study.adaptation) or structure(adapted.network, plain),
        "personal": bool(adapted.personal),
        "labels": chain.select is not None or chain.weigh is not None,
        "pictures": chain.batch is not same_batch,
        "objective": any(method.build().objective is not same_objective for method in study.adaptation),  # type: ignore[attr-defined]
        "memory": any(method.build().settle is not keep_nothing for method in study.adaptation),  # type: ignore[attr-defined]
    }


def structure(adapted: Network, plain: Network) -> bool:
    """Whether an adapted network, merged as far as it goes (in place), is still built otherwise than the plain one."""
    with torch.no_grad():
        unwrap(adapted)
    return _built(adapted) != _built(plain)


def _built(model: Network) -> list[tuple[str, str, int]]:
    """Modules by name and kind, with how many hooks they have, the entry left out."""
    return [
        (name, type(module).__name__, len(module._forward_hooks) + len(module._forward_pre_hooks))
        for name, module in model.named_modules()
        if name.partition(".")[0] != "entry"
    ]
