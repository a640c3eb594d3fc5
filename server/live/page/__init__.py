"""The live page: what a run is doing now, in a browser on the coordinator's machine and on its terminal."""

from __future__ import annotations

from polyclinic.server.live.home import Home
from polyclinic.server.live.page.serving import serve
from polyclinic.server.live.page.snapshot import snapshot

__all__ = ["main", "serve", "snapshot"]


def main(home: Home) -> None:
    """Serves the runs of a coordinator until the process is ended."""
    serve(home.runs, port=home.settings.page_port, token=home.page_token)
