"""Numbers and names as people read them."""

from __future__ import annotations

from collections.abc import Sequence

from polyclinic.core.statistics.figures import Figure

MINUS = "\N{MINUS SIGN}"


def number(value: float, places: int = 3) -> str:
    """ "0.894", "−0.012"; never "−0.000"."""
    text = f"{abs(value):.{places}f}"
    return f"{MINUS}{text}" if value < 0 and float(text) else text


def signed(value: float, places: int = 3) -> str:
    """ "+0.061", "−0.012", "0.000"."""
    text = number(value, places)
    return f"+{text}" if value > 0 and float(text) else text


def ranged(figure: Figure, *, sign: bool = False, full: bool = False) -> str:
    """ "0.894 (0.825 to 0.936)"; ``full`` names the interval, ``sign`` writes + and −; the reason if no value."""
    write = signed if sign else number
    if figure.value is None:
        return str(figure.why)
    if figure.low is None or figure.high is None:
        return f"{write(figure.value)} (no interval)"
    name = "95 % interval " if full else ""
    return f"{write(figure.value)} ({name}{write(figure.low)} to {write(figure.high)})"


def listing(items: Sequence[str], most: int = 5, joint: str = ", ") -> str:
    """ "A, B and C"; beyond ``most``, "A, B and 7 more"."""
    if len(items) > most:
        return joint.join(items[: most - 1]) + f" and {len(items) - most + 1} more"
    return joint.join(items[:-1]) + f" and {items[-1]}" if len(items) > 1 else "".join(items)


def counted(count: int, noun: str) -> str:
    """ "1 site", "3 sites"."""
    return f"{whole(count)} {noun}{'' if count == 1 else 's'}"


def whole(count: int) -> str:
    """ "812", "1 316" with a space that does not break."""
    return f"{count:,}".replace(",", "\N{NO-BREAK SPACE}")


def size(count: float) -> str:
    """Bytes: "812 B", "12.3 kB", "9.1 MB", "1.2 GB"."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count:.0f} B"


def duration(seconds: float) -> str:
    """ "3.2 s", "87 s", "12 min", "3 h 5 min"."""
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def share(value: float) -> str:
    """ "12 %"."""
    return f"{100 * value:.0f} %"


def probability(p: float) -> str:
    """ "p = 0.012", "p < 0.001"."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def short(name: str, most: int) -> str:
    """A name cut in its middle, since long names often begin alike."""
    if len(name) <= most:
        return name
    tail = (most - 1) // 2
    return f"{name[: most - 1 - tail]}…{name[-tail:]}"
