"""The task against MONAI's losses, the papers' equations written out, and grids that are moved by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.losses import DiceCELoss, DiceLoss
from torch.nn import functional as F

from polyclinic.core import study as studies
from polyclinic.core.config import parse
from polyclinic.core.errors import DataError, StudyError
from polyclinic.models.adaptations.data import Augment
from polyclinic.models.adaptations.objective_calibration import MarginSmoothing
from polyclinic.models.adaptations.objective_classes import FedLC, Focal, LabelSmoothing
from polyclinic.models.contracts import Batch, Choosing, Masking, Views
from polyclinic.models.tasks.mask_losses import signed_distances
from polyclinic.models.tasks.segmentation import Segmentation
from tests.models.begun import begun

TASK = Segmentation(classes=("a", "b"))
SIZES = [(9, 9), (4, 9, 9)]


def drawn(size, n=3, seed=0, ignored=0.0):
    generator = torch.Generator().manual_seed(seed)
    output = torch.randn((n, 3, *size), generator=generator)
    target = torch.randint(0, 3, (n, *size), generator=generator, dtype=torch.uint8)
    target[torch.rand(target.shape, generator=generator) < ignored] = 255
    return output, target


def of(criterion, **keys):
    return Segmentation(classes=("a", "b"), criterion=criterion, **keys)


@pytest.mark.parametrize("size", SIZES)
def test_losses_are_monais(size):
    output, target = drawn(size)
    both = DiceCELoss(include_background=False, softmax=True, to_onehot_y=True)(output, target.long()[:, None])
    alone = DiceLoss(include_background=False, softmax=True, to_onehot_y=True)(output, target.long()[:, None])
    torch.testing.assert_close(of("dice_ce").loss(output, target), both)
    torch.testing.assert_close(of("dice").loss(output, target), alone)
    torch.testing.assert_close(of("ce").loss(output, target), F.cross_entropy(output, target.long()))


@pytest.mark.parametrize("criterion", ["dice_ce", "dice", "ce", "boundary"])
@pytest.mark.parametrize("size", SIZES)
def test_a_loss_is_the_mean_of_its_pictures_and_blind_to_what_is_ignored(criterion, size):
    task = of(criterion)
    output, target = drawn(size, ignored=0.3)
    target[1, :5] = 255  # pictures of which different shares count
    whole = task.loss(output, target)
    each = [task.loss(output[i : i + 1], target[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(whole, torch.stack(each).mean())
    changed = torch.where(target[:, None] == 255, torch.randn_like(output) * 9, output)
    torch.testing.assert_close(task.loss(changed, target), whole)
    output.requires_grad_()
    task.loss(output, target).backward()
    assert not output.grad.movedim(1, -1)[target == 255].any()
    assert output.grad.movedim(1, -1)[target != 255].any()
    nothing = task.loss(output, torch.full_like(target, 255))
    assert torch.isfinite(nothing)


@pytest.mark.parametrize("size", SIZES)
def test_the_boundary_loss_is_the_papers(size):
    output, target = drawn(size)
    target[0] = 0
    target[0][(..., slice(2, 6), slice(3, 8))] = 1  # a solid region; b is absent from this picture
    p, total = output.double().softmax(dim=1).numpy(), 0.0
    for i in range(3):
        for k in (1, 2):
            inside = target[i].numpy() == k
            if not inside.any():
                continue
            places = np.argwhere(np.ones_like(inside))
            for place in places:
                own = inside[tuple(place)]
                others = np.argwhere(inside != own)
                away = np.sqrt(((others - place) ** 2).sum(axis=1)).min()
                total += p[i, k][tuple(place)] * (1.0 - away if own else away)
    expected = total / (3 * 2 * inside.size)
    found = of("boundary", boundary_weight=0.5).loss(output, target) - of("dice").loss(output, target)
    assert float(found) == pytest.approx(0.5 * expected, abs=1e-5)


def test_a_class_that_fills_the_picture_has_no_boundary():
    full = torch.ones((1, 4, 4), dtype=torch.uint8)
    assert not signed_distances(full, 3).any()


@pytest.mark.parametrize("size", SIZES)
def test_every_pixel_that_counts_is_a_choice(size):
    assert isinstance(TASK, Choosing)
    assert isinstance(TASK, Masking)
    output, target = drawn(size)
    logits, right = TASK.choices(output, target)
    assert logits.shape == (target.numel(), TASK.options)
    torch.testing.assert_close(F.cross_entropy(logits, right), of("ce").loss(output, target))
    _, part = drawn(size, ignored=0.4)
    logits, right = TASK.choices(output, part)
    places = np.argwhere((part != 255).numpy())
    assert len(right) == len(places)
    for m in (0, 7, len(places) - 1):
        i, *at = places[m]
        assert right[m] == part[(i, *at)]
        assert torch.equal(logits[m], output[(i, slice(None), *at)])
    assert TASK.occurrences(part).tolist() == [int((part == k).sum()) for k in range(3)]
    by = torch.tensor([1.0, 2.0, 3.0])
    lowered, _ = TASK.choices(TASK.lowered(output, by), part)
    torch.testing.assert_close(lowered, logits - by)


def test_objectives_that_speak_of_classes_speak_of_pixels():
    output, target = drawn((6, 6), ignored=0.2)
    kept = (target != 255).numpy()
    logits = output.movedim(1, -1).double().numpy()[kept]
    right = target.numpy()[kept]
    start = begun(TASK, target)
    batch = Batch(torch.zeros(3, 1, 6, 6), torch.zeros(3, 2), output, target)

    def of_method(method, base=lambda model, batch: torch.zeros(())):
        return float(method.objective(base, start)(torch.nn.Identity(), batch))

    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    chosen = p[np.arange(len(right)), right]
    assert of_method(Focal(gamma=2.0)) == pytest.approx(np.mean(-((1 - chosen) ** 2) * np.log(chosen)), abs=1e-5)
    smooth = np.full_like(p, 0.3 / 3)
    smooth[np.arange(len(right)), right] += 0.7
    expected = -(smooth * np.log(p)).sum(axis=1).mean()
    assert of_method(LabelSmoothing(epsilon=0.3)) == pytest.approx(expected, abs=1e-5)
    apart = np.maximum(0, logits.max(axis=1, keepdims=True) - logits - 1.0)
    assert of_method(MarginSmoothing(margin=1.0, alpha=0.5)) == pytest.approx(0.5 * apart.mean(), abs=1e-5)
    shifted = logits - (np.bincount(right, minlength=3) + 1e-8) ** -0.25
    fedlc = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(right)), right]
    base = lambda model, batch: F.cross_entropy(*TASK.choices(batch.output, batch.target))  # noqa: E731
    assert of_method(FedLC(tau=1.0), base) == pytest.approx(fedlc.mean(), abs=1e-5)


def test_masks_move_by_hand():
    mask = torch.tensor([[[1, 2, 0], [0, 255, 1], [2, 0, 0]]], dtype=torch.uint8)
    flip = torch.tensor([[[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])
    assert torch.equal(TASK.moved(mask, flip), mask.flip(-1))
    turn = torch.tensor([[[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]]])
    assert torch.equal(TASK.moved(mask, turn), torch.rot90(mask, -1, (1, 2)))
    right = torch.tensor([[[1.0, 0.0, -2.0 / 3.0], [0.0, 1.0, 0.0]]])  # each from one pixel to its left
    outside = torch.full((1, 3, 1), 255, dtype=torch.uint8)
    assert torch.equal(TASK.moved(mask, right), torch.cat([outside, mask[:, :, :2]], dim=2))
    volume = torch.cat([mask, mask.flip(1)])[None]
    assert torch.equal(TASK.moved(volume, turn), torch.rot90(volume, -1, (2, 3)))


@pytest.mark.parametrize("size", [(24, 24), (5, 24, 24)])
def test_augmented_masks_stay_on_their_pictures(size):
    """A picture that shows its own mask, moved: away from edges of regions both say the same."""
    rng = np.random.default_rng(0)
    mask = np.kron(rng.integers(0, 3, (6, 4, 4)), np.ones((1, 6, 6))).astype(np.uint8)
    mask = mask if len(size) == 2 else np.repeat(mask[:, None], 5, axis=1)
    target = torch.from_numpy(mask)
    views = Views(target[:, None].float() / 2.0, target)
    method = Augment(flip=True, flip_vertical=True, rotate=30, shift=0.2, zoom=0.2, brightness=0.0, contrast=0.0)
    moved = method.build().batch(torch.nn.Identity(), TASK, views, torch.Generator().manual_seed(5))
    assert moved.pixels.shape == views.pixels.shape
    assert moved.target.dtype == torch.uint8
    assert not torch.equal(moved.target, target)
    seen = moved.pixels[:, 0] * 2.0
    clear = ((seen - seen.round()).abs() < 1e-4) & (moved.target != 255)
    assert clear.float().mean() > 0.4
    assert (seen.round().to(torch.uint8) == moved.target)[clear].float().mean() > 0.99


def test_numbers_of_masks():
    values = np.array([[0, 1, 2], [-1, 7, 1]])
    named = Segmentation(classes=("a", "b"), values=(7, 1), unlabelled=2)
    assert named.indexed(values).tolist() == [[0, 2, 255], [255, 1, 2]]
    assert Segmentation(classes=("a",), values="any").indexed(values).tolist() == [[0, 1, 1], [255, 1, 1]]
    with pytest.raises(ValueError, match=r"holds the value 7; the study knows 0 \(background\), 1 \(a\), 2 \(b\)"):
        TASK.indexed(values)
    with pytest.raises(ValueError, match="not from labels"):
        TASK.target("a")


def test_presence():
    target = np.array([[[0, 1], [255, 0]], [[0, 0], [0, 0]], [[2, 1], [0, 0]]], np.uint8)
    assert TASK.presence(target).tolist() == [[1, 0], [0, 0], [1, 1]]
    assert TASK.presence(np.zeros((0, 2, 2), np.uint8)).shape == (0, 2)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"classes": []}, "classes"),
        ({"classes": ["a", "a"]}, "differ"),
        ({"classes": [""]}, "none be empty"),
        ({"classes": ["a", "b"], "values": "any"}, "one class"),
        ({"classes": ["a"], "values": "any", "unlabelled": 3}, "no other number"),
        ({"classes": ["a", "b"], "values": [1]}, "one number above 0 for each class"),
        ({"classes": ["a", "b"], "values": [1, 1]}, "all different"),
        ({"classes": ["a"], "values": [0]}, "above 0"),
        ({"classes": ["a", "b"], "unlabelled": 2}, "number of a class"),
        ({"classes": ["a"], "criterion": "iou"}, "criterion"),
        ({"classes": ["a"], "unit": "cm"}, "unit"),
        ({"classes": ["a"], "tolerance": -1.0}, "tolerance"),
        ({"classes": ["a"], "kind": "binary"}, "unknown key 'kind'"),
    ],
)
def test_bad_settings_are_refused(keys, said):
    with pytest.raises(StudyError, match=said):
        parse(Segmentation, {"method": "segmentation", **keys}, "task")


def test_a_flat_backbone_takes_no_volumes(tiny_vit):
    from polyclinic.models.network import plain

    study = studies.loads(
        f'[study]\nname = "x"\n[data]\nimage_size = 32\nvolume = "whole"\ndepth = 8\n[backbone]\nreference = '
        f'"file:{tiny_vit}"\n[[adaptation]]\nmethod = "lora"\n'
    )
    with pytest.raises(StudyError, match=r"volumes for a backbone of flat pictures.*family architecture"):
        plain(study)


def test_it_says_what_it_does():
    assert "a, b or background" in TASK.explain()
    assert "15 reliability bins" in TASK.told(bins=15, score_bins=16)
    assert "decoder" in TASK.trained("mean")


def test_a_model_that_diverged_is_said_to_have():
    logits = np.full((2, 3, 4, 4), np.nan)
    rows = TASK.examine(logits, np.zeros((2, 4, 4), np.uint8), bins=5, spacing=np.ones((2, 2)))
    with pytest.raises(DataError, match=r"no numbers.*diverged"):
        TASK.tally(rows, "ab", bins=5, score_bins=16)


class Spots(torch.nn.Module):
    """Logits that depend on each pixel alone, so that a window over a picture gives what the whole picture gives."""

    def __init__(self, size):
        super().__init__()
        self.size, self.calls = size, 0

    def forward(self, pixels):
        assert tuple(pixels.shape[2:]) == self.size
        self.calls += 1
        return torch.cat([pixels, 1.0 - pixels, pixels**2], dim=1)


@pytest.mark.parametrize(
    ("size", "window"), [((40, 40), {"window": 16}), ((10, 32, 32), {"window": 16, "window_depth": 4})]
)
def test_a_window_slides_over_all_of_a_picture(size, window):
    task = Segmentation(classes=("a", "b"), **window)
    seen = (*([window["window_depth"]] if "window_depth" in window else []), 16, 16)
    model, pixels = Spots(seen), torch.rand((2, 1, *size), generator=torch.Generator().manual_seed(0))
    found = task.infer(model, pixels)
    torch.testing.assert_close(found, torch.cat([pixels, 1.0 - pixels, pixels**2], dim=1), rtol=1e-4, atol=1e-4)
    assert model.calls > 1
    whole = Spots(seen)
    part = pixels[(..., *(slice(n) for n in seen))]
    assert torch.equal(task.infer(whole, part), torch.cat([part, 1.0 - part, part**2], dim=1))


@pytest.mark.parametrize(
    ("size", "window"), [((40, 40), {"window": 16}), ((10, 32, 32), {"window": 16, "window_depth": 4})]
)
def test_windows_of_pictures_and_masks_are_cut_alike(size, window):
    task = Segmentation(classes=("a", "b"), **window)
    target = torch.zeros((60, *size), dtype=torch.uint8)
    target[(slice(None), *(n - 2 for n in size))] = 1  # one pixel in a corner
    numbers = torch.arange(target[0].numel(), dtype=torch.float64).view(1, 1, *size).repeat(60, 1, *[1] * len(size))
    drawn = task.cropped(Views(numbers, target), torch.Generator().manual_seed(0))
    seen = (*([4] if len(size) == 3 else []), 16, 16)
    assert drawn.pixels.shape == (60, 1, *seen)
    assert drawn.target.shape == (60, *seen)
    at = target[0].flatten().nonzero()[0]
    assert torch.equal(drawn.pixels[:, 0] == at, drawn.target == 1)
    # half of the windows are made to hold it, and few others do; a corner is within reach of every window
    assert 20 <= int((drawn.target == 1).flatten(1).any(dim=1).sum()) <= 45
    corners = drawn.pixels.flatten(1)[:, 0]
    assert len(corners.unique()) > 20
    steps = drawn.pixels[:, 0].flatten(0, -2).diff(dim=-1)
    assert (steps == 1).all()
    again = task.cropped(Views(numbers, target), torch.Generator().manual_seed(0))
    assert torch.equal(again.pixels, drawn.pixels)
    assert TASK.cropped(Views(numbers, target), torch.Generator()).pixels is numbers


@pytest.mark.parametrize(("keys", "said"), [("window = 64", "a window of 64"), ("window_depth = 8", "no depth")])
def test_windows_that_do_not_fit_are_refused(keys, said):
    text = f'[study]\nname = "x"\n[data]\nimage_size = 48\n[task]\nmethod = "segmentation"\nclasses = ["a"]\n{keys}\n'
    with pytest.raises(StudyError, match=said):
        studies.loads(f'{text}[[adaptation]]\nmethod = "lora"\n')
