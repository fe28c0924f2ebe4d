"""Model origins for tests: a web server for a folder that fails on demand, and a real OCI registry."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import pytest
import trustme

from hedgerow.testing import processes
from hedgerow.testing.ports import held_port

USER, PASSWORD = "plant", "pull-me"
_HASHED = "$2b$04$l./DuFHztNId3J039t58QOvsGiWizlO84rYef65/5e3JBOe4iAQ0."
REGISTRY = shutil.which("docker-registry") or shutil.which("registry")


class Authority:
    """Certificate authority of the servers.

    Attributes:
        file: the authority's certificate.
    """

    def __init__(self, folder: Path) -> None:
        self._ca = trustme.CA()
        self.folder = folder
        self.file = folder / "authority.pem"
        self._ca.cert_pem.write_to_path(self.file)

    def certificate(self, name: str, host: str = "127.0.0.1") -> tuple[Path, Path]:
        """Issue a certificate for a host, and for `localhost`. Returns: its file, and its key's file."""
        cert = self._ca.issue_cert(host, "localhost")
        chain, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        key.write_bytes(cert.private_key_pem.bytes())
        chain.write_bytes(b"".join(each.bytes() for each in cert.cert_chain_pems))
        return chain, key


class _Server(ThreadingHTTPServer):
    """Takes many connections at once; each has its TLS handshake in its own thread, so none waits for another one."""

    request_queue_size = 128


class FolderServer:
    """An HTTPS server for a folder, in its own threads.

    Attributes:
        folder: the served folder.
        ranges: whether it supports range requests.
        breaks_after: bytes of a body after which it breaks the connection, `breaks` times.
        breaks: remaining number of breaks.
        delay_s: delay before each reply.
        status: status to reply with in place of 200, if not 0.
        moved_to: target of a redirect of all requests, if not empty.
        authorization: required Authorization header, if not empty.
        token: required bearer token, if not empty. `/token` issues it in exchange for `authorization`, like a registry with a
            token server, the two in one.
        requests, sent, connections: counters so far; `sent` in bytes of bodies.
    """

    def __init__(self, folder: Path, authority: Authority) -> None:
        self.folder = folder
        self.ranges = True
        self.breaks_after = self.breaks = 0
        self.delay_s = 0.0
        self.status = 0
        self.moved_to = ""
        self.authorization = self.token = ""
        self.requests = self.sent = self.connections = 0
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                server.connections += 1

            def do_GET(self) -> None:
                server._reply(self)

            def log_message(self, *_: object) -> None:
                pass

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*authority.certificate(f"web-{id(self)}"))
        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that disconnect are part of the tests
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}/repository"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _reply(self, to: BaseHTTPRequestHandler) -> None:
        time.sleep(self.delay_s)
        self.requests += 1
        if self.token and self._handle_token(to):
            return
        path = self.folder / urlsplit(to.path).path.removeprefix("/repository/")
        status = self.status or (200 if path.is_file() else 404)
        if self.authorization and not self.token and to.headers.get("Authorization") != self.authorization:
            status = 401
        if self.moved_to:
            to.send_response(302)
            to.send_header("Location", self.moved_to)
            to.send_header("Content-Length", "0")
            to.end_headers()
            return
        content = path.read_bytes() if status == 200 else b"no"
        total, start = len(content), 0
        range_header = to.headers.get("Range", "")
        if self.ranges and status == 200 and range_header.startswith("bytes="):
            first, _, last = range_header.removeprefix("bytes=").partition("-")
            start, status = int(first), 206
            content = content[start : int(last) + 1]
        to.send_response(status)
        if status == 206:
            to.send_header("Content-Range", f"bytes {start}-{start + len(content) - 1}/{total}")
        to.send_header("Content-Length", str(len(content)))
        to.end_headers()
        with self._lock:
            breaks = self.breaks > 0 and status in (200, 206)
            self.breaks -= breaks
        if breaks:
            content = content[: self.breaks_after]
        to.wfile.write(content)
        self.sent += len(content)
        if breaks:
            to.wfile.flush()
            to.close_connection = True

    def _handle_token(self, to: BaseHTTPRequestHandler) -> bool:
        """Reply to a token request, or to a request without a valid token. Returns: whether it did."""
        sent_header = to.headers.get("Authorization", "")
        if to.path == "/token?service=models&scope=pull" and sent_header == self.authorization:
            status, content = 200, json.dumps({"token": self.token}).encode()
        elif sent_header != f"Bearer {self.token}":
            status, content = 401, b"no"
        else:
            return False
        to.send_response(status)
        realm = f"https://127.0.0.1:{self.port}/token"
        to.send_header("WWW-Authenticate", f'Bearer realm="{realm}",service="models",scope="pull"')
        to.send_header("Content-Length", str(len(content)))
        to.end_headers()
        to.wfile.write(content)
        return True


@dataclass(frozen=True)
class Request:
    """A request as it arrived."""

    method: str
    path: str
    headers: dict[str, str]


Script = Callable[[socket.socket, Request], bool]
"""Replies to a request, in bytes. Returns whether the connection stays open."""


class ScriptedServer:
    """An HTTPS server whose every byte is written by a script; it records all requests with all their headers.

    Args:
        host: address to listen on.
    Attributes:
        script: what replies now.
        requests: those received so far.
        connections: connections accepted so far, before TLS.
    """

    def __init__(self, authority: Authority, script: Script, host: str = "127.0.0.1") -> None:
        self.script = script
        self.requests: list[Request] = []
        self.connections = 0
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(*authority.certificate(f"scripted-{id(self)}", host))
        self._listener = socket.create_server((host, 0))
        self.host, self.port = host, int(self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"https://{self.host}:{self.port}/repository"

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, raw: socket.socket) -> None:
        with suppress(OSError), raw, self._context.wrap_socket(raw, server_side=True) as connection:
            while (request := _read_request(connection)) is not None:
                self.requests.append(request)
                if not self.script(connection, request):
                    return


def _read_request(connection: socket.socket) -> Request | None:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        if not (byte := connection.recv(1)):
            return None
        head += byte
    first, *lines = head.decode("latin-1").split("\r\n")
    method, path, _ = first.split(" ")
    headers = dict(line.split(": ", 1) for line in lines if line)
    left = int(headers.get("Content-Length", 0))
    while left > 0:
        left -= len(connection.recv(min(left, 1 << 16)))
    return Request(method, path, headers)


def reply(connection: socket.socket, status: int, body: bytes = b"", **headers: str) -> bool:
    """Reply properly; header names have `_` for `-`."""
    fields = {"Content-Length": str(len(body))} | {name.replace("_", "-"): text for name, text in headers.items()}
    head = f"HTTP/1.1 {status} x\r\n" + "".join(f"{name}: {text}\r\n" for name, text in fields.items())
    connection.sendall(head.encode("latin-1") + b"\r\n" + body)
    return True


class ConnectProxy:
    """An HTTP CONNECT proxy.

    Attributes:
        targets: requested targets so far.
    """

    def __init__(self) -> None:
        self.targets: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += client.recv(1)
        where = head.split()[1].decode()
        self.targets.append(where)
        host, _, port = where.partition(":")
        server = socket.create_connection((host, int(port)))
        client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        for one, other in ((client, server), (server, client)):
            threading.Thread(target=_forward, args=(one, other), daemon=True).start()


def _forward(one: socket.socket, other: socket.socket) -> None:
    with suppress(OSError):
        while data := one.recv(1 << 16):
            other.sendall(data)
        other.shutdown(socket.SHUT_WR)


class Registry:
    """A real OCI registry, with a password.

    Attributes:
        url: of a repository there.
        credentials: file with user and password.
    """

    def __init__(self, folder: Path, authority: Authority) -> None:
        if REGISTRY is None:
            pytest.skip("no OCI registry: install Debian's docker-registry")
        folder.mkdir()
        self._stack = ExitStack()
        self.port = self._stack.enter_context(held_port())
        self.url = f"oci://127.0.0.1:{self.port}/plant/models"
        self.authority = authority
        self.credentials = folder / "credentials"
        self.credentials.write_text(f"{USER}:{PASSWORD}\n")
        (folder / "users").write_text(f"{USER}:{_HASHED}\n")
        chain, key = authority.certificate("registry")
        (folder / "registry.yml").write_text(
            f"version: 0.1\n"
            f"log: {{level: warn, accesslog: {{disabled: true}}}}\n"
            f"storage: {{filesystem: {{rootdirectory: {folder / 'data'}}}, delete: {{enabled: true}}}}\n"
            f"auth: {{htpasswd: {{realm: models, path: {folder / 'users'}}}}}\n"
            f"http: {{addr: '127.0.0.1:{self.port}', tls: {{certificate: {chain}, key: {key}}}}}\n"
        )
        self._log = (folder / "log").open("w")
        self._process = processes.start(
            [REGISTRY, "serve", str(folder / "registry.yml")],
            stdout=self._log,
            stderr=self._log,
            env=os.environ | {"OTEL_TRACES_EXPORTER": "none"},
        )
        self._wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + 60
        while True:
            assert self._process.poll() is None, Path(self._log.name).read_text()
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            else:
                return

    def stop(self) -> None:
        """Stop the registry."""
        self._process.terminate()
        self._process.wait()

    def close(self) -> None:
        self.stop()
        self._log.close()
        self._stack.close()


def basic(user: str, password: str) -> str:
    return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"
