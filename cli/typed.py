"""Commands as somebody would type them: shown, and done in this process."""

from __future__ import annotations

from collections.abc import Sequence

import typer

INTERRUPTED = 130
"""Exit code of a command that Ctrl-C ended."""


def call(*words: object, says: str = "", whole: bool = False) -> int:
    """Does what a command does, in this process, and shows the command; its exit code.

    Args:
        says: what the line of its answer holds that is shown, up to its first full stop.
        whole: whether all of its answer is shown.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed meanwhile.
    """
    import io
    from contextlib import nullcontext, redirect_stdout

    from polyclinic.cli.main import app

    said = [str(word) for word in words]
    shown(said)
    command = typer.main.get_command(app)
    with nullcontext() if whole else redirect_stdout(out := io.StringIO()):
        code = int(command(said, standalone_mode=False) or 0)
    if code == INTERRUPTED:  # a command says so itself, and ends; whoever called it here is to end, too
        raise KeyboardInterrupt
    if whole:
        return code
    line = next((line for line in out.getvalue().splitlines() if says in line), "")
    typer.echo(f"  {line.partition('. ')[0].rstrip('.')}.")
    return code


def shown(words: Sequence[str]) -> None:
    """A command as it is typed."""
    import shlex

    typer.secho(f"$ polyclinic {shlex.join(words)}", dim=True)


def title(text: str) -> None:
    """What comes next."""
    typer.secho(f"\n{text}", bold=True)
