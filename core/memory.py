"""How much memory a process has held at most."""

from __future__ import annotations

import resource
import sys
from pathlib import Path


def peak_mb(pid: int | None = None) -> float:
    """The largest resident set that a process has had, MiB: this one's, or that of ``pid``; 0.0 if it is gone.

    Linux' ``getrusage`` is not asked: a new process inherits the mark of the one that started it (``man getrusage``,
    ``ru_maxrss`` survives ``execve``). Of other processes only Linux tells.
    """
    status = Path(f"/proc/{pid or 'self'}/status")
    if pid is None and not status.exists():
        unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, kibibytes elsewhere
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    try:
        lines = status.read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 2**10
