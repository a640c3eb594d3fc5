"""Two users of the operating system: what faces the network cannot read an image or the signing key, and is enough."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live.harness import (
    PATIENCE,
    Pictures,
    demand_receipts,
    demand_sound,
    go,
    prepared,
    small_study,
    started,
    undisturbed,
)
from tests.live.processes import Process, appeared

pytestmark = pytest.mark.faults
USER = "nobody"
TRY = """
import errno, json, sys
found = {}
for path in json.load(sys.stdin):
    try:
        with open(path, "rb") as source:
            found[path] = len(source.read())
    except OSError as failure:
        found[path] = errno.errorcode[failure.errno]
print(json.dumps(found))
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that other users can look into, which pytest's are not."""
    folder = Path(tempfile.mkdtemp(prefix="polyclinic-users-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def as_user(*command: str, before: list[str], told: str = "") -> subprocess.CompletedProcess[str]:
    """Runs a command as the user who faces the network."""
    switch = ["runuser", "-u", USER, "--"]
    return subprocess.run([*before, *switch, *command], input=told, capture_output=True, text=True, check=False)


def namespace(place: Path) -> list[str]:
    """What a command is put behind so that other users can read the interpreter: nothing, or mounts of its own.

    Where the interpreter lies in somebody's closed home, that home is covered by an empty one, in which the
    interpreter alone is shown again; nobody but the command's own processes sees that.
    """
    works = [sys.executable, "-c", "import polyclinic.client.link, flwr"]
    if as_user(*works, before=[]).returncode == 0:
        return []
    shown = {Path(sys.base_prefix).resolve(), Path(sys.prefix).resolve(), Path(__file__).resolve().parents[2]}
    closed = {above for path in shown for above in path.parents if not above.stat().st_mode & 0o001}
    lines = ["set -e", "mount --make-rprivate /"]
    for number, home in enumerate(sorted(closed)):
        inside = [path for path in shown if home in path.parents]
        for index, path in enumerate(inside):
            aside = place / f"aside-{number}-{index}"
            aside.mkdir()
            lines.append(f"mount --bind '{path}' '{aside}'")
        lines.append(f"mount -t tmpfs -o mode=0755 tmpfs '{home}'")
        for index, path in enumerate(inside):
            lines += [f"mkdir -p '{path}'", f"mount --bind '{place}/aside-{number}-{index}' '{path}'"]
    before = ["unshare", "--mount", "bash", "-c", "\n".join([*lines, 'exec "$@"']), "--"]
    done = as_user(*works, before=before)
    if done.returncode:
        pytest.skip(f"another user cannot run this Python: {done.stderr.strip()[-200:]}")
    return before


def test_what_faces_the_network_reads_no_image(pictures: Pictures, place: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can run processes as another user")
    if not all(map(shutil.which, ("runuser", "unshare", "nsenter"))):
        pytest.skip("runuser, unshare and nsenter are needed")
    before = namespace(place)
    images = place / "images"
    shutil.copytree(pictures.folder, images)
    images.chmod(0o700)  # as a hospital's are
    own = Pictures(images, images / "manifest.csv")
    study = small_study("users", rounds=2)
    expected = undisturbed(study, own, ["north", "south"], place / "simulated")
    with prepared(place / "f") as local:
        local.folder.chmod(0o755)
        home = local.join("north", own.of("north"), network_user=USER)
        started(local, "north", before=before)
        local.join("south", own.of("south"))
        local.start_site("south")
        agent, supernode, link = (appeared(local, "north", role) for role in ("agent", "supernode", "link"))
        run = go(local, study)
        demand_sound(local, run, expected, local.wait(run, PATIENCE))
        demand_receipts(local, run)
        assert (user(agent), user(supernode), user(link)) == (0, pwd.getpwnam(USER).pw_uid, pwd.getpwnam(USER).pw_uid)

        secrets = [home.signing_key, *home.private.iterdir(), *home.replies.iterdir(), own.manifest, own.of("north")]
        forbidden = [*sorted(images.rglob("*.png")), *secrets]
        allowed = [home.network / "tls.key", home.network / "node.key", home.shared / "runtime.secret"]
        inside = ["nsenter", f"--target={link.pid}", "--mount", "--"]
        done = as_user(sys.executable, "-c", TRY, before=inside, told=json.dumps(list(map(str, forbidden + allowed))))
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert len(forbidden) > 30
        assert {found[str(path)] for path in forbidden} == {"EACCES"}, found
        assert all(isinstance(found[str(path)], int) for path in allowed), found
        changed = as_user("touch", *map(str, (home.config, home.book / "ledger.jsonl", home.outbox)), before=inside)
        assert changed.stderr.count("Permission denied") == 3, changed.stderr


def user(process: Process) -> int:
    """The user id under which a process runs, which must be the only one that it has."""
    line = next(line for line in Path(f"/proc/{process.pid}/status").read_text().splitlines() if line.startswith("Uid"))
    ids = set(map(int, line.split()[1:]))
    assert len(ids) == 1
    return ids.pop()
