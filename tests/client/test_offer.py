"""An offer is what the coordinator signed, whole and consistent; and its words leave out no field that travels."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from polyclinic.client.approvals import Decision, Limits
from polyclinic.client.data.dataset import SiteData
from polyclinic.client.data.manifest import read_manifest, sites
from polyclinic.client.home import Home
from polyclinic.client.offer import Offer, find, offers, opened_offer, read_offer, read_signed, signed_text
from polyclinic.client.policy import Policy
from polyclinic.client.private.answer import Vault
from polyclinic.client.respond import Site, Workbench, respond
from polyclinic.client.settings import Coordinator, DataPlace, Rules, Settings
from polyclinic.client.words import statistics, words
from polyclinic.core.book import Book
from polyclinic.core.config import parse
from polyclinic.core.envelope import Seal
from polyclinic.core.errors import PolicyError, PolyclinicError, StudyError, TrustError, UpdateError
from polyclinic.core.messages import Instruction, Reply
from polyclinic.core.signing import Signed, SigningKey, sign
from polyclinic.core.statistics.codec import encode as encode_statistic
from polyclinic.core.study import Study
from polyclinic.core.update import digest, encode
from polyclinic.core.version import VERSION

COORDINATOR, SITE = SigningKey.new(), SigningKey.new()


@pytest.fixture(scope="module")
def bench(tiny_study: Study) -> Workbench:
    return Workbench(tiny_study)


@pytest.fixture(scope="module")
def document(bench: Workbench) -> dict[str, Any]:
    study, tensors = bench.study, bench.adapted.read()
    manifest = [{"name": n, "shape": list(a.shape), "dtype": str(a.dtype)} for n, a in sorted(tensors.items())]
    backbone = {"reference": study.backbone.reference, "sha256": bench.adapted.network.backbone.sha256}
    return {
        "kind": "offer", "study": study.digest, "toml": study.toml(), "name": study.study.name, "version": VERSION,
        "backbone": backbone, "initial": digest(tensors), "manifest": manifest, "bytes_up": len(encode(tensors)),
        "published": 1764000000.0,
    }  # fmt: skip


@pytest.fixture
def home(tmp_path: Path) -> Home:
    at = Coordinator(host="hub.example", fleet_port=1, governance_port=2, key=COORDINATOR.public)
    data, rules = DataPlace(manifest="images/manifest.csv"), Rules(minimum_patients=12, tell=("outcome", "labels"))
    settings = Settings(name="north", key=SITE.public, coordinator=at, data=data, policy=rules)
    made = Home.create(tmp_path / "north", settings)
    SITE.save(made.signing_key)
    return made


def lay(home: Home, document: dict[str, Any], key: SigningKey = COORDINATOR, name: str = "") -> str:
    (home.studies / f"{name or document['study']}.json").write_text(signed_text(sign(document, key)))
    return str(document["study"])


def test_an_offer_is_read_as_it_was_signed(home: Home, document: dict[str, Any], tiny_study: Study) -> None:
    offer = read_offer(home, lay(home, document))
    assert offer.study == tiny_study
    assert (offer.version, offer.backbone_sha256) == (VERSION, document["backbone"]["sha256"])
    assert (offer.initial, offer.manifest, offer.bytes_up) == tuple(
        document[key] for key in ("initial", "manifest", "bytes_up")
    )
    assert offers(home) == {tiny_study.digest: offer}


def change(**others: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda document: {**document, **others}


@pytest.mark.parametrize(
    ("changed", "error", "reason"),
    [
        (lambda d: change(toml=d["toml"].replace("alpha = 4.0", "alpha = 8.0"))(d), TrustError, "is not the one whose"),
        (lambda d: change(toml=d["toml"].replace("alpha", "alhpa"))(d), StudyError, "did you mean 'alpha'"),
        (change(toml="[study"), StudyError, "not TOML"),
        (change(study="0" * 64), TrustError, "is not the one whose digest"),
        (change(name="another"), TrustError, "is not the one whose digest"),
        (change(version="9.9.9"), PolicyError, rf"for polyclinic 9\.9\.9, this site has {re.escape(VERSION)}"),
        (lambda d: change(backbone={**d["backbone"], "reference": "hf:x"})(d), TrustError, "not the one that"),
        (lambda d: change(backbone={**d["backbone"], "sha256": "x"})(d), TrustError, "names no backbone"),
        (change(initial=None), TrustError, "agreed form"),
        (change(initial="7"), TrustError, "names no backbone or no initial"),
        (change(more=1), TrustError, "agreed form"),
        (change(manifest=[{"name": "w", "shape": [-1], "dtype": "float32"}]), UpdateError, "w: is no shape"),
        (change(bytes_up=10), TrustError, "10 bytes leave"),
        (change(bytes_up=10**9), TrustError, "1000000000 bytes leave"),
        (change(kind="receipt"), TrustError, "is no offer"),
    ],
)  # fmt: skip
def test_an_offer_that_contradicts_itself_is_refused(
    home: Home, document: dict[str, Any], changed: Any, error: type[PolyclinicError], reason: str
) -> None:
    name = document["study"]
    lay(home, changed(document), name=name)
    with pytest.raises(error, match=reason):
        read_offer(home, name)
    assert isinstance(offers(home)[name], error)


def test_only_the_pinned_coordinator_offers(home: Home, document: dict[str, Any]) -> None:
    lay(home, document, SigningKey.new())
    with pytest.raises(TrustError, match="another key"):
        read_offer(home, document["study"])
    signed = sign(document, COORDINATOR)
    for forged in (
        Signed(signed.document, signed.signer, bytes(64)),
        Signed(signed.document.replace(b"tiny", b"Tiny"), signed.signer, signed.signature),
    ):
        with pytest.raises(TrustError, match="signature is wrong"):
            opened_offer(forged, COORDINATOR.public)


def test_an_offer_in_another_ones_place_is_refused(home: Home, document: dict[str, Any]) -> None:
    lay(home, document, name="f" * 64)
    with pytest.raises(TrustError, match="another study's offer"):
        read_offer(home, "f" * 64)


@pytest.mark.parametrize("digest_", ["../../private/signing", "", "A" * 64, "a" * 63])
def test_only_digests_are_looked_for(home: Home, digest_: str) -> None:
    with pytest.raises(PolicyError, match="is no digest of a study"):
        read_offer(home, digest_)


def test_what_is_not_offered_or_damaged(home: Home) -> None:
    with pytest.raises(PolicyError, match="is not offered"):
        read_offer(home, "a" * 64)
    for text in ("", "[]", "{}", '{"document": 1}', '{"document": "x", "signer": 1, "signature": ""}', "\ud800"):
        (home.studies / f"{'a' * 64}.json").write_text(text, errors="surrogatepass")
        with pytest.raises(TrustError, match="no signed statement"):
            read_offer(home, "a" * 64)


def test_a_statement_survives_its_file(tmp_path: Path, document: dict[str, Any]) -> None:
    signed = sign(document, COORDINATOR)
    (tmp_path / "x").write_text(signed_text(signed))
    assert read_signed(tmp_path / "x") == signed
    assert read_signed(tmp_path / "none") is None


def test_a_study_is_found_by_the_start_of_its_digest(home: Home, document: dict[str, Any]) -> None:
    digest_ = lay(home, document)
    assert find(home, digest_[:7]) == find(home, digest_.upper()) == digest_
    (home.studies / f"{digest_[:7]}{'0' * 57}.json").write_text("")
    for start, reason in ((digest_[:7], "several"), ("", "several"), ("zz", "no digest"), ("*", "no digest")):
        with pytest.raises(PolicyError, match=reason):
            find(home, start)


def approved(study: str) -> Decision:
    return Decision("north", study, "approve", VERSION, "b" * 64, Limits(rounds=3), 1764000000.0, 1)


def said(offer: Offer, home: Home, decided: Decision | None = None) -> str:
    return "\n".join(line for title, lines in words(offer, home, decided).items() for line in (title, *lines))


def test_words_name_everything_that_is_decided_about(home: Home, document: dict[str, Any], tiny_study: Study) -> None:
    text = said(read_offer(home, lay(home, document)), home)
    for part in (
        tiny_study.task.explain(), *(method.explain() for method in tiny_study.adaptation), tiny_study.digest,
        document["backbone"]["sha256"], document["initial"], VERSION, "2 rounds", "3 instructions in all",
        f"{document['bytes_up']:,} bytes", "no differential privacy", "12 patients", "not approved here",
        str(home.folder / "images" / "manifest.csv"), "No code travels",
    ):  # fmt: skip
        assert part in text
    assert "at most 3 rounds of training" in said(
        read_offer(home, tiny_study.digest), home, approved(tiny_study.digest)
    )


def test_words_name_every_field_of_a_reply_and_of_its_seal(home: Home, document: dict[str, Any]) -> None:
    text = said(read_offer(home, lay(home, document)), home)
    names = {field.name for kind in (Reply, Seal) for field in dataclasses.fields(kind)} | {"weight", "tensors"}
    for name in names - {"update", "statistics"}:  # an update is a weight and tensors; each statistic has a name
        assert re.search(rf"^  [a-z, ]*\b{name}\b[a-z, ]*:", text, re.MULTILINE), name


def test_words_count_every_statistic_that_a_site_tells(
    home: Home, document: dict[str, Any], bench: Workbench, tiny_manifest: Path
) -> None:
    """Against what ``respond`` really sends: the names, and how many whole numbers each holds."""
    study = bench.study
    rows = sites(read_manifest(tiny_manifest, study.data, bench.task, study.study.seed))["north"]
    site = Site("north", SiteData("north", rows, study.data, bench.task), Policy(minimum_patients=1))
    tensors, sent = bench.adapted.read(), {}
    for fit, evaluate in ((True, ("val",)), (False, ("val", "test"))):
        order = Instruction(study.digest, "run", 1, "n", digest(tensors), fit, evaluate, True, VERSION, tensors)
        sent |= respond(bench, site, order).statistics
    told = {one.name: one for one in statistics(study)}
    assert told.keys() == sent.keys()
    for name, statistic in sent.items():
        fields = json.dumps(encode_statistic(statistic)["fields"])
        assert told[name].numbers == len(re.findall(r"(?<![\w.])-?\d+", re.sub(r'"[^"]*"', "", fields))), name
        assert told[name].kind == (name.split("/")[1] if name.startswith("describe") else "outcome")
    text = said(read_offer(home, lay(home, document)), home)
    for one in told.values():
        line = next(line for line in text.splitlines() if line.startswith(f"  {one.name} "))
        assert f"{one.numbers:,} whole numbers" in line
        assert ("DOES NOT TELL" in line) == (one.kind not in ("outcome", "labels"))


def test_words_count_every_figure_of_a_private_study(tiny_study: Study, tiny_manifest: Path, tmp_path: Path) -> None:
    """Against what ``respond`` really sends, round by round."""
    more = tiny_study.model_dump(mode="json")
    more["privacy"] = {"noise": 1.0, "delta": 1e-3, "expected": 4, "judged": 2}
    more["training"] |= {"steps": 1, "epochs": None}
    study = parse(Study, {**more, "rounds": more["rounds"] | {"weight": "equal"}}, "test")
    bench, sent = Workbench(study), {}
    rows = sites(read_manifest(tiny_manifest, study.data, bench.task, study.study.seed))["north"]
    data = SiteData("north", rows, study.data, bench.task)
    site = Site("north", data, Policy(minimum_patients=1), vault=Vault(tmp_path / "privacy"))
    tensors, when = bench.adapted.read(), {}
    for number in (1, 2, 3):
        evaluate = ("val",) if number < 3 else ("val", "test")
        order = Instruction(
            study.digest, "run", number, "n", digest(tensors), number < 3, evaluate, number == 1, VERSION, tensors
        )
        for name, statistic in respond(bench, site, order).statistics.items():
            sent[name] = statistic
            when.setdefault(name, []).append(number)
    told = {one.name: one for one in statistics(study)}
    assert told.keys() == sent.keys()
    for name, statistic in sent.items():
        fields = json.dumps(encode_statistic(statistic)["fields"])
        assert told[name].numbers == len(re.findall(r"(?<![\w.])-?\d+", re.sub(r'"[^"]*"', "", fields))), name
    assert when == {"describe/kernel": [1], "describe/labels": [1], "incoming/val": [2, 3], "incoming/test": [3]}
    assert told["incoming/val"].when == "in round 2 and at the end"


def test_every_tensor_is_named_with_its_shape(home: Home, document: dict[str, Any]) -> None:
    text = said(read_offer(home, lay(home, document)), home)
    (line,) = [line for line in text.splitlines() if line.startswith("  tensors: ")]
    assert f"{len(document['manifest'])} tensors" in line
    counted = 0
    for group in re.search(r"training: (.*)\.$", line)[1].split("; "):  # type: ignore[index]
        count, name, shape = re.fullmatch(r"(?:(\d+) of )?(\S+) \[([\d×]+)\]", group).groups()  # type: ignore[union-attr]
        pattern = re.escape(name).replace(r"\.N\.", r"\.\d+\.")
        matching = [
            row for row in document["manifest"]
            if re.fullmatch(pattern, row["name"]) and "×".join(map(str, row["shape"])) == shape
        ]  # fmt: skip
        assert len(matching) == int(count or 1), group
        counted += len(matching)
    assert counted == len(document["manifest"])


def test_a_withdrawn_study_says_so(home: Home, document: dict[str, Any], tmp_path: Path) -> None:
    offer = read_offer(home, lay(home, document))
    Book(home.book, SITE).close()
    decided = dataclasses.replace(approved(offer.study.digest), verb="withdraw")
    assert "This site withdrew on 2025-11-24" in said(offer, home, decided)


def test_what_is_a_sites_own_and_what_travels_for_a_method_is_said(
    tiny_study: Study, document: dict[str, Any], home: Home
) -> None:
    more = tiny_study.model_dump(mode="json")
    more["adaptation"] += [{"method": "fedbn"}, {"method": "prototypes"}]
    study = parse(Study, more, "test")
    offer = read_offer(home, lay(home, {**document, "study": study.digest, "toml": study.toml()}))
    told = words(offer, home)
    assert any("('fedbn'): scale and shift" in line for line in told["What does not leave this site"])
    assert any("because of 'prototypes': in place of a head" in line for line in told["What leaves this site"])
    assert not any("linear head" in line for line in told["What trains, and on what"])
