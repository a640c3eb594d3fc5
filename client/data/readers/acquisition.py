"""How a picture was taken: a short list of fields, each brought into a form that cannot hold a name, date or number.

Whatever is not listed here is not read into anything that is shown, kept or sent.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

FIELDS = ("modality", "maker", "model", "kVp", "field strength", "slice thickness", "pixel spacing")

MAKERS = {
    "ge": "GE", "gems": "GE", "siemens": "Siemens", "philips": "Philips", "adac": "Philips", "marconi": "Philips",
    "picker": "Philips", "canon": "Canon", "toshiba": "Canon", "hitachi": "Hitachi", "fuji": "Fujifilm",
    "fujifilm": "Fujifilm", "agfa": "Agfa", "carestream": "Carestream", "kodak": "Carestream", "hologic": "Hologic",
    "lorad": "Hologic", "konica": "Konica Minolta", "samsung": "Samsung", "mindray": "Mindray", "shimadzu": "Shimadzu",
    "varian": "Varian", "elekta": "Elekta", "accuray": "Accuray", "uih": "United Imaging", "united": "United Imaging",
    "esaote": "Esaote", "sonosite": "SonoSite", "neusoft": "Neusoft", "bruker": "Bruker", "planmeca": "Planmeca",
    "sirona": "Dentsply Sirona", "zeiss": "Zeiss", "topcon": "Topcon", "heidelberg": "Heidelberg", "nidek": "Nidek",
    "optos": "Optos", "leica": "Leica", "hamamatsu": "Hamamatsu", "aperio": "Leica", "medtronic": "Medtronic",
    "swissray": "Swissray", "sectra": "Sectra", "ims": "IMS Giotto", "villa": "Villa", "del": "Del Medical",
    "dedicated": "other", "acuson": "Siemens", "bk": "BK Medical", "supersonic": "SuperSonic", "aloka": "Hitachi",
}  # fmt: skip
"""The first word of what makers write, in small letters → the maker."""

_WORD = re.compile(r"\w+")
MODALITIES = frozenset(
    _WORD.findall(
        "AR AU BDUS BI BMD CR CT DG DX ECG EPS ES GM HC HD IO IVOCT IVUS KER LS MG MR NM OAM OCT OP OPM OPR OPT OPV OT "
        "PT PX RF RG RTDOSE RTIMAGE RTPLAN RTSTRUCT SC SEG SM SR TG US VA XA XC"
    )
)
VIEWS = frozenset(_WORD.findall("AP PA LL RL LLD LLO RLD RLO LAT CC MLO ML LM LMO XCC XCCL XCCM FB SIO SPL CV TAN"))
_MODEL = re.compile(r"[A-Za-z][A-Za-z0-9 .+_/-]{0,23}")
_DIGITS = re.compile(r"\d{5,}|(19|20)\d\d|\d[._/-]\d+[._/-]\d")


def acquisition(dataset: Dataset) -> dict[str, str]:
    """Of FIELDS those that the file has, each in its narrow form."""
    found = {
        "modality": member(dataset.get("Modality"), MODALITIES),
        "maker": maker(dataset.get("Manufacturer")),
        "model": model(dataset.get("ManufacturerModelName")),
        "kVp": number(dataset.get("KVP"), 400.0, 0),
        "field strength": number(dataset.get("MagneticFieldStrength"), 20.0, 1, " T"),
        "slice thickness": number(dataset.get("SliceThickness"), 100.0, 1, " mm"),
    }
    return {name: value for name, value in found.items() if value}


def maker(written: Any) -> str:
    """A maker that is known, "other", or "" where nothing is written."""
    words = re.findall(r"[a-z]+", str(written or "").lower().replace("g.e.", "ge"))
    return MAKERS.get(words[0], "other") if words else ""


def model(written: Any) -> str:
    """A model's name as written if it looks like one and could be no number, date or person (^), else "other"."""
    text = str(written or "").strip()
    if not text:
        return ""
    return text if _MODEL.fullmatch(text) and not _DIGITS.search(text) else "other"


def number(written: Any, most: float, digits: int, unit: str = "") -> str:
    """A number above 0 and at most ``most``, rounded, as text; "" for none, "other" for what cannot be."""
    if written is None or str(written).strip() == "":
        return ""
    try:
        value = float(written)
    except (TypeError, ValueError):
        return "other"
    return f"{value:.{digits}f}{unit}" if 0.0 < value <= most else "other"  # what is no number is not above 0


def member(written: Any, known: frozenset[str]) -> str:
    """A code of a known list, "other", or "" where nothing is written."""
    text = str(written or "").strip().upper()
    return text if text in known or not text else "other"
