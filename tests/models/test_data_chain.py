"""The data family together, through two federated rounds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from polyclinic.core import study as studies
from polyclinic.core.study import Study
from tests.models.test_methods import federated

EVERYTHING = (
    'method = "lora"\nrank = 2',
    'method = "harmonise_histogram"\nlevels = 16',
    'method = "exchange_amplitude"\nfrequencies = 2',
    'method = "combat"',
    'method = "augment"',
    'method = "augment_monai"\npolicy = "mri"',
    'method = "label_budget"\nshare = 0.8',
    'method = "active"\ncriterion = "typicality"\nfirst = 6\nper_round = 4',
    'method = "rebalance"',
    'method = "by_patient"',
    'method = "fixmatch"\nthreshold = 0.5',
    'method = "fedprox"',
)


def study_of(vit: Path, methods: tuple[str, ...]) -> Study:
    tables = "".join(f"[[adaptation]]\n{lines}\n" for lines in methods)
    return studies.loads(
        f'[study]\nname = "tiny"\nseed = 3\n[data]\nimage_size = 32\ncolour = "grey"\n[backbone]\n'
        f'reference = "file:{vit}"\n{tables}[training]\nlearning_rate = 5e-3\nbatch_size = 8\n[rounds]\ncount = 2\n'
    )


@pytest.mark.parametrize("leave_out", [(), (0,)], ids=["lora", "probe"])
def test_all_of_it_combines_repeats_itself_and_sends_only_what_it_says(
    leave_out: tuple[int, ...], tiny_vit: Path, tiny_manifest: Path
) -> None:
    methods = tuple(lines for i, lines in enumerate(EVERYTHING) if i not in leave_out)
    study = study_of(tiny_vit, methods if 0 not in leave_out else ('method = "probe"', *methods))
    bench, started, state = federated(study, tiny_manifest)
    assert started.keys() == state.keys()
    assert all(np.isfinite(array).all() for array in state.values())
    others = {name for name in state if "lora" not in name}
    assert others == {
        "head.bias", "head.weight", "amplitude.told", "entry.histogram.told", "neck.combat.mean",
        "neck.combat.variance",
    }  # fmt: skip
    assert all(not np.array_equal(state[name], started[name]) for name in others)
    _, _, again = federated(study, tiny_manifest)
    assert all(np.array_equal(again[name], state[name]) for name in state)
    assert bench.adapted.chain.families >= {"data", "objective"}
