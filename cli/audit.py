"""``polyclinic audit``: try to prove a study's privacy claim wrong."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from polyclinic.cli.answers import AsJson, answer, table

if TYPE_CHECKING:
    from polyclinic.simulations.audit.attack import Attack
    from polyclinic.simulations.audit.report import Audit


def audit(
    study: Annotated[Path, typer.Argument(metavar="STUDY.toml", help="A study with a section privacy.")],
    manifest: Annotated[
        Path | None,
        typer.Option("--data", metavar="MANIFEST.csv", help="Its largest site is audited. Without: made-up pictures."),
    ] = None,
    canaries: Annotated[
        int, typer.Option(min=10, max=10_000, help="Made-up patients, each of whom takes part by a coin.")
    ] = 200,
    kind: Annotated[
        Literal["gradient", "input", "both"],
        typer.Option(help="Canaries with a gradient of their own choice, with an odd picture, or one run of each."),
    ] = "both",
    full: Annotated[
        bool, typer.Option("--full", help="Draw every patient in every step: more is spent, and more is found.")
    ] = False,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**32 - 1, help="To get the same audit again; noise is then simulated.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Try to prove a study's privacy claim wrong: attack a whole run at one site, and check what the claim rests on.

    The proven epsilon is what somebody can show who sees all that a coordinator sees: the true one is no less. A low
    one is no proof of privacy. Exit code 1 if a claim is refuted or a check fails.
    """
    from polyclinic.core import study as studies
    from polyclinic.simulations.audit.report import audit as audited
    from polyclinic.simulations.audit.report import largest

    def tell(words: str) -> None:
        typer.echo(words, err=True)

    asked = studies.load(study)
    data = None if manifest is None else largest(asked, manifest)
    found = audited(
        asked,
        ("gradient", "input") if kind == "both" else (kind,),
        canaries,
        data=data,
        full=full,
        seed=seed,
        tell=tell,
    )
    answer(as_json, found.document(), _shown(found))
    raise typer.Exit(0 if found.passed else 1)


def _shown(found: Audit) -> list[str]:
    told = found.document()
    lines = []
    if found.attacks:
        canaries = {one.guesses[0].canaries for one in found.attacks}
        lines += [
            f"One site, {' or '.join(map(str, sorted(canaries)))} canaries. Every ε is of a whole run, for any "
            f"{told['unit']} ({told['adjacency']}), at δ = {found.attacks[0].delta:g}:",
            *table(("canaries", "claimed ε", "proven ε (95 %)", "right guesses", ""), map(_attacked, found.attacks)),
            "",
        ]
    checked = [(one.check, "passed" if one.passed else "FAILED", one.figure) for one in found.checks]
    lines += [*table(("check", "", "what was found"), checked), ""]
    return [*lines, _verdict(found)]


def _attacked(one: Attack) -> tuple[str, ...]:
    right = ", ".join(f"{each.right} of {each.made}" for each in one.guesses)
    verdict = "stands" if one.bound <= one.claim else "above the claim, as chance allows: repeat it"
    if not one.passed:
        verdict = f"REFUTED (p = {one.p_value:.1g})"
    return one.kind, f"{one.claim:.3f}", f"{one.bound:.3f}", right, verdict


def _verdict(found: Audit) -> str:
    if not found.passed:
        return "The claim of this study does not hold as it runs here. Please report this."
    return "Nothing was found. That is no proof of privacy: the proof is in the accounting, and this tried to break it."
