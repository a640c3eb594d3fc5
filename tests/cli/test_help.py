"""Help that a stranger understands, at once: nothing heavy is imported for it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import click
import pytest
import typer.main
from typer.core import TyperArgument

from polyclinic.cli.main import app
from tests.cli.conftest import COMMAND, Call, environment


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


def root() -> click.Group:
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group)
    return group


ALL = dict(commands(root()))


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_command_explains_itself_and_all_that_it_takes(path: tuple[str, ...], polyclinic: Call) -> None:
    said = polyclinic(*path, "--help")
    assert said.code == 0
    assert ALL[path].help
    for param in ALL[path].params:
        text = getattr(param, "help", None)
        assert text, f"{' '.join(path)}: {param.name} is not explained"
        assert text[:30] in said.out
        assert not isinstance(param, TyperArgument) or param.metavar, f"{param.name} shows no example of its kind"


def test_the_first_page_says_where_to_begin(polyclinic: Call) -> None:
    said = polyclinic("--help").out
    for first in ("polyclinic demo", "polyclinic study new", "polyclinic data check", "polyclinic simulate"):
        assert f"'{first}'" in said
    assert all(path[0] in said for path in ALL)


def test_help_imports_nothing_heavy() -> None:
    code = COMMAND[2].replace("; main()", "") + (
        "\nimport sys\ntry:\n    main()\nexcept SystemExit:\n    pass\nprint('|', *sorted(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=True, env=environment()
    )
    loaded = set(done.stdout.rpartition("|")[2].split())
    heavy = {"torch", "transformers", "peft", "flwr", "ray", "numpy", "scipy", "sklearn", "pandas", "PIL", "pydantic"}
    assert "polyclinic.cli.main" in loaded
    assert not heavy & loaded


def test_an_unknown_option_or_command_is_named(polyclinic: Call) -> None:
    for words, near in ((("simulate", "--worker", "2"), "--workers"), (("simulat",), "simulate")):
        said = polyclinic(*words)
        assert said.code == 2
        assert words[-1 if len(words) == 1 else 1] in said.err
        assert near in said.err
        assert "Traceback" not in said.err
