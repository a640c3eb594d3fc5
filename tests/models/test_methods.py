"""Every registered adaptation runs two federated rounds, keeps what it says frozen, sends what it says, and loads back.

What each method may train is written down here by hand, so that the methods are not asked about themselves.
"""

from __future__ import annotations

import re
from dataclasses import replace
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

LAYER = r"backbone\.encoder\.layers\.\d\."
ATTENTION = LAYER + r"attention\.[qkvo]_proj\."
NORM = r"backbone\.encoder\.(layers\.\d\.layernorm_(before|after)|layernorm)\."
TRAINS = {
    "lora": ATTENTION + r"lora_[AB]\.default\.weight",
    "rslora": ATTENTION + r"lora_[AB]\.default\.weight",
    "dora": ATTENTION + r"lora_([AB]\.default|magnitude_vector\.default)\.weight",
    "ffa_lora": ATTENTION + r"lora_B\.default\.weight",
    "rolora": ATTENTION + r"lora_[AB]\.default\.weight",
    "fedsvd": ATTENTION + r"lora_[AB]\.default\.weight",
    "conv_lora": r"backbone\.encoder\.embeddings\.patch_embeddings\.projection\.lora_[AB]\.default\.weight",
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
    "harmonise_histogram": ATTENTION + r"lora_[AB]\.default\.weight|entry\.histogram\.told",
    "exchange_amplitude": ATTENTION + r"lora_[AB]\.default\.weight|amplitude\.told",
    "combat": ATTENTION + r"lora_[AB]\.default\.weight|neck\.combat\.(mean|variance)",
    "fedbn": r"(?!)",
    "vpt": LAYER + r"vpt_prompts.weight",
    "ladder": r"ladder\.(gates|(foot|downs\.\d|rungs\.\d\..*|norm|up)\.(weight|bias))",
    "houlsby": LAYER + r"(attention|mlp)\.houlsby\.(down|up)\.(weight|bias)",
    "adaptformer": LAYER + r"mlp\.adaptformer\.(down|up)\.(weight|bias)",
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
PERSONAL = {"fedbn": NORM + r"(weight|bias)", "combat": r"neck\.combat\.own_(mean|variance|count)"}
"""Method → what stays at a site and moves there."""
BESIDE = {"inflate": r"backbone\.encoder\.embeddings\.depth_positions"}
KNOBS = {
    "patch_size": "size = 16",
    "pissa": "rank = 2",
    "lora": "rank = 2",
    "vera": "rank = 8",
    "oft": "block_size = 8",
    "label_budget": "patients = 10",
    "active": "first = 6\nper_round = 4",
    "fixmatch": "threshold = 0.5",
}
STAY = {"vpt", "houlsby", "adaptformer", "tome", "prune", "ladder", "inflate"}
"""Methods that change the model in a way that does not merge into the backbone's weights."""
OWN = (
    {"bitfit", "last_blocks", "full", "probe", "harmonise_histogram", "exchange_amplitude", "combat", "fedbn"}
    | STAY
    | {"standardise", "whiten"}
)
"""Methods for which peft has no form."""
OTHERWISE = {"vpt", "tome", "prune", "patch_size", "inflate"}
"""Methods whose model does not begin as the frozen one, as their papers have it."""
TRAINING = {
    "scaffold": 'learning_rate = 0.5\noptimiser = "sgd"\nmomentum = 0.0\nweight_decay = 0.0\nclip_norm = "none"\n'
}
"""Methods that need the plainest of steps."""
TASK = {"fedntd": '[task]\nmethod = "classification"\nkind = "multiclass"\nclasses = ["0", "1", "none"]\n'}
"""Methods that need another task than two classes."""
STRATEGY = {"fedsvd": '[strategy]\nmethod = "fedsvd"\n'}
"""Methods that need another strategy than the mean."""
BEFORE = {"fixmatch": '[[adaptation]]\nmethod = "label_budget"\nshare = 0.5\n'}
"""Methods that need another before them."""
DATA = {"inflate": 'volume = "whole"\ndepth = 8\n'}
"""Methods of volumes."""
BY_BACKBONE = {"fedbn"}
"""Methods that are exact on some backbones, this one among them, and say that they are not."""
NO_VIT = {"silobn"}
"""Methods for what a ViT has not: they have tests of their own."""
METHODS = sorted(set(registry.names("adaptations")) - NO_VIT)


def study_of(method: str, vit: Path, rounds: int = 2) -> Study:
    adapts = registry.load("adaptations", method).adapts
    first, training = TASK.get(method, "") + STRATEGY.get(method, ""), TRAINING.get(method, "learning_rate = 5e-3\n")
    first += "" if adapts else '[[adaptation]]\nmethod = "lora"\nrank = 2\n'
    first += BEFORE.get(method, "")
    return studies.loads(
        f'[study]\nname = "tiny"\nseed = 3\n[data]\nimage_size = 32\ncolour = "grey"\n{DATA.get(method, "")}'
        f'[backbone]\nreference = "file:{vit}"\n{first}[[adaptation]]\nmethod = "{method}"\n{KNOBS.get(method, "")}\n'
        f"[training]\nbatch_size = 8\n{training}[rounds]\ncount = {rounds}\n"
    )


def pixels(study: Study) -> Tensor:
    depth = () if study.data.depth is None else (study.data.depth,)
    return torch.rand((3, 1, *depth, 32, 32), generator=torch.Generator().manual_seed(1))


def outputs(model: nn.Module, study: Study) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(pixels(study))
    return result


def frozen(bench: Workbench) -> dict[str, Tensor]:
    everything = bench.adapted.network.state_dict()
    own = {*bench.adapted.travelling, *bench.adapted.personal}
    return {name: value.clone() for name, value in everything.items() if name not in own}


def volumes(data: SiteData) -> SiteData:
    """Where the study has volumes, every picture becomes one, darker from slice to slice."""
    if data.data.depth is None:
        return data
    flat = SiteData(data.site, data.rows, data.data.model_copy(update={"volume": "refuse", "depth": None}), data.task)
    for split, found in ((split, flat.images(split)) for split in ("train", "val", "test")):
        darker = np.linspace(1.0, 0.5, data.data.depth)[:, None, None]
        data._decoded[split] = replace(found, pixels=(found.pixels[:, :, None] * darker).astype(np.uint8))
    return data


def federated(study: Study, manifest: Path) -> tuple[Workbench, Tensors, Tensors]:
    """(workbench, global state at the start, global state after the rounds), two sites, the study's strategy."""
    bench, strategy = Workbench(study, torch.device("cpu")), study.strategy.build()  # type: ignore[attr-defined]
    groups = sites(read_manifest(manifest, study.data, network.task(study), study.study.seed))
    members = [
        Site(name, volumes(SiteData(name, groups[name], study.data, network.task(study))), Policy())
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
    """Of those that do not adapt by themselves, what travels beside the factors of LoRA."""
    return TRAINS[method] if method in TRAINS else "|".join((TRAINS["lora"], BESIDE.get(method, "(?!)")))


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
    held = {*names, *dict(bench.adapted.network.named_buffers())}
    personal = {name for name in held if re.fullmatch(PERSONAL.get(method, r"(?!)"), name)}
    assert set(bench.adapted.personal) == personal
    own, pretrained = bench.adapted.read_personal(), bench.adapted._pretrained
    assert not [name for name in personal if torch.equal(own[name], pretrained[name])]
    assert method in TRAINS or not registry.load("adaptations", method).adapts, "write down what it may train"


@pytest.mark.parametrize("method", METHODS)
def test_it_starts_as_the_frozen_model(method: str, tiny_vit: Path) -> None:
    study = study_of(method, tiny_vit)
    assert registry.load("adaptations", method).facts.identity == (method not in OTHERWISE | BLANK)
    one, other = outputs(build(study).network, study), outputs(plain(study), study)
    if method in BLANK:
        torch.testing.assert_close(one, torch.zeros((3, 1)), rtol=0, atol=2e-6)
    elif method in OTHERWISE:
        if method in DATA:  # there is nothing to compare with: without it no volume can be seen
            return
        other = outputs(plain(study.model_copy(update={"adaptation": study.adaptation[:-1]})), study)
        assert (one - other).abs().max() > 1e-4
    else:
        torch.testing.assert_close(one, other, rtol=0, atol=2e-6)


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
    expected = outputs(bench.adapted.network, study)
    assert (expected - outputs(plain(study), study)).abs().max() > 1e-3
    write_adapter(study, state, tmp_path / "adapter", plain(study).backbone.sha256)
    assert form(tmp_path / "adapter") == ("polyclinic" if method in OWN | HEADS.keys() else "peft")
    torch.testing.assert_close(outputs(load_adapted(study, tmp_path / "adapter"), study), expected, rtol=0, atol=1e-5)
    if not all(method.merges for method in study.adaptation):
        with pytest.raises(StudyError, match="cannot be merged"):
            write_merged(study, tmp_path / "adapter", tmp_path / "merged")
        return
    write_merged(study, tmp_path / "adapter", tmp_path / "merged")
    torch.testing.assert_close(outputs(from_merged(study, tmp_path / "merged"), study), expected, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of attention under vmap
@pytest.mark.parametrize("method", [name for name in METHODS if registry.load("adaptations", name).adapts])
def test_patients_gradients_are_had_alone_and_exactly_where_the_method_says_so(method: str, tiny_vit: Path) -> None:
    """torch.func's gradients, one picture each, against backpropagation with that picture alone."""
    study = study_of(method, tiny_vit)
    adapted = build(study)
    rng = np.random.default_rng(0)
    state = {
        name: array if adapted.chain.constant(name) else (array + rng.normal(0, 0.05, array.shape)).astype(np.float32)
        for name, array in adapted.read().items()
    }
    adapted.write(state)
    net, seen, targets = adapted.network, pixels(study), torch.tensor([0, 1, 1])
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
