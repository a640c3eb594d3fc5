"""The page in a headless Chromium, while a run goes on."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from polyclinic.server.live.page.fragments import FIGURES, NOW
from tests.server.live.page.chromium import Browser, eventually, wanted
from tests.server.live.page.replay import TOKEN, Replay, get, served
from tests.server.live.page.test_fragments import EVIL

pytestmark = pytest.mark.slow

RUN = "/runs/made-0a1b2c3d"
SERVE = """
import sys
from pathlib import Path
from polyclinic.server.live.page import serve
serve(Path(sys.argv[1]), port=int(sys.argv[2]), token=sys.argv[3])
"""
WIDE = "document.scrollingElement.scrollWidth <= innerWidth"


@pytest.fixture(autouse=True)
def _browser_there() -> None:
    wanted()


@contextmanager
def apart(runs: Path, port: int, token: str = TOKEN) -> Iterator[subprocess.Popen[bytes]]:
    """The server in a process of its own, on a port that stays the same."""
    process = subprocess.Popen([sys.executable, "-c", SERVE, str(runs), str(port), token])
    try:
        eventually(lambda: listens(port))
        yield process
    finally:
        process.kill()
        process.wait(20)


def listens(port: int) -> bool:
    """Whether somebody answers."""
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def free() -> int:
    """A port that nobody has."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def text(identifier: str) -> str:
    """What an element says, as JavaScript."""
    return f"document.getElementById('{identifier}').innerText.replaceAll('\\u00a0', ' ')"


def test_it_updates_while_a_run_goes_on(replay: Replay) -> None:
    with served(replay.folder.parent) as port, Browser() as browser:
        browser.go(f"http://127.0.0.1:{port}/?token={TOKEN}")
        browser.until(f"location.pathname == '{RUN}' && !location.search")
        browser.until(f"{text('phase')}.includes('Waiting to begin')")
        browser.value("window.mine = 1")  # gone if the page were loaded again
        for number in range(1, 5):
            replay.begin(number)
            browser.until(
                f"{text('phase')}.includes('Round {number} of 4') && document.title.startsWith('{number}/4 ')"
            )
            replay.site("north", "working")
            browser.until(f"{text('now')}.includes('working for ')")
            replay.commit(number)
            browser.until(f"{text('clock')}.includes('{number} of 4')")
            browser.until(f"document.querySelectorAll('#part-rounds svg[role=img]').length == {3 + 2}")
        assert browser.value(f"{text('part-travelled')}.includes('harbour: no answer within')")
        replay.finish()
        browser.until(f"{text('phase')}.includes('Finished: 4 rounds')")
        browser.until(f"{text('part-so-far')}.includes('Was it worth federating?')")
        assert browser.value("window.mine") == 1
        assert browser.value("document.getElementById('link').hidden")
        browser.value("document.querySelector('#phase a').click()")
        browser.until("document.title.includes('Polyclinic report')")
        assert browser.said == []


def test_time_goes_by_by_itself(replay: Replay) -> None:
    with served(replay.folder.parent) as port, Browser() as browser:
        replay.begin(1)
        replay.write(deadline=time.time() + 90)
        browser.go(f"http://127.0.0.1:{port}/?token={TOKEN}")
        browser.until(f"/Deadline in\\s+1:[0-2]\\d/.test({text('clock')})")
        first = browser.value(text("clock"))
        browser.until(f"{text('clock')} != {first!r}", 5)
        assert "UTC" not in browser.value("document.body.innerText")


def test_it_survives_the_servers_death_and_return(replay: Replay) -> None:
    port = free()
    with Browser() as browser:
        with apart(replay.folder.parent, port) as process:
            browser.go(f"http://127.0.0.1:{port}/?token={TOKEN}")
            replay.begin(1)
            browser.until(f"{text('phase')}.includes('Round 1 of 4')")
            browser.value("window.mine = 1")
            assert browser.value("document.getElementById('link').hidden")
            process.kill()
            browser.until("!document.getElementById('link').hidden")
            assert "Connection lost – trying again" in browser.value(text("link"))
            replay.commit(1)
            replay.begin(2)
        with apart(replay.folder.parent, port):
            browser.until(f"{text('phase')}.includes('Round 2 of 4')", 30)
            browser.until("document.getElementById('link').hidden")
            browser.until("document.querySelectorAll('#part-rounds svg[role=img]').length > 2")
            replay.begin(3)
            browser.until(f"{text('phase')}.includes('Round 3 of 4')")
            assert browser.value("window.mine") == 1


def test_another_token_is_told(replay: Replay) -> None:
    port = free()
    with Browser() as browser:
        with apart(replay.folder.parent, port):
            browser.go(f"http://127.0.0.1:{port}/?token={TOKEN}")
            browser.until("document.getElementById('link').hidden")
        with apart(replay.folder.parent, port, "quite-another-token-0123456789"):
            browser.until(f"{text('link')}.includes('The token has changed')", 40)


def test_alarms_are_shown_and_read_out(replay: Replay) -> None:
    with served(replay.folder.parent) as port, Browser() as browser:
        replay.begin(1)
        browser.go(f"http://127.0.0.1:{port}/?token={TOKEN}")
        browser.until(f"{text('phase')}.includes('Round 1')")
        assert browser.value("document.getElementById('alarms').getAttribute('role')") == "alert"
        assert browser.value("document.getElementById('phase').getAttribute('aria-live')") == "polite"
        browser.value("window.region = document.getElementById('alarms')")
        assert browser.value(text("alarms")) == ""
        replay.event("alarm", "its certificate was revoked", "north")
        browser.until(f"{text('alarms')}.includes('its certificate was revoked')")
        replay.write(phase="paused", why="harbour: no answer: round 1: 1 of 3 sites answered well, 2 are needed")
        browser.until(f"{text('alarms')}.includes('The run is paused') && document.title.startsWith('⚠ Paused')")
        assert "1 of 3 sites answered well" in browser.value(text("alarms"))
        assert "What to do" in browser.value(text("alarms"))
        assert browser.value("window.region === document.getElementById('alarms')")
        colour = "getComputedStyle(document.querySelector('.alarm')).borderLeftColor"
        assert browser.value(colour) == "rgb(184, 74, 0)"
        replay.begin(1)
        browser.until(f"!{text('alarms')}.includes('paused')")


def test_hostile_text_stays_text(replay: Replay) -> None:
    with served(replay.folder.parent) as port, Browser() as browser:
        replay.begin(1)
        browser.go(f"http://127.0.0.1:{port}/?token={TOKEN}")
        browser.until(f"{text('phase')}.includes('Round 1')")
        replay.site("north", "refused", EVIL)
        replay.event("alarm", EVIL, EVIL)
        replay.write(study=EVIL)
        browser.until(f"{text('now')}.includes('onerror=alert(1)') && {text('phase')}.includes('<script>')")
        assert "<script>document.title='owned'" in browser.value(text("alarms"))
        assert not browser.value("document.title").startswith("owned")
        assert browser.value("document.querySelectorAll('script, img').length") == 1
        browser.go(f"http://127.0.0.1:{port}{RUN}")
        browser.until(f"{text('now')}.includes('onerror=alert(1)')")
        assert browser.value("document.querySelectorAll('script, img').length") == 1
        assert browser.said == []
        # and were markup to come through all the same, the policy would still hold it
        inject = "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.owned=1\">')"
        browser.value(inject)
        time.sleep(0.3)
        assert browser.value("window.owned") is None
        assert any("Content Security Policy" in line for line in browser.said)


@pytest.mark.parametrize(("width", "height"), [(390, 844), (320, 640), (768, 1024), (1280, 900)])
def test_no_width_overflows(replay: Replay, width: int, height: int) -> None:
    long = "university-hospital-of-a-town-with-a-rather-long-name-ward-00007"
    with served(replay.folder.parent) as port, Browser(width, height) as browser:
        browser.go(f"http://127.0.0.1:{port}/?token={TOKEN}")
        assert browser.value(WIDE)
        replay.begin(1)
        replay.commit(1)
        replay.begin(2)
        replay.site(long, "refused", "x" * 500, certificate_days=3)
        replay.event("alarm", "y" * 400, long)
        browser.until(f"{text('alarms')}.includes('yyyy') && {text('now')}.includes('xxxx')")
        browser.until("document.querySelector('#part-shift svg')")
        assert browser.value(WIDE)
        assert browser.value("innerWidth") == width
        for number in range(2, 5):
            replay.commit(number)
        replay.finish()
        browser.until("document.querySelector('#part-digests dl')")
        browser.value("document.querySelectorAll('details').forEach(it => { it.open = true; })")
        assert browser.value(WIDE)
        browser.go(f"http://127.0.0.1:{port}/runs")
        browser.until(f"{text('runs')}.includes('Finished')")
        assert browser.value(WIDE)


def test_what_the_reader_did_stays(replay: Replay) -> None:
    with served(replay.folder.parent) as port, Browser(390, 844) as browser:
        replay.begin(1)
        replay.commit(1)
        browser.go(f"http://127.0.0.1:{port}/?token={TOKEN}")
        browser.until("document.querySelector('#part-rounds details')")
        browser.value("document.querySelector('#part-rounds details').open = true")
        browser.value("document.querySelector('#part-rounds summary').focus()")
        browser.value("document.querySelector('#part-sites .scroll').scrollLeft = 120")
        browser.value("scrollTo(0, document.getElementById('sites').offsetTop)")
        before = browser.value("document.getElementById('sites').getBoundingClientRect().top")
        replay.commit(2)
        browser.until("document.querySelector('#part-rounds table').rows[0].cells.length == 3")
        browser.until(f"{text('clock')}.includes('2 of 4')")
        assert browser.value("document.querySelector('#part-rounds details').open")
        assert browser.value("document.activeElement.closest('#part-rounds') !== null")
        assert browser.value("document.querySelector('#part-sites .scroll').scrollLeft") == 120
        assert abs(browser.value("document.getElementById('sites').getBoundingClientRect().top") - before) < 60


def test_text_that_is_being_copied_is_not_taken_away(replay: Replay) -> None:
    with served(replay.folder.parent) as port, Browser() as browser:
        replay.begin(1)
        replay.event("excluded", "the update holds a number that is not finite", "north")
        browser.go(f"http://127.0.0.1:{port}/?token={TOKEN}")
        browser.until(f"{text('log')}.includes('not finite')")
        browser.value("getSelection().selectAllChildren(document.querySelector('#log .log'))")
        replay.event("done", "round 1 is committed")
        replay.begin(2)
        browser.until(f"{text('phase')}.includes('Round 2')")
        assert "not finite" in browser.value("String(getSelection())")
        assert not browser.value(f"{text('log')}.includes('is committed')")
        browser.value("getSelection().removeAllRanges()")
        browser.until(f"{text('log')}.includes('is committed')")


def test_it_can_be_read_in_the_dark(replay: Replay) -> None:
    with served(replay.folder.parent) as port, Browser(dark=True) as browser:
        browser.go(f"http://127.0.0.1:{port}/?token={TOKEN}")
        browser.until(f"{text('phase')}.includes('Waiting')")
        assert browser.value("getComputedStyle(document.body).backgroundColor") == "rgb(18, 22, 27)"


def test_every_piece_has_its_place(replay: Replay) -> None:
    with served(replay.folder.parent) as port:
        page = get(port, RUN).text
    for name in (*NOW, *(f"part-{name}" for name in FIGURES)):
        assert page.count(f'<div id="{name}"') == 1
