"""What would keep a site from taking part is found, by name and with a remedy; what is well is said too."""

from __future__ import annotations

import csv
import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from polyclinic.client import data_checks, doctor
from polyclinic.client.approvals import decide
from polyclinic.client.data_checks import may_read
from polyclinic.client.doctor import examine
from polyclinic.client.finding import Finding, looked_at
from polyclinic.client.home import Home
from polyclinic.client.join import join
from polyclinic.client.offer import Offer, read_offer, signed_text
from polyclinic.client.outbox import Inbox, Outbox
from polyclinic.client.record import hold
from polyclinic.core.book import Book
from polyclinic.core.errors import EngineError, PolicyError
from polyclinic.core.pki import Authority
from polyclinic.core.signing import SigningKey, sign
from polyclinic.core.study import Study
from polyclinic.core.version import VERSION
from polyclinic.server.live.publish import publish
from tests.client.gateway import Gateway, gateway
from tests.faults.http_proxy import ConnectProxy
from tests.server.governance.coordinator import COORDINATOR, served


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Both ports of a real coordinator."""
    folder = tmp_path_factory.mktemp("hub")
    with served(folder) as real, gateway(folder, real) as running:
        yield running


@pytest.fixture(scope="module")
def joined(hub: Gateway, tiny_manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site's own part of the manifest, and the site."""
    folder = tmp_path_factory.mktemp("site")
    with tiny_manifest.open() as source:
        rows = [row for row in csv.DictReader(source) if row["site"] == "north"]
    with (folder / "manifest.csv").open("w", newline="") as out:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(row | {"path": str(tiny_manifest.parent / row["path"])} for row in rows)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return join(hub.invite(), folder / "north", folder / "manifest.csv", local_port=port).folder


@pytest.fixture
def home(joined: Path, tmp_path: Path) -> Home:
    """A copy to do harm to."""
    shutil.copytree(joined, tmp_path / "north")
    return Home(tmp_path / "north")


def change(home: Home, old: str, new: str) -> Home:
    text = home.config.read_text()
    assert old in text
    home.config.write_text(text.replace(old, new))
    return Home(home.folder)


def troubles(home: Home, **others: Any) -> dict[str, Finding]:
    return {found.name: found for found in examine(home, **others) if found.state != "ok"}


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what needs no network."""
    for name in ("_fleet", "_governance_port", "_governance"):
        monkeypatch.setattr(doctor, name, lambda *parts: iter(()))


def test_a_sound_site_is_sound(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "DISK_WARNING", 0)
    found = examine(home)
    assert {one.name for one in found if one.state != "ok"} == {"network user"}, "one user for everything"
    assert {one.name for one in found} >= {
        "software", "permissions", "keys", "certificate", "fleet port", "governance port", "governance", "clock",
        "manifest", "studies", "network user", "disk", "local port", "statements", "alarms",
    }  # fmt: skip
    assert all(one.remedy for one in found if one.state != "ok")
    assert next(one for one in found if one.name == "fleet port").sentence.endswith("is reached: TLSv1.3")


def test_through_a_proxy(home: Home, hub: Gateway) -> None:
    with ConnectProxy(("site", "secret"), {"localhost": "127.0.0.1"}) as proxy:
        url = proxy.url("site", "secret")
        found = examine(change(home, '# proxy = "http://proxy.example:3128"', f'proxy = "{url}"'))
        assert set(proxy.targets) == {f"localhost:{hub.port}", f"localhost:{hub.hub.port}"}
        ports = [one for one in found if one.name in ("fleet port", "governance port", "governance")]
        assert [one.state for one in ports] == ["ok"] * 3
        assert f"through {proxy.address}" in ports[0].sentence
        assert "secret" not in str(found)
        wrong = change(home, url, proxy.url("site", "wrong"))
        assert "407" in troubles(wrong)["fleet port"].sentence


def test_nobody_listens(home: Home, hub: Gateway) -> None:
    found = troubles(change(home, f"port = {hub.port}", "port = 9"))
    assert found["fleet port"].sentence.startswith("localhost:9: is not reached")
    assert "governance port" not in found


def test_a_name_that_nobody_knows(home: Home) -> None:
    found = troubles(change(home, 'host = "localhost"', 'host = "coordinator.invalid"'))
    assert "the coordinator's name is not known here" in found["fleet port"].sentence
    assert found["governance"].state == "error"


def test_somebody_in_between(home: Home, hub: Gateway, tmp_path: Path) -> None:
    other = Authority.create(tmp_path / "other", "localhost")
    (home.network / "ca.pem").write_bytes(other.pem)
    found = troubles(home)
    assert "certificate that is not to be trusted" in found["fleet port"].sentence
    assert "by another authority" in found["certificate"].sentence


def test_a_revoked_site_hears_so(hub: Gateway, tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_text("path,label\n")
    home = join(hub.invite("gone"), tmp_path / "gone", tmp_path / "manifest.csv")
    hub.hub.registry.revoke("gone")
    found = troubles(home)
    assert "this site was revoked" in found["governance"].sentence
    assert found["manifest"].sentence.endswith("0 lines")


def test_the_clock(home: Home) -> None:
    assert "600.0 s ahead of" in troubles(home, clock=lambda: time.time() + 600)["clock"].sentence.replace(
        "599.9", "600.0"
    )
    assert "behind" in troubles(home, clock=lambda: time.time() - 600)["clock"].sentence
    assert "clock" not in troubles(home, clock=lambda: time.time() - 30)


@pytest.mark.usefixtures("offline")
def test_a_certificate_that_ends(home: Home) -> None:
    day = 86400.0
    assert "certificate" not in troubles(home, clock=lambda: time.time() + 60 * day)
    assert troubles(home, clock=lambda: time.time() + 70 * day)["certificate"].state == "warning"
    assert troubles(home, clock=lambda: time.time() + 91 * day)["certificate"].state == "error"


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("harm", "name", "words"),
    [
        (lambda home: home.signing_key.chmod(0o644), "permissions", "signing.key is open"),
        (lambda home: home.signing_key.unlink(), "keys", "cannot be read"),
        (lambda home: (home.signing_key.unlink(), SigningKey.new().save(home.signing_key)), "keys", "is not the key"),
        (lambda home: (home.network / "node.key").write_text("x"), "keys", "no key that Flower reads"),
        (lambda home: (home.network / "tls.pem").unlink(), "certificate", "tls.pem: cannot be read"),
        (lambda home: Inbox(home.inbox).alarm("two histories", 1.0), "alarms", "two histories"),
        (lambda home: Inbox(home.inbox).set_state("link", {"reached": False, "why": "away"}), "link", "away"),
        (lambda home: Outbox(home.outbox).put_all(
            [sign({"kind": "head", "n": n}, COORDINATOR) for n in range(101)], {}), "statements", "101 wait"),
    ],
)  # fmt: skip
def test_each_harm_is_found(harm: Any, name: str, words: str, home: Home) -> None:
    assert name not in troubles(home)
    harm(home)
    assert words in troubles(home)[name].sentence


@pytest.mark.usefixtures("offline")
def test_a_manifest_that_cannot_be_read(home: Home, tmp_path: Path) -> None:
    broken = tmp_path / "broken.csv"
    broken.write_bytes(b"path,label\n\xff,1\n")
    before = str(home.manifest)
    assert "is not UTF-8" in troubles(change(home, before, str(broken)))["manifest"].sentence
    assert "no such file" in troubles(change(home, str(broken), str(tmp_path / "none")))["manifest"].sentence


@pytest.mark.usefixtures("offline")
def test_the_local_port(home: Home) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", home.settings.local_port))
        taken.listen()
        assert "cannot be used" in troubles(home)["local port"].sentence
        handles = hold(home)
        assert "local port" not in troubles(home)
        for handle in handles:
            os.close(handle)


@pytest.mark.usefixtures("offline")
def test_the_disk(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 2**30})())
    assert troubles(home)["disk"].state == "warning"
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 2**20})())
    assert troubles(home)["disk"].state == "error"


def approve(home: Home, study: Study, tmp_path: Path) -> Offer:
    signed, _ = publish(study, tmp_path / "initial", COORDINATOR)
    (home.studies / f"{study.digest}.json").write_text(signed_text(signed))
    offer = read_offer(home, study.digest)
    with closing(Book(home.book, home.key())) as book:
        decide(book, "north", study.digest, "approve", VERSION, offer.backbone_sha256)
    return offer


@pytest.fixture
def pinned(tiny_study: Study, tiny_vit: Path) -> Study:
    import hashlib

    from polyclinic.core import study as studies

    sha256 = hashlib.sha256(tiny_vit.read_bytes()).hexdigest()
    return studies.loads(tiny_study.toml().replace("[backbone]", f'[backbone]\nsha256 = "{sha256}"'))


@pytest.mark.usefixtures("offline")
def test_an_approved_study_is_looked_at_to_the_backbone(home: Home, pinned: Study, tmp_path: Path) -> None:
    approve(home, pinned, tmp_path)
    found = [one for one in examine(home) if one.name.startswith("study")]
    assert [one.state for one in found] == ["ok"] * 3
    assert "48 images, 24 of them to train on" in found[1].sentence
    lines = home.manifest.read_text().splitlines()
    elsewhere = tmp_path / "labels.csv"
    elsewhere.write_text("\n".join([lines[0], *(line.replace(",1,", ",2,") for line in lines[1:])]))
    (trouble,) = [one for one in troubles(change(home, str(home.manifest), str(elsewhere))).values()
                  if one.state == "error"]  # fmt: skip
    assert "unknown label '2'" in trouble.sentence


@pytest.mark.usefixtures("offline")
def test_a_study_that_is_offered_no_longer(home: Home, pinned: Study, tmp_path: Path) -> None:
    approve(home, pinned, tmp_path)
    (home.studies / f"{pinned.digest}.json").unlink()
    assert "is not offered" in troubles(home)["studies"].sentence


@pytest.mark.usefixtures("offline")
def test_a_backbone_that_is_gone(home: Home, pinned: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from polyclinic.core.errors import BackboneError
    from polyclinic.models import backbones

    approve(home, pinned, tmp_path)

    def gone(study: Study) -> Any:
        raise BackboneError("cannot be read", where=study.backbone.reference, remedy="put it there")

    monkeypatch.setattr(backbones, "load", gone)
    found = troubles(home)["studies"]
    assert found.sentence.endswith(": cannot be read")
    assert found.remedy == "put it there"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("modes", [(0o755, 0o644), (0o755, 0o640), (0o750, 0o644), (0o700, 0o604), (0o711, 0o404)])
def test_who_may_read_is_told_as_the_system_decides(modes: tuple[int, int]) -> None:
    with TemporaryDirectory() as above:
        Path(above).chmod(0o755)
        folder, image = Path(above) / "images", Path(above) / "images" / "x.png"
        folder.mkdir()
        image.touch()
        image.chmod(modes[1])
        folder.chmod(modes[0])
        for name in ("nobody", "daemon"):
            user = pwd.getpwnam(name)
            found = subprocess.run(
                ["cat", image], user=user.pw_uid, group=user.pw_gid, extra_groups=[], capture_output=True, check=False
            )
            assert may_read(image, user.pw_uid, {user.pw_gid}) == (found.returncode == 0)
        os.chown(image, pwd.getpwnam("nobody").pw_uid, -1)
        assert may_read(image, pwd.getpwnam("nobody").pw_uid, set()) == bool(modes[0] & 0o001 and modes[1] & 0o400)


def test_a_network_user_that_could_read_images_is_told_of(home: Home) -> None:
    with TemporaryDirectory() as above:
        Path(above).chmod(0o755)
        (Path(above) / "x.png").touch(0o644)
        manifest = Path(above) / "manifest.csv"
        manifest.write_text("path,label\nx.png,1\n")
        manifest.chmod(0o600)
        shutil.copytree(home.folder, Path(above) / "north")
        other = change(Home(Path(above) / "north"), str(home.manifest), str(manifest))
        other = change(other, '# network_user = "polyclinic-net"', 'network_user = "nobody"')
        (found,) = data_checks.network_user(other)
        assert (found.state, found.sentence) == ("warning", f"nobody may read images, such as {above}/x.png")
        (Path(above) / "x.png").chmod(0o600)
        (found,) = data_checks.network_user(other)
        assert found.state == "ok"
        (found,) = data_checks.network_user(change(other, '"nobody"', '"nobody-at-all"'))
        assert "there is no user" in found.sentence


def test_wrong_settings_are_told_at_once(home: Home) -> None:
    with pytest.raises(PolicyError, match="local_port"):
        examine(change(home, "local_port = ", "local_port = -"))


def test_what_cannot_be_looked_at_is_a_finding() -> None:
    def failing(error: Exception) -> Iterator[Finding]:
        raise error
        yield

    (found,) = looked_at("x", lambda: failing(EngineError("is away", where="hub", remedy="wait")))
    assert found == Finding("x", "error", "hub: is away", "wait")
    (found,) = looked_at("x", lambda: failing(FileNotFoundError(2, "No such file", "ca.pem")))
    assert found.sentence == "ca.pem: No such file"
