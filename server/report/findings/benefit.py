"""Was it worth federating, for whom, and who is worst off."""

from __future__ import annotations

from polyclinic.core.statistics.figures import Figure
from polyclinic.core.statistics.metrics import Metric
from polyclinic.server.report import compare, data, words
from polyclinic.server.report.compare import Verdict
from polyclinic.server.report.data import Evidence, known, pick
from polyclinic.server.report.findings.finding import FEW, NONE_SHOWN, Finding, Level, without

ANSWERS: dict[Verdict, str] = {"better": "Yes", "worse": "No", "open": NONE_SHOWN.capitalize(), "unknown": "Unknown"}
LEVELS: dict[Verdict, Level] = {"better": "good", "worse": "bad", "open": "open", "unknown": "unknown"}
COARSE = 0.05
"""Half-width of exactness from which an AUROC is too coarse to be a starting point: a fresh model's scores all tie."""


def worth(evidence: Evidence) -> Finding:
    """Was it worth federating? The mean over sites of federated less alone."""
    metric, topic = evidence.metric, "Was it worth federating?"
    more = (*against_central(evidence), *learned(evidence))
    gains = compare.against(evidence, "alone")
    if not gains:
        text = "This run cannot say: no model was trained at a site alone (polyclinic simulate --baselines does it)."
        return Finding(topic, "unknown", text, more)
    together = compare.mean(list(gains.values()))
    if together.value is None:
        text = f"These data cannot say: no site has {metric.inline} for both the federated model and its own."
        return Finding(topic, "unknown", text, more)
    count = sum(gain.value is not None for gain in gains.values())
    over = "at one site" if count == 1 else f"on average over {count} sites"
    shown = compare.verdict(together, metric)
    text = f"{ANSWERS[shown]}: {over}, {than(metric, together)} each site training alone."
    return Finding(topic, LEVELS[shown], text, more)


def than(metric: Metric, gap: Figure) -> str:
    """ "AUROC is 0.061 higher (95 % interval +0.020 to +0.100) than with"."""
    way = "higher" if (gap.value or 0.0) >= 0 else "lower"
    bracket = words.ranged(gap, sign=True, full=True).partition(" (")[2]
    return f"{metric.inline} is {words.number(abs(gap.value or 0.0))} {way} ({bracket} than with"


def against_central(evidence: Evidence) -> tuple[str, ...]:
    """What not pooling the images in one place costs."""
    together = compare.mean(list(compare.against(evidence, "central").values()))
    if together.value is None:
        return ()
    end = f": {NONE_SHOWN}." if compare.verdict(together, evidence.metric) == "open" else "."
    return (f"On average {than(evidence.metric, together)} one model trained on all images in one place{end}",)


def learned(evidence: Evidence) -> tuple[str, ...]:
    """How far training moved the pooled figure, where the same sites told it before and after."""
    if not evidence.rounds:
        return ()
    first, last = evidence.rounds[0], evidence.pooled.get("val")
    told = {site.name for site in evidence.sites if known(site.federated.get("val", {}))}
    if {name for name, found in first.arrived.items() if known(found)} != told:
        return ()
    coarse = pick(first.pooled, evidence.metric.key).bound > COARSE
    finer = [m for m in evidence.judged.metrics if m.key == "nll" and coarse]
    metric = finer[0] if finer else evidence.metric
    before, after = pick(first.pooled, metric.key), pick(last, metric.key)
    moved = compare.apart(after, before)
    if before.value is None or after.value is None or moved.value is None:
        return ()
    ending = f", {NONE_SHOWN}" if compare.verdict(moved, metric) == "open" else ""
    return (
        f"In {words.counted(len(evidence.rounds), 'round')} the pooled {metric.inline} on validation images went from "
        f"{words.number(before.value)} to {words.number(after.value)}: {words.ranged(moved, sign=True)}{ending}.",
    )


def for_whom(evidence: Evidence) -> Finding | None:
    """Which sites gained, lost, or show nothing against training alone."""
    gains = compare.against(evidence, "alone")
    if not gains:
        return None
    by: dict[Verdict, list[str]] = {"better": [], "worse": [], "open": [], "unknown": []}
    for name, gain in sorted(gains.items(), key=lambda pair: -abs(pair[1].value or 0.0)):
        ending = f"({gain.why})" if gain.value is None else words.ranged(gain, sign=True)
        by[compare.verdict(gain, evidence.metric)].append(f"{name} {ending}")
    count = len(gains) - len(by["unknown"])
    text = (
        f"Of {words.counted(count, 'site')} that can be compared, a gain is shown at {len(by['better']) or 'none'}, "
        f"a loss at {len(by['worse']) or 'none'}."
    )
    heads = {"better": "Gain", "worse": "Loss", "open": NONE_SHOWN.capitalize(), "unknown": "Cannot be compared"}
    more = tuple(f"{heads[kind]}: {words.listing(names, joint='; ')}." for kind, names in by.items() if names)
    if count >= FEW:
        more += (f"Where nothing differs, 1 interval in 20 leaves out 0: of {count}, {count / 20:g} on average.",)
    level: Level = "bad" if by["worse"] else "good" if by["better"] else "open" if count else "unknown"
    return Finding("For whom?", level, text, more)


def worst_off(evidence: Evidence) -> Finding:
    """The site with the worst figure, and how far it is from the pooled one."""
    metric, split, topic = evidence.metric, evidence.split, "Who is worst off?"
    found = compare.judged(evidence)
    more, having = without(metric.inline, found), sum(figure.value is not None for figure in found.values())
    name, figure = compare.worst(evidence)
    if not name:
        return Finding(topic, "unknown", f"These data cannot say: no site has {metric.name}.", more)
    extreme = "lowest" if metric.more_is_better else "highest"
    rank = "the only site with this figure" if having == 1 else f"the {extreme} of {words.counted(having, 'site')}"
    text = f"{name}: {metric.name} {words.ranged(figure, full=True)} on {data.SPLITS[split]} images, {rank}."
    pooled = pick(evidence.pooled.get(split), metric.key)
    gap = compare.apart(figure, pooled)
    if gap.value is not None and having > 1:
        ending = f", {NONE_SHOWN}" if compare.verdict(gap, metric) == "open" else ""
        less = f"This site less pooled: {words.ranged(gap, sign=True)}{ending}."
        more = (f"Pooled over sites: {words.ranged(pooled)}. {less}", *more)
    if having >= FEW:
        more += (f"The {extreme} of {having} is so in part by chance, for which these intervals do not allow.",)
    return Finding(topic, "note", text, more)
