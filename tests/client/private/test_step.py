"""The private step against autograd, one patient at a time, and against its own promise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from polyclinic.client.private.fit import Private, demand_exact, held, nobodys, portions
from polyclinic.client.private.step import GAMMA, Portion, PrivateStep, Terms, brute_force
from polyclinic.core import study as studies
from polyclinic.core.errors import UpdateError
from polyclinic.core.privacy.noise import Chance, Keyed
from polyclinic.core.study import Study
from polyclinic.models.adaptation import Pool
from polyclinic.models.contracts import Batch, Objective, Views
from polyclinic.models.network import Adapted, build
from polyclinic.models.tasks.classification import Classification
from tests.models.begun import begun

EXACT = ["lora", "rslora", "dora", "pissa", "layernorm", "bitfit", "last_blocks", "full", "probe", "ia3", "vera", "oft"]
EXACT += ["ffa_lora", "rolora", "fedsvd"]
STRATEGY = {"fedsvd": '[strategy]\nmethod = "fedsvd"\n'}
QUIET = Terms(noise=0.0, clip=0.8, clipping="flat", expected=5.0)
CLIPPINGS = ["flat", "per_layer", "automatic"]
WHOSE = torch.tensor([0, 0, 1, 2, 2, 2, 3])


TASK = Classification()


def keyed(seed: int) -> Chance:
    return Keyed(seed.to_bytes(32, "little"))


def study(*methods: str) -> Study:
    chain = "".join(f'[[adaptation]]\nmethod = "{method}"\n' for method in methods)
    data = '[data]\nimage_size = 32\ncolour = "grey"\n[task]\nmethod = "classification"\n'
    data += "".join(STRATEGY.get(method, "") for method in methods)
    return studies.loads(f'[study]\nname = "private"\n{data}{chain}')


def shaken(adapted: Adapted, size: float = 0.1) -> Adapted:
    """The network away from its start, where half of LoRA's gradients vanish."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in adapted.parameters():
            weight.add_(size * torch.randn(weight.shape, generator=generator))
    return adapted


def portion(whose: Tensor = WHOSE, seed: int = 0) -> Portion:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.rand((len(whose), 1, 32, 32), generator=generator)
    targets = torch.randint(0, 2, (len(whose),), generator=generator)
    return Portion(Views(pixels, targets), whose, int(whose.max()) + 1)


def plain(made: Study) -> Objective:
    task: Any = made.task
    return lambda model, batch: task.loss(batch.output, batch.target)


def public() -> Views:
    return Views(torch.zeros(1, 1, 32, 32), torch.zeros(1, dtype=torch.int64))


@pytest.mark.parametrize("method", EXACT)
def test_every_patients_gradient_is_what_autograd_gives_for_that_patient_alone(method: str) -> None:
    made = study(method)
    adapted = shaken(build(made))
    step = PrivateStep(adapted.network, plain(made), QUIET, keyed(0))
    ours, truth = step.by_patient(portion()), brute_force(adapted.network, plain(made), portion())
    assert ours.keys() == truth.keys() == {n for n, w in adapted.network.named_parameters() if w.requires_grad}
    for name, rows in truth.items():
        assert rows.abs().max() > 0, name
        np.testing.assert_allclose(ours[name].detach(), rows, rtol=0, atol=1e-5 * float(rows.abs().max()) + 1e-7)
    assert all(weight.grad is None for weight in adapted.network.parameters())


@pytest.mark.parametrize(
    "method", ["lora", "rslora", "ffa_lora", "fedsvd", "probe"]
)  # at LayerNorms its hooks find no activations
def test_opacus_own_hooks_give_the_same_where_they_can(method: str) -> None:
    made = study(method)
    adapted = shaken(build(made))
    ours = PrivateStep(adapted.network, plain(made), QUIET, keyed(0)).by_patient(portion())
    theirs = PrivateStep(adapted.network, plain(made), QUIET, keyed(0), opacus=True).by_patient(portion())
    for name, rows in ours.items():
        np.testing.assert_allclose(theirs[name].detach(), rows, rtol=0, atol=1e-5 * float(rows.abs().max()) + 1e-7)


@pytest.mark.parametrize("clipping", CLIPPINGS)
def test_the_sum_is_clipped_patient_by_patient_and_divided_by_the_expected_number(clipping: Any) -> None:
    made = study("lora")
    adapted = shaken(build(made))
    terms = Terms(noise=0.0, clip=0.3, clipping=clipping, expected=5.0)
    step = PrivateStep(adapted.network, plain(made), terms, keyed(0))
    found = step.gradient(iter([portion(), portion(seed=1)]), public())
    sums: dict[str, np.ndarray] = {}
    for one in (portion(), portion(seed=1)):
        truth = {n: rows.double().numpy() for n, rows in brute_force(adapted.network, plain(made), one).items()}
        for patient in range(one.count):
            lengths = {name: float(np.sqrt((rows[patient] ** 2).sum())) for name, rows in truth.items()}
            whole = float(np.sqrt(sum(length**2 for length in lengths.values())))
            for name, rows in truth.items():
                factor = {
                    "flat": min(1.0, 0.3 / whole),
                    "automatic": 0.3 / (whole + GAMMA),
                    "per_layer": min(1.0, 0.3 / np.sqrt(len(truth)) / max(lengths[name], 1e-30)),
                }[clipping]
                sums[name] = sums.get(name, 0.0) + factor * rows[patient]
    for name, total in sums.items():
        np.testing.assert_allclose(found[name], total / 5.0, rtol=1e-4, atol=1e-7)


@given(seed=st.integers(0, 2**20), clipping=st.sampled_from(CLIPPINGS), clip=st.floats(0.01, 5))
@settings(max_examples=12, deadline=None)
def test_no_patient_moves_the_sum_by_more_than_the_clip(seed: int, clipping: Any, clip: float) -> None:
    made = study("lora")
    adapted = shaken(build(made), 0.3)
    step = PrivateStep(adapted.network, plain(made), Terms(0.0, clip, clipping, 1.0), keyed(0))
    whole, without = portion(seed=seed), portion(seed=seed)
    kept = without.patients != 3
    without = Portion(Views(without.views.pixels[kept], without.views.target[kept]), without.patients[kept], 3)
    one, other = step.gradient(iter([whole]), public()), step.gradient(iter([without]), public())
    moved = sum(float((one[name].double() - other[name].double()).square().sum()) for name in one) ** 0.5
    assert moved <= clip * (1 + 1e-4)


def test_portions_do_not_matter_and_noise_is_added_once() -> None:
    made = study("lora")
    adapted = shaken(build(made))
    whole = portion()
    first = Portion(Views(whole.views.pixels[:3], whole.views.target[:3]), whole.patients[:3], 2)
    second = Portion(Views(whole.views.pixels[3:], whole.views.target[3:]), whole.patients[3:] - 2, 2)
    loud = Terms(noise=2.0, clip=0.5, clipping="flat", expected=3.0)
    results = [
        PrivateStep(adapted.network, plain(made), loud, keyed(9)).gradient(iter(split), public())
        for split in ([whole], [first, second])
    ]
    for name in results[0]:
        np.testing.assert_allclose(results[0][name], results[1][name], rtol=0, atol=1e-5)
    nothing = PrivateStep(adapted.network, plain(made), loud, keyed(9)).gradient(iter([]), public())
    noise = torch.cat([gradient.flatten() for gradient in nothing.values()])
    assert float(noise.std()) == pytest.approx(2.0 * 0.5 / 3.0, rel=0.02)


def test_a_pull_to_the_global_model_is_neither_clipped_nor_noised() -> None:
    made = study("lora", "fedprox")
    adapted = build(made)
    anchor = adapted.write(adapted.read())
    shaken(adapted)
    objective = adapted.chain.objective(plain(made), begun(made.task, anchor=anchor))
    step = PrivateStep(adapted.network, objective, Terms(0.0, 1e-9, "flat", 1.0), keyed(0))
    found = step.gradient(iter([portion()]), public())
    weights = dict(adapted.network.named_parameters())
    for name, gradient in found.items():
        np.testing.assert_allclose(gradient, 0.01 * (weights[name] - anchor[name]).detach(), rtol=1e-4, atol=1e-7)


def test_gradients_that_were_left_at_the_weights_are_nobodys() -> None:
    made = study("lora")
    adapted = shaken(build(made))
    step = PrivateStep(adapted.network, plain(made), QUIET, keyed(0))
    clean = step.gradient(iter([]), public())
    for weight in adapted.parameters():
        weight.grad = torch.ones_like(weight)
    left = PrivateStep(adapted.network, plain(made), QUIET, keyed(0)).gradient(iter([]), public())
    assert all(torch.equal(clean[name], gradient) and not gradient.any() for name, gradient in left.items())


def test_the_check_passes_what_is_exact_and_stops_what_is_not() -> None:
    made = study("lora")
    adapted = build(made)
    pool = Pool(torch.zeros((4, 1, 32, 32), dtype=torch.uint8), torch.zeros(4, dtype=torch.int64), tuple("abcd"))
    before = adapted.read()
    demand_exact(PrivateStep(adapted.network, plain(made), QUIET, keyed(0)), adapted, plain(made), pool, TASK)
    assert all(np.array_equal(before[name], array) for name, array in adapted.read().items())

    def across(model: torch.nn.Module, batch: Batch) -> Tensor:  # weights are asked for something of the data
        weights = torch.stack([weight.square().sum() for weight in model.parameters() if weight.requires_grad])
        return plain(made)(model, batch) + batch.pixels.mean() * weights.sum()

    with pytest.raises(UpdateError, match="not the one that a patient alone would give"):
        demand_exact(PrivateStep(adapted.network, across, QUIET, keyed(0)), adapted, across, pool, TASK)


def test_a_patient_has_the_first_pictures_and_no_more_and_stays_whole() -> None:
    patients = ("a", "b", "a", "c", "a", "b")
    pool = Pool(torch.zeros((6, 1, 32, 32), dtype=torch.uint8), torch.zeros(6, dtype=torch.int64), patients)
    private = Private(QUIET, 0.5, 1, "patient", 2, 3, keyed(0))
    assert held(pool, torch.arange(6), private) == [[0, 2], [1, 5], [3]]
    alone = Private(QUIET, 0.5, 1, "image", 2, 3, keyed(0))
    assert held(pool, torch.arange(6), alone) == [[i] for i in range(6)]
    adapted = build(study("lora"))
    start = begun(pixels=pool.pixels, targets=pool.targets, patients=patients)
    made = list(portions([[0, 2], [1, 5], [3]], adapted, start, private, torch.Generator()))
    assert [one.patients.tolist() for one in made] == [[0, 0], [0, 0, 1]]
    assert sum(one.count for one in made) == 3


AUGMENTED = {
    "augment": "flip = true\nrotate = 90\nbrightness = 0.3\n",
    "augment_monai": 'policy = "photo"\n',
}


@pytest.mark.parametrize("method", AUGMENTED)
@given(gone=st.integers(0, 3), colour=st.booleans())
@settings(max_examples=8, deadline=None)
def test_one_patient_more_changes_nothing_of_what_chance_does_to_the_others(
    method: str, gone: int, colour: bool
) -> None:
    """Augmentation from one stream for all who are drawn would let a patient move everybody else's gradient."""
    text = '[study]\nname = "x"\n[data]\nimage_size = 32\n[[adaptation]]\nmethod = "probe"\n'
    adapted = build(studies.loads(f'{text}[[adaptation]]\nmethod = "{method}"\n{AUGMENTED[method]}'))
    patients = ("a", "b", "a", "c", "a", "b", "d")
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (7, 3 if colour else 1, 32, 32), generator=generator, dtype=torch.uint8)
    start = begun(pixels=pixels, targets=torch.zeros(7, dtype=torch.int64), patients=patients)
    private = Private(QUIET, 0.5, 1, "patient", 3, 3, keyed(0))
    units = held(start.pool, torch.arange(7), private)
    less = begun(pixels=pixels[:, :1], targets=start.pool.targets, patients=patients)  # the last in colour is not drawn

    def views(chosen: list[list[int]], began: Any) -> dict[int, Tensor]:
        made = list(portions(chosen, adapted, began, private, torch.Generator().manual_seed(2)))
        places = [place for one in made for place in one.places]
        return dict(zip(places, torch.cat([one.views.pixels for one in made]), strict=True))

    everybody = views(units, start)
    others = views([unit for i, unit in enumerate(units) if i != gone], start)
    assert others.keys() == everybody.keys() - set(units[gone])
    for place, picture in others.items():
        assert torch.equal(picture, everybody[place])
    assert next(iter(others.values())).shape[0] == 3
    assert next(iter(views(units[:1], less).values())).shape[0] == 3


def test_no_gradient_is_clipped_too_long_because_its_length_was_summed_in_float32() -> None:
    adapted = build(study("probe"))
    step = PrivateStep(adapted.network, plain(study("probe")), QUIET, keyed(0))
    for rows in (torch.full((2, 1000, 3000), 1e-3), torch.randn((2, 3000, 900), generator=torch.Generator())):
        (scale,) = step.scales({"weight": rows}).values()
        released_length = (rows[0].double() * scale[0].double()).square().sum().sqrt()
        assert 0.99998 * QUIET.clip < float(released_length) <= QUIET.clip


def test_what_is_nobodys_has_the_shapes_and_nothing_else() -> None:
    boxes = Pool(torch.zeros((2, 1, 32, 32), dtype=torch.uint8), torch.zeros((2, 5, 5)), ("a", "b"))
    views = nobodys(boxes, TASK, torch.device("cpu"), 3)
    assert views.pixels.shape == (3, 1, 32, 32)
    assert views.target[:, 0].tolist() == [[0.0, 0.25, 0.25, 0.5, 0.5]] * 3
    assert (views.target[:, 1:] == -1).all()


@pytest.mark.parametrize("clipping", CLIPPINGS)
@pytest.mark.parametrize("method", ["lora", "ia3"])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), 1e30])
def test_a_patient_of_whom_there_are_no_numbers_adds_nothing_and_nobody_can_tell(
    method: str, clipping: Any, wrong: float
) -> None:
    """A global model can be made so that one patient's images alone overflow: whether a round ends must not say so."""
    made = study(method)
    adapted, terms = shaken(build(made)), Terms(noise=0.0, clip=0.8, clipping=clipping, expected=5.0)
    objective = plain(made)

    def spoilt(model: Any, batch: Batch) -> Tensor:
        return objective(model, batch) * (wrong if float(batch.pixels[0, 0, 0, 0]) == 7.0 else 1.0)

    given_one = portion()
    given_one.views.pixels[WHOSE == 1, 0, 0, 0] = 7.0
    found = PrivateStep(adapted.network, spoilt, terms, keyed(0)).gradient(iter([given_one]), public())
    left = WHOSE != 1
    others = Portion(
        Views(given_one.views.pixels[left], given_one.views.target[left]), torch.tensor([0, 0, 1, 1, 1, 2]), 3
    )
    alone = PrivateStep(adapted.network, objective, terms, keyed(0)).gradient(iter([others]), public())
    for name, gradient in found.items():
        assert torch.isfinite(gradient).all()
        torch.testing.assert_close(gradient, alone[name], rtol=1e-4, atol=1e-6)
