"""Whatever names a patient at a site stays there: not in replies, refusals, ledgers, journals, summaries or reports."""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from polyclinic.client import respond as responding
from polyclinic.client.data.dataset import SiteData
from polyclinic.client.policy import Policy
from polyclinic.client.respond import Site, Workbench
from polyclinic.core import study as studies
from polyclinic.core.errors import BackboneError, DataError, RunError
from polyclinic.core.messages import Instruction, encode_instruction
from polyclinic.core.runs import Run
from polyclinic.core.study import Study
from polyclinic.core.update import digest
from polyclinic.core.version import VERSION
from polyclinic.server import rounds
from polyclinic.server.receive import Delivery
from polyclinic.simulations.in_turn import answer
from polyclinic.simulations.simulate import Options, gather, simulate
from tests.conftest import study_text
from tests.faults.canaries import HEAD, TAIL, Aviary, leaks, squeezed, write_sites

SITES = ["north", "south"]


@pytest.fixture(scope="module")
def aviary() -> Aviary:
    return Aviary()


@pytest.fixture(scope="module")
def manifest(aviary: Aviary, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sites(tmp_path_factory.mktemp("data"), SITES, 40, aviary)


@pytest.fixture(scope="module")
def study(tiny_vit: Path) -> Study:
    return studies.loads(study_text(tiny_vit))


def test_the_search_finds_a_canary_in_any_clothes(tmp_path: Path) -> None:
    canary = Aviary().new("here")
    for hidden in squeezed(canary):
        assert leaks([hidden]), hidden
        assert leaks([b"\0" * 1000 + hidden])
    assert leaks([canary[:11]])  # cut off
    assert leaks([canary[-9:]])
    assert not leaks([b"a canary", "Kanar vogel", zlib.compress(b"nothing"), b"\x78\x9c", b"", b"\x1f\x8b\x08"])
    with closing(sqlite3.connect(tmp_path / "db")) as db, db:
        db.execute("CREATE TABLE t (a, b)")
        db.execute("INSERT INTO t VALUES (?, ?)", (1, zlib.compress(canary.encode() * 3)))
    assert leaks([tmp_path / "db"])
    assert leaks([tmp_path])
    (tmp_path / "db").unlink()
    (tmp_path / canary).write_text("")
    assert leaks([tmp_path])
    with pytest.raises(FileNotFoundError):
        leaks([tmp_path / "gone"])


def test_there_are_hundreds_of_them_where_data_name_somebody(manifest: Path, aviary: Aviary) -> None:
    assert len(aviary.put) > 300
    assert len({where.split(" of ")[0] for where in aviary.put.values()}) >= 7
    assert leaks([manifest])
    (picture, *_) = manifest.parent.rglob("*.png")
    assert leaks([picture.read_bytes()])
    with Image.open(picture) as image:
        assert {"Comment", "Patient"} <= image.info.keys()


@dataclass
class Recorder:
    """Keeps all that goes over the seam; see ``polyclinic.server.rounds.Sites``."""

    sites: rounds.Sites
    seen: list[bytes | str] = field(default_factory=list)

    def names(self) -> Sequence[str]:
        return self.sites.names()

    def send(self, message: bytes, to: Sequence[str], deadline: float) -> Iterator[Delivery]:
        self.seen.append(message)
        for delivery in self.sites.send(message, to, deadline):
            self.seen += [delivery.message or b"", delivery.failure]
            yield delivery


@pytest.fixture(scope="module")
def finished(
    study: Study, manifest: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Run, list[bytes | str]]]:
    seen: list[bytes | str] = []
    run = rounds.run

    def recorded(agreed: Study, sites: rounds.Sites, *others: Any) -> rounds.State:
        return run(agreed, Recorder(sites, seen), *others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds, "run", recorded)
        yield simulate(study, manifest, tmp_path_factory.mktemp("runs") / "one", Options(baselines=True)), seen


def test_no_canary_goes_over_the_seam(finished: tuple[Run, list[bytes | str]]) -> None:
    run, seen = finished
    assert len([reply for reply in seen if reply]) == 3 * 3  # an instruction and two replies, three times
    assert run.rounds[0]["excluded"] == {}
    assert not leaks(seen)


def test_no_canary_is_in_anything_that_a_run_leaves(finished: tuple[Run, list[bytes | str]]) -> None:
    run, _ = finished
    names = {path.name for path in run.folder.iterdir()}
    assert {"ledger.jsonl", "journal", "rounds.jsonl", "summary.json", "report.html", "adapter", "study.toml"} <= names
    assert not leaks([run.folder])


Trouble = RuntimeError | DataError | MemoryError | OSError


def site(study: Study, manifest: Path, name: str = "north") -> Site:
    """A site whose pictures are not yet decoded."""
    _, cohort = gather(study, manifest, Policy())
    held = cohort[name].data
    return Site(name, SiteData(name, held.rows, held.data, held.task), Policy())


@pytest.fixture(scope="module")
def bench(study: Study) -> Workbench:
    return Workbench(study)


def asked(bench: Workbench, **other: Any) -> bytes:
    state = bench.adapted.read()
    told = {"round": 1, "fit": True, "evaluate": ("val",), "describe": True, "base": digest(state)} | other
    return encode_instruction(
        Instruction(study=bench.study.digest, run="r", nonce="n", version=VERSION, tensors=state, **told)
    )


def missing(path: Path) -> None:
    path.unlink()


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


def no_picture(path: Path) -> None:
    path.write_bytes(f"{HEAD} is no picture {TAIL}".encode())


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def too_large(path: Path) -> None:
    Image.new("1", (20_000, 20_000)).save(path)


@pytest.mark.parametrize("spoil", [missing, torn, no_picture, a_folder, too_large])
def test_an_image_that_cannot_be_used_is_not_named_to_the_server(
    spoil: Any, study: Study, bench: Workbench, tmp_path: Path
) -> None:
    own = write_sites(tmp_path, SITES, 40, Aviary())
    held = site(study, own)
    spoil(next(row.path for row in held.data.rows if row.split == "train"))
    delivery = answer(bench, held, asked(bench))
    assert delivery.message is None
    assert delivery.failure == "the site cannot use its images or its backbone; its own log says why"
    with pytest.raises(DataError) as told:  # at the site itself it is
        held.data.images("train")
    assert leaks([str(told.value)])


@pytest.mark.parametrize("kind", [DataError, BackboneError, RunError])
@pytest.mark.parametrize("place", ["fit", "outcome", "describe"])
def test_what_an_error_says_of_a_patient_stays_at_the_site(
    kind: type[DataError], place: str, study: Study, bench: Workbench, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary = Aviary().new("an error")

    def fail(*of: object) -> None:
        raise kind(f"{canary} has no lung", where=f"/data/{canary}.png", remedy=f"ask {canary}")

    monkeypatch.setattr(responding, place, fail)
    fresh = Workbench(study) if place == "describe" else bench
    delivery = answer(fresh, site(study, manifest), asked(fresh))
    assert delivery.message is None
    assert not leaks([delivery.failure])


@pytest.mark.parametrize(
    "change",
    [{"round": 2, "base": "0" * 64}, {"evaluate": ("val", HEAD)}, {"evaluate": ("val", "test", "train")}],
)
def test_a_refused_instruction_brings_back_nothing_of_the_data(
    change: dict[str, Any], study: Study, bench: Workbench, manifest: Path
) -> None:
    delivery = answer(bench, site(study, manifest), asked(bench, **change))
    back = [part for part in (delivery.message, delivery.failure) if part]
    assert back
    assert not leaks(back)


def test_a_site_below_its_minimum_tells_nothing_but_the_minimum(study: Study, bench: Workbench, manifest: Path) -> None:
    held = site(study, manifest)
    strict = Site("north", held.data, Policy(minimum_patients=1000))
    delivery = answer(bench, strict, asked(bench))
    assert delivery.message is not None
    assert not leaks([delivery.message])
    from polyclinic.core.messages import decode_reply
    from polyclinic.core.statistics.monoid import Withheld

    assert {type(told) for told in decode_reply(delivery.message).statistics.values()} == {Withheld}
