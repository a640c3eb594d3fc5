"""A method in a package of its own, word for word as CONTRIBUTING.md shows it: found, used, exported and judged."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.cli.conftest import COMMAND
from tests.conftest import study_text

GUIDE = Path(__file__).parents[2] / "CONTRIBUTING.md"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the package lies as pip would leave it there."""
    home = tmp_path_factory.mktemp("site-packages")
    module, project, tests = re.findall(r"```(?:python|toml)\n(.*?)```", GUIDE.read_text("utf-8"), re.DOTALL)
    about = tomllib.loads(project)["project"]
    (home / "my_package.py").write_text(module, "utf-8")
    (home / "test_my_package.py").write_text(tests, "utf-8")
    told = home / f"{about['name'].replace('-', '_')}-{about['version']}.dist-info"
    told.mkdir()
    (told / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {about['name']}\nVersion: {about['version']}\n")
    lines = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
        for group, points in about["entry-points"].items()
    ]
    (told / "entry_points.txt").write_text("".join(lines))
    return home


def run(package: Path, *words: str | Path, cwd: Path) -> str:
    """What a command says that finds the package; it must go well."""
    seen = [str(package), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(seen), "COLUMNS": "200"}
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_is_listed_with_its_facts(package: Path, tmp_path: Path) -> None:
    found = json.loads(run(package, *COMMAND, "methods", "--json", cwd=tmp_path))
    (gain,) = [entry for entry in found if entry["method"] == "gain"]
    assert (gain["families"], gain["travels"], gain["adapts"]) == (["representation"], "the gains", True)
    assert gain["study"] == '[[adaptation]]\nmethod = "gain"\n'


def test_its_own_tests_pass(package: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", package / "test_my_package.py"]
    assert "1 passed" in run(package, *command, cwd=tmp_path)


def test_a_study_uses_it_through_two_rounds(package: Path, tiny_vit: Path, tiny_manifest: Path, tmp_path: Path) -> None:
    text = study_text(tiny_vit).replace('method = "lora"\nrank = 2\nalpha = 4\n', 'method = "gain"\n')
    (tmp_path / "study.toml").write_text(text)
    command = [*COMMAND, "simulate", "study.toml", "--data", tiny_manifest, "--run", "run"]
    run(package, *command, cwd=tmp_path)
    run(package, *COMMAND, "export", "run", "adapter", cwd=tmp_path)
    card = json.loads((tmp_path / "adapter" / "polyclinic.json").read_text())
    assert card["form"] == "polyclinic"
    script = (
        "import sys, numpy; from pathlib import Path; from polyclinic.core.update import decode\n"
        "state = decode(Path('adapter/adapter_model.safetensors').read_bytes())\n"
        "assert set(state) == {'head.weight', 'head.bias', 'neck.gain'}, set(state)\n"
        "assert numpy.abs(state['neck.gain']).min() > 0\n"
    )
    run(package, sys.executable, "-c", script, cwd=tmp_path)
