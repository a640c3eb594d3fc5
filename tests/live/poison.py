"""An app bundle with code in it, which tells if anybody runs it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from flwr.cli.build import build_fab_from_files


def poisoned(files: Mapping[str, bytes | Path], canary: Path) -> tuple[bytes, object]:
    """A bundle whose modules make the file ``canary`` as soon as anybody imports them, or builds or installs them."""
    code = f"import pathlib\npathlib.Path({str(canary)!r}).touch()\napp = None\n".encode()
    text = files["pyproject.toml"]
    assert isinstance(text, bytes)
    text = text.replace(b'fab-include = ["pyproject.toml"]\n', b"")
    text = text.replace(b"polyclinic.server.app:app", b"evil.server:app")
    text = text.replace(b"polyclinic.client.app:app", b"evil.client:app")
    names = ("evil/__init__.py", "evil/server.py", "evil/client.py", "setup.py", "sitecustomize.py")
    return build_fab_from_files({"pyproject.toml": text, **dict.fromkeys(names, code)})
