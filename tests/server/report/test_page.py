"""The page: whole, self-contained, accessible, and written for every shape of run."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from polyclinic.core.errors import RunError
from polyclinic.server.report import page
from polyclinic.server.report.data import Evidence, Site

SVG = "{http://www.w3.org/2000/svg}"
VOID = {"meta", "link", "br", "img", "input", "hr"}
CSS = Path(page.__file__).with_name("templates") / "style.css"


class Page(HTMLParser):
    """Tags with their attributes; refuses what is not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def pictures(text: str) -> Iterator[ElementTree.Element]:
    for found in re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL):
        yield ElementTree.fromstring(found)  # our own output: nothing to defend against


def sound(evidence: Evidence) -> str:
    """The page of ``evidence``, after every check that holds for any page."""
    text = page.render(evidence)
    tags = Page(text).tags
    names = [tag for tag, _ in tags]
    assert ("html", {"lang": "en"}) in tags
    assert names.count("h1") == 1
    assert not {"script", "link", "img", "iframe", "object"} & set(names)
    assert names.count("table") == names.count("caption")
    assert all(attributes.get("scope") in ("col", "row") for tag, attributes in tags if tag == "th")
    assert not [a for _, a in tags if any("//" in (a.get(key) or "") for key in ("src", "href", "srcset", "action"))]
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {a.get("href") for tag, a in tags if tag == "a"} <= {f"#{name}" for name in ids}
    headings = [int(tag[1]) for tag in names if re.fullmatch(r"h[1-6]", tag)]
    assert all(later <= earlier + 1 for earlier, later in pairwise(headings))
    for picture in pictures(text):
        drawn_within(picture)
    return text


def drawn_within(picture: ElementTree.Element) -> None:
    """A picture has a size, names itself or is decoration, holds only finite numbers, and stays within its edges."""
    left, top, width, height = map(float, picture.get("viewBox", "").split())
    if picture.get("aria-hidden") != "true":
        assert picture.get("role") == "img"
        assert picture.findtext(f"{SVG}title")
        assert picture.findtext(f"{SVG}desc")
    for part in picture.iter():
        assert not [v for v in part.attrib.values() if re.search(r"\b(nan|inf)\b", v)]
        for x, y in (("x", "y"), ("cx", "cy"), ("x1", "y1"), ("x2", "y2")):
            if x in part.attrib:
                assert left <= float(part.attrib[x]) <= left + width
                assert top <= float(part.attrib[y]) <= top + height


def test_five_sites_with_everything(five: Any) -> None:
    text = sound(five.evidence)
    for words in ("harbour: no answer within 14400 s", "only one class present", "fewer than 10 patients", "ab" * 32):
        assert words in text.replace("\N{NO-BREAK SPACE}", " ")
    for heading in ("Federated against alone and central", "Calibration", "Shift between sites", "Digests"):
        assert heading in text


def test_two_sites_one_round_no_baselines_no_map(two: Any) -> None:
    text = sound(two.evidence)
    assert "Federated against alone and central" not in text
    assert "There is no map" in text


def test_fifty_sites_stay_readable(fifty: Any) -> None:
    text = sound(fifty.evidence)
    assert text.count("The other 38 sites") == 2
    assert len(text) < 1_000_000


def test_nothing_is_fetched(five: Any) -> None:
    text = page.render(five.evidence)
    assert "default-src 'none'" in text
    assert not re.search(r"url\(|@import|\bsrc=", text)
    assert set(re.findall(r"https?://[^\"'\s<]+", text)) == {"http://www.w3.org/2000/svg"}


def test_names_and_reasons_are_escaped(five: Any) -> None:
    evil = "</svg><script>alert('&\")</script>"
    evidence: Evidence = five.evidence
    sites = (*evidence.sites[1:], replace(evidence.sites[0], name=evil))
    first = replace(evidence.rounds[0], excluded={evil: evil})
    places = {evil: (0.1, 0.1), **evidence.places}
    facts = {**evidence.facts, "study": evil, "excluded": {evil: evil}}
    text = sound(replace(evidence, sites=sites, places=places, facts=facts, rounds=(first, *evidence.rounds[1:])))
    assert "<script" not in text


def test_nothing_told_at_all(five: Any) -> None:
    evidence: Evidence = five.evidence
    bare = tuple(Site(name) for name in ("a", "b"))
    text = sound(replace(evidence, sites=bare, rounds=(), pooled={}, pooled_bins={}, places={}, study={}, source=""))
    assert "No site told any figure on validation images." in text


def test_validation_images_judge_where_there_are_no_test_images(five: Any) -> None:
    evidence: Evidence = five.evidence
    sites = tuple(replace(s, federated={"val": s.federated["val"]}, bins={}) for s in evidence.sites)
    assert "The final model on validation images" in sound(replace(evidence, sites=sites))


def test_a_site_that_was_set_aside_at_the_end(five: Any) -> None:
    evidence: Evidence = five.evidence
    gone = Site("harbour", excluded="update refused")
    facts = {**evidence.facts, "excluded": {"harbour": "update refused"}}
    text = sound(replace(evidence, sites=(gone, *evidence.sites[2:]), facts=facts))
    assert "set aside: update refused" in text


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_several_classes(of_kind: Callable[[str], Any], kind: str) -> None:
    text = sound(of_kind(kind).evidence)
    assert ("likeliest class" in text) == (kind == "multiclass")


def test_it_is_written_whole_and_alone(two: Any, tmp_path: Path) -> None:
    folder = two.write(tmp_path / "run")
    before = {path.name for path in folder.iterdir()}
    written = page.write_report(folder)
    assert written == folder / "report.html"
    assert {path.name for path in folder.iterdir()} == before | {"report.html"}
    assert written.read_text(encoding="utf-8") == page.render(two.evidence)


def test_a_study_of_a_plugin_that_is_not_installed_is_reported(two: Any, tmp_path: Path) -> None:
    folder = replace(two, study=two.study.replace('"lora"', '"unheard-of"')).write(tmp_path / "run")
    assert "unheard-of" in page.write_report(folder).read_text(encoding="utf-8")


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(RunError):
        page.write_report(tmp_path)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_have_contrast(scheme: str) -> None:
    light, dark = CSS.read_text(encoding="utf-8").split("prefers-color-scheme: dark", 1)
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{3,6});", light if scheme == "light" else dark))
    for text in ("ink", "muted", "pooled", "own", "good", "some"):
        for ground in ("paper", "card"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    assert contrast(colours["site"], colours["paper"]) >= 3.0


def contrast(one: str, other: str) -> float:
    """WCAG 2.2's contrast ratio."""
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
