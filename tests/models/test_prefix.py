"""Which part of a backbone stays as it is, and that remembering what it makes of a picture changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from polyclinic.core import study as studies
from polyclinic.models.adaptation import Adaptation
from polyclinic.models.backbones.encoder import Parts
from polyclinic.models.network import Adapted, Network, build, plain

LAST = '[[adaptation]]\nmethod = "last_blocks"\ncount = 1\n'
PROBE = '[[adaptation]]\nmethod = "probe"\n'


def study_on(vit: Path, chain: str) -> studies.Study:
    return studies.loads(
        f'[study]\nname = "x"\n[data]\nimage_size = 32\ncolour = "grey"\n[backbone]\nreference = "file:{vit}"\n{chain}'
    )


def pixels(count: int = 3, seed: int = 1) -> Tensor:
    return torch.rand((count, 1, 32, 32), generator=torch.Generator().manual_seed(seed))


class Memory:
    """A shelf that counts."""

    def __init__(self) -> None:
        self.kept: dict[str, Parts] = {}
        self.hits = 0

    def get(self, key: str) -> Parts | None:
        self.hits += key in self.kept
        return self.kept.get(key)

    def put(self, key: str, parts: Parts) -> None:
        self.kept[key] = parts


@pytest.mark.parametrize(
    ("chain", "expected"),
    [
        (PROBE, "all"),
        (PROBE + '[[adaptation]]\nmethod = "fedprox"\n', "all"),
        (LAST, 1),
        ('[[adaptation]]\nmethod = "last_blocks"\ncount = 2\n', None),
        ('[[adaptation]]\nmethod = "lora"\n', None),
        ('[[adaptation]]\nmethod = "bitfit"\n', None),
        ('[[adaptation]]\nmethod = "full"\n', None),
        ('[[adaptation]]\nmethod = "pissa"\nrank = 2\n', None),
        (PROBE + '[[adaptation]]\nmethod = "augment"\n', None),
    ],
)
def test_what_lasts_is_what_lies_before_all_that_trains_where_pictures_come_as_they_are(
    chain: str, expected: int | str | None, tiny_vit: Path
) -> None:
    prefix = build(study_on(tiny_vit, chain)).network.backbone.prefix
    found = None if prefix is None else "all" if prefix.cut is None else prefix.blocks
    assert found == expected


def hooked(network: Network) -> None:
    network.backbone.encoder.layers[0].register_forward_hook(lambda module, given, made: None)


def entered(network: Network) -> None:
    network.entry = nn.Dropout(0.5)


def replaced(network: Network) -> None:
    network.backbone.encoder.layers[0].mlp = nn.Identity()


def added(network: Network) -> None:
    network.backbone.encoder.embeddings.prompt = nn.Identity()


def overridden(network: Network) -> None:
    network.backbone.encoder.embeddings.forward = lambda *given: None


def seen_otherwise(network: Network) -> None:
    network.backbone.see = lambda *given: None  # type: ignore[assignment, return-value]


@pytest.mark.parametrize("change", [hooked, entered, replaced, added, overridden, seen_otherwise])
def test_a_prefix_that_is_not_as_it_was_loaded_is_not_taken_for_lasting(
    change: Callable[[Network], None], tiny_vit: Path
) -> None:
    network = plain(study_on(tiny_vit, PROBE))
    change(network)
    assert Adapted(network, Adaptation(frozenset()), torch.device("cpu")).network.backbone.prefix is None


def test_what_a_site_keeps_as_its_own_ends_the_prefix_too(tiny_vit: Path) -> None:
    for name, expected in (("layers.1.layernorm_before.bias", 1), ("layers.0.mlp.fc1.bias", None)):
        own = Adaptation(frozenset(), personal=lambda model, own=name: frozenset({f"backbone.encoder.{own}"}))  # type: ignore[misc]
        prefix = Adapted(plain(study_on(tiny_vit, PROBE)), own, torch.device("cpu")).network.backbone.prefix
        assert (prefix.blocks if prefix else None) == expected


@pytest.mark.parametrize("chain", [PROBE, LAST])
def test_remembered_or_not_outputs_are_the_same_bits_whatever_pictures_come_together(
    chain: str, tiny_vit: Path
) -> None:
    adapted, seen = build(study_on(tiny_vit, chain)), pixels(9)
    prefix, memory = adapted.network.backbone.prefix, Memory()
    assert prefix is not None
    with torch.no_grad():
        expected = adapted.network(seen)
        torch.testing.assert_close(expected, plain(study_on(tiny_vit, chain))(seen), rtol=0, atol=1e-6)
        prefix.shelf = memory
        assert torch.equal(adapted.network(seen), expected)
        assert (len(memory.kept), memory.hits) == (9, 0)
        assert torch.equal(adapted.network(seen), expected)
        assert (len(memory.kept), memory.hits) == (9, 9)
        # what comes after the prefix sees batches, and what a matrix product gives a row depends on where it stands
        torch.testing.assert_close(adapted.network(seen.flip(0)).flip(0), expected, rtol=0, atol=1e-6)
        assert (len(memory.kept), memory.hits) == (9, 18)
    before, fresh = dict(memory.kept), Memory()
    prefix.shelf = fresh
    for some in (seen[5:], seen[:1], seen[1:5].flip(0)):
        prefix.see(some, False)
    assert fresh.kept.keys() == before.keys()
    for key, parts in fresh.kept.items():
        assert all(torch.equal(one, two) for one, two in zip(parts, before[key], strict=True))


def test_gradients_behind_the_prefix_are_those_without_it(tiny_vit: Path) -> None:
    adapted = build(study_on(tiny_vit, LAST))
    prefix = adapted.network.backbone.prefix
    assert prefix is not None
    found = []
    for shelf in (None, memory := Memory(), memory):
        prefix.shelf = shelf
        adapted.network.zero_grad()
        adapted.network(pixels()).square().sum().backward()
        found.append([weight.grad.clone() for weight in adapted.parameters() if weight.grad is not None])
    adapted.network.backbone.prefix = None
    adapted.network.zero_grad()
    adapted.network(pixels()).square().sum().backward()
    plainly = [weight.grad for weight in adapted.parameters() if weight.grad is not None]
    for bits in zip(*found, strict=True):
        assert all(torch.equal(bits[0], other) for other in bits[1:])
    torch.testing.assert_close(found[0], plainly, rtol=1e-4, atol=1e-6)


def test_whatever_changes_the_output_changes_the_key(tiny_vit: Path) -> None:
    """Another picture, size of batch aside, weight of the prefix, normalisation, cut, or wish for maps."""
    adapted, memory = build(study_on(tiny_vit, LAST)), Memory()
    prefix = adapted.network.backbone.prefix
    assert prefix is not None
    prefix.shelf = memory
    with torch.no_grad():
        prefix.see(pixels(1), False)
        prefix.see(pixels(1), False)
        assert len(memory.kept) == 1
        prefix.see(pixels(1, seed=2), False)
        prefix.see(pixels(1), True)
        assert len(memory.kept) == 3
        adapted.network.backbone.encoder.layers[1].mlp.fc1.weight.add_(1.0)  # behind the cut
        prefix.see(pixels(1), False)
        assert len(memory.kept) == 3
        adapted.network.backbone.encoder.layers[0].mlp.fc1.weight.add_(1.0)
        prefix.see(pixels(1), False)
        assert len(memory.kept) == 4
    darker = "normalisation = { mean = [0.1], std = [1.0] }\n"
    for chain, data, expected in ((LAST, "", 4), (PROBE, "", 5), (LAST, darker, 6)):
        study = studies.loads(
            f'[study]\nname = "y"\n[data]\nimage_size = 32\n{data}[backbone]\nreference = "file:{tiny_vit}"\n{chain}'
        )
        other = build(study).network.backbone.prefix
        assert other is not None
        other.shelf = memory
        other.see(pixels(1), False)
        assert len(memory.kept) == expected


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of attention under vmap
def test_transforms_of_torch_func_pass_the_shelf_by(tiny_vit: Path) -> None:
    adapted, memory = build(study_on(tiny_vit, LAST)), Memory()
    prefix = adapted.network.backbone.prefix
    assert prefix is not None
    prefix.shelf = memory
    with torch.no_grad():
        each = torch.func.vmap(lambda picture: prefix.see(picture[None], False).mean[0])(pixels())
        assert memory.kept == {}
        torch.testing.assert_close(each, prefix.see(pixels(), False).mean, rtol=1e-5, atol=1e-6)
