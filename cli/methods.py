"""polyclinic methods: every adaptation that is installed, with what it does to data, weights and privacy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from polyclinic.core.config import Method


def methods(
    family: Annotated[
        str | None,
        typer.Option(help="Only those of a family: parameter, representation, objective, data or architecture."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """List every method of adaptation: paper, what it fits, what travels, what stays, and how a study asks for it."""
    import json

    found = entries(family)
    if as_json:
        typer.echo(json.dumps(found, indent=1, ensure_ascii=False))
        return
    for entry in found:
        _tell(entry)


def entries(family: str | None = None) -> list[dict[str, Any]]:
    """What is known of every method, families together, names in order.

    Raises:
        StudyError: there is no such family.
        PluginError: a plugin says nothing of itself.
    """
    from polyclinic.core import registry
    from polyclinic.core.errors import StudyError

    tasks = {name: registry.load("tasks", name) for name in registry.names("tasks")}
    found = [_entry(name, registry.load("adaptations", name), tasks) for name in registry.names("adaptations")]
    families = sorted({each for entry in found for each in entry["families"]})
    if family is not None and family not in families:
        raise StudyError(
            f"no method is of a family '{family}'", where="--family", remedy=f"one of {', '.join(families)}"
        )
    chosen = [entry for entry in found if family is None or family in entry["families"]]
    return sorted(chosen, key=lambda entry: (entry["families"], entry["method"]))


def _entry(name: str, kind: type[Method], tasks: dict[str, type[Method]]) -> dict[str, Any]:
    from polyclinic.core.errors import PluginError

    facts = kind.facts
    if facts is None:
        raise PluginError(f"'{name}' says nothing of itself", where="adaptations", remedy="give its class 'facts'")
    return {
        "method": name,
        "families": list(facts.families),
        "paper": facts.paper,
        "tasks": [task for task, other in tasks.items() if kind.fits(other)],
        "backbones": facts.backbones,
        "adapts": kind.adapts,
        "travels": facts.travels,
        "personal": facts.personal,
        "exact_private": facts.exact_private,
        "because": facts.because,
        "identity": facts.identity,
        "merges": kind.merges,
        "low_rank": kind.low_rank,
        "study": _lines(name, kind),
    }


def _lines(name: str, kind: type[Method]) -> str:
    """What switches the method on, its defaults written out."""
    import tomli_w

    knobs = {key: field.default for key, field in kind.model_fields.items() if not field.is_required()}
    table = tomli_w.dumps({"method": name} | {key: value for key, value in knobs.items() if key != "method"})
    return f"[[adaptation]]\n{table}{tomli_w.dumps(kind.demands)}"


def _tell(entry: dict[str, Any]) -> None:
    typer.secho(f"{entry['method']}  ({', '.join(entry['families'])})", bold=True)
    private = "yes" if entry["exact_private"] else "no"
    lines = {
        "paper": entry["paper"],
        "tasks": ", ".join(entry["tasks"]) or "none that is installed",
        "backbones": entry["backbones"],
        "travels": entry["travels"],
        "stays at the site": entry["personal"],
        "exact under differential privacy": f"{private}: {entry['because']}",
        "begins as the frozen model": "yes" if entry["identity"] else "no",
        "merges into the backbone": "yes" if entry["merges"] else "no",
        "in a study": entry["study"].strip().replace("\n", "; "),
    }
    for title, words in lines.items():
        typer.echo(f"  {title}: {words}")
