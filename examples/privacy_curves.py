"""What privacy costs: studies at several epsilons and seeds, judged without noise on test images of public data.

    python examples/privacy_curves.py run examples/cxr.toml path/to/cls-cxr/manifest.csv curves.jsonl
    python examples/privacy_curves.py table curves.jsonl
    python examples/privacy_curves.py picture curves.jsonl curves.svg

Figures are worked out on the finished adapters, as only somebody can who holds all the images: they show what noise in
training does, and are no part of a private run. A run that is in the file already is not repeated.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from polyclinic.client.policy import Policy
from polyclinic.core import study as studies
from polyclinic.core.config import parse
from polyclinic.core.study import Study
from polyclinic.simulations.evaluate import evaluate
from polyclinic.simulations.simulate import Options, simulate

EPSILONS: tuple[float | None, ...] = (4.0, 1.0, None, 8.0, 2.0)
SEEDS = (1, 2, 3)
LOW_RANK = {"rank": 8, "alpha": 16.0, "targets": "attention"}
METHODS: dict[str, dict[str, Any]] = {
    "probe": {},
    "vpt": {},
    "lora": LOW_RANK,
    "ffa_lora": LOW_RANK,
    "rolora": LOW_RANK,
    "fedsvd": LOW_RANK,
}
PLAIN = {"probe": 5e-3, "vpt": 5e-3}
"""Learning rates without privacy; 2e-3 for low-rank factors. AdamW."""
SHARED = {"expected": 16, "steps": 6, "rounds": 6}
FIGURES = ("auroc", "ece", "nll")


def private(base: Study, method: str, epsilon: float | None, seed: int) -> Study:
    """The study with another adaptation, under privacy or (None) without."""
    document = base.model_dump(mode="json")
    document["study"]["seed"] = seed
    document["adaptation"] = [{"method": method, **METHODS[method]}]
    document["rounds"] |= {"count": SHARED["rounds"], "weight": "patients"}
    document["training"] |= {"batch_size": SHARED["expected"], "steps": SHARED["steps"], "epochs": None}
    document["training"] |= {"schedule": "cosine", "optimiser": "adamw", "learning_rate": PLAIN.get(method, 2e-3)}
    if method == "fedsvd":
        document["strategy"] = {"method": "fedsvd"}
    if epsilon is not None:
        # chosen by the log loss on validation images at epsilon 4, seed 11, over both packs
        adam = {"optimiser": "adamw", "learning_rate": 2e-3}
        plain = {"optimiser": "sgd", "learning_rate": 0.03, "momentum": 0.9}
        document["training"] |= adam if method == "probe" else plain
        clip = 1.0 if method == "probe" else 0.3
        document["privacy"] = {
            "epsilon": epsilon, "delta": 1e-5, "expected": SHARED["expected"], "clip": clip, "statistics_share": 0.0
        }  # fmt: skip
    return parse(Study, document, method)


def judged(study: Study, manifest: Path) -> dict[str, Any]:
    """Figures by site, and pooled, on test images."""
    rules = Policy(minimum_patients=3)
    with tempfile.TemporaryDirectory() as folder:
        run = simulate(study, manifest, Path(folder) / "run", Options(policy=rules))
        found = evaluate(run, manifest, "test", rules)
    rows = {**found["sites"], "pooled": found["pooled"]}
    return {site: {key: row["metrics"][key]["value"] for key in FIGURES} for site, row in rows.items()}


def run(base: Path, manifest: Path, out: Path, methods: list[str]) -> None:
    """Appends a line for each run to ``out``."""
    study = studies.load(base)
    done = {(row["pack"], row["chain"], row["eps"], row["seed"]) for row in read(out)}
    for seed in SEEDS:
        for epsilon in EPSILONS:
            for method in methods:
                name = (study.study.name, method, epsilon, seed)
                if name not in done:
                    found = judged(private(study, method, epsilon, seed), manifest)
                    row = dict(zip(("pack", "chain", "eps", "seed"), name, strict=True)) | {"test": found}
                    with out.open("a") as lines:
                        lines.write(json.dumps(row) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """What was run."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Markdown: a line for each pack, method and epsilon; mean ± standard deviation over seeds."""
    yield "| data | method | ε | AUROC | AUROC, worst site | ECE | ECE, worst site | log loss |"
    yield "|---|---|---|---|---|---|---|---|"
    keys = sorted({(r["pack"], r["chain"], r["eps"] or 1e9) for r in rows})
    for pack, chain, eps in keys:
        these = [r["test"] for r in rows if (r["pack"], r["chain"], r["eps"] or 1e9) == (pack, chain, eps)]
        cells = [
            cell([t["pooled"]["auroc"] for t in these]),
            cell([min(s["auroc"] for n, s in t.items() if n != "pooled" and s["auroc"] is not None) for t in these]),
            cell([t["pooled"]["ece"] for t in these]),
            cell([max(s["ece"] for n, s in t.items() if n != "pooled") for t in these]),
            cell([t["pooled"]["nll"] for t in these]),
        ]
        yield f"| {pack} | `{chain}` | {'∞' if eps == 1e9 else f'{eps:g}'} | {' | '.join(cells)} |"


def cell(values: list[float]) -> str:
    """ "0.712 ± 0.014"."""
    return f"{mean(values):.3f} ± {stdev(values):.3f}" if len(values) > 1 else f"{values[0]:.3f}"


AT = {1.0: 0.0, 2.0: 1.0, 4.0: 2.0, 8.0: 3.0, 1e9: 4.2}
"""Where each epsilon lies across; without privacy a little apart."""
COLOURS = {
    "probe": "#0072b2",
    "vpt": "#009e73",
    "lora": "#d55e00",
    "ffa_lora": "#cc79a7",
    "rolora": "#e69f00",
    "fedsvd": "#666",
}
PANEL, GAP = (250.0, 150.0), (60.0, 50.0)


def picture(rows: list[dict[str, Any]]) -> str:
    """SVG: AUROC and calibration error against epsilon, a column for each pack; means over seeds, and every seed."""
    packs = sorted({row["pack"] for row in rows})
    parts = [panel(rows, pack, key, i, j) for i, pack in enumerate(packs) for j, key in enumerate(("auroc", "ece"))]
    names = [name for name in COLOURS if any(row["chain"] == name for row in rows)]
    legend = "".join(
        f'<text x="{60 + 105 * i}" y="20" fill="{COLOURS[name]}" font-weight="600">● {name}</text>'
        for i, name in enumerate(names)
    )
    width, height = 60 + len(packs) * (PANEL[0] + GAP[0]), 50 + 2 * (PANEL[1] + GAP[1])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" font-family="sans-serif" '
        f'font-size="12"><rect width="100%" height="100%" fill="#fff"/>{legend}{"".join(parts)}</svg>\n'
    )


def panel(rows: list[dict[str, Any]], pack: str, key: str, column: int, line: int) -> str:
    """One chart of a figure on one pack."""
    left, top = 60 + column * (PANEL[0] + GAP[0]), 50 + line * (PANEL[1] + GAP[1])
    low, high = (0.5, 1.0) if key == "auroc" else (0.0, 0.4)

    def x(epsilon: float) -> float:
        return left + 10 + (PANEL[0] - 20) * AT[epsilon] / 4.2

    def y(value: float) -> float:
        return top + PANEL[1] * (high - min(max(value, low), high)) / (high - low)

    parts = [f'<text x="{left}" y="{top - 8}" font-weight="600">{pack}: {"AUROC" if key == "auroc" else "ECE"}</text>']
    for tick in (low, (low + high) / 2, high):
        parts.append(f'<path d="M{left} {y(tick):.1f}h{PANEL[0]}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 6}" y="{y(tick) + 4:.1f}" text-anchor="end" fill="#555">{tick:g}</text>')
    for epsilon in AT:
        word = "no privacy" if epsilon == 1e9 else f"ε = {epsilon:g}"
        parts.append(
            f'<text x="{x(epsilon):.1f}" y="{top + PANEL[1] + 16}" text-anchor="middle" fill="#555">{word}</text>'
        )
    for name, colour in COLOURS.items():
        found: dict[float, list[float]] = {}
        for row in rows:
            if (row["pack"], row["chain"]) == (pack, name):
                found.setdefault(row["eps"] or 1e9, []).append(row["test"]["pooled"][key])
        middle = [(x(epsilon), y(mean(found[epsilon]))) for epsilon in AT if epsilon in found]
        dots = [(x(epsilon), y(value)) for epsilon, values in found.items() for value in values]
        parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2" fill="{colour}" opacity="0.5"/>' for a, b in dots]
        parts.append(
            f'<polyline points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in middle)}" fill="none" stroke="{colour}" '
            'stroke-width="2"/>'
        )
    return "".join(parts)


if __name__ == "__main__":
    what, *given = sys.argv[1:]
    if what == "run":
        run(Path(given[0]), Path(given[1]), Path(given[2]), given[3:] or list(METHODS))
    elif what == "picture":
        Path(given[1]).write_text(picture(read(Path(given[0]))), encoding="utf-8")
    else:
        print("\n".join(table(read(Path(given[0])))))
