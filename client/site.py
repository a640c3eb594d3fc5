"""All processes of a site: agent, SuperNode and link, kept alive together or, with two system users, apart."""

from __future__ import annotations

import os
import secrets
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from polyclinic.client.home import Home
from polyclinic.client.record import held
from polyclinic.core import files
from polyclinic.core.signing import write_secret
from polyclinic.core.supervise import Child, supervise

Part = Literal["all", "agent", "network"]
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "HF_HUB_OFFLINE": "1",
}
"""Nothing calls home, nothing is installed at run time, nothing is fetched from a hub."""


def start(home: Home, part: Part, tell: Callable[[str], None], stop: Callable[[], bool]) -> None:
    """Keeps the site's processes alive until ``stop``.

    Args:
        part: "all", or one half for a machine on which each runs under a user of its own.
    """
    home.demand()
    if part != "network":
        write_secret(home.shared / "runtime.secret", secrets.token_bytes(64))
        (home.shared / "runtime.secret").chmod(0o640)
    if part == "all":
        home.hand_over()
    logs = home.network / "logs" if part == "network" else home.logs  # that half may not write where the agent does
    with files.explained(logs):
        logs.mkdir(mode=0o750, exist_ok=True)
    supervise(children(home, part), logs, tell, stop)


def children(home: Home, part: Part) -> Sequence[Child]:
    """The processes of one part of the site.

    Agent and SuperNode begin anew together: the SuperNode waits for ever for an answer that a dead agent owes it, and
    an agent works in vain for a SuperNode that was restarted. Where each half has a supervisor of its own, the
    SuperNode is there only while an agent is.
    """
    user = home.settings.network_user if part == "all" else None
    us = [sys.executable, "-m", "polyclinic.client.processes"]
    agent = Child("agent", [*us, "agent", str(home.folder)], QUIET, together=("supernode",) if part == "all" else ())
    supernode = Child("supernode", supernode_command(home), QUIET | environment(home), user=user)
    if part == "network":
        supernode.wanted = lambda: held(home) is not False
    link = Child("link", [*us, "link", str(home.folder)], QUIET | environment(home), user=user)
    return {"all": [agent, supernode, link], "agent": [agent], "network": [supernode, link]}[part]


def supernode_command(home: Home) -> Sequence[str]:
    """Flower's own SuperNode, as it is installed, without any executor of Flower's."""
    settings, network = home.settings, home.network
    program = shutil.which("flower-supernode", path=str(Path(sys.executable).parent)) or "flower-supernode"
    return [
        program,
        "--superlink", settings.coordinator.address(settings.coordinator.fleet_port),
        "--root-certificates", str(network / "ca.pem"),
        "--auth-supernode-private-key", str(network / "node.key"),
        "--isolation", "process",
        "--host", "127.0.0.1",
        "--port", str(settings.local_port),
        "--superexec-auth-secret-file", str(home.shared / "runtime.secret"),
    ]  # fmt: skip


def environment(home: Home) -> dict[str, str]:
    """Flower's own folder, and the proxy, for the processes that face the network."""
    found = {"FLWR_HOME": str(home.network / "flower")}
    if proxy := home.settings.proxy:
        found |= dict.fromkeys(("https_proxy", "HTTPS_PROXY"), proxy)
        found |= dict.fromkeys(("no_proxy", "NO_PROXY"), os.environ.get("no_proxy", "127.0.0.1,localhost"))
    return found
