"""Receipts of privacy: a private study's updates come with one, in its terms; everybody can read it afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from polyclinic.core import study as studies
from polyclinic.core.messages import Reply
from polyclinic.core.privacy.receipt import SIMULATED, Receipt
from polyclinic.core.statistics.noised_outcome import NoisedOutcome
from polyclinic.core.study import Study
from polyclinic.server.report import tables
from polyclinic.server.report.partial import partial
from polyclinic.server.summary import summarise
from tests.server.test_rounds import Fakes, play

GOOD = Receipt("patient", 1e-5, 0.5, 1.5, "Gaussian noise", "0" * 64, "system")


def private(extra: str = "") -> Study:
    return studies.loads(
        '[study]\nname = "x"\n[[adaptation]]\nmethod = "lora"\n[training]\nsteps = 2\n[rounds]\ncount = 2\n'
        f'weight = "patients"\nquorum = 0.1\n[privacy]\nnoise = 1.0\n{extra}'
    )


def saying(receipt: Receipt | None) -> Callable[[Reply], Reply]:
    return lambda reply: replace(reply, receipt=receipt, statistics={})


def records(receipts: dict[str, Receipt | None], agreed: Study) -> tuple[list[dict[str, Any]], Any]:
    _, journal = play(Fakes(sorted(receipts), {site: saying(one) for site, one in receipts.items()}), agreed=agreed)
    return journal.rounds(), journal


def schema(name: str) -> Draft202012Validator:
    return Draft202012Validator(
        json.loads(files("polyclinic.server").joinpath(f"{name}.schema.json").read_text("utf-8"))
    )


def test_it_is_kept_round_by_round_and_told_at_the_end() -> None:
    agreed = private()
    found, journal = records({"east": GOOD, "north": replace(GOOD, study=1.9)}, agreed)
    assert [record["sites"]["north"]["privacy"]["study"] for record in found] == [1.9, 1.9]
    assert found[0]["sites"]["east"]["privacy"]["mechanism"] == "Gaussian noise"
    for record in found:
        schema("round").validate(record)
    summary = summarise(agreed, journal, engine="inprocess", adapter_sha256="0" * 64, peak_rss_mb=1.0)
    assert summary["sites"]["north"]["privacy"] == found[-1]["sites"]["north"]["privacy"]
    schema("summary").validate({**summary, "ledger_head": "0" * 64} if "ledger_head" not in summary else summary)


@pytest.mark.parametrize(
    ("receipt", "why"),
    [
        (None, "comes with a receipt"),
        (replace(GOOD, delta=1e-6), "other terms"),
        (replace(GOOD, unit="image"), "other terms"),
        (replace(GOOD, generator="simulated"), "other terms"),
    ],
)
def test_an_update_without_a_fitting_receipt_is_set_aside(receipt: Receipt | None, why: str) -> None:
    found, _ = records({"east": GOOD, "north": receipt}, private())
    assert set(found[0]["sites"]) == {"east"}
    assert why in found[0]["excluded"]["north"]


def test_a_receipt_that_nobody_asked_for_is_set_aside() -> None:
    plain = studies.loads('[study]\nname = "x"\n[[adaptation]]\nmethod = "lora"\n[rounds]\ncount = 1\nquorum = 0.1\n')
    found, _ = records({"east": None, "north": GOOD}, plain)
    assert "was not asked for" in found[0]["excluded"]["north"]
    assert "privacy" not in found[0]["sites"]["east"]


def test_a_figure_without_noise_is_set_aside_and_one_with_noise_needs_a_receipt() -> None:
    noised = replace(NoisedOutcome.blank("binary", 2), patients=20, units=20, variance=2**20)
    for changed, why in (
        (lambda reply: replace(reply, receipt=GOOD), "statistic"),
        (
            lambda reply: replace(reply, update=reply.update, receipt=None, statistics={"incoming/val": noised}),
            "receipt",
        ),
    ):
        fakes = Fakes(["east", "north"], {"east": saying(GOOD), "north": changed})
        _, journal = play(fakes, agreed=private())
        assert why in journal.rounds()[0]["excluded"]["north"]
    told = Fakes(["east"], {"east": lambda reply: replace(reply, receipt=GOOD, statistics={"incoming/val": noised})})
    _, journal = play(told, agreed=private())
    accuracy = journal.rounds()[0]["sites"]["east"]["incoming"]["accuracy"]
    assert accuracy["noise"] == pytest.approx(24**0.5 / 2 / 20, rel=0.01)
    schema("round").validate(journal.rounds()[0])


def test_the_report_shows_it_with_unit_and_adjacency(tmp_path: Path) -> None:
    agreed = private('generator = "simulated"\n')
    simulated = replace(GOOD, generator="simulated")
    found, _ = records({"east": simulated, "north": simulated}, agreed)
    facts = {"study": "x", "rounds": 2}
    table = tables.privacy(partial(agreed.model_dump(mode="json"), found, facts))
    assert table is not None
    assert "by patient (add or remove one)" in table.caption
    assert [row[0].text for row in table.rows] == ["east", "north"]
    assert table.rows[0][0].note == SIMULATED
    assert table.rows[0][1].text == tables.plain(1.5).text
    assert tables.privacy(partial({}, [], facts)) is None
