"""The study file: strict, typed, and known by a digest that anyone can recompute."""

from __future__ import annotations

import hashlib
import json

import pytest

from polyclinic.core import study as studies
from polyclinic.core.errors import StudyError

BASE = '[study]\nname = "x"\n[[adaptation]]\nmethod = "lora"\n'


def test_defaults_are_a_sound_study() -> None:
    study = studies.loads(BASE)
    assert (study.rounds.count, study.strategy.method, study.task.method) == (10, "mean", "classification")


def test_digest_is_sha256_of_sorted_compact_json() -> None:
    study = studies.loads(BASE)
    document = study.model_dump(mode="json")
    by_hand = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    # RFC 8785 writes whole floats as integers
    by_hand = by_hand.replace(".0,", ",").replace(".0}", "}")
    assert json.loads(study.canonical) == json.loads(by_hand)
    assert study.digest == hashlib.sha256(study.canonical).hexdigest()


def test_digest_knows_content_not_layout() -> None:
    reordered = '[[adaptation]]\nmethod = "lora"\nrank = 8\n\n[study]\nname = "x"   # a remark\n'
    assert studies.loads(BASE).digest == studies.loads(reordered).digest
    assert studies.loads(BASE).digest != studies.loads(BASE + "rank = 9\n").digest


def test_written_out_it_reads_back_the_same() -> None:
    study = studies.loads(
        BASE + '[[adaptation]]\nmethod = "augment"\n[rounds]\ndeadline = "30 min"\nsites_per_round = 2'
    )
    again = studies.loads(study.toml())
    assert again == study
    assert again.digest == study.digest
    assert again.rounds.deadline == 1800.0


def test_another_seed_is_another_study() -> None:
    study = studies.loads(BASE)
    assert study.with_seed(5).study.seed == 5
    assert study.with_seed(5).digest != study.digest
    assert study.with_seed(0).digest == study.digest


@pytest.mark.parametrize(
    ("text", "place", "advice"),
    [
        (BASE + "rnak = 4\n", "adaptation.0", "did you mean 'rank'"),
        (BASE.replace("lora", "lorra"), "adaptation.0.method", "did you mean 'lora'"),
        (BASE + "[training]\nlearningrate = 1e-3\n", "training.learningrate", "did you mean 'learning_rate'"),
        (BASE + "[trainning]\nepochs = 1\n", "trainning", "did you mean 'training'"),
        (BASE + '[training]\nepochs = "two"\n', "training.epochs", "integer"),
        (BASE + "[training]\nepochs = 1\nsteps = 2\n", "training", "epochs or steps, not both"),
        (BASE + "[training]\nlearning_rate = -1.0\n", "training.learning_rate", "greater than 0"),
        (BASE + "[training]\nlearning_rate = nan\n", "test.toml", "numbers"),
        (BASE + "[rounds]\ndeadline = 30\n", "rounds.deadline", "with its unit"),
        (BASE + '[rounds]\ndeadline = "4 hours"\n', "rounds.deadline", "with its unit"),
        (BASE + "[rounds]\ncount = true\n", "rounds.count", "integer"),
        (BASE + "[rounds]\nquorum = 1.5\n", "rounds.quorum", "less than or equal to 1"),
        (BASE + '[backbone]\nsha256 = "abc"\n', "backbone.sha256", "pattern"),
        (BASE + '[data]\nfit = "stretch"\n', "data.fit", "'pad', 'squash' or 'crop'"),
        (BASE + "[data.split]\ntrain = 0.9\nval = 0.2\n", "data.split", "exceed 1"),
        (BASE + '[task]\nmethod = "classification"\nclasses = ["a"]\n', "task", "two classes"),
        (BASE + '[strategy]\nmethod = "median"\n', "strategy.method", "installed: exact, fedsvd, mean"),
        (BASE + '[server_step]\nmethod = "adam"\n[strategy]\nmethod = "exact"\n', "server_step", "sgd"),
        (
            '[study]\nname = "x"\n[[adaptation]]\nmethod = "augment"\n[strategy]\nmethod = "exact"',
            "strategy",
            "factors",
        ),
        ('[study]\nname = "x"\n', "adaptation", "missing"),
        ('[study]\nname = "x"\nadaptation = []\n', "study.adaptation", "unknown key"),
        (BASE + '[[adaptation]]\nmethod = "lora"\n', "adaptation", "twice"),
        ("[study\n", "test.toml", "not TOML"),
        ('[study]\nname = "../x"\n[[adaptation]]\nmethod = "lora"\n', "study.name", "pattern"),
    ],
)
def test_refuses_with_place_and_advice(text: str, place: str, advice: str) -> None:
    with pytest.raises(StudyError) as refusal:
        studies.loads(text, "test.toml")
    assert place in str(refusal.value)
    assert advice in str(refusal.value)
    assert str(refusal.value).startswith("test.toml")


def test_a_file_that_is_not_there_or_no_text(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(StudyError, match="cannot be read"):
        studies.load(tmp_path / "absent.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(StudyError, match="is not UTF-8"):
        studies.load(tmp_path / "binary.toml")
