"""The ledger: it charges once and for good, whoever is in two cohorts pays for both, and what is done to it shows."""

from __future__ import annotations

import hashlib
import hmac
import json
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from polyclinic.client.data.manifest import Row
from polyclinic.client.privacy.budget import Bound
from polyclinic.client.privacy.ledger import Ledger
from polyclinic.client.privacy.people import Cohort, identities
from polyclinic.client.privacy.receipts import receipt
from polyclinic.client.privacy.record import Charge, Question, Reservation
from polyclinic.core.book import Head
from polyclinic.core.errors import PolicyError, PrivacyError, TrustError
from polyclinic.core.privacy.accounting import epsilon
from polyclinic.core.privacy.events import Event
from polyclinic.core.signing import SigningKey

DELTA = 1e-5
STEP = Event("poisson_gaussian", 1.0, 0.032, 31)
FIGURE = Event("gaussian", 20.0)
STUDY, OTHER = "a" * 64, "b" * 64


def people(first: int, last: int, images: int = 1) -> dict[str, int]:
    return {f"patient {i}": images for i in range(first, last)}


def asked(number: int, study: str = STUDY, run: str = "run", base: str = "base") -> Question:
    return Question(study, run, number, base)


def spent(ledger: Ledger, study: str = "", among: str = "") -> float:
    record = ledger.record()
    return record.epsilon(record.charged(study), DELTA, among)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    found = Ledger(tmp_path / "privacy")
    yield found
    found.close()


def test_what_is_reserved_is_spent_and_survives(ledger: Ledger) -> None:
    cohort = ledger.cohort(people(0, 50))
    for number in range(1, 4):
        made = ledger.reserve(asked(number), [Charge(cohort, "update", STEP)])
        assert len(made.key) == 32
        assert not made.repeated
    again = Ledger(ledger.folder)  # after a crash, say: nothing was released, and nothing is given back
    assert spent(again) == spent(ledger) == epsilon([STEP] * 3, DELTA)
    assert again.verify() == again.head()[0] + 1 == 5
    again.close()


def test_the_same_question_is_the_same_release_and_charged_once(ledger: Ledger) -> None:
    charges = [Charge(ledger.cohort(people(0, 50)), "update", STEP)]
    first = ledger.reserve(asked(1), charges)
    again = Ledger(ledger.folder).reserve(asked(1), charges)
    assert (again.number, again.key, again.repeated) == (first.number, first.key, True)
    assert again.stream("noise") == first.stream("noise") != first.stream("draws")
    ledger.release(first, "output")
    ledger.release(again, "output")  # a reply that was lost, worked out again
    assert spent(ledger) == epsilon([STEP], DELTA)
    assert ledger.head()[0] == 3  # begin, cohort, reserve, release


@pytest.mark.parametrize("other", ["study", "run", "round", "base", "charges", "cohort", "generator"])
def test_anything_else_is_another_release(ledger: Ledger, other: str) -> None:
    cohort, larger = ledger.cohort(people(0, 50)), ledger.cohort(people(0, 51))
    charges = [Charge(cohort, "update", STEP)]
    first = ledger.reserve(asked(1), charges)
    questions = {
        "study": asked(1, OTHER),
        "run": asked(1, run="another"),
        "round": asked(2),
        "base": asked(1, base="another"),
    }
    told = {"charges": [*charges, Charge(cohort, "incoming/val", FIGURE)], "cohort": [Charge(larger, "update", STEP)]}
    key = b"k" * 32 if other == "generator" else None
    second = ledger.reserve(questions.get(other, asked(1)), told.get(other, charges), key=key)
    assert second.number != first.number
    assert second.key != first.key
    assert spent(ledger) >= epsilon([STEP] * 2, DELTA)


def test_what_comes_out_differently_does_not_leave_and_the_next_try_is_charged(ledger: Ledger) -> None:
    charges = [Charge(ledger.cohort(people(0, 50)), "update", STEP)]
    first = ledger.reserve(asked(1), charges)
    ledger.release(first, "one")
    with pytest.raises(PrivacyError, match="must not leave"):
        ledger.release(ledger.reserve(asked(1), charges), "another")
    with pytest.raises(PrivacyError, match="nothing is reserved"):
        ledger.release(first, "one")  # its noise is known to have met two sums
    second = ledger.reserve(asked(1), charges)
    assert second.key != first.key
    assert not second.repeated
    ledger.release(second, "a third")
    assert spent(ledger) == epsilon([STEP] * 2, DELTA)


def test_without_its_key_a_round_is_charged_anew(ledger: Ledger) -> None:
    """Keys of earlier rounds go: a round that a coordinator goes back to is noised anew, and paid anew."""
    charges = [Charge(ledger.cohort(people(0, 50)), "update", STEP)]
    first = ledger.reserve(asked(1), charges)
    ledger.reserve(asked(2), charges)
    again = ledger.reserve(asked(1), charges)
    assert (again.repeated, again.key == first.key) == (False, False)
    assert spent(ledger) == epsilon([STEP] * 3, DELTA)


def test_simulated_noise_follows_from_the_key_that_is_given(ledger: Ledger) -> None:
    charges = [Charge(ledger.cohort(people(0, 50)), "update", STEP)]
    first = ledger.reserve(asked(1), charges, key=b"s" * 32)
    assert (first.generator, first.key) == ("simulated", b"s" * 32)
    assert ledger.reserve(asked(1), charges, key=b"s" * 32).repeated
    assert not ledger.reserve(asked(1), charges, key=b"t" * 32).repeated
    assert receipt(ledger, first, "patient", DELTA).generator == "simulated"


def test_who_is_in_two_cohorts_pays_for_both(ledger: Ledger) -> None:
    one, two, apart = (ledger.cohort(people(*ends)) for ends in ((0, 50), (49, 100), (100, 150)))
    ledger.reserve(asked(1), [Charge(one, "update", STEP)])
    assert spent(ledger) == epsilon([STEP], DELTA)
    ledger.reserve(asked(1, OTHER), [Charge(two, "update", STEP)])
    ledger.reserve(asked(2, OTHER), [Charge(apart, "update", STEP)])
    assert spent(ledger) == epsilon([STEP] * 2, DELTA)  # patient 49
    assert spent(ledger, among=apart) == epsilon([STEP], DELTA)
    assert spent(ledger, study=OTHER) == epsilon([STEP], DELTA)
    assert len(ledger.record().groups()) == 2  # {one, two} and {apart}: nobody else pays more


def test_training_and_validation_patients_are_charged_apart(ledger: Ledger) -> None:
    train, val = ledger.cohort(people(0, 80)), ledger.cohort(people(80, 100))
    ledger.reserve(asked(1), [Charge(train, "update", STEP), Charge(val, "incoming/val", FIGURE)])
    assert spent(ledger) == epsilon([STEP], DELTA)
    assert spent(ledger, among=val) == epsilon([FIGURE], DELTA)


def test_a_patient_with_several_images_pays_for_each_where_images_are_the_unit(ledger: Ledger) -> None:
    by_image = Event("poisson_gaussian", 1.0, 0.032, 31, "image")
    cohort = ledger.cohort({**people(0, 50), "patient 7": 4})
    ledger.reserve(asked(1), [Charge(cohort, "update", by_image)])
    assert spent(ledger) == epsilon([by_image], DELTA, images=4) > epsilon([by_image], DELTA)


def test_nothing_begins_that_cannot_end_and_the_arithmetic_is_shown(ledger: Ledger) -> None:
    charge = Charge(ledger.cohort(people(0, 50)), "update", STEP)
    bound = Bound(epsilon([STEP] * 10, DELTA), DELTA, "this site's limit")
    ledger.reserve(asked(1), [charge], [charge] * 9, [bound])
    head = ledger.head()
    with pytest.raises(PolicyError) as refusal:
        ledger.reserve(asked(1, OTHER), [charge], [charge] * 9, [bound])
    assert ledger.head() == head  # nothing was charged for what was refused
    whole, one, two = (epsilon([STEP] * count, DELTA) for count in (11, 1, 2))
    for figure in (f"{bound.epsilon:g}", f"Spent: {one:.3f}", f"With this round: {two:.3f}", f"{whole:.3f}"):
        assert figure in str(refusal.value)
    for number in range(2, 11):
        ledger.reserve(asked(number), [charge], [charge] * (10 - number), [bound])
    with pytest.raises(PolicyError, match="this site's limit"):
        ledger.reserve(asked(11), [charge], [], [bound])


def test_a_bound_of_one_study_counts_that_study_alone(ledger: Ledger) -> None:
    charge = Charge(ledger.cohort(people(0, 50)), "update", STEP)
    bound = Bound(epsilon([STEP] * 2, DELTA), DELTA, "the limit of the approval", STUDY)
    for number in range(1, 6):
        ledger.reserve(asked(number, OTHER), [charge], [], [bound])
    for number in (1, 2):
        ledger.reserve(asked(number), [charge], [], [bound])
    with pytest.raises(PolicyError, match=r"approval is .* for this study"):
        ledger.reserve(asked(3), [charge], [], [bound])


def test_nobody_can_tell_who_is_in_a_cohort(ledger: Ledger) -> None:
    cohort = ledger.cohort({"patient Ada": 2, "patient Bob": 1})
    salt = (ledger.folder / "salt").read_bytes()
    assert ledger.record().cohorts[cohort].members == {
        hmac.new(salt, name.encode(), hashlib.sha256).digest()[:16]: images
        for name, images in (("patient Ada", 2), ("patient Bob", 1))
    }
    assert ledger.cohort({"patient Bob": 1, "patient Ada": 2}) == cohort
    told = "\n".join(ledger.lines())
    unsalted = hashlib.sha256(b"patient Ada").hexdigest()[:32]
    assert not any(
        word in told
        for word in ("Ada", unsalted, salt.hex(), *map(bytes.hex, Cohort.of({"patient Ada": 1}, salt).members))
    )
    for name in ("salt", "privacy.db"):
        assert (ledger.folder / name).stat().st_mode & 0o777 == 0o600
    assert ledger.folder.stat().st_mode & 0o777 == 0o700


def test_patients_are_known_by_their_identifier_and_images_without_one_by_their_file(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    rows = [
        Row(tmp_path / "a.png", "north", "0", 0, "train", "p1", 2, "a.png"),
        Row(tmp_path / "b.png", "north", "0", 0, "train", "p1", 3, "b.png"),
        Row(tmp_path / "link" / "c.png", "north", "0", 0, "train", "link/c.png", 4, "link/c.png"),
    ]
    assert identities(rows) == {"patient p1": 2, f"image {tmp_path.resolve() / 'c.png'}": 1}


def test_a_receipt_says_what_the_ledger_says_and_never_changes(ledger: Ledger) -> None:
    train, val = ledger.cohort(people(0, 80)), ledger.cohort(people(60, 100))
    ledger.reserve(asked(1, OTHER), [Charge(val, "update", STEP)])
    ledger.reserve(asked(1), [Charge(train, "update", STEP)])
    made = ledger.reserve(asked(2), [Charge(train, "update", STEP), Charge(val, "incoming/val", FIGURE)])
    found = receipt(ledger, made, "patient", DELTA)
    # no patient is in two splits; who is in two studies is for the site's own eyes
    assert found.round == pytest.approx(max(epsilon([STEP], DELTA), epsilon([FIGURE], DELTA)))
    assert found.study == pytest.approx(max(epsilon([STEP, STEP], DELTA), epsilon([FIGURE], DELTA)))
    record = ledger.record()
    assert record.epsilon(record.charged(upto=made.number), DELTA) > found.study
    assert found.head == ledger.head()[1]
    assert "rate 0.032" in found.mechanism
    assert "one figure" not in found.mechanism
    assert "1 figure" in found.mechanism
    ledger.reserve(asked(3), [Charge(train, "update", STEP)])
    assert receipt(ledger, made, "patient", DELTA) == found


def test_a_receipt_says_nothing_of_how_many_images_anybody_has_nor_of_who_is_in_two_studies(tmp_path: Path) -> None:
    told = []
    for name, images, more in (("few", 1, 0), ("many", 8, 0), ("elsewhere", 1, 40)):
        ledger = Ledger(tmp_path / name)
        by_image = replace(STEP, unit="image")
        own = ledger.cohort({f"patient {i}": images for i in range(80)})
        ledger.reserve(asked(1, OTHER), [Charge(ledger.cohort(people(80 - more, 120)), "update", STEP)])
        made = ledger.reserve(asked(1), [Charge(own, "update", by_image)])
        told.append(replace(receipt(ledger, made, "image", DELTA), head=""))
        ledger.close()
    assert told[0] == told[1] == told[2]
    assert told[0].study == pytest.approx(epsilon([STEP], DELTA))


def test_where_a_study_met_two_cohorts_a_receipt_takes_somebody_to_be_in_both(ledger: Ledger) -> None:
    one, two = ledger.cohort(people(0, 80)), ledger.cohort(people(80, 160))
    ledger.reserve(asked(1), [Charge(one, "update", STEP)])
    made = ledger.reserve(asked(2), [Charge(two, "update", STEP)])
    assert receipt(ledger, made, "patient", DELTA).study == pytest.approx(epsilon([STEP, STEP], DELTA))


# --- what is done to it shows ---


def filled(folder: Path, key: SigningKey | None = None) -> Head:
    ledger = Ledger(folder, key)
    cohort = ledger.cohort(people(0, 50))
    for number in range(1, 4):
        ledger.release(ledger.reserve(asked(number), [Charge(cohort, "update", STEP)]), "output")
    head = ledger.head()
    ledger.close()
    return head


def tampered(folder: Path, *statements: str) -> None:
    db = sqlite3.connect(folder / "privacy.db")
    for statement in statements:
        db.execute(statement)
    db.commit()
    db.close()


@pytest.mark.parametrize(
    ("statement", "entry"),
    [
        ("DELETE FROM entries WHERE sequence = 2", 3),
        ("DELETE FROM entries WHERE sequence = 0", 1),
        ("UPDATE entries SET line = replace(line, '\"noise\":1', '\"noise\":9') WHERE sequence = 4", 5),
        ("UPDATE entries SET line = replace(line, '\"steps\":31', '\"steps\":1') WHERE sequence = 2", 3),
        ("UPDATE entries SET line = substr(line, 1, 60) WHERE sequence = 6", 7),
        ("UPDATE entries SET line = ' ' || line WHERE sequence = 3", 4),
        ("UPDATE entries SET line = '' WHERE sequence = 1", 2),
        ("UPDATE entries SET sequence = sequence + 10 WHERE sequence = 2", 3),
        ("INSERT INTO entries SELECT 99, line FROM entries WHERE sequence = 2", 9),
        ("UPDATE cohorts SET members = substr(members, 21)", 2),
        ("DELETE FROM cohorts", 2),
    ],
)
def test_the_first_bad_entry_is_named(statement: str, entry: int, tmp_path: Path) -> None:
    filled(tmp_path)
    tampered(tmp_path, statement)
    with pytest.raises(PrivacyError, match=rf"entry {entry}\b"):
        Ledger(tmp_path)


def test_an_open_ledger_notices_too(tmp_path: Path) -> None:
    filled(tmp_path)
    ledger = Ledger(tmp_path)
    tampered(tmp_path, "UPDATE entries SET line = replace(line, '\"noise\":1', '\"noise\":9') WHERE sequence = 4")
    with pytest.raises(PrivacyError, match="entry 5"):
        ledger.verify()
    tampered(tmp_path, "DELETE FROM entries WHERE sequence > 4")
    with pytest.raises(PrivacyError, match=r"gone|entry 5"):
        ledger.reserve(asked(4), [])
    ledger.close()


def test_an_older_ledger_is_known_by_a_head_that_it_lacks(tmp_path: Path) -> None:
    head = filled(tmp_path)
    old = (tmp_path / "privacy.db").read_bytes()
    ledger = Ledger(tmp_path)
    ledger.reserve(asked(4), [])
    newer = ledger.head()
    assert ledger.verify([head, newer]) == 9
    ledger.close()
    (tmp_path / "privacy.db").write_bytes(old)
    with pytest.raises(PrivacyError, match=r"entry 9: .*older ledger"):
        Ledger(tmp_path).verify([head, newer])


@pytest.mark.parametrize("harm", ["torn", "noise", "empty", "no salt", "other salt", "no ledger"])
def test_a_damaged_file_is_refused(harm: str, tmp_path: Path) -> None:
    filled(tmp_path)
    path, salt = tmp_path / "privacy.db", tmp_path / "salt"
    whole = path.read_bytes()
    harms: dict[str, Callable[[], object]] = {
        "torn": lambda: path.write_bytes(whole[: len(whole) // 2 + 100]),
        "noise": lambda: path.write_bytes(whole[:4096] + bytes(255 - b for b in whole[4096:20000]) + whole[20000:]),
        "empty": lambda: path.write_bytes(b""),
        "no salt": salt.unlink,
        "other salt": lambda: salt.write_bytes(b"x" * 32),
        "no ledger": path.unlink,
    }
    harms[harm]()
    with pytest.raises(PrivacyError):
        Ledger(tmp_path).verify()


def test_every_flipped_byte_of_an_entry_shows(tmp_path: Path) -> None:
    filled(tmp_path)
    db = sqlite3.connect(tmp_path / "privacy.db")
    (line,) = db.execute("SELECT line FROM entries WHERE sequence = 4").fetchone()
    ledger = Ledger(tmp_path)
    for place in range(0, len(line), 7):
        flipped = line[:place] + chr(ord(line[place]) ^ 1) + line[place + 1 :]
        db.execute("UPDATE entries SET line = ? WHERE sequence = 4", (flipped,))
        db.commit()
        with pytest.raises(PrivacyError, match="entry 5"):
            ledger.verify()
    db.close()
    ledger.close()


def test_entries_are_signed_and_only_by_the_key_with_which_they_began(tmp_path: Path) -> None:
    key = SigningKey.new()
    filled(tmp_path, key)
    found = Ledger(tmp_path, key)
    assert found.verify() == 8
    found.close()
    for other in (None, SigningKey.new()):
        wrong = Ledger(tmp_path, other)  # it may be looked at
        with pytest.raises(TrustError, match="another key"):
            wrong.reserve(asked(9), [])
        wrong.close()
    (line,) = sqlite3.connect(tmp_path / "privacy.db").execute("SELECT line FROM entries WHERE sequence = 3").fetchone()
    signature = json.loads(line)["signature"]
    other_one = ("0" if signature[0] != "0" else "1") + signature[1:]
    tampered(tmp_path, f"UPDATE entries SET line = replace(line, '{signature}', '{other_one}') WHERE sequence = 3")
    with pytest.raises(PrivacyError, match=r"entry 4: .*signed"):
        Ledger(tmp_path, key).verify()


def test_a_crash_between_the_salt_and_the_first_entry_is_mended(tmp_path: Path) -> None:
    (tmp_path / "salt.new").write_bytes(b"left behind")
    ledger = Ledger(tmp_path)
    (tmp_path / "salt").rename(tmp_path / "salt.new")  # and one between the first entry and the salt's name
    again = Ledger(tmp_path)
    assert again.cohort(people(0, 3)) == ledger.cohort(people(0, 3))
    ledger.close()
    again.close()


def test_a_reservation_does_not_show_its_key() -> None:
    made = Reservation(1, "0" * 64, asked(1), (), "system", key=b"secret of 32 bytes")
    assert "secret" not in repr(made)
