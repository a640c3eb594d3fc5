"""The detection task: what its head is asked for, what it costs to miss it, and what is found, against pycocotools."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyclinic.core import study as studies
from polyclinic.core.errors import DataError, StudyError
from polyclinic.core.statistics.detected_figures import figures
from polyclinic.models.contracts import Level, Shape
from polyclinic.models.heads.fcos import PRIOR, Fcos, aims, drawn, fcos
from polyclinic.models.tasks.detection import Detection
from tests.models.coco import coco, mean_precision
from tests.models.scenes import findings, scenes

TASK = Detection(classes=("a", "b"), most=4, most_detections=6)
VIT = Shape(width=32, levels=(Level(16, 16),) * 4, side=128)


def target(*boxes: tuple[float, ...], most: int = 4) -> Tensor:
    """[1, most, 5]."""
    rows = [*boxes, *[(-1.0, 0.0, 0.0, 0.0, 0.0)] * (most - len(boxes))]
    return torch.tensor(rows)[None]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def maps(shape: Shape, n: int = 2) -> list[Tensor]:
    sizes = [shape.side // level.stride for level in shape.levels]
    return [torch.randn((n, level.channels, s, s), generator=seeded(i)) for i, (level, s) in
            enumerate(zip(shape.levels, sizes, strict=True))]  # fmt: skip


def perfect(boxes: Tensor, classes: int, side: int, radius: float, sure: float = 8.0) -> Tensor:
    """Outputs that say just what targets [N, M, 5] ask for."""
    aim = aims(boxes, classes, side, side, radius)
    middles = (torch.arange(side) + 0.5) / side
    left, top, right, bottom = aim.boxes.unbind(dim=-1)
    distances = torch.stack([middles - left, middles[:, None] - top, right - middles, bottom - middles[:, None]], dim=1)
    logits = sure * (2 * aim.classes - 1)
    return torch.cat([logits, torch.logit(aim.centre, 1e-6)[:, None], (distances * side).clamp(min=1e-3).log()], dim=1)


# the head


def test_the_head_has_cells_of_the_stride_that_is_asked_for_and_is_drawn_from_the_generator_alone() -> None:
    for stride, cells in ((16, 8), (8, 16), (5, 32), (4, 32), (2, 64)):
        torch.manual_seed(stride)
        before = torch.get_rng_state()
        head = fcos(VIT, 3, stride, 16, 1, seeded())
        assert torch.equal(torch.get_rng_state(), before)
        assert head(maps(VIT)).shape == (2, 3 + 5, cells, cells)
        again = fcos(VIT, 3, stride, 16, 1, seeded())
        other = fcos(VIT, 3, stride, 16, 1, seeded(1))
        assert all(torch.equal(a, b) for a, b in zip(head.parameters(), again.parameters(), strict=True))
        assert any(not torch.equal(a, b) for a, b in zip(head.parameters(), other.parameters(), strict=True))


def test_before_training_everything_is_unlikely_and_boxes_are_of_a_sixteenth() -> None:
    output = fcos(VIT, 3, 8, 16, 1, seeded())(maps(VIT))
    assert output[:, :3].sigmoid().mean().item() == pytest.approx(PRIOR, rel=0.2)
    boxes = drawn(output[:, 4:])
    assert (boxes[..., 2] - boxes[..., 0]).mean().item() == pytest.approx(1 / 16, rel=0.1)


def test_a_pyramid_is_brought_to_its_finest_level() -> None:
    pyramid = Shape(32, (Level(8, 4), Level(16, 8), Level(24, 16), Level(32, 32)), 128)
    assert fcos(pyramid, 1, 8, 16, 0, seeded())(maps(pyramid)).shape == (2, 6, 32, 32)
    patches = Shape(32, (Level(16, 14),) * 4, 112)
    assert fcos(patches, 1, 8, 16, 0, seeded())(maps(patches)).shape == (2, 6, 16, 16)


def test_no_picture_looks_at_another() -> None:
    head, both = fcos(VIT, 2, 8, 16, 2, seeded()), maps(VIT)
    together = head(both)
    for i in range(2):
        torch.testing.assert_close(head([grid[i : i + 1] for grid in both])[0], together[i], rtol=1e-4, atol=1e-5)


def test_backbones_that_do_not_fit_are_refused() -> None:
    for shape, said in (
        (Shape(32, (), 128), "no maps"),
        (Shape(32, VIT.levels, 128, depth=8), "flat"),
        (Shape(32, (Level(8, 32),), 128), "too fine"),
    ):
        with pytest.raises(StudyError, match=said):
            TASK.model_copy(update={"stride": 2}).head(shape, seeded())
    assert isinstance(TASK.head(VIT, seeded()), Fcos)


# what is asked of it


def test_a_cell_belongs_to_the_smallest_box_near_whose_middle_it_lies() -> None:
    boxes = target((0, 0.0, 0.0, 1.0, 1.0), (1, 0.25, 0.25, 0.625, 0.625))
    aim = aims(boxes, 2, 8, 8, radius=1.5)
    # the first has its middle at 4.0 cells, the second at 3.5; each reaches 1.5 cells
    whole = {(y, x) for y in range(8) for x in range(8) if abs(y + 0.5 - 4) <= 1.5 and abs(x + 0.5 - 4) <= 1.5}
    small = {(y, x) for y in range(8) for x in range(8) if abs(y + 0.5 - 3.5) <= 1.5 and abs(x + 0.5 - 3.5) <= 1.5}
    assert {tuple(place) for place in aim.classes[0, 1].nonzero().tolist()} == small
    assert {tuple(place) for place in aim.classes[0, 0].nonzero().tolist()} == whole - small
    assert torch.equal(aim.positive, aim.classes.sum(dim=1))
    assert aim.boxes[0, 3, 3].tolist() == pytest.approx([0.25, 0.25, 0.625, 0.625])


def test_centre_ness_is_the_papers() -> None:
    aim = aims(target((0, 0.1, 0.2, 0.9, 0.7)), 1, 10, 10, radius=3.0)
    x, y = 0.35, 0.55
    left, top, right, bottom = x - 0.1, y - 0.2, 0.9 - x, 0.7 - y
    expected = np.sqrt(min(left, right) / max(left, right) * min(top, bottom) / max(top, bottom))
    assert aim.centre[0, 5, 3].item() == pytest.approx(expected, rel=1e-5)
    assert (aim.centre[0] > 0).sum() <= aim.positive.sum()


def test_a_box_smaller_than_a_cell_has_the_cell_that_holds_it() -> None:
    aim = aims(target((1, 0.26, 0.51, 0.28, 0.53)), 2, 8, 8, radius=1.5)
    assert aim.positive[0].nonzero().tolist() == [[4, 2]]
    assert aim.classes[0, :, 4, 2].tolist() == [0.0, 1.0]


def test_no_box_asks_for_nothing() -> None:
    aim = aims(target(), 2, 8, 8, radius=1.5)
    assert not aim.positive.any()
    assert not aim.classes.any()
    assert torch.isfinite(TASK.loss(torch.randn((1, 7, 8, 8), generator=seeded()), target()))


def test_boxes_are_drawn_from_distances_in_cells() -> None:
    found = drawn(torch.tensor([1.0, 2.0, 3.0, 0.5]).log().view(1, 4, 1, 1).expand(1, 4, 4, 8))
    x, y = 2.5, 1.5
    assert found[0, 1, 2].tolist() == pytest.approx([(x - 1) / 8, (y - 2) / 4, (x + 3) / 8, (y + 0.5) / 4])
    assert torch.isfinite(drawn(torch.full((1, 4, 4, 4), 1e4))).all()


# what it costs


def slow_loss(task: Detection, output: Tensor, boxes: Tensor) -> float:
    """The loss of one picture, cell by cell, in plain numbers."""
    k, side = len(task.classes), output.shape[-1]
    real = [[float(x) for x in row] for row in boxes[0] if row[0] >= 0]
    named = far = weights = central = 0.0
    positives = 0
    for i in range(side):
        for j in range(side):
            x, y = (j + 0.5) / side, (i + 0.5) / side
            own = []
            for row in real:
                dx, dy = abs(x - (row[1] + row[3]) / 2) * side, abs(y - (row[2] + row[4]) / 2) * side
                inside = (dx <= 0.5 or (dx <= task.radius and row[1] < x < row[3])) and (
                    dy <= 0.5 or (dy <= task.radius and row[2] < y < row[4])
                )
                if inside:
                    own.append(((row[3] - row[1]) * (row[4] - row[2]), row))
            box = min(own)[1] if own else None
            for c in range(k):
                p = 1 / (1 + np.exp(-float(output[0, c, i, j])))
                yes = box is not None and box[0] == c
                named -= task.alpha * (1 - p) ** task.gamma * np.log(p) if yes else 0.0
                named -= 0.0 if yes else (1 - task.alpha) * p**task.gamma * np.log(1 - p)
            if box is None:
                continue
            positives += 1
            edges = (x - box[1], box[3] - x, y - box[2], box[4] - y)
            near = [max(0.0, min(a, b)) / max(a, b) for a, b in (edges[:2], edges[2:])]
            centre = float(np.sqrt(near[0] * near[1]))
            c = 1 / (1 + np.exp(-float(output[0, k, i, j])))
            central -= centre * np.log(c) + (1 - centre) * np.log(1 - c)
            d = [min(float(np.exp(float(v))) / side, 1.0) for v in output[0, k + 1 :, i, j]]
            said = (x - d[0], y - d[1], x + d[2], y + d[3])
            wide, high = (min(said[n + 2], box[n + 3]) - max(said[n], box[n + 1]) for n in (0, 1))
            shared = max(0.0, wide) * max(0.0, high)
            union = (said[2] - said[0]) * (said[3] - said[1]) + (box[3] - box[1]) * (box[4] - box[2]) - shared
            hull = np.prod([max(said[n + 2], box[n + 3]) - min(said[n], box[n + 1]) for n in (0, 1)])
            far += centre * (1 - (shared / union - (hull - union) / hull))
            weights += centre
    return (named + central) / max(1, positives) + task.box_weight * far / max(weights, 1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_the_loss_is_the_papers_cell_by_cell(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(seed):
        low = rng.uniform(0, 0.5, 2)
        rows.append((float(rng.integers(2)), *low, *(low + rng.uniform(0.05, 0.5, 2))))
    boxes = target(*rows)
    output = torch.randn((1, 7, 8, 8), generator=seeded(seed))
    task = TASK.model_copy(update={"box_weight": 2.0})
    assert task.loss(output, boxes).item() == pytest.approx(slow_loss(task, output, boxes), rel=1e-4)


def test_the_loss_of_a_batch_is_the_mean_of_its_pictures_and_each_has_a_gradient_of_its_own() -> None:
    boxes = torch.cat([target((0, 0.1, 0.1, 0.5, 0.6)), target(), target((1, 0.4, 0.2, 0.9, 0.5), (0, 0, 0, 0.2, 0.2))])
    output = torch.randn((3, 7, 8, 8), generator=seeded())
    alone = [TASK.loss(output[i : i + 1], boxes[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(TASK.loss(output, boxes), torch.stack(alone).mean())
    each = torch.func.vmap(torch.func.grad(lambda o, b: TASK.loss(o[None], b[None])))(output, boxes)
    output.requires_grad_()
    (together,) = torch.autograd.grad(TASK.loss(output, boxes), output)
    torch.testing.assert_close(each / 3, together)
    assert torch.isfinite(each).all()


def test_each_pictures_gradient_can_be_had_alone_through_the_whole_head() -> None:
    head, given = fcos(VIT, 2, 8, 16, 1, seeded()), maps(VIT, 3)
    boxes = torch.cat([target((0, 0.1, 0.1, 0.5, 0.6)), target(), target((1, 0.4, 0.2, 0.9, 0.5))])
    weights = {name: weight.detach() for name, weight in head.named_parameters()}

    def loss(weights: dict[str, Tensor], grids: tuple[Tensor, ...], box: Tensor) -> Tensor:
        output = torch.func.functional_call(head, weights, ([grid[None] for grid in grids],))
        return TASK.loss(output, box[None])

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(weights, tuple(given), boxes)
    for i in range(3):
        head.zero_grad()
        TASK.loss(head([grid[i : i + 1] for grid in given]), boxes[i : i + 1]).backward()
        for name, weight in head.named_parameters():
            torch.testing.assert_close(each[name][i], weight.grad, rtol=1e-3, atol=1e-5)


def test_outputs_that_say_what_is_true_cost_next_to_nothing_and_find_it_all() -> None:
    boxes = target((0, 0.1, 0.1, 0.4, 0.5), (1, 0.5, 0.55, 0.9, 0.95), (0, 0.6, 0.1, 0.9, 0.3))
    output = perfect(boxes, 2, 32, TASK.radius)
    # what is left is the entropy of centre-ness itself
    silent = F.binary_cross_entropy(*[aims(boxes, 2, 32, 32, TASK.radius).centre] * 2, reduction="none")
    positives = aims(boxes, 2, 32, 32, TASK.radius).positive
    assert TASK.loss(output, boxes).item() < float((silent * positives).sum() / positives.sum()) + 0.01
    found = TASK.examine(output.numpy(), boxes.numpy(), bins=15, spacing=np.ones((1, 2)))
    assert (found["kinds"] >= 0).sum() == 3
    assert found["hits"][found["kinds"] >= 0].all()
    assert found["truths"].tolist() == [[2, 1]]


# what is found


def test_detections_are_the_best_first_apart_and_at_most_so_many() -> None:
    output = torch.randn((2, 7, 16, 16), generator=seeded(5))
    boxes, kinds, scores = TASK.detect(output.numpy())
    assert boxes.shape == (2, 6, 4)
    assert kinds.shape == scores.shape == (2, 6)
    assert (np.diff(scores, axis=1) <= 0).all()
    assert ((boxes >= 0) & (boxes <= 1)).all()
    probabilities = output[:, :2].sigmoid() * output[:, 2:3].sigmoid()
    assert scores[:, 0].tolist() == pytest.approx(probabilities.flatten(1).max(dim=1).values.tolist())
    deaf = TASK.model_copy(update={"score_threshold": 0.999})
    none = deaf.detect(output.numpy())
    assert (none[1] == -1).all()
    assert not none[2].any()


@pytest.mark.parametrize("seed", range(3))
def test_the_figures_of_outputs_are_those_of_pycocotools(seed: int) -> None:
    task = TASK.model_copy(update={"most_detections": 40, "most": 6})
    rng = np.random.default_rng(seed)
    truths = []
    for _ in range(8):
        rows = [
            (float(rng.integers(2)), *(low := rng.uniform(0, 0.7, 2)), *(low + rng.uniform(0.1, 0.3, 2)))
            for _ in range(rng.integers(0, 6))
        ]
        truths.append(target(*rows, most=6))
    boxes = torch.cat(truths)
    output = perfect(boxes, 2, 16, 1.5, sure=1.0) + torch.randn((8, 7, 16, 16), generator=seeded(seed)) * 0.6
    drawn_boxes, kinds, scores = task.detect(output.numpy())
    own = [kinds[i] >= 0 for i in range(8)]
    found = [list(zip(kinds[i][own[i]], *drawn_boxes[i][own[i]].T, strict=True)) for i in range(8)]
    judge = coco([[row for row in image.tolist() if row[0] >= 0] for image in boxes], found,
                 [scores[i][own[i]].tolist() for i in range(8)], 2)  # fmt: skip
    halves = [
        task.examine(output[part].numpy(), boxes[part].numpy(), bins=15, spacing=np.ones((1, 2)))
        for part in (slice(0, 3), slice(3, 8))
    ]
    names = [[f"p{i}" for i in range(3)], [f"q{i}" for i in range(5)]]
    outcomes = [task.tally(half, who, bins=10, score_bins=256) for half, who in zip(halves, names, strict=True)]
    told = figures(outcomes[0] + outcomes[1], None)
    assert told["map50"].value > 0.1
    assert told["map50"].value == pytest.approx(mean_precision(judge, 1), abs=told["map50"].bound + 1e-9)
    assert told["map"].value == pytest.approx(mean_precision(judge), abs=told["map"].bound + 1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_crowded_scenes_have_pycocotools_figures_too(seed: int) -> None:
    """Ambiguous matches, false alarms and empty pictures, split over two sites and merged."""
    one, other = scenes(30, 3, seed), scenes(10, 3, seed + 100)
    task = Detection(classes=("a", "b", "c"))
    parts = [task.tally(findings(made, 3), [f"{n}{i}" for i in range(len(made.truths))], bins=15, score_bins=512)
             for n, made in enumerate((one, other))]  # fmt: skip
    told, both = figures(parts[0] + parts[1], None), one + other
    judge = coco(both.truths, both.found, both.scores, 3)
    assert told["map50"].value == pytest.approx(mean_precision(judge, 1), abs=told["map50"].bound + 1e-9)
    assert told["map"].value == pytest.approx(mean_precision(judge), abs=told["map"].bound + 1e-9)
    assert told["map50"].bound < 0.01


def test_outputs_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(DataError, match="no numbers"):
        TASK.examine(np.full((1, 7, 4, 4), np.nan, np.float32), target().numpy(), bins=15, spacing=np.ones((1, 2)))


def test_the_outcome_of_no_image_merges_with_any() -> None:
    blank = TASK.blank(bins=10, score_bins=64)
    output = torch.randn((2, 7, 8, 8), generator=seeded()).numpy()
    found = TASK.examine(
        output, torch.cat([target((0, 0.1, 0.1, 0.5, 0.5)), target()]).numpy(), bins=15, spacing=np.ones((1, 2))
    )
    outcome = TASK.tally(found, ["p", "q"], bins=10, score_bins=64)
    assert blank + outcome == outcome
    assert outcome.truths.tolist() == [1, 0]
    nothing = TASK.examine(
        np.zeros((0, 7, 8, 8), np.float32), np.zeros((0, 4, 5), np.float32), bins=15, spacing=np.ones((1, 2))
    )
    assert TASK.tally(nothing, (), bins=10, score_bins=64) == blank


def test_presence_names_the_classes_of_boxes() -> None:
    boxes = torch.cat(
        [target((1, 0, 0, 1, 1), (1, 0, 0, 0.5, 0.5)), target(), target((0, 0, 0, 1, 1), (1, 0, 0, 1, 1))]
    )
    assert TASK.presence(boxes.numpy()).tolist() == [[0, 1], [0, 0], [1, 1]]
    assert TASK.presence(np.zeros((0, 4, 5), np.float32)).shape == (0, 2)


@pytest.mark.parametrize(
    "inverse",
    [
        [[1.0, 0.0, 0.25], [0.0, 1.0, -0.125]],
        [[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]],
        [[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]],
        [[0.75, 0.0, 0.125], [0.0, -1.25, 0.0]],
    ],
)
def test_boxes_move_as_the_pixels_do(inverse: list[list[float]]) -> None:
    """A bright rectangle is moved as ``augment`` moves pictures; its new edges are looked up in the pixels."""
    side, inv = 64, torch.tensor([inverse])
    pixels = torch.zeros((1, 1, side, side))
    pixels[0, 0, 20:36, 12:28] = 1.0
    grid = F.affine_grid(inv, [1, 1, side, side], align_corners=False)
    seen = F.grid_sample(pixels, grid, align_corners=False)[0, 0] > 0.5
    rows, columns = seen.any(dim=1).nonzero(), seen.any(dim=0).nonzero()
    expected = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / side
    moved = TASK.moved(target((1, 12 / side, 20 / side, 28 / side, 36 / side)), inv)
    assert moved[0, 0, 0].item() == 1.0
    torch.testing.assert_close(moved[0, 0, 1:], expected, atol=1.1 / side, rtol=0)
    assert (moved[0, 1:, 0] == -1).all()


def test_a_box_that_leaves_the_picture_is_none() -> None:
    moved = TASK.moved(
        target((0, 0.8, 0.1, 0.95, 0.3), (1, 0.1, 0.1, 0.3, 0.3)), torch.tensor([[[1.0, 0, -0.5], [0, 1, 0]]])
    )
    assert moved[0, :, 0].tolist() == [-1.0, 1.0, -1.0, -1.0]
    assert not moved[0, 0, 1:].any()
    assert moved[0, 1, 1:].tolist() == pytest.approx([0.35, 0.1, 0.55, 0.3])


# the configuration

GOOD = """
[study]
name = "x"
[data]
boxes = "boxes.csv"
[task]
method = "detection"
classes = ["a", "b"]
[[adaptation]]
method = "probe"
"""


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('classes = ["a", "b"]', "", "classes"),
        ('["a", "b"]', "[]", "classes"),
        ('["a", "b"]', '["a", "a"]', "differ"),
        ('["a", "b"]', '["a", ""]', "empty"),
        ('boxes = "boxes.csv"', "", "needs boxes"),
        ('boxes = "boxes.csv"', 'boxes = "b.csv"\nvolume = "whole"\ndepth = 8', "flat pictures"),
        ("[[adap", "most = 0\n[[adap", "most"),
        ("[[adap", "most_detections = 5000\n[[adap", "most_detections"),
        ("[[adap", "score_threshold = 1.0\n[[adap", "score_threshold"),
        ("[[adap", "nms_iou = 0.0\n[[adap", "nms_iou"),
        ("[[adap", "width = 20\n[[adap", "width"),
        ("[[adap", "anchors = 3\n[[adap", "anchors"),
        ("[[adap", "gamma = -1.0\n[[adap", "gamma"),
        ('"probe"\n', '"probe"\n[monitoring]\nscore_bins = 4096\n', None),
        ('"probe"\n', '"probe"\n[[adaptation]]\nmethod = "fedlc"\n', "does not fit"),
    ],
)
def test_what_makes_no_sense_is_refused_when_the_study_is_read(old: str, new: str, said: str | None) -> None:
    assert old in GOOD
    if said is None:
        assert studies.loads(GOOD.replace(old, new)).task.method == "detection"
        return
    with pytest.raises(StudyError, match=said):
        studies.loads(GOOD.replace(old, new))


def test_outcomes_too_large_to_tell_are_refused() -> None:
    many = ", ".join(f'"{i}"' for i in range(200))
    with pytest.raises(StudyError, match="score_bins"):
        studies.loads(GOOD.replace('"a", "b"', many) + "[monitoring]\nscore_bins = 4096\n")


def test_an_unknown_label_is_told_with_the_known_ones() -> None:
    assert TASK.target("b") == 1
    with pytest.raises(ValueError, match="the study knows a, b"):
        TASK.target("c")


def test_it_says_what_it_is() -> None:
    task: Any = TASK
    words = [task.explain(), task.trained("cls"), task.told(bins=15, score_bins=256)]
    assert "a or b" in words[0]
    assert "256 bins" in words[2]
    assert isinstance(task.head(VIT, seeded()), nn.Module)
