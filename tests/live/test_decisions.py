"""What a site has not approved is not done, whoever asks; whom the coordinator has revoked counts for nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from polyclinic.client.approvals import Limits, decide
from polyclinic.client.offer import read_offer
from polyclinic.client.outbox import Outbox
from polyclinic.core import study as studies
from polyclinic.core.book import Book
from polyclinic.core.signing import sign
from polyclinic.core.study import Study
from polyclinic.core.version import VERSION
from polyclinic.server.governance.runs import Run
from polyclinic.server.live.home import opened
from polyclinic.simulations.live import Local, until
from tests.live.harness import (
    PATIENCE,
    Pictures,
    coordinators_book,
    counted,
    demand_sound,
    go,
    in_round,
    live_json,
    running,
    said,
    small_study,
)

pytestmark = pytest.mark.faults

SITES = ["north", "south"]


@pytest.fixture(scope="module")
def federation(pictures: Pictures, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Local]:
    """Two sites, and a third that is going to be revoked."""
    with running(tmp_path_factory.mktemp("decisions"), pictures, [*SITES, "west"]) as local:
        yield local


def decided(local: Local, study: Study, site: str, verb: str = "approve", **changes: object) -> None:
    """Has a site decide, perhaps for something that is not so: ``version``, ``backbone_sha256``, ``limits``."""
    home = local.sites[site]
    until((home.studies / f"{study.digest}.json").exists, 60.0, f"{site}'s link")
    offer, key = read_offer(home, study.digest), home.key()
    told = {"version": VERSION, "backbone_sha256": offer.backbone_sha256, "limits": Limits()} | changes
    book = Book(home.book, key)
    found = decide(book, site, study.digest, verb, **told)  # type: ignore[arg-type]
    book.close()
    Outbox(home.outbox).put(sign(found.document(), key))


def believed(local: Local, study: Study, site: str, **claims: object) -> None:
    """Has a coordinator that does not care for signatures believe that a site approved a study just so."""
    document = {
        "kind": "decision", "site": site, "study": study.digest, "verb": "approve", "version": VERSION,
        "backbone_sha256": "0" * 64, "limits": {"rounds": None, "until": None, "hours": None},
        "time": time.time(), "sequence": 1_000,
    } | claims  # fmt: skip
    signed = sign(document, local.coordinator.signing_key())
    with opened(local.coordinator) as registry, registry.change() as db:
        row = (study.digest, site, 1_000, signed.document, signed.signer, signed.signature, time.time())
        db.execute("INSERT OR REPLACE INTO decisions VALUES (?, ?, ?, ?, ?, ?, ?)", row)


def heard(local: Local, study: Study, site: str) -> None:
    """Waits until the coordinator knows a site's decision."""
    with opened(local.coordinator) as registry:
        until(lambda: site in registry.decisions(study.digest), 30.0, "the decision")


def refused_everywhere(local: Local, run: Run, site: str, why: str) -> None:
    """A refusal stands in the site's book, in the coordinator's book, and in the run's ledger, with its reason."""
    mine = said(local.sites[site], run, "refused")
    assert mine, "the site's book"
    assert all(why in str(body["why"]) for body in mine), mine
    ledger = [json.loads(line) for line in (Path(run.folder) / "ledger.jsonl").read_text().splitlines()]
    assert any(site in json.dumps(entry["body"]) and why in json.dumps(entry["body"]) for entry in ledger), (
        "the run's ledger"
    )

    def told() -> bool:
        return any(
            site in json.dumps(entry.body) and why in json.dumps(entry.body) and run.name in json.dumps(entry.body)
            for entry in coordinators_book(local, "refusal")
        )

    until(told, 30.0, f"'{why}' in the coordinator's book")


@pytest.mark.parametrize(
    ("name", "claims", "why"),
    [
        ("version", {"version": "0.0.9"}, "polyclinic 0.0.9 was approved"),
        ("backbone", {"backbone_sha256": "ab" * 32}, "the backbone is not the one that was approved"),
        ("until", {"limits": Limits(until=1_000_000_000.0)}, "the approval has ended"),
    ],
)
def test_what_was_approved_is_something_else(federation: Local, name: str, claims: dict[str, object], why: str) -> None:
    study = small_study(f"other {name}", rounds=1, quorum=0.5)
    federation.publish(study)
    decided(federation, study, "south", **claims)
    heard(federation, study, "south")
    federation.approve(study, "north")
    heard(federation, study, "north")
    believed(federation, study, "south")
    run = federation.run(study)
    summary = federation.wait(run, PATIENCE)
    refused_everywhere(federation, run, "south", why)
    assert counted(Path(run.folder)).keys() == {1}
    assert set(counted(Path(run.folder))[1]) == {"north"}
    demand_sound(federation, run, None, summary)


def test_a_study_that_differs_by_one_byte_was_not_approved(federation: Local) -> None:
    study = small_study("one byte", rounds=1, quorum=0.5)
    other = studies.loads(study.toml().replace("one byte", "one bytf"))
    assert other.digest != study.digest
    for each in (study, other):
        federation.publish(each)
    federation.approve(study, "south")
    heard(federation, study, "south")
    federation.approve(other, "north")
    heard(federation, other, "north")
    believed(federation, other, "south")
    run = federation.run(other)
    federation.wait(run, PATIENCE)
    refused_everywhere(federation, run, "south", "was not approved here")
    assert not said(federation.sites["south"], run, "answered")


def test_an_offer_that_was_changed_at_the_site_is_not_followed(federation: Local) -> None:
    study = small_study("changed offer", rounds=1, quorum=0.5)
    federation.publish(study)
    for site in SITES:
        federation.approve(study, site)
        heard(federation, study, site)
    home = federation.sites["south"]
    path = home.studies / f"{study.digest}.json"
    sound = path.read_text()
    assert sound.count("changed offer") >= 1
    path.write_text(sound.replace("changed offer", "changed offes"))
    run = federation.run(study)
    until(lambda: bool(said(home, run, "refused") or said(home, run, "answered")), 60.0, "an answer")
    summary = federation.wait(run, PATIENCE)
    refusals = said(home, run, "refused")
    if refusals:  # otherwise the link had mended the file before anybody looked
        assert set(counted(Path(run.folder))[1]) == {"north"}
    demand_sound(federation, run, None, summary)


def test_rounds_beyond_the_limit_are_refused(federation: Local) -> None:
    study = small_study("limited", rounds=3, quorum=0.5)
    federation.publish(study)
    federation.approve(study, "north")
    federation.approve(study, "south", Limits(rounds=1))
    for site in SITES:
        heard(federation, study, site)
    run = federation.run(study)
    summary = federation.wait(run, PATIENCE)
    told = counted(Path(run.folder))
    assert set(told[1]) == set(SITES)
    assert set(told[2]) == set(told[3]) == {"north"}
    refused_everywhere(federation, run, "south", "this site allows 1 rounds of training")
    demand_sound(federation, run, None, summary)


def test_a_withdrawal_takes_effect_within_a_round(federation: Local) -> None:
    study = small_study("withdrawn", rounds=6, epochs=3, quorum=0.5)
    federation.publish(study)
    for site in SITES:
        federation.approve(study, site)
        heard(federation, study, site)
    run = federation.run(study)
    in_round(run, 2)
    decided(federation, study, "south", "withdraw")
    at = live_json(run)["round"]
    summary = federation.wait(run, PATIENCE)
    told = counted(Path(run.folder))
    assert "south" in told[1]
    assert all("south" not in sites for number, sites in told.items() if number > at + 1), (at, told)
    answered = {body["round"] for body in said(federation.sites["south"], run, "answered")}
    assert max(answered) <= at + 1
    assert live_json(run)["sites"]["south"]["state"] == "withdrawn"
    demand_sound(federation, run, None, summary)


def test_a_revocation_takes_effect_within_a_round(federation: Local) -> None:
    study = small_study("revoked", rounds=6, epochs=3, quorum=0.3)
    run = go(federation, study)
    in_round(run, 2)
    with opened(federation.coordinator) as registry:
        registry.revoke("west")
    at = live_json(run)["round"]
    summary = federation.wait(run, PATIENCE)
    told = counted(Path(run.folder))
    assert "west" in told[1]
    assert all("west" not in sites for number, sites in told.items() if number > at), (at, told)
    assert all(set(sites) >= set(SITES) for sites in told.values())
    assert live_json(run)["sites"]["west"]["state"] == "revoked"
    assert any(entry.body.get("site") == "west" for entry in coordinators_book(federation, "revoked"))
    log = federation.sites["west"].logs / "link.log"
    until(lambda: "revoked" in log.read_text(), 60.0, "the word to the site's link")
    demand_sound(federation, run, None, summary)
