"""``polyclinic privacy``: what a private study will cost a site, and what was spent."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from polyclinic.cli.answers import AsJson, answer, moment, table
from polyclinic.cli.described import Command

if TYPE_CHECKING:
    from polyclinic.client.privacy.ledger import Ledger
    from polyclinic.core.study import Study

BAR = 30
"""Characters of a whole bar."""
app = typer.Typer(help="Plan and prove what privacy costs.", no_args_is_help=True)
SiteFolder = Annotated[
    Path | None, typer.Option("--site-folder", metavar="DIR", help="A site's folder: see 'polyclinic site join'.")
]
LedgerFolder = Annotated[
    Path | None, typer.Option("--ledger", metavar="DIR", help="In its place: the folder that holds privacy.db.")
]

Delta = Annotated[
    float | None,
    typer.Option(min=1e-15, max=0.5, metavar="D", help="At which epsilon is told; else the policy's, or 1e-5."),
]


@app.command(cls=Command)
def plan(
    study: Annotated[
        Path, typer.Argument(metavar="STUDY.toml", help="What it says of privacy may be left to options.")
    ],
    manifest: Annotated[Path, typer.Option("--data", metavar="MANIFEST.csv", help="One line an image, of every site.")],
    epsilon: Annotated[
        float | None, typer.Option(metavar="E", help="Instead of what the study says: a target.")
    ] = None,
    noise: Annotated[float | None, typer.Option(metavar="S", help="Instead of it: a noise multiplier.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a run costs at every site: the noise for an epsilon, or the epsilon for a noise. Nothing is spent.

    Exit code 1 if a site cannot take part.
    """
    from polyclinic.core import study as studies

    asked = _asked(studies.load(study), epsilon, noise)
    rows = [_planned(asked, site, sizes) for site, sizes in _sizes(asked, manifest).items()]
    privacy = asked.privacy
    assert privacy is not None
    told: dict[str, Any] = {"study": asked.digest, "unit": privacy.unit, "adjacency": "add or remove one",
            "delta": privacy.delta, "rounds": asked.rounds.count, "steps": asked.training.steps, "sites": rows,
            "likely": _measured(asked, rows)}  # fmt: skip
    cells = [_cells(row) for row in rows]
    head = ("site", f"{privacy.unit}s (train, val, test)", "rate", "noise", "ε train", "ε val", "ε test",
            "noise on accuracy (val, test)")  # fmt: skip
    answer(as_json, told, (
        f"{asked.rounds.count} rounds of {asked.training.steps} steps. Every ε is of a whole run, for any "
        f"{privacy.unit} of the site ({told['adjacency']}), at δ = {privacy.delta:g}:",
        *table(head, cells),
        *_likely(told["likely"]),
        *(f"Cannot take part: {row['problem']}" for row in rows if row["problem"]),
    ))  # fmt: skip
    raise typer.Exit(1 if any(row["problem"] for row in rows) else 0)


@app.command(cls=Command)
def show(
    site_folder: SiteFolder = None,
    ledger: LedgerFolder = None,
    delta: Delta = None,
    as_json: AsJson = False,
) -> None:
    """Say what was spent and what is left, by cohort and by study, over everything that this site ever released."""
    from polyclinic.client.privacy.statement import statement

    opened, limit, own = _opened(site_folder, ledger)
    with closing(opened):
        told = statement(opened.record(), delta or own, limit)
    answer(as_json, told, _shown(told))


@app.command(cls=Command)
def verify(
    site_folder: SiteFolder = None,
    ledger: LedgerFolder = None,
    head: Annotated[
        list[str] | None, typer.Option(metavar="DIGEST", help="Of a receipt: the ledger must hold it. May be repeated.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check every entry of a privacy ledger, and that it still holds what receipts say. Exit code 1 if it does not."""
    opened, _, _ = _opened(site_folder, ledger)
    with closing(opened):
        count = opened.verify(head or [])
        told: dict[str, Any] = {"ok": True, "entries": count, "head": opened.head()[1], "signed": opened.signer}
    signed = f"each signed with {told['signed'][:12]}" if told["signed"] else "not signed"
    answer(
        as_json, told, (f"{count} entries, {signed}, each following from the one before; {told['head'][:12]} is last.",)
    )


@app.command(cls=Command)
def export(
    to: Annotated[Path, typer.Argument(metavar="FILE.json", help="Where to write it.")],
    site_folder: SiteFolder = None,
    ledger: LedgerFolder = None,
    delta: Delta = None,
) -> None:
    """Write the whole ledger as JSON, for an auditor: every entry as it is signed, and what they come to."""
    import json

    from polyclinic.client.privacy.statement import statement
    from polyclinic.core import files

    opened, limit, own = _opened(site_folder, ledger)
    with closing(opened):
        told = {"statement": statement(opened.record(), delta or own, limit), "entries": opened.lines()}
    files.write(to, json.dumps(told, indent=1, ensure_ascii=False) + "\n")
    typer.echo(f"Wrote {len(told['entries'])} entries to {to}. No patient's identifier or hash is in them.")


def _asked(study: Study, epsilon: float | None, noise: float | None) -> Study:
    """The study with its [privacy] set to a target or a noise, if either was said."""
    from polyclinic.core.config import parse
    from polyclinic.core.privacy.plan import demand
    from polyclinic.core.study import Study

    if epsilon is None and noise is None:
        demand(study)
        return study
    document = study.model_dump(mode="json")
    section = dict(document.get("privacy") or {})
    section |= {"epsilon": epsilon, "noise": noise, "limit": None}
    return parse(Study, {**document, "privacy": section}, "--epsilon" if noise is None else "--noise")


def _sizes(study: Study, manifest: Path) -> dict[str, dict[str, int]]:
    """Site → split → units."""
    from polyclinic.client.data.manifest import read_manifest, sites
    from polyclinic.client.privacy.account import sizes
    from polyclinic.models import network

    rows = read_manifest(manifest, study.data, network.task(study), study.study.seed)
    return {site: sizes(study, held) for site, held in sites(rows).items()}


def _planned(study: Study, site: str, sizes: dict[str, int]) -> dict[str, Any]:
    from polyclinic.core.errors import PolicyError
    from polyclinic.core.privacy.plan import plan

    try:
        made = plan(study, sizes, site)
    except PolicyError as refusal:
        return {"site": site, "units": sizes, "problem": str(refusal)}
    figures = {one.what: one.event.noise for one in made.releases if one.split != "train"}
    return {"site": site, "units": sizes, "rate": made.rate, "noise": made.noise, "epsilon": dict(made.epsilon),
            "figures": figures, "accuracy_noise": _accuracy_noise(study, sizes, figures), "problem": None}  # fmt: skip


def _accuracy_noise(study: Study, sizes: dict[str, int], figures: dict[str, float]) -> dict[str, float]:
    """Split → standard deviation that noise alone gives to a classifier's accuracy each time that it is told."""
    from polyclinic.core.privacy.told import blanks
    from polyclinic.core.statistics.noised_outcome import NoisedOutcome, accuracy_noise

    kinds = {split: blanks(study).get(f"incoming/{split}") for split in ("val", "test")}
    return {
        split: accuracy_noise(kind, figures[f"incoming/{split}"], sizes[split])
        for split, kind in kinds.items()
        if isinstance(kind, NoisedOutcome) and f"incoming/{split}" in figures
    }


def _measured(study: Study, rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """What studies of this kind were seen to lose, at the largest epsilon of any site; None if nobody measured."""
    from polyclinic.core.privacy.curves import curve

    spent = [row["epsilon"]["train"] for row in rows if not row["problem"]]
    if (found := curve(study)) is None or not spent:
        return None
    mean, least, most = found.at(max(spent))
    return {"of": found.of, "epsilon": max(spent), "auroc_lost": mean, "least": least, "most": most}


def _likely(told: dict[str, Any] | None) -> list[str]:
    if told is None:
        return []
    return [
        f"What it may cost: on public X-rays and dermoscopy of three sites each, {told['of']} lost "
        f"{told['auroc_lost']:.2f} of AUROC at ε = {told['epsilon']:.3g} ({told['least']:.2f} to {told['most']:.2f}"
        " over data and seeds), against the same without privacy (docs/privacy.md)."
    ]


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    units = ", ".join(f"{row['units'][split]:,}" for split in ("train", "val", "test"))
    if row["problem"]:
        return row["site"], units, *"––––––"
    spent = (f"{row['epsilon'][split]:.2f}" if row["epsilon"][split] else "–" for split in ("train", "val", "test"))
    told = (
        f"±{row['accuracy_noise'][split]:.3f}" if split in row["accuracy_noise"] else "–" for split in ("val", "test")
    )
    return row["site"], units, f"{row['rate']:.3g}", f"{row['noise']:.4g}", *spent, ", ".join(told)


def _opened(site_folder: Path | None, ledger: Path | None) -> tuple[Ledger, float | None, float]:
    """(the ledger, the site's limit, its delta), of a site's folder or by itself.

    Raises:
        PolicyError: neither or both were said, or there is no ledger.
    """
    from polyclinic.cli.site_standing import opened
    from polyclinic.client.privacy.chain import FILE
    from polyclinic.client.privacy.ledger import Ledger
    from polyclinic.core.errors import PolicyError

    if (site_folder is None) == (ledger is None):
        raise PolicyError("say --site-folder DIR or --ledger DIR", where="privacy")
    home = None if site_folder is None else opened(site_folder)
    folder = ledger or (home.privacy if home else Path())
    if not (folder / FILE).is_file():
        remedy = "it is made when a private study runs for the first time"
        raise PolicyError(f"holds no {FILE}", where=str(folder), remedy=remedy)
    if home is None:
        return Ledger(folder), None, 1e-5
    return Ledger(folder, home.key()), home.settings.policy.epsilon, home.settings.policy.delta


def _shown(told: dict[str, Any]) -> list[str]:
    """The statement for people, with bars."""
    delta, limit, most = told["delta"], told["limit"], told["limit"] or told["epsilon"]
    of = f" of {limit:g}: {told['left']:.2f} is left" if limit else ", and no limit is set"
    lines = [
        f"ε = {told['epsilon']:.3f} for any patient{of} (δ = {delta:g}, add or remove one).",
        _bar(told["epsilon"], most),
    ]
    if told["simulated"]:
        lines.append("Some noise was simulated: of that there is no privacy.")
    studies = [
        (one["study"][:12], f"{one['epsilon']:.3f}", _bar(one["epsilon"], most), f"{one['runs']}", f"{one['rounds']}",
         f"{one['reservations']}", f"{moment(one['first'])} to {moment(one['last'])}")
        for one in told["studies"]
    ]  # fmt: skip
    cohorts = [
        (one["cohort"][:12], f"{one['patients']:,}", f"{one['epsilon']:.3f}", _bar(one["epsilon"], most),
         ", ".join(f"{study[:12]} {spent:.3f}" for study, spent in one["spent"].items()))
        for one in told["cohorts"]
    ]  # fmt: skip
    lines += ["", *table(("study", "ε", "", "runs", "rounds", "charged", "when"), studies)]
    lines += ["", *table(("cohort", "patients", "ε, all in all", "", "by study"), cohorts)]
    return [*lines, "", "Epsilons do not add up: what two studies cost together is less than the sum."]


def _bar(value: float, most: float) -> str:
    filled = min(BAR, round(BAR * value / most)) if most else 0
    return "█" * filled + "░" * (BAR - filled)
