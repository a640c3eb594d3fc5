"""Features on a site's disk: bounded, whole or anew, and without a trace in the bits that a study gives."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from polyclinic.client.cache import Cache
from polyclinic.client.data.dataset import SiteData
from polyclinic.client.data.manifest import read_manifest, sites
from polyclinic.client.policy import Policy
from polyclinic.client.respond import Site, Workbench, respond
from polyclinic.core import study as studies
from polyclinic.core.messages import Instruction, Reply
from polyclinic.core.update import digest
from polyclinic.core.version import VERSION
from polyclinic.models import network

CPU = torch.device("cpu")


def parts(seed: int = 0, count: int = 100) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((1, count), generator=generator), torch.randn((1, 3), generator=generator)


def key(number: int) -> str:
    return f"{number:064x}"[::-1]


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_what_was_put_is_found_in_its_order_by_any_process_and_read_by_the_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    Cache(folder).put(key(1), (*parts(), *parts(2, 7)))
    found = Cache(folder).get(key(1))
    assert found is not None
    assert all(torch.equal(one, two) for one, two in zip(found, (*parts(), *parts(2, 7)), strict=True))
    assert Cache(folder).get(key(2)) is None
    assert folder.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("damage", [b"", b"short", b"\0" * 700, None])
def test_what_is_damaged_is_as_if_it_were_not_there_and_can_be_put_anew(damage: bytes | None, tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.put(key(1), parts())
    (path,) = (path for path in tmp_path.rglob("*") if path.is_file())
    body = path.read_bytes()
    path.write_bytes(body[:-1] + bytes([body[-1] ^ 1]) if damage is None else damage)
    assert cache.get(key(1)) is None
    assert not path.exists()
    cache.put(key(1), parts())
    found = cache.get(key(1))
    assert found is not None
    assert torch.equal(found[0], parts()[0])


def test_it_never_takes_more_than_it_may_and_what_was_not_asked_for_longest_goes(tmp_path: Path) -> None:
    one = Cache(tmp_path / "one")
    one.put(key(0), parts())
    limit = 10 * size(tmp_path / "one")
    cache = Cache(tmp_path / "many", limit)
    for number in range(10):
        cache.put(key(number), parts(number))
        path = cache._path(key(number))
        os.utime(path, ns=(number * 10**9, number * 10**9))
    assert size(cache.folder) == limit
    assert cache.get(key(0)) is not None  # now the youngest
    for number in range(10, 14):
        cache.put(key(number), parts(number))
        assert size(cache.folder) <= limit
    held = {number for number in range(14) if cache.get(key(number)) is not None}
    assert {0, 10, 11, 12, 13} <= held
    assert 1 not in held
    assert held - {0} == set(range(14 - len(held) + 1, 14))


def test_another_process_finds_the_room_as_it_was_left(tmp_path: Path) -> None:
    first = Cache(tmp_path, 10**6)
    for number in range(20):
        first.put(key(number), parts(number))
    Cache(tmp_path, size(tmp_path) // 2).put(key(99), parts())
    assert size(tmp_path) <= 20 * 1000


def test_what_is_larger_than_all_the_room_or_cannot_be_written_is_let_be(tmp_path: Path) -> None:
    small = Cache(tmp_path / "small", 100)
    small.put(key(1), parts())
    assert small.get(key(1)) is None
    (tmp_path / "file").write_text("")
    blocked = Cache(tmp_path / "file" / "below")
    blocked.put(key(1), parts())
    assert blocked.get(key(1)) is None


def study_of(vit: Path, chain: str) -> studies.Study:
    return studies.loads(
        f'[study]\nname = "tiny"\nseed = 3\n[data]\nimage_size = 32\ncolour = "grey"\n[backbone]\nreference = '
        f'"file:{vit}"\n{chain}[training]\nlearning_rate = 5e-3\nbatch_size = 5\nepochs = 2\n[rounds]\ncount = 2\n'
    )


def two_rounds(study: studies.Study, manifest: Path, cache: Cache | None) -> list[Reply]:
    bench = Workbench(study, CPU, cache)
    rows = sites(read_manifest(manifest, study.data, network.task(study), study.study.seed))["north"]
    site = Site("north", SiteData("north", rows, study.data, network.task(study)), Policy())
    state, replies = bench.adapted.read(), []
    for number in (1, 2):
        asked = Instruction(
            study.digest, "run", number, str(number), digest(state), True, ("val",), True, VERSION, state
        )
        replies.append(respond(bench, site, asked))
        assert replies[-1].update is not None
        state = replies[-1].update.tensors
    return replies


@pytest.mark.parametrize(
    "chain",
    [
        '[[adaptation]]\nmethod = "probe"\n',
        '[[adaptation]]\nmethod = "last_blocks"\n',
        '[[adaptation]]\nmethod = "last_blocks"\n[[adaptation]]\nmethod = "fedprox"\n',
        '[[adaptation]]\nmethod = "lora"\n',
    ],
)
def test_two_rounds_give_the_same_bits_with_it_without_it_and_when_it_is_full(
    chain: str, tiny_vit: Path, tiny_manifest: Path, tmp_path: Path
) -> None:
    study = study_of(tiny_vit, chain)
    caches = [None, Cache(tmp_path / "one"), Cache(tmp_path / "one"), Cache(tmp_path / "two", 6000)]
    told = [two_rounds(study, tiny_manifest, cache) for cache in caches]
    assert ((tmp_path / "one").exists()) == ("lora" not in chain)
    for round_ in zip(*told, strict=True):
        updates = [reply.update for reply in round_]
        assert len({digest(update.tensors) for update in updates if update is not None}) == 1
        assert all(reply.statistics == round_[0].statistics for reply in round_)
