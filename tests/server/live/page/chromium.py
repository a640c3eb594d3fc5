"""A headless Chromium, told what to do through a pipe (the DevTools protocol), with the standard library alone."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

LAUNCH = """
import os, sys
read, write = (os.dup(int(n), ) for n in sys.argv[1:3])
while read < 10: read = os.dup(read)
while write < 10: write = os.dup(write)
os.dup2(read, 3)
os.dup2(write, 4)
os.execvp(sys.argv[3], sys.argv[3:])
"""
"""The browser reads commands from descriptor 3 and answers on 4."""
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
]
PATIENCE = 60.0


def wanted() -> str:
    """The browser; where there is none the test is skipped, and says so."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no Chromium on PATH: the page was not tested in a browser")
    return found


class Browser:
    """One browser with one tab."""

    def __init__(self, width: int = 1280, height: int = 900, *, dark: bool = False) -> None:
        self._profile, self._last, self._held = tempfile.mkdtemp(), 0, b""
        self.said: list[str] = []
        into, self._out = os.pipe()
        self._in, out = os.pipe()
        command = [sys.executable, "-c", LAUNCH, str(into), str(out), wanted(), *FLAGS]
        self._process = subprocess.Popen(
            [*command, f"--user-data-dir={self._profile}", f"--window-size={width},{height}", "about:blank"],
            pass_fds=(into, out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(into)
        os.close(out)
        self._session = ""
        tab = next(t for t in self.ask("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self._session = self.ask("Target.attachToTarget", targetId=tab["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")
        self.resize(width, height)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, at: TracebackType | None
    ) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(PATIENCE)
        os.close(self._in)
        os.close(self._out)
        shutil.rmtree(self._profile, ignore_errors=True)

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Sends one command and gives its answer; what the page said meanwhile is kept in ``said``."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._last:
                assert "error" not in answer, (method, answer["error"])
                return dict(answer["result"])
            self._hear(answer)

    def _hear(self, event: dict[str, Any]) -> None:
        if event.get("method") == "Log.entryAdded":
            self.said.append(event["params"]["entry"]["text"])
        if event.get("method") == "Runtime.exceptionThrown":
            self.said.append(f"thrown: {event['params']['exceptionDetails']}")
        if event.get("method") == "Runtime.consoleAPICalled":
            self.said.append(f"console: {event['params']['args']}")

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._held:
            assert select.select([self._in], [], [], PATIENCE)[0], "the browser does not answer"
            chunk = os.read(self._in, 1 << 20)
            assert chunk, "the browser has ended"
            self._held += chunk
        message, _, self._held = self._held.partition(b"\0")
        return dict(json.loads(message))

    def go(self, address: str) -> None:
        """Opens an address and waits until the page is there."""
        self.ask("Page.navigate", url=address)
        self.until("document.readyState == 'complete' && location.href != 'about:blank'")

    def value(self, expression: str) -> Any:
        """What an expression of JavaScript gives."""
        found = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, expression: str, seconds: float = 20.0) -> None:
        """Waits until an expression is true."""
        end = time.monotonic() + seconds
        while not self._true(expression):
            assert time.monotonic() < end, (expression, self.value("document.body.innerText")[:2000], self.said)
            time.sleep(0.05)

    def _true(self, expression: str) -> bool:
        found = self.ask("Runtime.evaluate", expression=f"!!({expression})", returnByValue=True)
        return "exceptionDetails" not in found and bool(found["result"].get("value"))

    def resize(self, width: int, height: int) -> None:
        """The size of the window in CSS pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.ask("Emulation.setDeviceMetricsOverride", **size)

    def picture(self, path: Path, *, whole: bool = True) -> None:
        """A screenshot of the whole page."""
        taken = self.ask("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(taken["data"]))


def eventually(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Waits for something outside of the browser."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
