"""Manifests read for the classification task as it is."""

from __future__ import annotations

import pytest

from polyclinic.client.data.dataset import SiteData
from polyclinic.client.data.manifest import read_manifest
from polyclinic.core.errors import DataError
from polyclinic.core.study import Data
from polyclinic.models.tasks.classification import Classification

HEADER = "path,site,label,split,patient_id"


def test_targets_are_those_of_the_task(manifest):
    lines = ["a.png,N,mel,train,1", "b.png,N,nv,train,2", "c.png,N,bcc,train,3"]
    path = manifest(HEADER, lines)
    task = Classification(kind="multiclass", classes=("bcc", "mel", "nv"))
    held = SiteData("N", read_manifest(path, Data(image_size=16), task, 0), Data(image_size=16), task)
    assert held.images("train").targets.tolist() == [1, 2, 0]


def test_multi_label_targets(manifest):
    path = manifest(HEADER, ["a.png,N,x|z,train,1", "b.png,N,,train,2"])
    task = Classification(kind="multilabel", classes=("x", "y", "z"))
    assert [row.target for row in read_manifest(path, Data(), task, 0)] == [(1, 0, 1), (0, 0, 0)]


def test_an_unknown_label_is_named_with_those_that_are_known(manifest):
    with pytest.raises(DataError, match="line 2, label: unknown label 'yes'; the study knows 0, 1"):
        read_manifest(manifest(HEADER, ["a.png,N,yes,train,1"]), Data(), Classification(), 0)
