"""The report's tables: every figure that a chart shows, and more, as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from polyclinic.core.privacy.receipt import SIMULATED
from polyclinic.core.statistics.figures import Figure
from polyclinic.core.statistics.metrics import Metric
from polyclinic.server.report import compare, words
from polyclinic.server.report.charts import rounds
from polyclinic.server.report.data import SPLITS, Evidence, Json, Model, Site, dumps, pick

MODELS: tuple[Model, ...] = ("federated", "alone", "central")


@dataclass(frozen=True)
class Cell:
    """What a cell says, what it adds in small print, and whether it is a number."""

    text: str
    note: str = ""
    number: bool = True


@dataclass(frozen=True)
class Table:
    """A caption, heads of columns, and rows whose first cell is their head."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def cell(figure: Figure, *, sign: bool = False) -> Cell:
    """A figure with its interval below; a dash and the reason where there is none."""
    if figure.value is None:
        return Cell("–", str(figure.why))
    write = words.signed if sign else words.number
    notes = [] if figure.low is None or figure.high is None else [f"{write(figure.low)} to {write(figure.high)}"]
    notes += [f"noise ±{words.number(figure.noise)}"] if figure.noise >= 0.0005 else []
    notes += [f"binned ±{words.number(figure.bound)}"] if figure.bound >= 0.0005 else []
    # each breaks as a whole: an interval on two lines is hard to read
    return Cell(write(figure.value), " ".join(note.replace(" ", "\N{NO-BREAK SPACE}") for note in notes))


def name(text: str, note: str = "") -> Cell:
    """The head of a row."""
    return Cell(text, note, number=False)


def sites(evidence: Evidence) -> Table:
    """Every figure of the model at every site, and pooled; how many judge it is told at the end."""
    split, done = evidence.split, evidence.finished
    head = ("Site", *(["Images"] if done else []), *(metric.name for metric in evidence.judged.metrics))
    rows = [
        (
            name(s.name, s.excluded or dated(evidence, s)),
            *([people(s, split)] if done else []),
            *(cell(s.figure("federated", split, m.key)) for m in evidence.judged.metrics),
        )
        for s in evidence.sites
    ]
    sizes = [s.sizes[split] for s in evidence.sites if split in s.sizes]
    total = Cell(words.whole(sum(n for n, _ in sizes)), words.counted(sum(n for _, n in sizes), "patient"))
    figures = (cell(pick(evidence.pooled.get(split), m.key)) for m in evidence.judged.metrics)
    pooled = (name("Pooled"), *([total] if done else []), *figures)
    return Table(f"The {'final ' if done else ''}model on {SPLITS[split]} images", head, (*rows, pooled))


def privacy(evidence: Evidence) -> Table | None:
    """What each site says that it spent, in a private study; with unit and adjacency in the caption."""
    told = [site for site in evidence.sites if site.privacy]
    if not told:
        return None
    rows = [
        (
            name(s.name, SIMULATED if s.privacy["generator"] == "simulated" else ""),
            plain(s.privacy["study"]),
            Cell(f"{s.privacy['delta']:g}"),
            Cell(str(s.privacy["mechanism"]), number=False),
            Cell(str(s.privacy["head"])[:12], number=False),
        )
        for s in told
    ]
    units = sorted({str(s.privacy["unit"]) for s in told})
    caption = f"Privacy spent, by {' or '.join(units)} ({told[0].privacy['adjacency']}), as each site's ledger has it"
    head = (
        "Site",
        "ε, this study",
        "δ",
        "How the last round was noised",
        "Ledger head",
    )
    return Table(caption, head, tuple(rows))


def central(evidence: Evidence) -> Table | None:
    """What the global adapters cost any one site, of a study with noise at the server."""
    told = evidence.facts.get("privacy")
    if told is None:
        return None
    readers = {"study": "the global adapters alone", "known": "these, and who was asked in which round"}
    rows = [(name(what), plain(told[key]), Cell(f"{told['delta']:g}")) for key, what in readers.items()]
    simulated = f"{SIMULATED}; " if told["generator"] == "simulated" else ""
    caption = f"Privacy of whole sites, by site ({told['adjacency']}): {simulated}{told['mechanism']}"
    return Table(caption, ("For whoever sees", "ε", "δ"), tuple(rows))


def dated(evidence: Evidence, site: Site) -> str:
    """Which model a site told of last, where that is not the last one of all."""
    newest = max((s.trained for s in evidence.sites if s.trained is not None), default=None)
    old = site.trained is not None and site.trained != newest
    return f"model of {words.counted(site.trained or 0, 'round')}" if old else ""


def people(site: Site, split: str) -> Cell:
    """Images, and patients below."""
    if split not in site.sizes:
        return Cell("–")
    images, patients = site.sizes[split]
    return Cell(words.whole(images), words.counted(patients, "patient"))


def compared(evidence: Evidence) -> Table:
    """Federated, alone and central at every site, with their differences."""
    metric, split = evidence.metric, evidence.split
    rows = []
    for site in evidence.sites:
        own, alone, central = (site.figure(model, split, metric.key) for model in MODELS)
        less_alone, less_central = compare.apart(own, alone), compare.apart(own, central)
        figures = (cell(own), cell(alone), cell(central), cell(less_alone, sign=True), cell(less_central, sign=True))
        rows.append((name(site.name), *figures))
    head = ("Site", "Federated", "Alone", "Central", "Federated − alone", "Federated − central")
    return Table(f"{metric.name} on {SPLITS[split]} images, with 95 % intervals", head, tuple(rows))


def shifts(evidence: Evidence) -> Table:
    """Every statistic of shift; p-values also after Holm's correction."""
    tested = {s.name: s.shift.p_value for s in evidence.sites if s.shift.p_value is not None}
    adjusted = compare.holm(tested)
    acquired = any(s.shift.taken is not None for s in evidence.sites)  # PNG and the like say nothing of it
    rows = [
        (
            name(s.name, s.shift.why),
            plain(s.shift.frechet),
            plain(s.shift.mmd2, "" if s.shift.mmd2_noise is None else f"noise ±{words.number(s.shift.mmd2_noise)}"),
            chance(s.shift.p_value),
            chance(adjusted.get(s.name)),
            plain(s.shift.psi, compare.stability(s.shift.psi) if s.shift.psi is not None else ""),
            *([plain(s.shift.taken, s.shift.taken_field)] if acquired else ()),
            classes(evidence, s),
        )
        for s in evidence.sites
    ]
    devices = ("How taken, JS",) if acquired else ()
    head = ("Site", "Fréchet²", "MMD²", "p", "p, Holm", "Brightness PSI", *devices, "Patients with class")
    images = "validation images, under privacy," if "privacy" in evidence.study else "training images"
    return Table(f"Each site's {images} against all others' together", head, tuple(rows))


def plain(value: float | None, note: str = "") -> Cell:
    """A number without an interval."""
    return Cell("–") if value is None else Cell(words.number(value), note)


def chance(p: float | None) -> Cell:
    """A p-value."""
    return Cell("–" if p is None else words.probability(p).removeprefix("p ").removeprefix("= "))


def classes(evidence: Evidence, site: Site) -> Cell:
    """Share of patients by class; of two classes, the positive one."""
    named = [
        f"{label}: {words.share(value)}"
        for label, value in zip(evidence.classes, site.shift.prevalence, strict=False)
        if value is not None
    ]
    return Cell(", ".join(named[1:] if evidence.kind == "binary" else named) or "–", number=False)


def trajectory(metric: Metric, tracks: Sequence[rounds.Track], caption: str) -> Table:
    """A figure by site and rounds trained."""
    columns = sorted({at for track in tracks for at, _ in track.points})
    rows = []
    for track in tracks:
        found = dict(track.points)
        values = [found[at].value if at in found else None for at in columns]
        rows.append((name(track.name), *(plain(value) for value in values)))
    return Table(f"{metric.name}, {caption}, by rounds trained", ("Site", *map(str, columns)), tuple(rows))


def travelled(evidence: Evidence) -> Table:
    """Every round: who took part, what moved, who was set aside and why."""
    rows = [
        (
            name(str(r.number)),
            Cell(str(len(r.arrived))),
            Cell(words.size(r.up)),
            Cell(words.size(r.down)),
            Cell(words.duration(r.seconds)),
            Cell(reasons(r.excluded), number=False),
        )
        for r in evidence.rounds
    ]
    if evidence.finished:
        rows.append(last_row(evidence))
    totals = (Cell(words.size(evidence.facts["bytes_up"])), Cell(words.size(evidence.facts["bytes_down"])))
    rows.append((name("Total"), Cell(""), *totals, Cell(words.duration(evidence.facts["seconds"])), Cell("")))
    head = ("Round", "Sites", "From sites", "To sites", "Time", "Set aside, and why")
    return Table("Round by round", head, tuple(rows))


def last_row(evidence: Evidence) -> tuple[Cell, Cell, Cell, Cell, Cell, Cell]:
    """The last evaluation, as a row of what travelled."""
    last, out = last_evaluation(evidence), evidence.facts.get("excluded") or {}
    took_part = sum(1 for site in evidence.sites if not site.excluded)
    moved = (Cell(words.size(last[0])), Cell(words.size(last[1])))
    return name("Last evaluation"), Cell(str(took_part)), *moved, Cell("–"), Cell(reasons(out), number=False)


def last_evaluation(evidence: Evidence) -> tuple[int, int]:
    """Bytes (from, to the sites) of the last evaluation: the totals less all rounds."""
    up = int(evidence.facts["bytes_up"]) - sum(r.up for r in evidence.rounds)
    return max(0, up), max(0, int(evidence.facts["bytes_down"]) - sum(r.down for r in evidence.rounds))


def reasons(excluded: Mapping[str, str]) -> str:
    """ "harbour: too late; north: …"."""
    return "; ".join(f"{site}: {why}" for site, why in sorted(excluded.items())) or "nobody"


def settings(study: Json) -> list[Table]:
    """The study's settings, a table a section."""
    groups: list[tuple[str, Json]] = []
    for key, value in study.items():
        if isinstance(value, list):
            groups += [(f"{spaced(key)} {i}", table) for i, table in enumerate(value, start=1)]
        elif isinstance(value, Mapping):
            groups.append((spaced(key), value))
    return [Table(title, ("Setting", "Value"), tuple(flat(group))) for title, group in groups]


def flat(group: Json, before: str = "") -> list[tuple[Cell, ...]]:
    """Rows of a section, those of its tables included."""
    rows: list[tuple[Cell, ...]] = []
    for key, value in group.items():
        if isinstance(value, Mapping):
            rows += flat(value, f"{before}{spaced(key)}: ".lower())
        else:
            rows.append((name(before + (spaced(key).lower() if before else spaced(key))), name(setting(value))))
    return rows


def spaced(key: str) -> str:
    """ "learning_rate" as "Learning rate"."""
    return key.replace("_", " ").capitalize()


def setting(value: Any) -> str:
    """A value as people read it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(dumps(item) for item in value) if isinstance(value, list) else dumps(value)
