"""What a clinical lead should take from a comparison: sentences from its figures, never saying more than they do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from polyclinic.core.statistics.figures import Figure
from polyclinic.server.report import words
from polyclinic.server.report.findings.finding import Finding, Level
from polyclinic.simulations.compare.burden import PROPERTIES
from polyclinic.simulations.compare.estimate import figure

Json = dict[str, Any]
NOT_APART = "these data do not tell it apart"


def findings(document: Json) -> list[Finding]:
    """All answers, the most important first; an axis that was not measured says nothing."""
    made = [best(document, "merit", "Which does best?", "on average over {sites}")]
    if "robustness" in document["axes"]:
        made.append(
            best(document, "unseen", "At a hospital that took no part?", "at sites that were left out of training")
        )
        made.append(best(document, "shifted", "With another scanner?", "on test pictures shifted by a known amount"))
    if "labels" in document["axes"]:
        made.append(best(document, "labels", "With few labels?", "averaged over 5 to 100 % of the labelled patients"))
    made += [one for one in (price(document), review(document), plan_of_changes(document)) if one is not None]
    return made


def best(document: Json, what: str, topic: str, where: str) -> Finding:
    """Which variant has the best mean, from whom the data tell it apart, and from whom not."""
    metric, rows = document["metric"], _values(document, what)
    name = metric["name"] if metric["name"].isupper() else metric["name"].lower()
    where = where.format(sites=words.counted(len(document["sites"]), "site"))
    missing = tuple(f"No figure for {row}: {one.why}." for row, one in rows.items() if one.value is None)
    known = {row: one for row, one in rows.items() if one.value is not None}
    if not known:
        return Finding(topic, "unknown", f"These data cannot say: no method has {name} {where}.", missing)
    sign = 1.0 if metric["more_is_better"] else -1.0
    ranked = sorted(known, key=lambda row: (-sign * (known[row].value or 0.0), row))
    first, others = ranked[0], ranked[1:]
    figures = tuple(f"{row}: {words.ranged(known[row], full=True)}." for row in ranked)
    if not others:
        return Finding(
            topic, "note", f"{first} alone has a figure: {name} {words.ranged(known[first])} {where}.", missing
        )
    gaps = {row: _gap(document, what, first, row) for row in others}
    if len(document["seeds"]) == 1:
        text = (
            f"One seed cannot tell: {first} has the {_best(metric)} {name} {where}, "
            f"{words.number(known[first].value or 0.0)}; whether another seed would find the same, nothing here says."
        )
        return Finding(topic, "unknown", text, (*figures, *missing))
    # where some seeds are missing, the paired difference may point the other way than the means
    shown = [row for row in others if gaps[row]["shown"] and sign * gaps[row]["value"] > 0]
    level: Level = "good" if len(shown) == len(others) else "open"
    text = _verdict(first, shown, [row for row in others if row not in shown], f"{_best(metric)} {name} {where}")
    apart = tuple(_apart(first, row, gaps[row], name) for row in others)
    return Finding(topic, level, text, (*apart, *figures, *missing))


def price(document: Json) -> Finding | None:
    """What each costs against the cheapest, by what is exact or differs beyond its intervals."""
    rows = {row["name"]: row["cost"] for row in document["variants"] if row["cost"]}
    if not rows:
        return None
    up = {name: figure(cost["bytes_up"]) for name, cost in rows.items()}
    steps = {name: figure(cost["step_seconds"]) for name, cost in rows.items()}
    sizes = [f"{name} {words.size(one.value or 0)}" for name, one in _ordered(up)]
    text = f"A site sends in a round: {words.listing(sizes, most=8)}."
    flops = [
        f"{name} {operations(cost['step_flops'])}"
        for name, cost in sorted(rows.items(), key=lambda r: r[1]["step_flops"])
    ]
    more = [f"Operations of a training step, counted: {words.listing(flops, most=8)}."]
    times = [f"{name} {milliseconds(one)}" for name, one in _ordered(steps)]
    more.append(f"Seconds of a training step on this machine: {words.listing(times, most=8, joint='; ')}.")
    more += list(_latencies(rows))
    return Finding("What does it cost?", "note", text, tuple(more))


def review(document: Json) -> Finding | None:
    """What must be read, and whether contributions can be bounded and added in any order."""
    rows = {row["name"]: row["audit"] for row in document["variants"] if row["audit"]}
    if not rows:
        return None
    changed = sorted(rows.items(), key=lambda row: (row[1]["changed_numbers"], row[0]))
    sizes = [f"{name} {words.whole(audit['changed_numbers'])}" for name, audit in changed]
    text = f"Numbers that training changed and a reviewer must account for: {words.listing(sizes, most=8)}."
    more = []
    orderly = [name for name, audit in rows.items() if audit["any_order"]]
    if len(orderly) == len(rows):
        more.append("Contributions of sites gave the same bits in every order that was tried, for every method here.")
    elif strict := [name for name in rows if name not in orderly]:
        more.append(f"The order of contributions changed the result for {words.listing(strict)}.")
    loose = {name: audit["not_bounded_because"] for name, audit in rows.items() if not audit["bounded"]}
    for name, why in loose.items():
        more.append(f"{name}: a patient’s share cannot be bounded exactly ({'; '.join(dict.fromkeys(why.values()))}).")
    if not loose:
        more.append("Each patient’s gradient can be had exactly, and so be bounded, for every method here.")
    if own := [name for name, audit in rows.items() if audit["personal_tensors"]]:
        more.append(f"Sites keep a part of the model to themselves with {words.listing(own)}.")
    return Finding("What must be reviewed?", "note", text, tuple(more))


def plan_of_changes(document: Json) -> Finding | None:
    """How many points of a change control plan each raises, by the documented rule."""
    rows = {row["name"]: row["burden"] for row in document["variants"] if row["burden"]}
    if not rows:
        return None
    counts = {name: len(burden["points"]) for name, burden in rows.items()}
    by = [f"{name} {count}" for name, count in sorted(counts.items(), key=lambda row: (row[1], row[0]))]
    text = (
        f"Points that a predetermined change control plan must answer, by the rule below: {words.listing(by, most=8)}."
    )
    shared = set.intersection(*(_raised(burden) for burden in rows.values()))
    more = []
    for meaning in sorted(set().union(*(_raised(burden) for burden in rows.values())) - shared):
        having = [name for name, burden in rows.items() if meaning in _raised(burden)]
        more.append(f"Not with all, but with {words.listing(having, most=8)}: {meaning}.")
    return Finding("What would a regulator ask?", "note", text, tuple(more))


def _values(document: Json, what: str) -> dict[str, Figure]:
    def pick(row: Json) -> Json:
        if what == "merit":
            found: Json = row["merit"]
        elif what == "labels":
            found = row["labels"]["area"] if row["labels"] else _absent()
        else:
            found = row["robustness"][what] if row["robustness"] else _absent()
        return found

    return {row["name"]: figure(pick(row)) for row in document["variants"]}


def _absent() -> Json:
    return {"value": None, "low": None, "high": None, "why": "not measured"}


def _gap(document: Json, what: str, first: str, other: str) -> Json:
    """The paired difference ``first`` − ``other``."""
    for row in document["differences"]:
        if row["what"] != what or {row["a"], row["b"]} != {first, other}:
            continue
        if row["a"] == first or row["value"] is None:
            return dict(row)
        low, high = (None if limit is None else -limit for limit in (row["high"], row["low"]))
        return {**row, "value": -row["value"], "low": low, "high": high}
    return {**_absent(), "why": "not compared", "shown": False, "p_holm": None}


def _verdict(first: str, shown: Sequence[str], alike: Sequence[str], what: str) -> str:
    better, rest = words.listing(list(shown), most=8), f"{NOT_APART} from {words.listing(list(alike), most=8)}"
    if not shown:
        return f"No difference that these data can show: {first} has the {what}, but {rest}."
    if not alike:
        return f"{first} has the {what}, shown better than {better}."
    return f"{first} has the {what}, shown better than {better}; {rest}."


def _apart(first: str, other: str, gap: Json, name: str) -> str:
    found = figure(gap)
    if found.value is None:
        return f"{first} against {other}: {found.why}."
    p = gap["p_holm"]
    tested = "" if p is None else f", {words.probability(p)} after Holm’s correction"
    ending = "" if gap["shown"] else ": not told apart"
    return f"{first} − {other}, {name}: {words.ranged(found, sign=True)}{tested}{ending}."


def _best(metric: Json) -> str:
    return "highest" if metric["more_is_better"] else "lowest"


def _ordered(found: dict[str, Figure]) -> list[tuple[str, Figure]]:
    known = {name: one for name, one in found.items() if one.value is not None}
    return sorted(known.items(), key=lambda row: (row[1].value or 0.0, row[0]))


def _latencies(rows: dict[str, Json]) -> Iterator[str]:
    """Which answer more slowly than the frozen model, beyond their intervals, and which that cannot be said of."""
    ratios = {name: figure(cost["latency"]) for name, cost in rows.items()}
    slower = [f"{n} ({words.ranged(r)} times)" for n, r in ratios.items() if r.low is not None and r.low > 1.0]
    faster = [f"{n} ({words.ranged(r)} times)" for n, r in ratios.items() if r.high is not None and r.high < 1.0]
    alike = [n for n, r in ratios.items() if r.low is None or r.high is None or r.low <= 1.0 <= r.high]
    if slower:
        yield f"Slower to answer than the frozen model, unmerged: {words.listing(slower, most=8, joint='; ')}."
    if faster:
        yield f"Faster to answer than the frozen model: {words.listing(faster, most=8, joint='; ')}."
    if alike:
        said = "No difference in latency from the frozen model that these timings can show"
        yield f"{said}: {words.listing(alike, most=8)}."


def _raised(burden: Json) -> set[str]:
    return {PROPERTIES[name] for name, holds in burden["properties"].items() if holds}


def operations(count: float) -> str:
    """ "3.2 GFLOP"."""
    for unit, scale in (("TFLOP", 1e12), ("GFLOP", 1e9), ("MFLOP", 1e6), ("kFLOP", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count:.0f} FLOP"


def milliseconds(one: Figure) -> str:
    """ "3.1 ms (3.0 to 3.2)" of seconds."""
    if one.value is None:
        return str(one.why)
    limits = "no interval" if one.low is None or one.high is None else f"{1e3 * one.low:.1f} to {1e3 * one.high:.1f}"
    return f"{1e3 * one.value:.1f} ms ({limits})"
