"""Every registered adaptation runs two federated rounds, keeps what it says frozen, sends what it says, and loads back.

What each method may train is written down here by hand, so that the methods are not asked about themselves.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from polyclinic.client.data.dataset import SiteData
from polyclinic.client.data.manifest import read_manifest, sites
from polyclinic.client.policy import Policy
from polyclinic.client.respond import Site, Workbench, respond
from polyclinic.core import registry
from polyclinic.core import study as studies
from polyclinic.core.errors import StudyError
from polyclinic.core.messages import Instruction
from polyclinic.core.study import Study
from polyclinic.core.update import Tensors, Update, digest
from polyclinic.core.version import VERSION
from polyclinic.models import network
from polyclinic.models.export import form, load_adapted, write_adapter, write_merged
from polyclinic.models.network import build, plain
from polyclinic.strategies.mean import MeanStrategy

LAYER = r"backbone\.encoder\.layers\.\d\."
ATTENTION = LAYER + r"attention\.[qkvo]_proj\."
NORM = r"backbone\.encoder\.(layers\.\d\.layernorm_(before|after)|layernorm)\."
TRAINS = {
    "lora": ATTENTION + r"lora_[AB]\.default\.weight",
    "rslora": ATTENTION + r"lora_[AB]\.default\.weight",
    "dora": ATTENTION + r"lora_([AB]\.default|magnitude_vector\.default)\.weight",
    "pissa": ATTENTION + r"lora_[AB]\.default\.weight|backbone\.pissa_start",
    "loha": ATTENTION + r"hada_w[12]_[ab]\.default",
    "lokr": ATTENTION + r"lokr_w[12](_[ab])?\.default",
    "vera": ATTENTION + r"vera_lambda_[bd]\.default",
    "oft": ATTENTION + r"oft_R\.default\.weight",
    "ia3": LAYER + r"(attention\.[kv]_proj|mlp\.fc2)\.ia3_l\.default",
    "layernorm": NORM + r"ln_tuning_layers\.default\.(weight|bias)",
    "bitfit": r"backbone\.encoder\..*\.bias",
    "last_blocks": r"backbone\.encoder\.(layers\.1\..*|layernorm\..*)",
    "full": r"backbone\.encoder\..*",
    "probe": r"(?!)",
    "fedbn": r"(?!)",
    "standardise": ATTENTION + r"lora_[AB]\.default\.weight|neck\.(mean|second|seen)",
    "whiten": ATTENTION + r"lora_[AB]\.default\.weight|neck\.(mean|second|seen)",
    "coral": ATTENTION + r"lora_[AB]\.default\.weight|coral\.(mean|second|seen)",
    "mmd": ATTENTION + r"lora_[AB]\.default\.weight|mmd\.(mean|seen)",
    "scaffold": ATTENTION + r"lora_[AB]\.default\.weight|scaffold\.control",
    "fedproto": ATTENTION + r"lora_[AB]\.default\.weight|prototypes\.(mass|share)",
}
"""Method → regular expression over what trains and travels, the head aside, on the tiny ViT."""
LINEAR = {"head.weight", "head.bias"}
HEADS = {"prototypes": {"head.mass", "head.share"}}
"""Method → what travels of its head, where that is not a linear one."""
BLANK = {"prototypes"}
"""Methods whose model says nothing before round 1 has told it what."""
PERSONAL = {"fedbn": NORM + r"(weight|bias)"}
"""Method → what stays at a site and moves there."""
KNOBS = {"pissa": "rank = 2", "lora": "rank = 2", "vera": "rank = 8", "oft": "block_size = 8"}
OWN = {"bitfit", "last_blocks", "full", "probe", "fedbn", "standardise", "whiten"}
"""Methods for which peft has no form."""
BY_BACKBONE = {"fedbn"}
"""Methods that are exact on some backbones, this one among them, and say that they are not."""
TRAINING = {
    "scaffold": 'learning_rate = 0.5\noptimiser = "sgd"\nmomentum = 0.0\nweight_decay = 0.0\nclip_norm = "none"\n'
}
"""Methods that need the plainest of steps."""
TASK = {"fedntd": '[task]\nmethod = "classification"\nkind = "multiclass"\nclasses = ["0", "1", "none"]\n'}
"""Methods that need another task than two classes."""
NO_VIT = {"silobn"}
"""Methods for what a ViT has not: they have tests of their own."""
METHODS = sorted(set(registry.names("adaptations")) - NO_VIT)


def study_of(method: str, vit: Path, rounds: int = 2) -> Study:
    adapts = registry.load("adaptations", method).adapts
    first, training = TASK.get(method, ""), TRAINING.get(method, "learning_rate = 5e-3\n")
    first += "" if adapts else '[[adaptation]]\nmethod = "lora"\nrank = 2\n'
    return studies.loads(
        f'[study]\nname = "tiny"\nseed = 3\n[data]\nimage_size = 32\ncolour = "grey"\n[backbone]\nreference = '
        f'"file:{vit}"\n{first}[[adaptation]]\nmethod = "{method}"\n{KNOBS.get(method, "")}\n'
        f"[training]\nbatch_size = 8\n{training}[rounds]\ncount = {rounds}\n"
    )


def pixels() -> Tensor:
    return torch.rand((3, 1, 32, 32), generator=torch.Generator().manual_seed(1))


def outputs(model: nn.Module) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(pixels())
    return result


def frozen(bench: Workbench) -> dict[str, Tensor]:
    everything, moves = bench.adapted.network.state_dict(), {*bench.adapted.travelling, *bench.adapted.personal}
    return {name: value.clone() for name, value in everything.items() if name not in moves}


def federated(study: Study, manifest: Path) -> tuple[Workbench, Tensors, Tensors]:
    """(workbench, global state at the start, global state after the rounds), two sites, mean."""
    bench, strategy = Workbench(study, torch.device("cpu")), MeanStrategy()
    groups = sites(read_manifest(manifest, study.data, network.task(study), study.study.seed))
    members = [
        Site(name, SiteData(name, groups[name], study.data, network.task(study)), Policy())
        for name in ("north", "south")
    ]
    before = frozen(bench)
    started = state = bench.adapted.read()
    for number in range(1, study.rounds.count + 1):
        fold = strategy.init(state)
        for site in members:
            base, nonce = digest(state), f"{number}{site.name}"
            asked = Instruction(study.digest, "run", number, nonce, base, True, ("val",), False, VERSION, state)
            reply = respond(bench, site, asked)
            assert reply.update is not None
            strategy.expects(state).check(reply.update.tensors)
            fold = strategy.add(fold, Update(site.name, reply.update.weight, reply.update.tensors))
        state = strategy.finish(fold)
    after = frozen(bench)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before), "something frozen has moved"
    return bench, started, state


@pytest.fixture(scope="module")
def run(tiny_vit: Path, tiny_manifest: Path):  # type: ignore[no-untyped-def]
    """method → (study, workbench, global state at the start, at the end); made once."""

    @cache
    def made(method: str) -> tuple[Study, Workbench, Tensors, Tensors]:
        study = study_of(method, tiny_vit)
        return (study, *federated(study, tiny_manifest))

    return made


def trainable(method: str) -> str:
    return TRAINS.get(method, TRAINS["lora"])


@pytest.mark.parametrize("method", METHODS)
def test_two_rounds_train_and_send_what_the_method_says_and_nothing_else(method: str, run) -> None:  # type: ignore[no-untyped-def]
    _, bench, started, state = run(method)
    names = set(dict(bench.adapted.network.named_parameters()))
    expected = {name for name in names if re.fullmatch(trainable(method), name)} | HEADS.get(method, LINEAR)
    assert set(state) == set(started) == set(bench.adapted.travelling) == expected
    moved = {name for name in state if not np.array_equal(state[name], started[name])}
    idle = {name for name in expected if bench.adapted.chain.constant(name)}
    # before softmax a shift of all keys changes nothing, so a key's bias has no gradient but for rounding
    assert {name for name in expected - moved if "k_proj" not in name} <= idle
    personal = {name for name in names if re.fullmatch(PERSONAL.get(method, r"(?!)"), name)}
    assert set(bench.adapted.personal) == personal
    own, pretrained = bench.adapted.read_personal(), bench.adapted._pretrained
    assert not [name for name in personal if torch.equal(own[name], pretrained[name])]
    assert method in TRAINS or not registry.load("adaptations", method).adapts, "write down what it may train"


@pytest.mark.parametrize("method", METHODS)
def test_it_starts_as_the_frozen_model(method: str, tiny_vit: Path) -> None:
    study = study_of(method, tiny_vit)
    expected = torch.zeros((3, 1)) if method in BLANK else outputs(plain(study))
    torch.testing.assert_close(outputs(build(study).network), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("method", METHODS)
def test_everything_follows_from_the_seed_and_no_global_generator(method: str, tiny_vit: Path) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = build(study_of(method, tiny_vit)).network.state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again = build(study_of(method, tiny_vit)).network
    assert all(torch.equal(value, one[name]) for name, value in again.state_dict().items())
    other = build(study_of(method, tiny_vit).with_seed(4)).network.state_dict()
    assert any(not torch.equal(value, one[name]) for name, value in other.items())


@pytest.mark.parametrize("method", METHODS)
def test_it_is_saved_loads_back_and_merges_with_equal_outputs(method: str, run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    study, bench, _, state = run(method)
    bench.adapted.write(state)
    expected = outputs(bench.adapted.network)
    assert (expected - outputs(plain(study))).abs().max() > 1e-3
    write_adapter(study, state, tmp_path / "adapter", plain(study).backbone.sha256)
    assert form(tmp_path / "adapter") == ("polyclinic" if method in OWN | HEADS.keys() else "peft")
    torch.testing.assert_close(outputs(load_adapted(study, tmp_path / "adapter")), expected, rtol=0, atol=1e-5)
    if not all(method.merges for method in study.adaptation):
        with pytest.raises(StudyError, match="cannot be merged"):
            write_merged(study, tmp_path / "adapter", tmp_path / "merged")
        return
    write_merged(study, tmp_path / "adapter", tmp_path / "merged")
    torch.testing.assert_close(outputs(from_merged(study, tmp_path / "merged")), expected, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of attention under vmap
@pytest.mark.parametrize("method", [name for name in METHODS if registry.load("adaptations", name).adapts])
def test_patients_gradients_are_had_alone_and_exactly_where_the_method_says_so(method: str, tiny_vit: Path) -> None:
    """torch.func's gradients, one picture each, against backpropagation with that picture alone."""
    adapted = build(study_of(method, tiny_vit))
    rng = np.random.default_rng(0)
    state = {
        name: array if adapted.chain.constant(name) else (array + rng.normal(0, 0.05, array.shape)).astype(np.float32)
        for name, array in adapted.read().items()
    }
    adapted.write(state)
    net, seen, targets = adapted.network, pixels(), torch.tensor([0, 1, 1])
    trained = {name: weight for name, weight in net.named_parameters() if weight.requires_grad}
    kept = {name: weight for name, weight in net.named_parameters() if name not in trained} | dict(net.named_buffers())

    def loss(weights: dict[str, Tensor], picture: Tensor, target: Tensor) -> Tensor:
        output = torch.func.functional_call(net, weights | kept, (picture[None],))
        return nn.functional.binary_cross_entropy_with_logits(output[:, 0], target[None].float())

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
    values = {name: weight.detach() for name, weight in trained.items()}
    if method in BY_BACKBONE:
        assert not registry.load("adaptations", method).facts.exact_private
    elif not registry.load("adaptations", method).facts.exact_private:
        with pytest.raises(RuntimeError, match="vmap"):
            each(values, seen, targets)
        return
    found = each(values, seen, targets)
    for i in range(3):
        net.zero_grad()
        loss(trained, seen[i], targets[i]).backward()
        for name, weight in trained.items():
            alone = torch.zeros_like(weight) if weight.grad is None else weight.grad
            torch.testing.assert_close(found[name][i], alone, rtol=1e-4, atol=1e-6)


def from_merged(study: Study, folder: Path) -> nn.Module:
    """The model as transformers alone loads it, in the study's plain network."""
    from safetensors.torch import load_file
    from transformers import ViTModel

    from polyclinic.models.backbones import quiet

    model = plain(study)
    with quiet():
        model.backbone.encoder = ViTModel.from_pretrained(folder, add_pooling_layer=False).eval()
    model.head.load_state_dict(load_file(folder / "head.safetensors"))
    return model
