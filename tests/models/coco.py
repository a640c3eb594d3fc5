"""Mean average precision by pycocotools, from boxes [left, top, right, bottom] of several images."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import numpy as np

Boxes = Sequence[tuple[int, Any, Any, Any, Any]]
"""(class, left, top, right, bottom) of each box of one image."""


def coco(truths: Sequence[Boxes], found: Sequence[Boxes], scores: Sequence[Sequence[float]], classes: int) -> Any:
    """A COCOeval after ``accumulate``, with at most 1000 detections of an image and class."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def entry(image: int, box: tuple[int, Any, Any, Any, Any]) -> dict[str, Any]:
        kind, left, top, right, bottom = box
        width, height = float(right) - float(left), float(bottom) - float(top)
        place = [float(left), float(top), width, height]
        return {"image_id": image, "category_id": int(kind), "bbox": place, "area": width * height, "iscrowd": 0}

    rows = [entry(i, box) for i, image in enumerate(truths) for box in image]
    best = [
        entry(i, box) | {"score": float(score)}
        for i, image in enumerate(found)
        for box, score in zip(image, scores[i], strict=True)
    ]
    with redirect_stdout(StringIO()):
        dataset = COCO()
        dataset.dataset = {
            "images": [{"id": i} for i in range(len(truths))],
            "categories": [{"id": k} for k in range(classes)],
            "annotations": [row | {"id": i + 1} for i, row in enumerate(rows)],
        }
        dataset.createIndex()
        results = COCO()
        results.dataset = dataset.dataset | {"annotations": [row | {"id": i + 1} for i, row in enumerate(best)]}
        results.createIndex()
        judge = COCOeval(dataset, results, "bbox")
        judge.params.areaRng, judge.params.areaRngLbl = [[0, 1e10]], ["all"]
        judge.params.maxDets = [1000]
        judge.evaluate()
        judge.accumulate()
    return judge


def mean_precision(judge: Any, overlaps: int = 10) -> float:
    """Mean over classes with a true box and the first so many overlaps, as COCO's ``summarize`` has it."""
    found = judge.eval["precision"][:overlaps, :, :, 0, 0]
    return float(np.mean(found[found > -1]))
