"""Certificates are renewed, spoiled, or of another time, under a running node on a real broker with TLS."""

from __future__ import annotations

import json
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
from tests.e2e.test_faults import duplicates_say_so, every_frame_has_a_result, load

from hedgerow.bus.packets import encode_connect
from hedgerow.pki.folder import Pki
from hedgerow.pki.names import parse
from hedgerow.testing.mosquitto import Mosquitto, TlsFiles
from hedgerow.testing.ports import held_port

PATIENCE_S = 90.0
LIFE = timedelta(days=2)


class Secured:
    """A site: a broker for certificates alone, with a plain port for sensors on its own machine; and a node."""

    def __init__(self, folder: Path, ahead: timedelta = timedelta()) -> None:
        self.folder = folder
        self._stack = ExitStack()
        self.pki, self.plain_port = self.certify("pki", ahead), self._stack.enter_context(held_port())
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
        self.collector = Collector(self.plain_port, self.node.said)

    def certify(self, name: str, ahead: timedelta = timedelta()) -> Pki:
        """Authorities and certificates, by a clock that may be ahead."""
        pki = Pki(self.folder / name, lambda: datetime.now(UTC) + ahead)
        pki.init("test", ["site"])
        pki.issue(parse("site/broker"), LIFE, hosts=["localhost", "127.0.0.1"])
        pki.issue(parse("site/node"), LIFE)
        pki.issue(parse("site/other"), LIFE)
        return pki

    def files(self, name: str, folder: str = "pki") -> dict[str, Path]:
        own = self.folder / folder / "site" / "issued" / name
        parts = {"ca": "trust.crt", "cert": "tls.crt", "key": "tls.key", "crl": "trust.crl"}
        return {f"{part}_file": own / file for part, file in parts.items()}

    def events(self, kind: str) -> list[dict[str, Any]]:
        """What the node has said has happened."""
        return [event["detail"] for event in list(self.collector.said[f"event/{kind}"])]

    def told(self, kind: str, times: int = 1) -> None:
        until(lambda: len(self.events(kind)) >= times, lambda: f"{kind}\n{self.node.log[-3000:]}", PATIENCE_S)

    def comings(self, link: str) -> int:
        """How often a link of the node has come up, as the broker says."""
        return sum(" connected from" in line and f" {link} " in f"{line} " for line in self._connections())

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
def secured(tmp_path: Path) -> Iterator[Secured]:
    made = Secured(tmp_path)
    yield made
    made.close()


@pytest.mark.long
@pytest.mark.timeout(300)
def test_certificates_renewed_under_load_lose_no_frame(secured: Secured) -> None:
    """By `pki renew`, with new keys, while the node runs; every link of it takes them."""
    node, name = secured.node, f"hedgerow/test/{secured.node.site}/node"
    node.start()
    links = [name, f"{name}/p", f"{name}/p/results", f"{name}/durable", f"{name}/durable/results", f"{name}/outbox"]
    with load(secured.sensors, 100):
        for round_ in (1, 2):
            ends = node.metric("hedgerow_certificate_ends_seconds")
            secured.pki.renew([parse("site/node")], new_key=True)
            secured.told("certificate-renewed", round_)
            until(  # type: ignore[misc]
                lambda ends=ends: node.metric("hedgerow_certificate_ends_seconds") > ends,
                lambda ends=ends: (
                    f"{ends} {node.probe('metrics')} {secured.events('certificate-renewed')}\n{node.log[-6000:]}"
                ),
            )
            until(lambda n=round_: all(secured.comings(link) == 1 + n for link in links), lambda: secured.broker.log)  # type: ignore[misc]
            until(lambda: node.probe("readyz")[0] == 200, lambda: node.probe("readyz"))
    every_frame_has_a_result(secured.sensors, secured.collector, until)
    duplicates_say_so(secured.sensors, secured.collector)
    until(lambda: node.metric("hedgerow_frames_in_flight") == 0)

    assert node.metric("hedgerow_frames_dropped_total") == node.metric("hedgerow_frames_dead_total") == 0


@pytest.mark.long
@pytest.mark.timeout(300)
def test_files_that_cannot_be_used_leave_the_links_alone(secured: Secured) -> None:
    """The wrong key, another's certificate, no file: each is told once, and the next good ones are taken."""
    node, own, other = secured.node, secured.files("node"), secured.files("other")
    node.start()
    kept = {path: path.read_bytes() for path in own.values()}

    shutil.copy(other["key_file"], own["key_file"])
    secured.told("certificate-unusable", 1)
    shutil.copy(other["cert_file"], own["cert_file"])
    secured.told("certificate-unusable", 2)
    own["key_file"].unlink()
    secured.told("certificate-unusable", 3)
    errors = [event["error"] for event in secured.events("certificate-unusable")]
    assert "KEY_VALUES_MISMATCH" in errors[0].upper().replace(" ", "_")
    assert "is now the certificate of 'site/other'" in errors[1]
    assert node.probe("readyz")[0] == 200
    assert node.metric("hedgerow_reconnects") == 0

    for path, data in kept.items():
        path.write_bytes(data)
    secured.pki.renew([parse("site/node")])
    secured.told("certificate-renewed")
    secured.sensors.send(10)
    every_frame_has_a_result(secured.sensors, secured.collector, until)


@pytest.mark.timeout(300)
def test_a_node_with_a_clock_that_is_behind_says_so_and_waits(tmp_path: Path) -> None:
    """Here the certificates are made ahead of time instead, which is the same to the node. With good ones, it comes."""
    secured = Secured(tmp_path, ahead=timedelta(days=3))
    try:
        secured.node.start(wait=False)
        until(lambda: "so that clock is likely wrong" in secured.node.log, lambda: secured.node.log, PATIENCE_S)
        until(lambda: "times are doubtful" in secured.node.log, lambda: secured.node.log, PATIENCE_S)
        until(lambda: secured.node.probe("healthz")[0] == 200, lambda: secured.node.log, PATIENCE_S)
        assert secured.node.metric("hedgerow_connected", link="node") == 0

        secured.certify("good")
        for name in ("broker", "node"):
            for part, path in secured.files(name).items():
                shutil.copy(secured.files(name, "good")[part], path)
        secured.broker.stop()
        secured.broker.start()
        until(lambda: secured.node.probe("readyz")[0] == 200, lambda: secured.node.log[-3000:], PATIENCE_S)
        secured.told("clock-doubtful")
        secured.sensors.send(10)
        every_frame_has_a_result(secured.sensors, secured.collector, until)
    finally:
        secured.close()


def serial_of_broker(secured: Secured) -> str:
    """As the broker shows it to somebody who connects now, without leading zeros; "" if TLS refuses them."""
    own = secured.files("other", "kept")
    context = ssl.create_default_context(cafile=own["ca_file"])
    context.load_cert_chain(own["cert_file"], own["key_file"])
    try:
        with (
            socket.create_connection(("localhost", secured.broker.port), PATIENCE_S) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as link,
        ):
            link.sendall(encode_connect(client_id="", clean_start=True, keepalive_s=60))
            return link.getpeercert()["serialNumber"].lower().lstrip("0") if link.recv(1) == b"\x20" else ""  # type: ignore[index, union-attr]
    except (ssl.SSLError, ConnectionError):
        return ""


@pytest.mark.timeout(300)
def test_a_broker_takes_renewed_files_on_sighup_and_keeps_its_links(secured: Secured) -> None:
    """Certificate and key, and the revocation list."""
    shutil.copytree(secured.folder / "pki", secured.folder / "kept")
    secured.node.start()
    (entry,) = secured.pki.renew([parse("site/broker")], new_key=True).renewed
    assert serial_of_broker(secured) not in ("", entry.serial)

    secured.broker.reload()
    until(lambda: serial_of_broker(secured) == entry.serial, lambda: secured.broker.log)
    secured.pki.revoke(parse("site/other"), "key-compromise")
    secured.broker.reload()
    until(lambda: serial_of_broker(secured) == "", lambda: secured.broker.log)

    assert secured.node.probe("readyz")[0] == 200
    assert secured.node.metric("hedgerow_reconnects") == 0


@pytest.mark.timeout(300)
def test_who_was_certified_by_an_authority_that_is_revoked_is_refused(secured: Secured) -> None:
    """It is left out of the trust files: Mosquitto looks for the list of a certificate's own issuer and for no other."""
    shutil.copytree(secured.folder / "pki", secured.folder / "kept")
    assert serial_of_broker(secured) != ""

    secured.pki.revoke_authority("site", "key-compromise")
    secured.broker.restart()
    assert serial_of_broker(secured) == ""
