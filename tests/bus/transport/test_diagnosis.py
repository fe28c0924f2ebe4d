"""Each way in which a connection fails is named rightly, with its remedy, on real brokers.

Only peers that Mosquitto cannot be are small servers: one that speaks MQTT 3.1.1 only, one that says nothing, SSH.
"""

from __future__ import annotations

import asyncio
import datetime
import http.server
import os
import signal
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme

from hedgerow.bus import Client, ClientOptions
from hedgerow.bus.causes import ConnectionFailure
from hedgerow.bus.diagnosis import diagnose
from hedgerow.errors import BusError
from hedgerow.testing import Mosquitto
from hedgerow.testing.mosquitto import TlsFiles


@dataclass
class Authority:
    """Files of an authority: itself, a broker's and a client's certificate, and ones of others."""

    folder: Path

    def __getattr__(self, name: str) -> Path:
        return self.folder / f"{name}.pem"

    def tls(self, broker: str = "localhost", *, require: bool = False) -> TlsFiles:
        return TlsFiles(self.ca, self.folder / f"{broker}.pem", self.folder / f"{broker}.key", require)

    def client(self, name: str) -> dict[str, Path]:
        return {"cert_file": self.folder / f"{name}.pem", "key_file": self.folder / f"{name}.key"}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    folder = tmp_path_factory.mktemp("authority")
    ca, stranger = trustme.CA(), trustme.CA()
    past = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    certificates = {
        "localhost": ca.issue_cert("localhost", "127.0.0.1"),
        "elsewhere": ca.issue_cert("broker.plant.lan", "10.1.2.3"),
        "expired": ca.issue_cert("localhost", not_after=past),
        "node": ca.issue_cert("node"),
        "old": ca.issue_cert("node", not_after=past),
        "foreign": stranger.issue_cert("node"),
    }
    ca.cert_pem.write_to_path(folder / "ca.pem")
    stranger.cert_pem.write_to_path(folder / "stranger.pem")
    for name, certificate in certificates.items():
        certificate.private_key_pem.write_to_path(folder / f"{name}.key")
        certificate.cert_chain_pems[0].write_to_path(folder / f"{name}.pem")
    return Authority(folder)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait shorter for peers that do not answer."""
    monkeypatch.setattr("hedgerow.bus.diagnosis.ANSWER_WITHIN_S", 0.5)


async def explained(url: str, **options: Any) -> tuple[str, str]:
    """Return message and remedy. Both the diagnosis and the client of a node give them."""
    error = await diagnose(ClientOptions(url=url, **options))
    assert error is not None
    options = {"connect_timeout_s": 0.6, "min_backoff_s": 0.02, "max_backoff_s": 0.1, **options}
    failed = asyncio.Event()
    async with Client(ClientOptions(url=url, **options), print, lambda up, _: up or failed.set()) as client:
        async with asyncio.timeout(30):
            await failed.wait()
        with pytest.raises(BusError) as caught:
            await client.wait_connected(0)
    assert str(caught.value) == str(error)
    assert caught.value.remedy == error.remedy
    return str(error), error.remedy


def url(broker: Mosquitto, scheme: str, host: str = "localhost") -> str:
    return f"{scheme}://{host}:{broker.port}"


@pytest.mark.parametrize(
    ("tls", "address", "options", "message", "remedy"),
    [
        ({}, "mqtt://localhost", {}, "speaks TLS, but the address is for a connection without it", "Write mqtts://localhost"),
        ({"require": True}, "mqtt://localhost", {}, "speaks TLS", "Write mqtts://localhost"),
        ({}, "ws://localhost", {}, "speaks TLS", "Write wss://localhost"),
        (None, "mqtts://localhost", {"ca_file": "ca"}, "does not speak TLS", "write mqtt://localhost"),
        ({}, "mqtts://localhost", {"ca_file": "stranger"}, "is not trusted: ", "ca_file"),
        ({}, "mqtts://localhost", {}, "is not trusted", "ca_file"),
        ({"broker": "elsewhere"}, "mqtts://localhost", {"ca_file": "ca"}, "is not for this name. It is for: broker.plant.lan, 10.1.2.3.", "Connect by a name"),
        ({"broker": "elsewhere"}, "mqtts://127.0.0.1", {"ca_file": "ca"}, "is not for this name. It is for: broker.plant.lan", "Connect by a name"),
        ({"broker": "expired"}, "mqtts://localhost", {"ca_file": "ca"}, "the broker's certificate has expired", "timedatectl"),
        ({"require": True}, "mqtts://localhost", {"ca_file": "ca"}, "refused our client certificate: none was sent", "cert_file"),
        ({"require": True}, "mqtts://localhost", {"ca_file": "ca", "client": "old"}, "refused our client certificate: it has expired", "pki renew"),
        ({"require": True}, "mqtts://localhost", {"ca_file": "ca", "client": "foreign"}, "its authority is unknown to the broker", "cafile"),
    ],
    ids=[
        "plain on a TLS port", "plain on a TLS port that wants a certificate", "ws on a TLS port", "TLS on a plain port",
        "unknown authority", "unknown authority, none set", "TLS name", "TLS address", "expired", "no client certificate",
        "expired client certificate", "foreign client certificate",
    ],
)  # fmt: skip
async def test_tls(
    authority: Authority, tls: dict[str, Any] | None, address: str, options: dict[str, Any], message: str, remedy: str
) -> None:
    files: dict[str, Any] = {}
    if "ca_file" in options:
        files["ca_file"] = getattr(authority, options["ca_file"])
    if "client" in options:
        files |= authority.client(options["client"])
    with Mosquitto(tls=None if tls is None else authority.tls(**tls)) as broker:
        said, advice = await explained(f"{address}:{broker.port}", **files)

    assert message in said
    assert remedy in advice


@pytest.fixture
def passwords(tmp_path: Path) -> Path:
    path = tmp_path / "passwords"
    subprocess.run(["mosquitto_passwd", "-b", "-c", str(path), "node", "right"], check=True, capture_output=True)
    return path


async def test_passwords(passwords: Path) -> None:
    with Mosquitto(config=["allow_anonymous false", f"password_file {passwords}"]) as broker:
        none = await explained(broker.url)
        wrong = await explained(broker.url, username="node", password="wrong")
        unknown = await explained(broker.url, username="press", password="right")
        assert await diagnose(ClientOptions(url=broker.url, username="node", password="right")) is None

    assert "not authorised" in none[0]
    assert "No user name was sent: set `username` and `password_file`" in none[1]
    assert "not authorised" in wrong[0]
    assert "Check the password of 'node'" in wrong[1]
    assert "Check the password of 'press'" in unknown[1]
    assert not [text for texts in (none, wrong, unknown) for text in texts if "right" in text.split()]


async def test_a_client_id() -> None:
    with Mosquitto(config=["clientid_prefixes line-"]) as broker:
        message, remedy = await explained(broker.url, client_id="hedgerow/a/b/c")
    async with peer(lambda _: b"\x20\x03\x00\x85\x00") as address:
        _, invalid = await explained(address, client_id="hedgerow/a/b/c")

    assert "not authorised" in message
    assert "the client id 'hedgerow/a/b/c'" in remedy
    assert "client ids such as 'hedgerow/a/b/c'" in invalid


async def test_quality_of_service() -> None:
    with Mosquitto(config=["max_qos 0"]) as broker:
        message, remedy = await explained(broker.url)

    assert "QoS 0 only" in message
    assert "max_qos 0" in remedy


async def test_nothing_listens(held_port: int) -> None:
    for host in ("127.0.0.1", "localhost"):
        message, remedy = await explained(f"mqtt://{host}:{held_port}")
        assert "nothing listens there" in message
        assert "Start the broker" in remedy
    message, _ = await explained("unix:///nowhere/broker.sock")
    assert "no such socket" in message


async def test_an_unknown_host() -> None:
    message, remedy = await explained("mqtt://no-such-host.invalid")

    assert "unknown host name" in message
    assert "DNS" in remedy


@pytest.fixture
def web_server() -> Iterator[int]:
    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.usefixtures("quick")
async def test_a_web_server(web_server: int) -> None:
    message, remedy = await explained(f"mqtt://127.0.0.1:{web_server}")
    websocket = await explained(f"ws://127.0.0.1:{web_server}/mqtt")

    assert "is a web server, not an MQTT broker" in message
    assert "1883" in remedy
    assert "refused the WebSocket" in websocket[0]
    assert "404" in websocket[0]
    assert "Check the path" in websocket[1]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("scheme", ["mqtt", "mqtts", "ws"])
async def test_a_hung_broker(mosquitto: Mosquitto, scheme: str) -> None:
    assert mosquitto.pid is not None
    os.kill(mosquitto.pid, signal.SIGSTOP)

    message, remedy = await explained(f"{scheme}://127.0.0.1:{mosquitto.port}")

    assert "accepts connections but did not answer" in message
    assert "Restart it" in remedy


Answer = Callable[[bytes], bytes]


@asynccontextmanager
async def peer(answer: Answer, *, greeting: bytes = b"") -> AsyncIterator[str]:
    """A peer that is not a broker of MQTT 5: it answers the first bytes, and closes. Yields: its URL."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        try:
            writer.write(answer(await reader.read(4096)))
            await writer.drain()
        except ConnectionError:
            pass
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"mqtt://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def refusing_mqtt_5(packet: bytes) -> bytes:
    """As the standard demands of a broker of MQTT 3.1.1: return code 1, unacceptable protocol version."""
    return b"" if packet[:1] != b"\x10" else b"\x20\x02\x00\x00" if b"MQTT\x04" in packet else b"\x20\x02\x00\x01"


def closing_on_mqtt_5(packet: bytes) -> bytes:
    """As old brokers do."""
    return b"\x20\x02\x00\x00" if b"MQTT\x04" in packet else b""


@pytest.mark.parametrize(
    ("answer", "greeting", "message", "remedy"),
    [
        (refusing_mqtt_5, b"", "speaks MQTT 3.1.1 only", "MQTT 5"),
        (closing_on_mqtt_5, b"", "speaks MQTT 3.1.1 only", "MQTT 5"),
        (lambda _: b"\x20\x02\x00\x05", b"", "refused the connection: not authorised", "username"),
        (lambda _: b"", b"SSH-2.0-OpenSSH_9.2\r\n", "it answers b'SSH-2.0-OpenSSH_9.2", "host and the port"),
        (lambda _: b"-ERR unknown command\r\n", b"", "it answers b'-ERR unknown command", "host and the port"),
        (lambda _: b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", "is a web server", "1883"),
        (lambda _: b"", b"", "closed the connection", "its log"),
        (lambda _: b"\x20\x03\x00\x8a\x00", b"", "refused the connection: banned", "administrator"),
        (lambda _: b"\x20\x03\x00\x89\x00", b"", "refused the connection: server busy", "Wait"),
        (lambda _: b"\x20\x09\x00\x87\x06\x1f\x00\x03" + b"why", b"", "not authorised (why)", "username"),
    ],
    ids=["3.1.1 by code", "3.1.1 by closing", "3.1.1 code 5", "SSH", "Redis", "HTTP", "closed", "banned", "busy", "text"],
)  # fmt: skip
async def test_other_peers(answer: Answer, greeting: bytes, message: str, remedy: str) -> None:
    async with peer(answer, greeting=greeting) as address:
        said, advice = await explained(address)

    assert message in said
    assert remedy in advice


@pytest.mark.usefixtures("quick")
async def test_a_web_server_that_waits_for_a_line() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\n")
            writer.write(b"HTTP/1.0 200 OK\r\n\r\n")
        except asyncio.IncompleteReadError:
            pass
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        message, _ = await explained(f"mqtt://127.0.0.1:{server.sockets[0].getsockname()[1]}")

    assert "is a web server" in message


@pytest.mark.usefixtures("quick")
async def test_a_tls_port_that_waits_for_a_client_hello(authority: Authority) -> None:
    """As proxies do, which look at the beginning before they answer."""
    with Mosquitto(tls=authority.tls()) as broker:

        async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            data = await reader.read(4096)
            if data[:1] == b"\x16":
                upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", broker.port)
                upstream_writer.write(data)
                writer.write(await upstream_reader.read(65_536))
                upstream_writer.write(await reader.read(65_536))
                upstream_writer.close()
            else:
                await reader.read()
            writer.close()

        server = await asyncio.start_server(relay, "127.0.0.1", 0)
        async with server:
            message, _ = await explained(f"mqtt://127.0.0.1:{server.sockets[0].getsockname()[1]}")

    assert "speaks TLS" in message


async def test_a_failure_that_repeats_is_examined_once(eventually: Callable[..., Any]) -> None:
    connections = 0

    def answer(_: bytes) -> bytes:
        nonlocal connections
        connections += 1
        return b""

    async with peer(answer) as address:
        states: list[str] = []
        options = ClientOptions(url=address, min_backoff_s=0.01, max_backoff_s=0.01)
        async with Client(options, print, lambda _, reason: states.append(reason)):
            await eventually(lambda: connections >= 20)

    assert states == [f"{address} closed the connection", "closed"]


@pytest.mark.parametrize(
    ("reply", "transient"), [(b"\x20\x03\x00\x89\x00", True), (b"\x20\x03\x00\x87\x00", False), (b"", True)]
)
async def test_tools_know_what_is_worth_another_attempt(reply: bytes, transient: bool) -> None:
    async with peer(lambda _: reply) as address:
        error = await diagnose(ClientOptions(url=address))

    assert isinstance(error, ConnectionFailure)
    assert error.transient is transient
