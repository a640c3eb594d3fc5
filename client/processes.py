"""The entry of a site's processes: ``python -m polyclinic.client.processes agent|link FOLDER``."""

from __future__ import annotations

import importlib
import logging
import sys
from pathlib import Path

from polyclinic.client.home import Home
from polyclinic.core.errors import PolyclinicError


def main(role: str, folder: Path) -> None:
    """Runs one process of the site in ``folder``."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    process = importlib.import_module(f"polyclinic.client.{role}")  # only the agent brings in torch
    for loud in ("flwr", "httpx"):  # now that they are there: Flower sets its own level when it is imported
        logging.getLogger(loud).setLevel(logging.WARNING)
    process.main(Home(folder))


if __name__ == "__main__":
    try:
        main(sys.argv[1], Path(sys.argv[2]))
    except PolyclinicError as failure:
        sys.exit(f"polyclinic: {failure}")
