"""A CSV file as header and records: strict, and with the line of whatever is wrong."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from polyclinic.client.data.problem import Problem


@dataclass(frozen=True, slots=True)
class Table:
    """Header and records of a CSV file, cells without outer blanks, blank lines left out.

    Attributes:
        records: (line on which it starts, one cell a column) of every record.
        problems: why the file, or a record of it, could not be read; such records are left out.
    """

    header: tuple[str, ...] = ()
    records: tuple[tuple[int, tuple[str, ...]], ...] = ()
    problems: tuple[Problem, ...] = ()


def read_table(file: Path) -> Table:
    """The table that ``file`` holds (UTF-8, with or without a byte order mark); never raises for what it holds."""
    try:
        raw = file.read_bytes()
    except FileNotFoundError:
        return Table(problems=(Problem(None, "", "there is no such file", "check the path"),))
    except OSError as failure:
        return Table(problems=(Problem(None, "", f"cannot be read: {failure.strerror}", "check the path"),))
    remedy = "save the table as 'CSV UTF-8'"
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as failure:
        # failure.object is what was left after a byte order mark
        line = failure.object.count(b"\n", 0, failure.start) + 1
        what = f"is not UTF-8: byte 0x{failure.object[failure.start]:02x}"
        return Table(problems=(Problem(line, "", what, remedy),))
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        return Table(problems=(Problem(line, "", "holds a NUL character, which no CSV text does", remedy),))
    return _parsed(text)


def _parsed(text: str) -> Table:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: tuple[str, ...] = ()
    records: list[tuple[int, tuple[str, ...]]] = []
    problems: list[Problem] = []
    line = 1
    try:
        for raw in reader:
            cells = tuple(cell.strip() for cell in raw)
            if header and any(cells) and len(cells) != len(header):
                what = f"has {len(cells)} cells where the header has {len(header)}"
                problems.append(Problem(line, "", what, "give every column a value; quote a value that holds a comma"))
            elif header and any(cells):
                records.append((line, cells))
            elif any(cells):
                header = cells
            line = reader.line_num + 1
    except csv.Error as failure:
        problems.append(Problem(line, "", f"no CSV record starts here: {failure}", "check the quotes"))
    if not (header or problems):
        problems.append(Problem(None, "", "is empty", "write a header and then one line an image"))
    return Table(header, tuple(records), tuple(problems))
