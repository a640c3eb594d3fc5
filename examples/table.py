"""Prints a Markdown table of runs: per site, the federation beside training alone and all data pooled, and the shift.

python examples/table.py RUN [RUN …]      several runs of one study under several seeds are averaged
"""

from __future__ import annotations

import sys
from statistics import mean, stdev
from typing import Any

import polyclinic

COLUMNS = (("AUROC", "auroc"), ("ECE", "ece"), ("NLL", "nll"))


def main(folders: list[str]) -> None:
    """Prints the table of the runs in ``folders``."""
    summaries = [polyclinic.read_run(folder).summary for folder in folders]
    seeds = ", ".join(str(summary["seed"]) for summary in summaries)
    print(f"{summaries[0]['study']}, {summaries[0]['rounds']} rounds, seed {seeds}, test images\n")
    heads = [f"{title} {how}" for title, _ in COLUMNS for how in ("federated", "alone", "central")]
    print("| site | images (patients) |", " | ".join(heads), "| Fréchet | MMD² (p) | PSI | prevalence |")
    print("|" + "---|" * (len(heads) + 6))
    for site in summaries[0]["sites"]:
        rows = [summary["sites"][site] for summary in summaries]
        cells = [cell(rows, how, key) for _, key in COLUMNS for how in ("metrics", "alone", "central")]
        n, shift = rows[0]["n"]["test"], rows[0]["shift"]
        moved = [
            number(shift["frechet"]),
            f"{number(shift['mmd2'])} ({shift['p_value']:.1g})",
            number(shift["intensity_psi"]),
        ]
        print(f"| {site} | {n['images']} ({n['patients']}) |", " | ".join([*cells, *moved]), f"| {prevalence(shift)} |")


def cell(rows: list[dict[str, Any]], how: str, key: str) -> str:
    """One run: value and interval. Several: mean and standard deviation over seeds."""
    figures = [row[how]["test"][key] for row in rows if "test" in row.get(how, {})]
    values = [figure["value"] for figure in figures if figure["value"] is not None]
    if not values:
        return f"– ({figures[0]['why']})" if figures else "–"
    if len(values) == 1:
        return f"{values[0]:.3f} ({figures[0]['low']:.3f}–{figures[0]['high']:.3f})"
    return f"{mean(values):.3f} ± {stdev(values):.3f}"


def number(value: float | None) -> str:
    """Three decimals, or a dash."""
    return "–" if value is None else f"{value:.3f}"


def prevalence(shift: dict[str, Any]) -> str:
    """Share of the positive class among training patients."""
    shares = shift["prevalence"]
    return "–" if shares is None else f"{shares[-1]:.0%}"


if __name__ == "__main__":
    main(sys.argv[1:])
