"""Metadata over HTTPS: a real web server with a real certificate, and its possible faults."""

from __future__ import annotations

import http.server
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from hedgerow.models.bundle.manifest import digest_of
from hedgerow.trust import errors
from hedgerow.trust.client import TrustClient
from hedgerow.trust.https import HttpsDocuments
from hedgerow.web import OriginUnavailable, WebClient

World = Any
Responder = Callable[[http.server.BaseHTTPRequestHandler, bytes | None], None]


class Server:
    """Serves a folder over HTTPS.

    Attributes:
        folder: the served folder.
        respond: replaces the response, given the content; None: regular response.
    """

    def __init__(self, authority: trustme.CA) -> None:
        self.folder = Path("nowhere")
        self.respond: Responder | None = None
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                path = owner.folder / self.path.removeprefix("/models/")
                content = path.read_bytes() if path.is_file() else None
                (owner.respond or owner.honest)(self, content)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost").configure_cert(context)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self.url = f"https://localhost:{self.port}/models"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @staticmethod
    def honest(handler: http.server.BaseHTTPRequestHandler, content: bytes | None) -> None:
        handler.send_response(404 if content is None else 200)
        handler.send_header("Content-Length", str(len(content or b"")))
        handler.end_headers()
        handler.wfile.write(content or b"")

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def ca_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(file)
    return file


@pytest.fixture(scope="module")
def running(authority: trustme.CA) -> Iterator[Server]:
    server = Server(authority)
    yield server
    server.close()


@pytest.fixture
def server(running: Server, world: World) -> Iterator[Server]:
    running.folder, running.respond = world.repository.folder, None
    yield running
    running.respond = None


@pytest.fixture
def node(server: Server, world: World, ca_file: Path) -> TrustClient:
    """A client whose only source is this server."""
    return TrustClient(
        world.folder / "https",
        world.root,
        HttpsDocuments(WebClient(server.url, ca_file=ca_file)),
        clock=lambda: world.time.wall,
    )


def test_a_copy_on_a_web_server_is_accepted(world: World, node: TrustClient) -> None:
    ref = world.publish()

    assert digest_of(node.manifest(ref, {})) == ref.digest


@pytest.mark.parametrize(
    ("where", "change", "refusal"),
    [
        ("timestamp", lambda data: data[: len(data) // 2], errors.TruncatedData),
        ("timestamp", lambda data: data.replace(b"2026-", b"2027-"), errors.BadSignature),
        ("snapshot", lambda data: data + b" ", errors.EndlessData),
        ("doors", lambda data: b"x" * len(data), errors.MixAndMatch),
        ("manifest", lambda data: b"x" * len(data), errors.WrongContent),
        ("timestamp", lambda _: None, errors.MissingMetadata),
    ],
)
def test_tampered_metadata_on_a_web_server_is_refused(
    world: World, server: Server, node: TrustClient, where: str, change: Callable[[Any], Any], refusal: Any
) -> None:
    ref = world.publish()

    def tampered(handler: http.server.BaseHTTPRequestHandler, content: bytes | None) -> None:
        server.honest(handler, change(content) if where in handler.path else content)

    server.respond = tampered
    with pytest.raises(refusal):
        node.manifest(ref, {})
    server.respond = None
    assert node.manifest(ref, {})


def test_a_server_that_answers_403_for_missing_files_works(world: World, server: Server, node: TrustClient) -> None:
    """Object stores do this for clients that may not list files."""
    ref = world.publish()

    def store(handler: http.server.BaseHTTPRequestHandler, content: bytes | None) -> None:
        if content is None:
            handler.send_error(403)
        else:
            server.honest(handler, content)

    server.respond = store
    assert node.manifest(ref, {})


@pytest.mark.parametrize("status", [401, 429, 500, 503])
def test_a_failing_server_is_unreachable_not_an_attack(server: Server, node: TrustClient, status: int) -> None:
    server.respond = lambda handler, _: handler.send_error(status)

    with pytest.raises(OriginUnavailable, match=str(status)) as caught:
        node.refresh()
    assert caught.value.remedy


def test_a_broken_connection_is_not_a_refusal(server: Server, node: TrustClient) -> None:
    def truncating(handler: http.server.BaseHTTPRequestHandler, content: bytes | None) -> None:
        if content is None:
            server.honest(handler, content)
            return
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content[:100])
        handler.close_connection = True

    server.respond = truncating
    with pytest.raises(OriginUnavailable):
        node.refresh()


def test_endless_data_is_cut_off(server: Server, node: TrustClient) -> None:
    sent = []

    def endless(handler: http.server.BaseHTTPRequestHandler, content: bytes | None) -> None:
        if "timestamp" not in handler.path:
            server.honest(handler, content)
            return
        handler.send_response(200)
        handler.end_headers()
        handler.close_connection = True
        try:
            while True:
                sent.append(handler.wfile.write(b"\0" * 4096))
        except OSError:
            return

    server.respond = endless
    with pytest.raises(errors.EndlessData):
        node.refresh()
    assert sum(sent) < 16 << 20, "no more than the socket buffers hold"


def test_slow_data_is_abandoned(world: World, server: Server, ca_file: Path) -> None:
    """Each byte arrives in time, so no socket timeout would notice."""
    passed = [0.0]

    def trickling(handler: http.server.BaseHTTPRequestHandler, content: bytes | None) -> None:
        if "timestamp" not in handler.path:
            server.honest(handler, content)
            return
        handler.send_response(200)
        handler.end_headers()
        handler.close_connection = True
        try:
            for _ in range(1000):
                handler.wfile.write(b" ")
                time.sleep(0.01)  # sends slowly
        except OSError:
            return

    def fast_clock() -> float:
        passed[0] += 5
        return passed[0]

    server.respond = trickling
    documents = HttpsDocuments(WebClient(server.url, ca_file=ca_file))
    node = TrustClient(
        world.folder / "https", world.root, documents, clock=lambda: world.time.wall, monotonic=fast_clock
    )
    with pytest.raises(errors.SlowData):
        node.refresh()


def test_an_untrusted_certificate_is_not_accepted(world: World, server: Server) -> None:
    """The content is signed anyway, but the requests are private."""
    node = TrustClient(world.folder / "https", world.root, HttpsDocuments(WebClient(server.url)))

    with pytest.raises(OriginUnavailable, match="certificate") as caught:
        node.refresh()
    assert "certificate" in caught.value.remedy


def test_a_redirect_away_from_https_is_not_followed(world: World, server: Server, node: TrustClient) -> None:
    plain = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    threading.Thread(target=plain.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def redirecting(handler: http.server.BaseHTTPRequestHandler, content: bytes | None) -> None:
        handler.send_response(302)
        handler.send_header("Location", f"http://127.0.0.1:{plain.server_address[1]}/")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    server.respond = redirecting
    try:
        with pytest.raises(OriginUnavailable):
            node.refresh()
    finally:
        plain.shutdown()
        plain.server_close()


def test_a_missing_server_is_unreachable(world: World, ca_file: Path) -> None:
    web = WebClient("https://127.0.0.1:1/models", ca_file=ca_file)

    with pytest.raises(OriginUnavailable, match="cannot be fetched"):
        TrustClient(world.folder / "https", world.root, HttpsDocuments(web)).refresh()
