"""Certificates renewed, invalid, revoked or not yet valid, with a running node and a real broker with TLS."""

from __future__ import annotations

import json
import re
import shutil
import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.conftest import Collector, NodeProcess, Sensors, until
from tests.e2e.test_faults import assert_duplicates_share_their_id, assert_every_frame_has_a_result, load

from hedgerow.bus.packets import encode_connect
from hedgerow.pki.folder import Pki
from hedgerow.pki.names import parse
from hedgerow.testing.mosquitto import Mosquitto, TlsFiles
from hedgerow.testing.ports import held_port

TIMEOUT_S = 90.0
LIFETIME = timedelta(days=2)


class SecuredSite:
    """A site with a node and a broker that requires certificates, except on a local port for sensors."""

    def __init__(self, folder: Path, ahead: timedelta = timedelta()) -> None:
        self.folder = folder
        self._stack = ExitStack()
        self.pki, self.plain_port = self.issue_certificates("pki", ahead), self._stack.enter_context(held_port())
        own = self.files("broker")
        tls = TlsFiles(own["ca_file"], own["cert_file"], own["key_file"], True, own["crl_file"], True)
        self.broker = Mosquitto(tls=tls, config=[f"listener {self.plain_port} 127.0.0.1"])
        self.broker.start()
        self.node = NodeProcess(self.broker, folder)
        self.node.configure()
        config: dict[str, Any] = json.loads(self.node.file.read_text())
        config["broker"]["tls"] = {name: str(path) for name, path in self.files("node").items()}
        config["pipelines"]["durable"] = {**config["pipelines"]["p"], "publish": {"durable": True}}
        self.node.file.write_text(json.dumps(config))
        self.sensors = Sensors(self.plain_port, self.node.topic)
        self.collector = Collector(self.plain_port, self.node.topic_filter)

    def issue_certificates(self, name: str, ahead: timedelta = timedelta()) -> Pki:
        """Create authorities and certificates, with a clock that may be ahead."""
        pki = Pki(self.folder / name, lambda: datetime.now(UTC) + ahead)
        pki.init("test", ["site"])
        pki.issue(parse("site/broker"), LIFETIME, hosts=["localhost", "127.0.0.1"])
        pki.issue(parse("site/node"), LIFETIME)
        pki.issue(parse("site/other"), LIFETIME)
        return pki

    def files(self, name: str, folder: str = "pki") -> dict[str, Path]:
        own = self.folder / folder / "site" / "issued" / name
        parts = {"ca": "trust.crt", "cert": "tls.crt", "key": "tls.key", "crl": "trust.crl"}
        return {f"{part}_file": own / file for part, file in parts.items()}

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Return the details of the node's events of one kind."""
        return [event["detail"] for event in list(self.collector.messages[f"event/{kind}"])]

    def wait_for_event(self, kind: str, times: int = 1) -> None:
        until(lambda: len(self.events(kind)) >= times, lambda: f"{kind}\n{self.node.log[-3000:]}", TIMEOUT_S)

    def connections(self, link: str) -> int:
        """Return how often a link of the node has connected, according to the broker's log."""
        return sum(re.search(rf" {link}/[0-9a-f]{{32}} ", f"{line} ") is not None for line in self._connections())

    def _connections(self) -> list[str]:
        text = self.broker.log.replace(" (p", " ").replace(", c", " ")
        return [
            line.replace(" as ", " connected from ") for line in text.splitlines() if "New client connected" in line
        ]

    def close(self) -> None:
        self.node.close()
        self.sensors.close()
        self.collector.close()
        self.broker.stop()
        self._stack.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[SecuredSite]:
    running = SecuredSite(tmp_path)
    yield running
    running.close()


@pytest.mark.long
@pytest.mark.timeout(300)
def test_certificates_renewed_under_load_lose_no_frame(site: SecuredSite) -> None:
    """`pki renew` with new keys while the node runs; all its links use the new files."""
    node, name = site.node, f"hedgerow/test/{site.node.site}/node"
    node.start()
    links = [name, *(f"{name}/{link}" for link in ("p", "p/results", "durable", "durable/results", "outbox"))]
    with load(site.sensors, 100):
        for round_ in (1, 2):
            (entry,) = site.pki.renew([parse("site/node")], new_key=True).renewed
            until(
                lambda serial=entry.serial: serial in {each["serial"] for each in site.events("certificate-renewed")},  # type: ignore[misc]
                lambda: node.log[-6000:],
            )
            assert node.metric("hedgerow_certificate_ends_seconds") == entry.ends.timestamp()
            until(lambda n=round_: all(site.connections(link) > n for link in links), lambda: site.broker.log)  # type: ignore[misc]
            until(lambda: node.probe("readyz")[0] == 200, lambda: node.probe("readyz"))
    assert_every_frame_has_a_result(site.sensors, site.collector, until)
    assert_duplicates_share_their_id(site.sensors, site.collector)
    until(lambda: node.metric("hedgerow_frames_in_flight") == 0)

    assert node.metric("hedgerow_frames_dropped_total") == node.metric("hedgerow_frames_dead_total") == 0


@pytest.mark.long
@pytest.mark.timeout(300)
def test_invalid_certificate_files_leave_the_links_alone(site: SecuredSite) -> None:
    """Wrong key, another node's certificate, missing file: each is reported once; the next valid files are used."""
    node, own, other = site.node, site.files("node"), site.files("other")
    node.start()
    saved = {path: path.read_bytes() for path in own.values()}

    replace(other["key_file"], own["key_file"])
    site.wait_for_event("certificate-unusable", 1)
    replace(other["cert_file"], own["cert_file"])
    site.wait_for_event("certificate-unusable", 2)
    own["key_file"].unlink()
    site.wait_for_event("certificate-unusable", 3)
    errors = [event["error"] for event in site.events("certificate-unusable")]
    assert "KEY_VALUES_MISMATCH" in errors[0].upper().replace(" ", "_")
    assert "is the certificate of 'site/other', but this node is 'site/node'" in errors[1]
    assert node.probe("readyz")[0] == 200
    assert node.metric("hedgerow_reconnects") == 0

    for path, data in saved.items():
        path.write_bytes(data)
    site.pki.renew([parse("site/node")])
    site.wait_for_event("certificate-renewed")
    site.sensors.send(10)
    assert_every_frame_has_a_result(site.sensors, site.collector, until)


def replace(source: Path, target: Path) -> None:
    """Copy a file in one step: the node must not find half of it, and report that too."""
    shutil.copy(source, target.with_suffix(".new"))
    target.with_suffix(".new").replace(target)


@pytest.mark.timeout(300)
def test_a_node_whose_clock_is_behind_reports_it_and_waits(tmp_path: Path) -> None:
    """Simulated by certificates that are not valid yet. With valid ones the node connects."""
    site = SecuredSite(tmp_path, ahead=timedelta(days=3))
    try:
        site.node.start(wait=False)
        until(lambda: "so the clock is probably wrong" in site.node.log, lambda: site.node.log, TIMEOUT_S)
        until(lambda: "the clock may be wrong" in site.node.log, lambda: site.node.log, TIMEOUT_S)
        until(lambda: site.node.probe("healthz")[0] == 200, lambda: site.node.log, TIMEOUT_S)
        assert site.node.metric("hedgerow_connected", link="node") == 0

        site.issue_certificates("good")
        for name in ("broker", "node"):
            for part, path in site.files(name).items():
                shutil.copy(site.files(name, "good")[part], path)
        site.broker.stop()
        site.broker.start()
        until(lambda: site.node.probe("readyz")[0] == 200, lambda: site.node.log[-3000:], TIMEOUT_S)
        site.wait_for_event("clock-doubtful")
        site.sensors.send(10)
        assert_every_frame_has_a_result(site.sensors, site.collector, until)
    finally:
        site.close()


def serial_of_broker(site: SecuredSite) -> str:
    """Return the serial of the broker's current certificate, without leading zeros; "" if TLS refuses the client."""
    own = site.files("other", "saved")
    context = ssl.create_default_context(cafile=own["ca_file"])
    context.load_cert_chain(own["cert_file"], own["key_file"])
    try:
        with (
            socket.create_connection(("localhost", site.broker.port), TIMEOUT_S) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as link,
        ):
            link.sendall(encode_connect(client_id="", clean_start=True, keepalive_s=60))
            return link.getpeercert()["serialNumber"].lower().lstrip("0") if link.recv(1) == b"\x20" else ""  # type: ignore[index, union-attr]
    except (ssl.SSLError, ConnectionError):
        return ""


@pytest.mark.timeout(300)
def test_a_broker_reloads_renewed_files_on_sighup_and_keeps_its_links(site: SecuredSite) -> None:
    """Certificate, key and revocation list."""
    shutil.copytree(site.folder / "pki", site.folder / "saved")
    site.node.start()
    (entry,) = site.pki.renew([parse("site/broker")], new_key=True).renewed
    assert serial_of_broker(site) not in ("", entry.serial)

    site.broker.reload()
    until(lambda: serial_of_broker(site) == entry.serial, lambda: site.broker.log)
    site.pki.revoke(parse("site/other"), "key-compromise")
    site.broker.reload()
    until(lambda: serial_of_broker(site) == "", lambda: site.broker.log)

    assert site.node.probe("readyz")[0] == 200
    assert site.node.metric("hedgerow_reconnects") == 0


@pytest.mark.timeout(300)
def test_certificates_of_a_revoked_authority_are_refused(site: SecuredSite) -> None:
    """It is removed from the trust files, because Mosquitto checks only the list of a certificate's direct issuer."""
    shutil.copytree(site.folder / "pki", site.folder / "saved")
    assert serial_of_broker(site) != ""

    site.pki.revoke_authority("site", "key-compromise")
    site.broker.restart()
    assert serial_of_broker(site) == ""
