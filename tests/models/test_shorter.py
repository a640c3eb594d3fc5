"""Token merging and pruning against slow loops that follow the papers, picture by picture."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from polyclinic.core.errors import StudyError
from polyclinic.core.study import Study
from polyclinic.models.adaptations.shortening import Track, merged
from polyclinic.models.export import form, load_adapted, write_adapter
from polyclinic.models.network import build, plain
from tests.models import plain_vit as vit
from tests.models.plain_vit import Attended, on, outputs, pixels, shaken, study_of

Save = Callable[..., Path]
PROBE, LORA = 'method = "probe"', 'method = "lora"'


State = tuple[list[Tensor], list[float], list[set[int]]]
"""Of one picture: tokens, their sizes, and which of the first tokens each holds."""


def soft_matching(state: State, metric: Tensor, r: int, leading: int) -> State:
    """One picture, by the paper's five steps."""
    tokens, sizes, holds = state
    a = [i for i in range(leading, len(tokens)) if i % 2 == 0]
    b = [i for i in range(leading, len(tokens)) if i % 2 == 1]
    edges = []
    for i in a:
        alike = {j: float(torch.cosine_similarity(metric[i], metric[j], dim=0)) for j in b}
        if alike:
            j = max(alike, key=lambda j: alike[j])
            edges.append((alike[j], i, j))
    gone = sorted(edges, key=lambda edge: -edge[0])[: min(r, (len(tokens) - leading) // 2)]
    groups = {j: [j] for j in b}
    for _, i, j in gone:
        groups[j].append(i)
    left = [i for i in (*range(leading), *a) if i not in {edge[1] for edge in gone}]
    order = [[i] for i in left] + [groups[j] for j in b]
    total = [sum(sizes[k] for k in group) for group in order]
    mean = [
        torch.stack([tokens[k] * sizes[k] for k in group]).sum(0) / n for group, n in zip(order, total, strict=True)
    ]
    return mean, total, [set[int]().union(*(holds[k] for k in group)) for group in order]


def expected_merging(w: vit.Weights, given: Tensor, r: int) -> Tensor:
    results = []
    for picture in given:
        x = vit.embed(w, picture[None])
        steps: list[State] = [(list(x[0]), [1.0] * 17, [{k} for k in range(17)])]

        def between(tokens: Tensor, attended: Attended, steps: list[State] = steps) -> Tensor:
            steps.append(soft_matching((list(tokens[0]), *steps[-1][1:]), attended.keys[0].mean(0), r, 1))
            return torch.stack(steps[-1][0])[None]

        for i in range(2):
            x = vit.block(w, i, x, bias=torch.tensor(steps[-1][1]).log(), between=between)
        held = [next(k for k, places in enumerate(steps[-1][2]) if place in places) for place in range(17)]
        results.append(vit.decide(w, x[:, held]))
    return torch.cat(results)


@pytest.mark.parametrize("r", [1, 3, 20])
def test_tome_is_the_papers(r: int, tiny_vit: Path) -> None:
    adapted = build(on(tiny_vit, PROBE, f'method = "tome"\nr = {r}'))
    given = pixels(3)
    expected = expected_merging(adapted.network.state_dict(), given, r)
    torch.testing.assert_close(outputs(adapted.network, given), expected, rtol=1e-4, atol=1e-5)
    alone = torch.cat([outputs(adapted.network, one[None]) for one in given])
    torch.testing.assert_close(outputs(adapted.network, given), alone, rtol=1e-4, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(2, 14),
    leading=st.integers(0, 5),
    r=st.integers(1, 8),
    again=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_merging_twice_follows_the_loops_and_loses_nothing(
    count: int, leading: int, r: int, again: int, seed: int
) -> None:
    leading = min(leading, count)
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn((2, count, 3), generator=generator, dtype=torch.float64)
    track, x = Track(), tokens
    states: list[State] = [(list(one), [1.0] * count, [{k} for k in range(count)]) for one in tokens]
    for step in (r, again):
        metric = torch.randn((2, x.shape[1], 4), generator=generator, dtype=torch.float64)
        x = merged(x, metric, track, step, leading)
        states = [soft_matching(state, m, step, leading) for state, m in zip(states, metric, strict=True)]
    torch.testing.assert_close(x, torch.stack([torch.stack(mean) for mean, _, _ in states]))
    whole = track.end(x)
    for n, (mean, _, holds) in enumerate(states):
        for held, value in zip(holds, mean, strict=True):
            assert all(torch.allclose(whole[n, place], value) for place in held)
    torch.testing.assert_close(whole.sum(1), tokens.sum(1))  # averages weighted by size keep the sum
    assert torch.equal(whole[:, :leading], tokens[:, :leading])


def expected_pruning(w: vit.Weights, given: Tensor, keep: float) -> Tensor:
    results = []
    for picture in given:
        x = vit.embed(w, picture[None])

        def between(tokens: Tensor, attended: Attended) -> Tensor:
            attention = attended.weights[0, :, 0, 1:].mean(0)
            patches = tokens[0, 1:]
            count = math.ceil(keep * len(patches))
            ranked = sorted(range(len(patches)), key=lambda k: -float(attention[k]))
            fused = sum(attention[k] * patches[k] for k in ranked[count:])
            return torch.stack([tokens[0, 0], *(patches[k] for k in sorted(ranked[:count])), fused])[None]  # type: ignore[list-item]

        for i in range(2):  # a quarter, half and three quarters of two blocks
            x = vit.block(w, i, x, between=between)
        results.append(vit.decide(w, x))
    return torch.cat(results)


@pytest.mark.parametrize("keep", [0.3, 0.7])
def test_pruning_is_the_papers(keep: float, tiny_vit: Path) -> None:
    adapted = build(on(tiny_vit, PROBE, f'method = "prune"\nkeep = {keep}'))
    given = pixels(3)
    expected = expected_pruning(adapted.network.state_dict(), given, keep)
    torch.testing.assert_close(outputs(adapted.network, given), expected, rtol=1e-4, atol=1e-5)


def test_a_deep_backbone_is_pruned_where_the_paper_prunes(save: Save) -> None:
    study = study_of(f"hf:{save('ViTModel', num_hidden_layers=12)}", PROBE, 'method = "prune"')
    layers = build(study).network.backbone.encoder.layers
    assert [i for i, block in enumerate(layers) if hasattr(block, "shorter")] == [3, 6, 9]  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["tome", "prune"])
@pytest.mark.parametrize("name", ["Dinov2Model", "Dinov2WithRegistersModel"])
def test_other_families_are_shortened_too_and_merging_nothing_alike_changes_nothing(
    method: str, name: str, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_of(f"hf:{save(name)}", PROBE, f'method = "{method}"')
    adapted, frozen = build(study).network, plain(study)
    assert (outputs(adapted) - outputs(frozen)).abs().max() > 1e-4
    for module in adapted.modules():  # with nothing to merge, the blocks are the family's own
        if hasattr(module, "r"):
            monkeypatch.setattr(module, "r", 0)
        if hasattr(module, "keep"):
            monkeypatch.setattr(module, "keep", 1.0)
    torch.testing.assert_close(outputs(adapted), outputs(frozen), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["tome", "prune"])
@pytest.mark.parametrize("lora_first", [True, False])
def test_they_live_with_lora_in_copies_and_files(method: str, lora_first: bool, tiny_vit: Path, tmp_path: Path) -> None:
    tables = [LORA, f'method = "{method}"']
    study = on(tiny_vit, *(tables if lora_first else tables[::-1]))
    adapted = build(study)
    twin = copy.deepcopy(adapted.network)
    begun = outputs(twin)
    shaken(adapted)
    moved = outputs(adapted.network)
    assert torch.equal(outputs(twin), begun)
    assert (moved - begun).abs().max() > 1e-2
    write_adapter(study, adapted.read(), tmp_path, plain(study).backbone.sha256)
    assert form(tmp_path) == "polyclinic", "peft would load it into a network that shortens nothing"
    assert torch.equal(outputs(load_adapted(study, tmp_path)), moved)


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of attention under vmap
@pytest.mark.parametrize("method", ["tome", "prune"])
def test_each_pictures_gradient_is_had_alone(method: str, tiny_vit: Path) -> None:
    adapted = build(on(tiny_vit, LORA, f'method = "{method}"'))
    shaken(adapted, by=0.05)
    net, seen = adapted.network, pixels(3)
    trained = {name: weight for name, weight in net.named_parameters() if weight.requires_grad}
    fixed = {name: weight for name, weight in net.state_dict().items() if name not in trained}
    fixed |= dict(net.named_buffers())

    def loss(weights: dict[str, Tensor], picture: Tensor) -> Tensor:
        return torch.func.functional_call(net, weights | fixed, (picture[None],)).square().sum()  # type: ignore[no-any-return]

    values = {name: weight.detach() for name, weight in trained.items()}
    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(values, seen)
    for i in range(3):
        net.zero_grad()
        loss(trained, seen[i]).backward()
        for name, weight in trained.items():
            assert weight.grad is not None
            torch.testing.assert_close(found[name][i], weight.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("one", "other"), [("tome", "prune"), ("tome", "vpt"), ("prune", "vpt"), ("tome", 'vpt"\ndeep = false\n#')]
)
def test_two_that_change_the_tokens_are_refused(one: str, other: str, tiny_vit: Path) -> None:
    with pytest.raises(StudyError, match="both change the backbone's tokens"):
        on(tiny_vit, LORA, f'method = "{one}"', f'method = "{other}"')


@pytest.mark.parametrize("method", ["tome", "prune"])
def test_dense_tasks_are_refused(method: str, tiny_vit: Path) -> None:
    study: Study = on(tiny_vit, LORA, f'method = "{method}"')
    dense = type("Dense", (), {"dense": True})
    assert not type(study.adaptation[1]).fits(dense)  # type: ignore[arg-type]
    assert type(study.adaptation[1]).fits(type(study.task))


@pytest.mark.parametrize("method", ["tome", "prune", "vpt", "houlsby", "adaptformer"])
def test_what_is_no_plain_stack_of_blocks_is_refused(method: str, tiny_vit: Path) -> None:
    study = on(tiny_vit, LORA, f'method = "{method}"')
    chained = study.adaptation[1].build()  # type: ignore[attr-defined]
    network = plain(study)
    network.backbone.encoder.rope_embeddings = nn.Linear(1, 1)
    with pytest.raises(StudyError, match=r"'backbone\.encoder\.rope_embeddings' needs to know where each token lies"):
        chained.fit_in(network, torch.Generator())
    network.backbone.encoder = nn.Conv2d(3, 3, 3)
    with pytest.raises(StudyError, match="no single stack of blocks"):
        chained.fit_in(network, torch.Generator())
