"""Who is miscalibrated, who is shifted, and who was set aside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from polyclinic.server.report import compare, words
from polyclinic.server.report.data import NOT_TOLD, Evidence, Shift, pick
from polyclinic.server.report.findings.finding import FEW, Finding, without


def miscalibrated(evidence: Evidence) -> Finding:
    """Where probabilities are off by more than chance explains, and which way."""
    split, topic = evidence.split, "Who is miscalibrated?"
    found = {site.name: site.figure("federated", split, "ece") for site in evidence.sites}
    having = [site for site in evidence.sites if found[site.name].value is not None]
    off = sorted((s for s in having if compare.miscalibrated(found[s.name])), key=lambda s: -(found[s.name].value or 0))
    more = tuple(
        f"{site.name}: calibration error {words.ranged(found[site.name])}"
        + (f"; {compare.leaning(site.bins[split], evidence.kind)}." if site.bins.get(split) else ".")
        for site in off[:5]
    )
    pooled = pick(evidence.pooled.get(split), "ece")
    if pooled.value is not None:
        ending = "" if compare.miscalibrated(pooled) else ", which chance may explain"
        more += (f"Pooled over sites: {words.ranged(pooled)}{ending}.",)
    more += without("calibration error", found)
    if len(having) >= FEW:
        more += (f"Of {len(having)} perfectly calibrated sites {len(having) / 40:g} would be named here on average.",)
    if not having:
        return Finding(topic, "unknown", "These data cannot say: no site has a calibration error.", more)
    among = words.counted(len(having), "site")
    if not off:
        return Finding(topic, "open", f"Nobody that these data can show, among {among}.", more)
    names = words.listing([site.name for site in off])
    text = f"{names}: {len(off)} of {among} with a calibration error beyond what chance explains."
    return Finding(topic, "bad", text, more)


def shifted(evidence: Evidence) -> Finding:
    """Whose images differ from the others', by a test of features and by brightness."""
    topic = "Who is shifted?"
    shifts = {site.name: site.shift for site in evidence.sites}
    adjusted = compare.holm({name: s.p_value for name, s in shifts.items() if s.p_value is not None})
    off = sorted((name for name, p in adjusted.items() if p < compare.LEVEL), key=lambda n: (adjusted[n], n))
    more = (
        *brightness({name: s.psi for name, s in shifts.items() if s.psi is not None}),
        *furthest({name: s.frechet for name, s in shifts.items() if s.frechet is not None}),
        *prevalences(evidence),
        *untested(evidence),
    )
    if noisy := {name: s for name, s in shifts.items() if s.mmd2_noise is not None and s.mmd2 is not None}:
        return beyond_noise(topic, noisy, more)
    if not adjusted:
        return Finding(topic, "unknown", "These data cannot say: no site could be tested for shift.", more)
    among = words.counted(len(adjusted), "site")
    if not off:
        return Finding(topic, "open", f"Nobody that these data can show, among {among} tested.", more)
    names = words.listing([f"{name} ({words.probability(adjusted[name])})" for name in off])
    text = f"{names}: the images of {len(off)} of {among} differ from all others’ (MMD test, Holm’s correction)."
    return Finding(topic, "note", text, more)


def beyond_noise(topic: str, noisy: Mapping[str, Shift], more: tuple[str, ...]) -> Finding:
    """Under privacy: at whom the distance of features is more than the noise on it would make."""
    far = {name: s for name, s in noisy.items() if (s.mmd2 or 0.0) > 2.0 * (s.mmd2_noise or 0.0)}
    among = words.counted(len(noisy), "site")
    if not far:
        return Finding(topic, "open", f"Nobody that can be told from the noise of privacy, among {among}.", more)
    rows = sorted(far.items(), key=lambda pair: -(pair[1].mmd2 or 0.0))
    said = [
        f"{name} (MMD² {words.number(s.mmd2 or 0.0)}, noise ±{words.number(s.mmd2_noise or 0.0)})" for name, s in rows
    ]
    text = f"{words.listing(said)}: features lie off by more than twice the noise at {len(far)} of {among}."
    return Finding(topic, "note", text, more)


def brightness(psi: Mapping[str, float]) -> tuple[str, ...]:
    """Sites by the reading of their stability index."""
    if not psi:
        return ()
    by: dict[str, list[str]] = {}
    for name in sorted(psi, key=lambda name: (-psi[name], name)):
        by.setdefault(compare.stability(psi[name]), []).append(f"{name} ({psi[name]:.2f})")
    said = [f"{reading} shift at {words.listing(by[reading])}" for reading in ("marked", "some") if reading in by]
    return (f"Brightness (PSI): {'; '.join(said) if said else f'below 0.1 at all {len(psi)}'}.",)


def furthest(frechet: Mapping[str, float]) -> tuple[str, ...]:
    """The site whose features lie furthest from the others'."""
    if len(frechet) < 2:
        return ()
    name = max(sorted(frechet), key=frechet.__getitem__)
    return (f"Features lie furthest off at {name}: squared Fréchet distance {words.number(frechet[name])}.",)


def prevalences(evidence: Evidence) -> tuple[str, ...]:
    """From the least to the greatest share of patients with the positive class."""
    if evidence.kind != "binary":
        return ()
    found = {s.name: s.shift.prevalence[1] for s in evidence.sites if len(s.shift.prevalence) == 2}
    shares = {name: value for name, value in found.items() if value is not None}
    if len(shares) < 2:
        return ()
    head = f"Patients with class {evidence.classes[1]}:"
    low, high = (choose(sorted(shares), key=shares.__getitem__) for choose in (min, max))
    if words.share(shares[low]) == words.share(shares[high]):
        return (f"{head} {words.share(shares[low])} at every site.",)
    return (f"{head} from {words.share(shares[low])} ({low}) to {words.share(shares[high])} ({high}).",)


def untested(evidence: Evidence) -> tuple[str, ...]:
    """Who could not be tested, and why."""
    if evidence.sites and all(s.shift.mmd2_noise is not None for s in evidence.sites):
        return ("No p-value: under privacy too little is told of how features vary within a site.",)
    rows = [f"{s.name} ({s.shift.why or NOT_TOLD})" for s in evidence.sites if s.shift.p_value is None]
    return (f"Not tested: {words.listing(rows)}.",) if rows else ()


def set_aside(evidence: Evidence) -> Finding:
    """Whose replies did not count, when and why."""
    topic, last = "Was anybody set aside?", evidence.facts.get("excluded") or {}
    rows: dict[tuple[str, str], list[str]] = {}
    for one in evidence.rounds:
        for name, why in one.excluded.items():
            rows.setdefault((name, why), []).append(str(one.number))
    for name, why in last.items():
        rows.setdefault((name, why), []).append("the last evaluation")
    rounds = words.counted(len(evidence.rounds), "round")
    span = f"{rounds} and the last evaluation" if evidence.finished else f"{rounds} so far"
    if not rows:
        return Finding(topic, "good", f"Nobody, in {span}.")
    names = words.listing(sorted({name for name, _ in rows}))
    more = tuple(f"{name}, in {when(places)}: {why}." for (name, why), places in list(rows.items())[:5])
    if len(rows) > 5:
        more += ("The rest stands below, round by round.",)
    return Finding(topic, "bad", f"{names}, at least once in {span}.", more)


def when(places: Sequence[str]) -> str:
    """ "round 3", "rounds 3, 4 and the last evaluation"."""
    numbers = [place for place in places if place.isdigit()]
    head = f"round{'' if len(numbers) == 1 else 's'} " if numbers else ""
    return head + words.listing(list(places), most=8)
