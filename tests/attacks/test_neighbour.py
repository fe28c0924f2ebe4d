"""Attempts of a neighbour: a node of the same site with its own certificate, or whoever runs a web server, mirror or registry
that a node fetches from.

Such a neighbour may publish under its own name, answer what it is asked, and redirect. It must not hold up a node, send it
elsewhere, learn its credentials, or use up what others need. Each attempt is refused, counted and told, and the chunk, the
manifest or the metadata arrives from the next source. Time is the nodes' own clock, which the attackers move.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import pytest
from tests.blobs.conftest import Repository, noise
from tests.blobs.servers import PASSWORD, USER, Authority, FolderServer, Request, ScriptedServer, basic, reply
from tests.trust.conftest import make_bundle

from hedgerow import tasks
from hedgerow.blobs.announcements import (
    Announcement,
    AnnouncementKind,
    DocumentRequest,
    announcement_topic,
    group_of,
    part_topic,
)
from hedgerow.blobs.fetch import documents as documents_module
from hedgerow.blobs.fetch import fetcher as fetcher_module
from hedgerow.blobs.fetch.fetcher import BlobFetcher
from hedgerow.blobs.fetch.scheduler import ChunkState
from hedgerow.blobs.origins import mirrors as mirrors_module
from hedgerow.blobs.origins.mirrors import Mirrors
from hedgerow.blobs.origins.origins import OriginDocuments, open_origins, placed_chunks, web_client
from hedgerow.blobs.serve import BlobServer
from hedgerow.blobs.store.store import BlobStore
from hedgerow.bus.client import Client
from hedgerow.bus.connect import ClientOptions
from hedgerow.config import OriginSection
from hedgerow.models.bundle.manifest import File, digest_of
from hedgerow.node.fleet.verify import Verifier
from hedgerow.testing.mosquitto import Mosquitto
from hedgerow.testing.repository import TestRepository, make_repository
from hedgerow.topics import Address
from hedgerow.trust.client import TrustClient
from hedgerow.trust.documents import FolderDocuments
from hedgerow.trust.https import HttpsDocuments
from hedgerow.web import WebClient, exchange
from hedgerow.web.errors import CredentialsWithheld, OriginUnavailable, RedirectRefused
from hedgerow.wire.fleet import ModelRef

WAIT_S = 60
"""After this long a test fails."""
PIECE = 64 << 10


class MovableClock:
    """The machine's clock, which attackers move on."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead_s

    def time(self) -> float:
        return time.time()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> MovableClock:
    """The clock of requests and fetches."""
    clock = MovableClock()
    for module in (exchange, fetcher_module, mirrors_module):
        monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def hostile(authority: Authority) -> Iterator[ScriptedServer]:
    server = ScriptedServer(authority, lambda connection, _: reply(connection, 404))
    yield server
    server.close()


@pytest.fixture(scope="module")
def inner(authority: Authority) -> Iterator[ScriptedServer]:
    """A service that only its own network should reach."""
    server = ScriptedServer(authority, lambda connection, _: reply(connection, 200, b"x" * PIECE), host="127.0.0.2")
    yield server
    server.close()


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    return Repository(tmp_path_factory.mktemp("repository"))


@pytest.fixture(scope="module")
def file(repository: Repository) -> File:
    return repository.add("model.onnx", noise(PIECE, 1), PIECE)


@pytest.fixture(scope="module")
def honest(repository: Repository, authority: Authority, file: File) -> Iterator[FolderServer]:
    with FolderServer(repository.folder, authority) as server:
        yield server


@pytest.fixture
def credentials(tmp_path: Path) -> Path:
    path = tmp_path / "credentials"
    path.write_text(f"{USER}:{PASSWORD}\n")
    return path


# Web servers and mirrors


@dataclass
class Scene:
    """What an attack may move and reach."""

    clock: MovableClock
    inner: int  # port of the inner service


Attack = Callable[[socket.socket, Request, Scene], bool]
HEAD = b"HTTP/1.1 200 OK\r\n"
LENGTH = b"Content-Length: %d\r\n\r\n" % PIECE


def forever(first: bytes, again: bytes, step_s: float = 3.0) -> Attack:
    """Send without end; each time the victim's clock moves on."""

    def attack(connection: socket.socket, _: Request, scene: Scene) -> bool:
        connection.sendall(first)
        while True:  # until the victim hangs up
            connection.sendall(again)
            scene.clock.ahead_s += step_s

    return attack


def flood(first: bytes, again: bytes) -> Attack:
    return forever(first, again, 0.0)


def once(*pieces: bytes) -> Attack:
    def attack(connection: socket.socket, _: Request, __: Scene) -> bool:
        for piece in pieces:
            connection.sendall(piece)
        return False

    return attack


def redirect(place: str, status: int = 302) -> Attack:
    def attack(connection: socket.socket, request: Request, scene: Scene) -> bool:
        texts = {"PORT": str(connection.getsockname()[1]), "INNER": str(scene.inner), "PATH": request.path}
        location = place
        for name, text in texts.items():
            location = location.replace(name, text)
        return reply(connection, status, Location=location)

    return attack


ORIGINS: dict[str, tuple[Attack, str]] = {
    "trickles the body": (forever(HEAD + LENGTH, b"x"), "source-slow"),
    "trickles chunks": (forever(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"), "source-slow"),
    "trickles headers": (forever(HEAD, b"X-A: b\r\n"), "source-slow"),
    "trickles a header line": (forever(HEAD + b"X-A: ", b"b"), "source-slow"),
    "trickles the status line": (forever(b"HTTP/1.1 200 O", b"K"), "source-slow"),
    "continues without end": (forever(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), "source-slow"),
    "continues at full speed": (flood(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000), "source-endless"),
    "continues with endless headers": (flood(b"HTTP/1.1 100 x\r\n", b"X-A: " + b"b" * 60_000 + b"\r\n"), ""),
    "endless headers": (flood(HEAD, b"X-A: b\r\n" * 1000), ""),
    "an endless header line": (flood(HEAD + b"X-A: ", b"b" * 10_000), ""),
    "endless text of an error": (
        flood(b"HTTP/1.1 500 x\r\nTransfer-Encoding: chunked\r\n\r\n", b"5\r\nerror\r\n"),
        "source-away",
    ),
    "a 401 with much text": (
        flood(b'HTTP/1.1 401 x\r\nWWW-Authenticate: Bearer realm="x"\r\nContent-Length: 60000\r\n\r\n', b"x" * 1000),
        "credentials-withheld",
    ),
    "endless text of a redirect": (
        flood(b"HTTP/1.1 302 x\r\nLocation: /a\r\nTransfer-Encoding: chunked\r\n\r\n", b"5\r\nerror\r\n"),
        "redirect-refused",
    ),
    "too short for its length": (once(HEAD + LENGTH, b"x" * 10), "source-away"),
    "too long for its length": (once(HEAD + LENGTH, b"x" * (2 * PIECE)), "content-damaged"),
    "a negative length": (once(HEAD + b"Content-Length: -1\r\n\r\n", b"x" * 10), "source-away"),
    "two lengths": (once(HEAD + b"Content-Length: 5\r\nContent-Length: 9\r\n\r\n", b"x" * 9), "source-away"),
    "no length, closed at once": (once(HEAD + b"\r\n"), "source-away"),
    "a chunk of a negative size": (once(HEAD + b"Transfer-Encoding: chunked\r\n\r\n-5\r\nx"), "source-away"),
    "compressed, a bomb perhaps": (once(HEAD + b"Content-Encoding: gzip\r\n" + LENGTH, b"\x1f\x8b"), "source-away"),
    "no HTTP": (once(b"SSH-2.0-OpenSSH_9.2\r\n"), "source-away"),
    "closes at once": (once(), "source-away"),
    "other content": (once(HEAD + LENGTH, b"x" * PIECE), "content-damaged"),
    "switches protocols": (once(b"HTTP/1.1 101 x\r\nUpgrade: h2c\r\n\r\n"), "source-away"),
    "a redirect to itself": (redirect("PATH"), "redirect-refused"),
    "a redirect to plain HTTP": (redirect("http://127.0.0.1:PORT/"), "redirect-refused"),
    "a redirect to a file": (redirect("file:///etc/passwd"), "redirect-refused"),
    "a redirect to FTP": (redirect("ftp://127.0.0.1/"), "redirect-refused"),
    "a redirect with a user name": (redirect("https://root@127.0.0.1:PORT/"), "redirect-refused"),
    "a redirect with a backslash": (redirect("https://127.0.0.1:PORT\\@10.0.0.1/"), "redirect-refused"),
    "a redirect to the metadata of the cloud": (redirect("https://169.254.169.254/latest"), "redirect-refused"),
    "a redirect to a private network": (redirect("https://10.0.0.1/"), "redirect-refused"),
    "a redirect to a number": (redirect("https://167772161/"), "redirect-refused"),
    "a redirect to IPv6 of this machine": (redirect("https://[::1]:PORT/"), "redirect-refused"),
    "a redirect to IPv4 in IPv6": (redirect("https://[::ffff:10.0.0.1]/"), "redirect-refused"),
    "a redirect to IPv4 behind NAT64": (redirect("https://[64:ff9b::a00:1]/"), "redirect-refused"),
    "a redirect to any address": (redirect("https://0.0.0.0:PORT/"), "redirect-refused"),
    "a redirect to a shared network": (redirect("https://100.64.0.1/"), "redirect-refused"),
    "a redirect to another service of the plant": (redirect("https://127.0.0.2:INNER/"), "redirect-refused"),
    "a redirect to a site-local address": (redirect("https://[fec0::1]/"), "redirect-refused"),
    "a redirect to an IPv4-compatible address": (redirect("https://[::127.0.0.2]:INNER/"), "redirect-refused"),
    "a redirect to an IPv4-translated address": (redirect("https://[::ffff:0:10.0.0.1]/"), "redirect-refused"),
    "a redirect through the site's own NAT64": (redirect("https://[64:ff9b:1::a00:1]/"), "redirect-refused"),
    "a redirect that keeps the method": (redirect("https://127.0.0.2:INNER/", 308), "redirect-refused"),
}


class Fetched:
    """A chunk fetched from mirrors, and what operators are told about it."""

    def __init__(self, sources: list[Any]) -> None:
        self.chunks: list[bytes] = []
        self.events: list[dict[str, Any]] = []
        self.left_to_the_region: list[str] = []
        self.done = asyncio.Event()
        self.mirrors = Mirrors(sources, self._arrived, self._failed, lambda _, detail: self.events.append(detail))

    async def _arrived(self, _: str, data: bytes) -> None:
        self.chunks.append(data)
        self.done.set()

    def _failed(self, digest: str) -> None:
        self.left_to_the_region.append(digest)
        self.done.set()


def section(server: Any, authority: Authority, **more: Any) -> OriginSection:
    return OriginSection.model_validate({"url": server.url, "ca_file": authority.file, **more})


@pytest.mark.parametrize("name", ORIGINS)
async def test_a_hostile_mirror_is_left_alone_and_the_chunk_comes_from_the_next(
    hostile: ScriptedServer,
    honest: FolderServer,
    inner: ScriptedServer,
    authority: Authority,
    file: File,
    clock: MovableClock,
    name: str,
    credentials: Path,
) -> None:
    attack, code = ORIGINS[name]
    reached = inner.connections
    scene = Scene(clock, inner.port)
    hostile.requests.clear()
    hostile.script = lambda connection, request: attack(connection, request, scene)
    sources = open_origins([section(hostile, authority, credentials_file=credentials), section(honest, authority)])
    (piece,) = placed_chunks([file]).values()
    fetched = Fetched(sources)
    try:
        async with asyncio.timeout(WAIT_S):
            fetched.mirrors.fetch(piece)
            await fetched.done.wait()
    finally:
        await fetched.mirrors.close()

    (data,), (told,) = fetched.chunks, fetched.events
    assert digest_of(data) == file.digest
    assert (told["source"], told["next"]) == (hostile.url, honest.url)
    assert told["code"] in ([code] if code else ["source-away", "source-endless"])
    assert told["bytes"] <= 2 * PIECE + exchange.OVERHEAD_BYTES + (1 << 16)
    assert told["remedy"]
    assert fetched.mirrors.failures == {hostile.url: 1, honest.url: 0}
    assert inner.connections == reached, "nothing left for the inner network"
    assert {request.headers["Host"] for request in hostile.requests} <= {f"127.0.0.1:{hostile.port}"}


async def test_a_mirror_that_stalls_is_cancelled_with_the_fetch(
    hostile: ScriptedServer, authority: Authority, file: File
) -> None:
    """Its requests end at once, and keep no thread from the next fetch."""
    asked, hung_up = threading.Event(), threading.Event()

    def stall(connection: socket.socket, _: Request) -> bool:
        connection.sendall(HEAD + LENGTH)
        asked.set()
        with suppress(OSError):
            connection.recv(1)  # returns when the victim hangs up
        hung_up.set()
        return False

    hostile.script = stall
    fetched = Fetched(open_origins([section(hostile, authority)]))
    (piece,) = placed_chunks([file]).values()
    fetched.mirrors.fetch(piece)
    assert await asyncio.to_thread(asked.wait, WAIT_S)
    await fetched.mirrors.close()
    assert await asyncio.to_thread(hung_up.wait, WAIT_S)
    assert (fetched.events, fetched.chunks) == ([], [])


def test_a_redirect_to_a_listed_host_is_followed_without_credentials(
    hostile: ScriptedServer, inner: ScriptedServer, authority: Authority, credentials: Path
) -> None:
    hostile.script = lambda connection, _: reply(connection, 302, Location=f"https://127.0.0.2:{inner.port}/x")
    inner.requests.clear()
    web = web_client(
        section(hostile, authority, credentials_file=credentials, redirect_hosts=[f"127.0.0.2:{inner.port}"])
    )

    assert web.fetch("/x", PIECE) == b"x" * PIECE
    (request,) = inner.requests
    assert "Authorization" not in request.headers


def test_a_name_that_resolves_to_a_private_address_is_not_connected_to(
    hostile: ScriptedServer, inner: ScriptedServer, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first answer is public, the second one private: only what was checked is used, so there is no second."""
    asked: list[str] = []
    resolve = socket.getaddrinfo

    def changing(host: str, port: int, **more: Any) -> list[Any]:
        asked.append(host)
        return resolve({"inner.example": "127.0.0.2"}.get(host, host), port, **more)

    monkeypatch.setattr(exchange.socket, "getaddrinfo", changing)
    hostile.script = lambda connection, _: reply(connection, 302, Location=f"https://inner.example:{inner.port}/")
    reached = inner.connections
    with pytest.raises(RedirectRefused, match=r"inner.example \(127.0.0.2\)"):
        web_client(section(hostile, authority)).fetch("/x", PIECE)
    assert inner.connections == reached
    assert asked.count("inner.example") == 1


def test_an_address_is_resolved_once_and_used_as_checked(
    inner: ScriptedServer, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter(["127.0.0.2", "127.0.0.3", "127.0.0.3"])
    resolve = socket.getaddrinfo
    monkeypatch.setattr(exchange.socket, "getaddrinfo", lambda _, port, **more: resolve(next(answers), port, **more))
    web = WebClient(f"https://localhost:{inner.port}/", ca_file=authority.file)

    assert web.fetch("/x", PIECE)
    assert next(answers) == "127.0.0.3", "asked once"


def test_a_name_that_does_not_resolve_in_time_is_given_up(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, clock: MovableClock
) -> None:
    release = threading.Event()

    def hanging(*_: Any, **__: Any) -> list[Any]:
        clock.ahead_s += exchange.PATIENCE_S
        release.wait(WAIT_S)
        raise socket.gaierror

    monkeypatch.setattr(exchange, "_READ_S", 0.05)
    monkeypatch.setattr(exchange.socket, "getaddrinfo", hanging)
    try:
        with pytest.raises(OriginUnavailable) as refused:
            WebClient("https://models.example", ca_file=authority.file).fetch("/x", 10)
        assert refused.value.code == "source-slow"
    finally:
        release.set()


# Credentials


REALMS = {
    "another host": "https://127.0.0.2:OTHER/token",
    "another port": "https://127.0.0.1:OTHER/token",
    "another name of the same machine": "https://localhost:SAME/token",
    "another scheme": "http://127.0.0.1:SAME/token",
    "a user name before the host": "https://127.0.0.1:SAME@127.0.0.2:OTHER/token",
    "a backslash": "https://127.0.0.2:OTHER\\@127.0.0.1:SAME/token",
    "a fragment": "https://127.0.0.2:OTHER#@127.0.0.1:SAME/token",
    "no host": "https:///token",
    "a file": "file:///etc/passwd",
}


@pytest.mark.parametrize("redirected", [False, True], ids=["by itself", "after a redirect"])
@pytest.mark.parametrize("name", REALMS)
def test_credentials_stay_with_the_host_they_are_for(
    hostile: ScriptedServer,
    inner: ScriptedServer,
    authority: Authority,
    credentials: Path,
    name: str,
    redirected: bool,
) -> None:
    """Whoever asks for them with a 401 of its own."""
    realm = REALMS[name].replace("OTHER", str(inner.port)).replace("SAME", str(hostile.port))
    unauthorised = {"WWW_Authenticate": f'Bearer realm="{realm}",service="s",scope="pull"'}
    third = ScriptedServer(authority, lambda connection, _: reply(connection, 401, **unauthorised))
    try:
        if redirected:
            hostile.script = lambda connection, _: reply(connection, 302, Location=f"{third.url}/x")
        else:
            hostile.script = lambda connection, _: reply(connection, 401, **unauthorised)
        inner.requests.clear()
        with pytest.raises(OriginUnavailable) as refused:
            web_client(section(hostile, authority, credentials_file=credentials)).fetch("/x", PIECE)
        assert refused.value.remedy
        assert refused.value.code == ("source-away" if redirected else CredentialsWithheld.code)
        for request in [*third.requests, *inner.requests]:
            assert not any(PASSWORD in text or "Basic" in text for text in request.headers.values()), request
            assert "Authorization" not in request.headers
        assert inner.requests == [], "nobody asked for a token there"
    finally:
        third.close()


def test_a_listed_token_service_gets_the_credentials_and_nobody_the_token_but_the_registry(
    hostile: ScriptedServer, inner: ScriptedServer, authority: Authority, credentials: Path
) -> None:
    """Also if the token service redirects, or the registry does once it has the token."""
    third = ScriptedServer(authority, lambda connection, _: reply(connection, 200, b"x" * PIECE))
    realm = f"https://127.0.0.2:{inner.port}/token"

    def registry(connection: socket.socket, request: Request) -> bool:
        if request.headers.get("Authorization") != "Bearer t0ken":
            return reply(connection, 401, WWW_Authenticate=f'Bearer realm="{realm}",service="s"')
        return reply(connection, 307, Location=f"{third.url}/blob")

    hostile.script = registry
    tokens: Iterator[Callable[[socket.socket, Request], bool]] = iter(
        [
            lambda connection, _: reply(connection, 302, Location=f"{third.url}/token"),
            lambda connection, _: reply(connection, 200, b'{"token": "t0ken"}'),
        ]
    )

    def token_service(connection: socket.socket, request: Request) -> bool:
        return next(tokens)(connection, request)

    script, inner.script = inner.script, token_service
    web = web_client(section(hostile, authority, credentials_file=credentials, token_hosts=[f"127.0.0.2:{inner.port}"]))
    try:
        inner.requests.clear()
        with pytest.raises(OriginUnavailable, match="401"):
            web.fetch("/x", PIECE)
        assert third.requests == [], "credentials are not redirected"
        assert web.fetch("/x", PIECE) == b"x" * PIECE
        assert [request.headers.get("Authorization") for request in inner.requests] == 2 * [basic(USER, PASSWORD)]
        assert [request.headers.get("Authorization") for request in third.requests] == [None]
    finally:
        inner.script = script
        third.close()


@pytest.mark.parametrize(
    "token",
    [
        b'{"token": "a\\r\\nX-Evil: 1"}',
        b'{"token": 5}',
        b"[]",
        b'{"token": ""}',
        b"\x1f\x8b\x08",
        b'{"token": "\xc3\xa9"}',
    ],
)
def test_a_token_that_is_none_is_not_used(
    hostile: ScriptedServer, authority: Authority, credentials: Path, token: bytes
) -> None:
    def registry(connection: socket.socket, request: Request) -> bool:
        if request.path.startswith("/token"):
            return reply(connection, 200, token)
        return reply(connection, 401, WWW_Authenticate=f'Bearer realm="https://127.0.0.1:{hostile.port}/token"')

    hostile.script = registry
    with pytest.raises(OriginUnavailable, match="401"):
        web_client(section(hostile, authority, credentials_file=credentials)).fetch("/x", PIECE)


# Metadata and manifests


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> TestRepository:
    return make_repository(tmp_path_factory.mktemp("models") / "repository", ["door"])


@pytest.fixture(scope="module")
def published(models: TestRepository, tmp_path_factory: pytest.TempPathFactory) -> ModelRef:
    bundle = make_bundle(tmp_path_factory.mktemp("bundle"))
    digest = models.repository.publish(bundle, models.owner).digest  # type: ignore[arg-type]  # a stand-in of tests
    return ModelRef(name="door", version="1.0.0", digest=digest)


class HostileDocuments:
    """A mirror's documents: those that match are attacked."""

    def __init__(self, models: TestRepository, attacked: str, attack: Attack, scene: Scene) -> None:
        self.folder, self.attacked, self.attack, self.scene = models.repository.folder, attacked, attack, scene

    def __call__(self, connection: socket.socket, request: Request) -> bool:
        path = self.folder / request.path.removeprefix("/repository/")
        if self.attacked in request.path:
            return self.attack(connection, request, self.scene)
        return reply(connection, 200, path.read_bytes()) if path.is_file() else reply(connection, 404)


METADATA = {
    "trickles": forever(HEAD + b"Content-Length: 1000\r\n\r\n", b"x"),
    "trickles headers": forever(HEAD, b"X-A: b\r\n"),
    "sends without end": flood(HEAD + b"\r\n", b"x" * 4096),
    "redirects inside": redirect("https://10.0.0.1/"),
}


@pytest.mark.parametrize("attacked", ["timestamp.json", "manifest.json"])
@pytest.mark.parametrize("name", METADATA)
def test_the_next_source_of_metadata_is_asked_if_one_misbehaves(
    hostile: ScriptedServer,
    authority: Authority,
    models: TestRepository,
    published: ModelRef,
    tmp_path: Path,
    clock: MovableClock,
    attacked: str,
    name: str,
) -> None:
    hostile.script = HostileDocuments(models, attacked, METADATA[name], Scene(clock, 0))
    told: list[tuple[str, dict[str, Any]]] = []
    trust = TrustClient(
        tmp_path,
        models.root,
        HttpsDocuments(WebClient(hostile.url, ca_file=authority.file)),
        FolderDocuments(models.repository.folder),
        on_event=lambda kind, detail: told.append((kind, detail)),
    )

    assert digest_of(trust.manifest(published, {})) == published.digest
    ((kind, detail),) = told
    assert (kind, detail["source"], detail["next"]) == ("source-left-alone", hostile.url, "FolderDocuments")
    assert detail["code"] in ("source-slow", "endless-data", "redirect-refused")
    assert trust.failures == {hostile.url: 1}


def test_a_mirror_that_trickles_a_manifest_is_skipped_for_a_while(
    hostile: ScriptedServer,
    authority: Authority,
    models: TestRepository,
    published: ModelRef,
    tmp_path: Path,
    clock: MovableClock,
) -> None:
    """The region's manifest is not refused as slow, although the mirror used up the time."""
    hostile.requests.clear()
    hostile.script = HostileDocuments(models, "manifest.json", METADATA["trickles"], Scene(clock, 0))
    told: list[dict[str, Any]] = []
    documents = OriginDocuments(
        FolderDocuments(models.repository.folder),
        open_origins([section(hostile, authority)]),
        lambda _, detail: told.append(detail),
    )
    for number in range(2):
        trust = TrustClient(tmp_path / str(number), models.root, documents, monotonic=clock.monotonic)
        assert digest_of(trust.manifest(published, {})) == published.digest

    assert len(hostile.requests) == 1
    assert [(detail["source"], detail["code"]) for detail in told] == [(hostile.url, "source-slow")]


class Stalling:
    """A source that does not answer until `release` is set."""

    def __init__(self) -> None:
        self.asked, self.release = threading.Event(), threading.Event()

    def get(self, path: str, max_bytes: int) -> Iterator[bytes]:
        self.asked.set()
        self.release.wait(WAIT_S)
        yield b""

    def forget(self) -> None:
        """Nothing is cached."""


def test_a_source_that_does_not_answer_delays_nobody_who_does_not_ask_it(
    models: TestRepository, published: ModelRef, tmp_path: Path
) -> None:
    """No lock is held while it is waited for."""
    stalling, honest_documents = Stalling(), FolderDocuments(models.repository.folder)
    trust = TrustClient(tmp_path, models.root, honest_documents)
    content = trust.manifest(published, {})
    trust._sources = (stalling, honest_documents)
    waiting = threading.Thread(target=lambda: suppress_errors(trust.refresh), daemon=True)
    waiting.start()
    try:
        assert stalling.asked.wait(WAIT_S)
        trust._sources = (honest_documents,)
        assert trust.manifest(published, {}) == content
        assert trust.refresh().timestamp
    finally:
        stalling.release.set()
        waiting.join(WAIT_S)


def suppress_errors(work: Callable[[], object]) -> None:
    with suppress(Exception):
        work()


async def test_a_verification_that_is_cancelled_ends_what_it_waits_for(
    hostile: ScriptedServer, authority: Authority, models: TestRepository, published: ModelRef, tmp_path: Path
) -> None:
    """Many of them leave no thread behind, and the next one succeeds."""
    asked, hung_up = threading.Semaphore(0), threading.Semaphore(0)

    def stall(connection: socket.socket, _: Request) -> bool:
        connection.sendall(HEAD + LENGTH)
        asked.release()
        with suppress(OSError):
            connection.recv(1)
        hung_up.release()
        return False

    hostile.script = stall
    trust = TrustClient(
        tmp_path,
        models.root,
        HttpsDocuments(WebClient(hostile.url, ca_file=authority.file)),
    )
    verifier = Verifier(trust, lambda *_: None)
    try:
        for _ in range(6):
            verification = asyncio.create_task(verifier.verify(published, {}))
            assert await asyncio.to_thread(asked.acquire, timeout=WAIT_S)
            await tasks.cancel(verification)
            assert await asyncio.to_thread(hung_up.acquire, timeout=WAIT_S)
        trust._sources = (FolderDocuments(models.repository.folder),)
        async with asyncio.timeout(WAIT_S):
            await verifier.verify_again(published, {})
    finally:
        verifier.close()


# Peers


@pytest.fixture(scope="module")
def site_broker() -> Iterator[Mosquitto]:
    with Mosquitto() as broker:
        yield broker


NUMBERS = itertools.count()
CHUNK = 2048


class PeerSite:
    """A region with a repository, a node `n1` that fetches from it, and a neighbour `n9`."""

    def __init__(self, broker: Mosquitto, folder: Path, clock: MovableClock) -> None:
        self.broker, self.folder, self.clock = broker, folder, clock
        self.region = f"region-{next(NUMBERS)}"
        self.repository = Repository(folder / "repository")
        self.file = self.repository.add("model.onnx", noise(8 * CHUNK, 3), CHUNK)
        self.digests = tuple(chunk.digest.removeprefix("sha256:") for chunk in self.file.chunks)
        self.group = group_of([self.file])
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.links = AsyncExitStack()

    async def __aenter__(self) -> PeerSite:
        self.server = BlobServer(ClientOptions(url=self.broker.url), self.region, self.repository.folder)
        await self.links.enter_async_context(self.server)
        self.victim = await self.node("n1")
        self.link = await self.links.enter_async_context(
            Client(ClientOptions(url=self.broker.url, client_id=f"{self.region}-n9"), lambda _: None)
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.links.aclose()

    def address(self, name: str) -> Address:
        return Address(self.region, "hall", name)

    async def node(self, name: str, **more: Any) -> BlobFetcher:
        store = BlobStore(self.folder / name, 1 << 30)
        options = ClientOptions(url=self.broker.url, max_backoff_s=1.0)
        fetcher = BlobFetcher(
            options, self.address(name), store, on_event=lambda *event: self.events.append(event), **more
        )
        return await self.links.enter_async_context(fetcher)

    async def send(self, topic: str, payload: bytes) -> None:
        accepted = asyncio.Event()
        self.link.publish(topic, payload, qos=1, done=lambda _: accepted.set())
        await accepted.wait()

    async def announce(self, kind: AnnouncementKind, group: str = "", exclude: tuple[str, ...] = ()) -> None:
        announcement = Announcement(kind, group or self.group, self.digests, exclude)
        await self.send(announcement_topic(self.address("n9"), kind), announcement.encode())

    async def part(self, digest: str, payload: bytes, group: str = "") -> None:
        await self.send(part_topic(self.address("n9"), group or self.group, digest), payload)

    @property
    def waits_for_messages(self) -> bool:
        """Whether the victim waits for the broker or the region, which do not know its clock."""
        scheduler = self.victim._scheduler
        entries = [] if scheduler is None else scheduler._entries.values()
        states = (ChunkState.ANNOUNCED, ChunkState.REQUESTED)
        return scheduler is None or any(entry.owner == "n1" and entry.state in states for entry in entries)

    async def fetched_despite(self, attack: Callable[[PeerSite], Awaitable[None]]) -> None:
        """Let the victim fetch while it is attacked without pause; its clock runs while it waits for others."""
        fetching = asyncio.create_task(self.victim.fetch([self.file]))
        began = self.clock.ahead_s
        async with asyncio.timeout(WAIT_S):
            while not fetching.done():
                await attack(self)
                if not self.waits_for_messages:
                    self.clock.ahead_s += 0.5
                    self.victim._wake.set()
                await asyncio.sleep(0)
            await fetching
        assert self.clock.ahead_s - began <= 45 + 10, "the time that peers may take, and the time to ask"
        assert not self.victim._store.missing([self.file])


OTHER_GROUP = "0" * 16
Offence = Callable[[PeerSite], Awaitable[None]]


def claims(*kinds: AnnouncementKind, group: str = "") -> Offence:
    turns = itertools.count()

    async def offence(site: PeerSite) -> None:
        await site.announce(kinds[next(turns) % len(kinds)], group)

    return offence


async def offers_and_lies(site: PeerSite) -> None:
    await site.announce(AnnouncementKind.HAVE)
    for digest in site.digests:
        await site.part(digest, b"x" * CHUNK)


async def offers_and_sends_one(site: PeerSite) -> None:
    await site.announce(AnnouncementKind.HAVE)
    chunk = site.file.chunks[0]
    await site.part(site.digests[0], site.repository.path(chunk.digest).read_bytes())


async def asks_for_others_and_wants(site: PeerSite) -> None:
    await site.announce(AnnouncementKind.ASK, OTHER_GROUP)
    await site.announce(AnnouncementKind.WANT)


def floods_the_region() -> Offence:
    """Keep all places of the site's queue at the region taken."""
    numbers = itertools.count()

    async def offence(site: PeerSite) -> None:
        for _ in range(10):
            junk = tuple(f"{next(numbers):064x}" for _ in range(64))
            ask = Announcement(AnnouncementKind.ASK, OTHER_GROUP, junk)
            site.link.publish(announcement_topic(site.address("n9"), ask.kind), ask.encode(), qos=0)
        await site.announce(AnnouncementKind.ASK, OTHER_GROUP)

    return offence


STARVING: dict[str, Offence] = {
    "wants again and again": claims(AnnouncementKind.WANT),
    "is busy again and again": claims(AnnouncementKind.BUSY),
    "takes again and again": claims(AnnouncementKind.TAKE),
    "asks for another group": claims(AnnouncementKind.ASK, group=OTHER_GROUP),
    "offers and sends nothing": claims(AnnouncementKind.HAVE),
    "offers and lies": offers_and_lies,
    "offers and sends only one": offers_and_sends_one,
    "takes and is busy": claims(AnnouncementKind.TAKE, AnnouncementKind.BUSY),
    "takes, wants and offers": claims(AnnouncementKind.TAKE, AnnouncementKind.WANT, AnnouncementKind.HAVE),
    "asks for others and wants": asks_for_others_and_wants,
    "asks the region for what is not there": floods_the_region(),
}


@pytest.mark.parametrize("name", STARVING)
async def test_a_neighbour_that_repeats_itself_cannot_starve_a_node(
    site_broker: Mosquitto, tmp_path: Path, clock: MovableClock, name: str
) -> None:
    async with PeerSite(site_broker, tmp_path, clock) as site:
        await site.fetched_despite(STARVING[name])

        assert site.server.counts.chunks >= len(site.digests) - 1, "the region has sent them"
        for kind, detail in site.events:
            assert (kind, detail["peer"]) == ("peer-left-out", "n9")
            assert detail["remedy"]
        assert sum(site.victim.counts.left_out.values()) == len(site.events)
        told = [detail["reason"] for _, detail in site.events]
        if name == "offers and lies":
            assert told == ["bad-chunk"]
            assert site.victim.counts.ignored, "not even read any more"
        if name in ("wants again and again", "offers and sends nothing"):
            assert told


@pytest.mark.parametrize("serves", [True, False], ids=["with peers", "alone"])
async def test_the_region_is_asked_if_a_mirror_keeps_a_node_waiting(
    site_broker: Mosquitto,
    hostile: ScriptedServer,
    authority: Authority,
    tmp_path: Path,
    clock: MovableClock,
    serves: bool,
) -> None:
    """It sends just fast enough not to be left alone, so the fetch would end as if the region were away."""
    asked, release = threading.Event(), threading.Event()

    def stall(connection: socket.socket, _: Request) -> bool:
        asked.set()
        release.wait(WAIT_S)
        return False

    hostile.script = stall
    sources = open_origins([section(hostile, authority)])
    async with PeerSite(site_broker, tmp_path, clock) as site:
        site.victim = await site.node("n2", sources=sources, serve_neighbours=serves)
        fetching = asyncio.create_task(site.victim.fetch([site.file]))
        assert await asyncio.to_thread(asked.wait, WAIT_S)
        try:
            async with asyncio.timeout(WAIT_S):
                while not fetching.done():
                    sent = site.server.counts.chunks
                    if not sent and clock.ahead_s < 45:
                        clock.ahead_s += 1.0
                        site.victim._wake.set()
                    await asyncio.sleep(0.01)
                await fetching
        finally:
            release.set()

        assert site.server.counts.chunks == len(site.digests)
        assert not site.victim._store.missing([site.file])


async def raw(site: PeerSite, kind: AnnouncementKind, payload: bytes) -> None:
    await site.send(announcement_topic(site.address("n9"), kind), payload)


def packed(*fields: Any) -> bytes:
    data: bytes = msgpack.packb(list(fields))
    return data


NONSENSE: dict[str, Callable[[PeerSite], bytes]] = {
    "no MessagePack": lambda _: b"\xff" * 100,
    "nothing": lambda _: b"",
    "a map": lambda _: msgpack.packb({"group": 1}),
    "too deep": lambda _: b"\x91" * 5000,
    "a list without end": lambda site: packed(site.group, [bytes(32)] * 10_000, []),
    "one digest too many": lambda site: packed(site.group, [bytes(32)] * 65, []),
    "a length that is a lie": lambda _: b"\xdd\xff\xff\xff\xff",
    "digests that are too short": lambda site: packed(site.group, [b"x"], []),
    "digests that are text": lambda site: packed(site.group, ["a" * 64], []),
    "another kind of group": lambda _: packed("../../etc/passwd", [bytes(32)], []),
    "an address to fetch from": lambda site: packed(site.group, [bytes(32)], ["https://10.0.0.1/"]),
    "an address in place of a digest": lambda site: packed(site.group, ["http://169.254.169.254/"], []),
    "one field more": lambda site: packed(site.group, [bytes(32)], [], "tcp://10.0.0.1:1883"),
}


@pytest.mark.parametrize("name", NONSENSE)
async def test_nonsense_of_a_neighbour_is_counted_and_changes_nothing(
    site_broker: Mosquitto, tmp_path: Path, clock: MovableClock, name: str
) -> None:
    async with PeerSite(site_broker, tmp_path, clock) as site:
        for kind in (AnnouncementKind.WANT, AnnouncementKind.HAVE):
            await raw(site, kind, NONSENSE[name](site))
        async with asyncio.timeout(WAIT_S):
            await site.victim.fetch([site.file])

        assert site.victim.counts.unreadable == 2
        assert dict_of(site.victim.gauges())["hedgerow_fetch_unreadable"] == 2
        assert site.victim.client.connected
        assert not site.victim._store.missing([site.file])


def dict_of(gauges: Iterator[Any]) -> dict[str, float]:
    return {name: value for name, _, _, value in gauges}


PARTS: dict[str, Callable[[PeerSite], tuple[bytes, str]]] = {
    "too short": lambda site: (b"x", site.group),
    "empty, as if the region had none": lambda site: (b"", site.group),
    "too long": lambda site: (b"x" * (CHUNK + 1), site.group),
    "longer than any message may be": lambda site: (b"x" * (1 << 20), site.group),
    "of another group": lambda _: (b"x" * CHUNK, OTHER_GROUP),
}


@pytest.mark.parametrize("name", PARTS)
async def test_chunks_of_a_neighbour_that_are_none_do_no_harm(
    site_broker: Mosquitto, tmp_path: Path, clock: MovableClock, name: str
) -> None:
    async def offence(site: PeerSite) -> None:
        payload, group = PARTS[name](site)
        await site.part(site.digests[-1], payload, group)

    async with PeerSite(site_broker, tmp_path, clock) as site:
        await site.fetched_despite(offence)

        assert site.victim.client.connected
        if name != "of another group":
            assert site.victim.counts.bad == 1
            assert [detail["reason"] for _, detail in site.events] == ["bad-chunk"]


async def test_a_neighbour_that_wants_everything_does_not_keep_others_from_being_served(
    site_broker: Mosquitto, tmp_path: Path, clock: MovableClock
) -> None:
    """A peer that has the model serves both in turn; the region is not asked."""
    async with PeerSite(site_broker, tmp_path, clock) as site:
        peer = await site.node("n2")
        async with asyncio.timeout(WAIT_S):
            await peer.fetch([site.file])
            sent = site.server.counts.chunks
            greedy = asyncio.create_task(repeat(site, claims(AnnouncementKind.WANT, group=OTHER_GROUP)))
            await site.victim.fetch([site.file])
            await tasks.cancel(greedy)

        assert site.victim.counts.lan_bytes + site.victim.counts.wan_bytes == site.file.size
        assert site.server.counts.chunks - sent <= len(site.digests)
        assert peer._peers is not None
        assert peer._peers.chunks_sent >= len(site.digests)


async def repeat(site: PeerSite, offence: Offence) -> None:
    while True:
        await offence(site)


async def test_a_neighbour_that_asks_for_documents_does_not_keep_others_from_asking(
    site_broker: Mosquitto, tmp_path: Path, clock: MovableClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its requests reach the node, and never the region: they expire on the way."""
    monkeypatch.setattr(documents_module, "_TIMEOUTS_S", (0.05, 5.0, 5.0))
    async with PeerSite(site_broker, tmp_path, clock) as site:
        path = site.repository.folder / "metadata" / "timestamp.json"
        path.write_bytes(b"{}")
        request = DocumentRequest("metadata/timestamp.json")
        site.victim.documents.on_request(request.encode())
        site.victim.documents._requested_at[request.path, 0] += 3600.0
        async with asyncio.timeout(WAIT_S):
            part = await site.victim.documents.part(request.path, 0)

        assert part.data == b"{}"
        assert site.victim.documents.requests == 1
