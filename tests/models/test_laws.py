"""The shipped laws hold of everything that is registered, and name the fault in what breaks them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from polyclinic.core import study as studies
from polyclinic.core.config import Method
from polyclinic.core.facts import Facts
from polyclinic.core.study import Study
from polyclinic.models import laws
from polyclinic.models.adaptation import Adaptation
from polyclinic.models.adaptations.architecture_bottlenecks import AdaptFormer
from polyclinic.models.contracts import Views
from polyclinic.models.tasks.classification import Classification
from tests.models.plain_vit import on
from tests.models.test_methods import METHODS, study_of


@pytest.mark.parametrize("method", METHODS)
def test_every_adaptation_keeps_the_laws(method: str, tiny_vit: Path) -> None:
    laws.check_adaptation(study_of(method, tiny_vit))


KINDS = {
    "binary": 'classes = ["no", "yes"]',
    "multiclass": 'classes = ["a", "b", "c"]',
    "multilabel": 'classes = ["a", "b"]',
}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_of_classification_keeps_them(kind: str, tiny_vit: Path) -> None:
    text = f'[task]\nmethod = "classification"\nkind = "{kind}"\n{KINDS[kind]}\n'
    laws.check_task(on(tiny_vit, 'method = "probe"', more=text))


def test_every_scheme_of_backbones_that_is_at_hand_keeps_them(tiny_vit: Path) -> None:
    laws.check_backbone(on(tiny_vit, 'method = "probe"'))
    laws.check_backbone(on(tiny_vit, 'method = "probe"', 'method = "patch_size"\nsize = 16'))
    laws.check_backbone(on(tiny_vit, 'method = "lora"', 'method = "inflate"', data='volume = "whole"\ndepth = 8'))
    laws.check_backbone(studies.loads('[study]\nname = "x"\n[[adaptation]]\nmethod = "probe"\n'))


def facts(**more: Any) -> Facts:
    given = {"families": ("data",), "paper": "none", "exact_private": False, "because": "it is a test's"}
    return Facts(**(given | more))  # type: ignore[arg-type]


class Bad(Method):
    """A method that a test makes bad."""

    facts: ClassVar[Facts | None] = facts()
    adaptation: ClassVar[Adaptation] = Adaptation(families=frozenset({"data"}))
    method: str = "bad"

    def build(self) -> Adaptation:
        return self.adaptation


def noise(model: nn.Module, task: object, views: Views, generator: torch.Generator) -> Views:
    return Views((views.pixels + 0.1 * torch.rand(views.pixels.shape)).clamp(0, 1), views.target)


def brighter(model: nn.Module, task: object, views: Views, generator: torch.Generator) -> Views:
    return Views(views.pixels + 1, views.target)


def global_draw(model: Any, generator: torch.Generator) -> None:
    model.neck = nn.Linear(64, 64)


def other_outputs(model: Any, generator: torch.Generator) -> None:
    model.backbone.encoder.layernorm.bias.data += 1


def moving(model: Any, generator: torch.Generator) -> None:
    def count(module: Any, given: object, output: Tensor) -> None:
        module.bias.data += 0.001 if module.bias.grad_fn is None and output.requires_grad else 0

    model.backbone.encoder.layernorm.register_forward_hook(count)


def pushing(loss: Any, start: Any) -> Any:
    def pushed(model: Any, batch: Any) -> Tensor:
        model.head.bias.data += 0.01
        found: Tensor = loss(model, batch)
        return found

    return pushed


def closed(model: Any, generator: torch.Generator) -> None:
    layer = nn.Parameter(torch.zeros(64))
    model.neck = nn.Identity()
    model.neck.bad = layer
    model.neck.register_forward_hook(lambda module, given, output: output + layer)


@pytest.mark.parametrize(
    ("says", "does", "sentence"),
    [
        (None, {}, "says nothing of itself"),
        (facts(paper=""), {}, "lack 'paper'"),
        (facts(families=("objective",)), {}, "other families"),
        (facts(), {"fit_in": global_draw}, "draws from the global generator"),
        (facts(), {"fit_in": other_outputs}, "does not begin as the frozen one"),
        (facts(), {"travels": lambda name: name.endswith("layernorm.bias")}, "nothing travels, and"),
        (
            facts(),
            {"personal": lambda model: frozenset({"backbone.encoder.layernorm.bias"})},
            "nothing is personal, and",
        ),
        (facts(), {"batch": noise}, "other views from the same generator"),
        (facts(), {"batch": brighter}, r"beyond \[0, 1\]"),
        (facts(), {"objective": lambda loss, start: lambda model, batch: batch.output}, "no finite scalar"),
        (facts(travels="a neck"), {"fit_in": closed, "travels": lambda name: name == "neck.bad"}, "a copy of it"),
        (facts(), {"fit_in": moving}, "moves something that neither travels"),
        (facts(), {"settle": lambda model, start, trained: {"x": torch.ones(1)}}, "does not begin with the method's"),
        (facts(), {"select": lambda start, generator: start.labelled.flip(0)}, "not sorted"),
        (facts(), {"rests": lambda name, number: number == 2}, "nothing trains in round 2"),
        (facts(), {"rests": lambda name, number: name == "head.bias", "objective": pushing}, "rests in the round"),
        (facts(), {"weigh": lambda start: torch.ones(3)}, "no weight for every labelled image"),
    ],
)
def test_each_fault_is_named(says: Any, does: dict[str, Any], sentence: str, tiny_vit: Path) -> None:
    made = Adaptation(families=frozenset({"data"}), **does)
    kind = type("Bad", (Bad,), {"facts": says, "adaptation": made, "__doc__": "Bad."})
    study: Study = on(tiny_vit, 'method = "lora"\nrank = 2')
    with pytest.raises(AssertionError, match=sentence):
        laws.check_adaptation(study.model_copy(update={"adaptation": (*study.adaptation, kind(method="bad"))}))


def test_one_that_says_it_adapts_and_does_not_is_named(tiny_vit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AdaptFormer, "_fit_in", lambda self, model, generator: None)
    with pytest.raises(AssertionError, match="a bottleneck of every block travels, and nothing does"):
        laws.check_adaptation(on(tiny_vit, 'method = "adaptformer"'))


class Doubled(Classification):
    """A task whose loss is not that of its choices."""

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return 2 * super().loss(output, target)


class Global(Classification):
    """A task whose head is drawn from the global generator."""

    def head(self, shape: Any, generator: torch.Generator) -> nn.Linear:
        return nn.Linear(shape.width, self.outputs)


@pytest.mark.parametrize(("kind", "sentence"), [(Doubled, "is not the loss"), (Global, "from the global generator")])
def test_faults_of_tasks_are_named(kind: type[Classification], sentence: str, tiny_vit: Path) -> None:
    study = on(tiny_vit, 'method = "probe"')
    with pytest.raises(AssertionError, match=sentence):
        laws.check_task(study.model_copy(update={"task": kind()}))
