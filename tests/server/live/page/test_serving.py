"""The page over real connections: who is let in, what every answer carries, and what a stream sends."""

from __future__ import annotations

import base64
import hashlib
import re
import socket
import threading

import pytest

from polyclinic.core.errors import EngineError, TrustError
from polyclinic.server.live.page import serve
from polyclinic.server.live.page.guard import local
from tests.server.live.page.replay import TOKEN, Answer, Replay, Stream, get, pass_of

RUN = "/runs/made-0a1b2c3d"


def test_the_token_opens_and_nothing_else_does(port: int) -> None:
    for path in ("/", "/runs", RUN, f"{RUN}/events", f"{RUN}/report", "/events", "/nothing"):
        answer = get(port, path, cookie=False)
        assert (answer.status, answer.headers["content-type"]) == (403, "text/plain; charset=utf-8")
        assert "open the address that" in answer.text
    for query in (
        "token=",
        "token=wrong",
        f"token={TOKEN}x",
        f"token={TOKEN[:-1]}",
        f"token={TOKEN}&token=x",
        "token=é",
    ):
        assert get(port, f"/?{query.encode('ascii', 'ignore').decode()}", cookie=False).status == 403
    answer = get(port, f"/?token={TOKEN}", cookie=False)
    assert (answer.status, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"]
    assert cookie.lower().endswith("; httponly; path=/; samesite=strict")
    assert TOKEN not in cookie
    for wrong in (
        "x=1",
        cookie.partition("=")[0] + "=" + TOKEN,
        cookie.partition(";")[0] + "0",
        "é",
        ";;;=",
        "a" * 4000,
    ):
        assert get(port, RUN, cookie=False, Cookie=wrong.encode("ascii", "ignore").decode()).status == 403
    assert get(port, f"{RUN}?token={TOKEN}", cookie=False).status == 403
    assert get(port, RUN).status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost.",
        "127.0.0.2",
        "0.0.0.0",
        "[::]",
        "",
        "127.0.0.1:x",
        "@localhost",
    ],
)
def test_a_name_that_only_leads_here_is_refused(port: int, host: str) -> None:
    answer = get(port, f"/?token={TOKEN}", cookie=False, host=host)
    assert answer.status in (400, 403)
    assert "set-cookie" not in answer.headers
    assert get(port, RUN, host=host).status in (400, 403)


def test_names_of_this_machine(port: int) -> None:
    for host in (f"127.0.0.1:{port}", "localhost:1234", "localhost", "[::1]:80", "[::1]", "LOCALHOST"):
        assert get(port, RUN, host=host).status == 200
        assert local(host)


def test_two_hosts_are_none(port: int) -> None:
    request = f"GET {RUN} HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nCookie: {pass_of(port)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.sendall(request.encode())
        assert connection.recv(100).split()[1] in (b"400", b"403")


@pytest.mark.parametrize("method", ["HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"])
def test_it_can_only_be_read(port: int, method: str) -> None:
    for path in ("/", RUN, f"{RUN}/events"):
        answer = get(port, path, method=method)
        assert (answer.status, answer.headers["allow"]) == (405, "GET")


def kept_in(answer: Answer) -> None:
    """The headers of every answer."""
    found = {name.lower(): value for name, value in answer.headers.items()}
    assert found["cache-control"] == "no-store"
    assert found["x-frame-options"] == "DENY"
    assert found["x-content-type-options"] == "nosniff"
    assert found["referrer-policy"] == "no-referrer"
    assert found["cross-origin-resource-policy"] == "same-origin"
    policy = found["content-security-policy"]
    for part in ("default-src 'none'", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"):
        assert part in policy
    assert "server" not in found


def test_every_answer_is_kept_in(port: int, replay: Replay) -> None:
    replay.commit(1)
    replay.finish()
    for path in ("/", "/runs", RUN, f"{RUN}/report", "/nothing", f"/?token={TOKEN}"):
        kept_in(get(port, path))
    kept_in(get(port, "/", cookie=False))
    with Stream(port, f"{RUN}/events") as found:
        kept_in(Answer(found.status, found.headers, ""))
        assert found.headers["content-type"].startswith("text/event-stream")


def test_the_policy_lets_just_our_script_and_style_through(port: int) -> None:
    for path in (RUN, "/runs"):
        answer = get(port, path)
        policy = answer.headers["content-security-policy"]
        for kind in ("script", "style"):
            found = re.findall(rf"<{kind}>(.*?)</{kind}>", answer.text, flags=re.DOTALL)
            digests = ["sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in found]
            assert len(found) == 1
            assert re.findall(rf"{kind}-src '([^']+)'", policy) == digests
        assert "unsafe" not in policy
        assert not re.search(r"\b(src|srcset)=|url\(|@import|https?://(?!www\.w3\.org/2000/svg)", answer.text)


def test_the_run_that_is_on_is_where_one_lands(port: int, replay: Replay) -> None:
    assert get(port, "/").headers["location"] == RUN
    replay.write(phase="stopped")
    assert get(port, "/").headers["location"] == "/runs"
    assert f'href="{RUN}"' in get(port, "/runs").text


@pytest.mark.parametrize(
    "name",
    [
        "..",
        "%2e%2e",
        "..%2f..%2fetc",
        "%2fetc%2fpasswd",
        "made-0a1b2c3d%2f..",
        "made-0a1b2c3d%00",
        "nothing",
        "%ff",
        "a" * 3000,
    ],
)
def test_no_path_is_made_of_a_name(port: int, replay: Replay, name: str) -> None:
    replay.made.write(replay.folder.parent.parent / "outside")
    for tail in ("", "/events", "/report"):
        assert get(port, f"/runs/{name}{tail}").status == 404
    for path in ("/runs/../../etc/passwd", "//etc/passwd", "/runs//report", f"{RUN}/../../outside", f"{RUN}/live.json"):
        assert get(port, path).status == 404


def test_the_report_is_there_when_it_is(port: int, replay: Replay) -> None:
    assert get(port, f"{RUN}/report").status == 404
    replay.commit(1)
    replay.finish()
    answer = get(port, f"{RUN}/report")
    assert answer.text == (replay.folder / "report.html").read_text(encoding="utf-8")
    assert "script-src" not in answer.headers["content-security-policy"]


def test_nobody_is_let_in_from_outside(replay: Replay) -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org", ""):
        with pytest.raises(TrustError):
            serve(replay.folder.parent, host=host, port=0, token=TOKEN)
    with pytest.raises(TrustError, match="fewer than 16"):
        serve(replay.folder.parent, port=0, token="short")


def test_a_port_that_is_taken(replay: Replay, port: int) -> None:
    with pytest.raises(EngineError, match="cannot listen"):
        serve(replay.folder.parent, port=port, token=TOKEN)


def test_it_listens_on_loopback_alone(port: int) -> None:
    others = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)} - {"127.0.0.1"}
    for address in others:
        if not str(address).startswith("127."):
            with pytest.raises(OSError, match=r".*"):
                socket.create_connection((str(address), port), 2).close()


def test_many_readers_at_once(port: int, replay: Replay) -> None:
    replay.begin(1)
    replay.commit(1)
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(get(port, RUN).status)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == [200] * 8
