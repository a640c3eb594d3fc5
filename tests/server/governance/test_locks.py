"""Several connections of one process to the registry: none of them loses its locks, whatever is opened and closed."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from pathlib import Path

from polyclinic.server.governance.registry import Registry

ANOTHER = """
import sys
from pathlib import Path
from polyclinic.server.governance.registry import Registry
registry = Registry(Path(sys.argv[1]))
registry.want(sys.argv[2], "study", "folder")
registry.close()
"""


def test_another_process_that_comes_and_goes_does_not_take_the_file_away(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    with closing(Registry(path)) as first, closing(Registry(path)) as second:
        for number in (1, 2):
            subprocess.run([sys.executable, "-c", ANOTHER, str(path), f"run {number}"], check=True)
            assert len(first.runs()) == len(second.runs()) == number
            assert (tmp_path / "registry.db-wal").exists(), "it was taken for the last one"
