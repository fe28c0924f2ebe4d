"""The web client: retries, limits of uploads, and hosts that are configured."""

from __future__ import annotations

import io
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from tests.blobs.servers import Authority, Request, ScriptedServer, reply

from hedgerow.errors import ConfigError, without_secrets
from hedgerow.tasks import WorkCancelled
from hedgerow.tasks.cancellation import Cancellation
from hedgerow.web import OriginUnavailable, WebClient, exchange
from hedgerow.web.credentials import authorization_from
from hedgerow.web.errors import RedirectRefused


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def running(authority: Authority) -> Iterator[ScriptedServer]:
    server = ScriptedServer(authority, lambda connection, _: reply(connection, 404))
    yield server
    server.close()


@pytest.fixture
def server(running: ScriptedServer) -> ScriptedServer:
    running.requests.clear()
    return running


@pytest.fixture
def web(server: ScriptedServer, authority: Authority) -> WebClient:
    return WebClient(server.url, ca_file=authority.file)


def test_a_connection_that_the_server_has_closed_is_replaced(server: ScriptedServer, web: WebClient) -> None:
    def closing(connection: socket.socket, request: Request) -> bool:
        reply(connection, 200, b"abc")
        return len(server.requests) % 2 == 0

    server.script = closing
    assert [web.fetch("/x", 3) for _ in range(5)] == [b"abc"] * 5


def test_a_file_larger_than_the_byte_limit_can_be_uploaded(server: ScriptedServer, web: WebClient) -> None:
    """What is sent counts as progress, not as received."""
    server.script = lambda connection, _: reply(connection, 201)
    content = bytes(4 << 20)
    with web.request("PUT", "/x", headers={"Content-Length": str(len(content))}, body=io.BytesIO(content)) as response:
        assert response.status == 201


def test_an_upload_is_redirected_only_as_it_is(server: ScriptedServer, web: WebClient) -> None:
    bodies: list[str] = []

    def moved(connection: socket.socket, request: Request) -> bool:
        bodies.append(request.headers.get("Content-Length", ""))
        if request.path.endswith("/kept"):
            return reply(connection, 307, Location="/there")
        if request.path.endswith("/lost"):
            return reply(connection, 302, Location="/there")
        return reply(connection, 201)

    server.script = moved
    with web.request("PUT", "/kept", body=b"abc") as response:
        assert response.status == 201
    assert bodies == ["3", "3"]
    with pytest.raises(RedirectRefused, match="302"), web.request("PUT", "/lost", body=b"abc"):
        pass


@pytest.mark.parametrize("place", ["http://127.0.0.1:9/x", "https://10.0.0.1/x", "https://user@127.0.0.1/x"])
def test_an_absolute_url_of_the_server_is_treated_like_a_redirect(web: WebClient, place: str) -> None:
    """The place for an upload that a registry names."""
    with pytest.raises(RedirectRefused), web.request("PUT", place, body=b"secret model"):
        pass


@pytest.mark.parametrize("setting", ["token_hosts", "redirect_hosts"])
def test_a_host_that_is_none_is_reported_at_the_start(setting: str) -> None:
    with pytest.raises(ConfigError, match="HOST:PORT"):
        WebClient("https://models.example", **{setting: ["https://auth.example/token"]})


def test_a_request_can_be_cancelled_while_it_waits_and_before_it_begins(server: ScriptedServer, web: WebClient) -> None:
    asked, ended = threading.Event(), threading.Event()

    def stall(connection: socket.socket, _: Request) -> bool:
        asked.set()
        with suppress(OSError):
            connection.recv(1)
        return False

    def fetch() -> None:
        try:
            cancellation.run(web.fetch, "/x", 10)
        except WorkCancelled:
            ended.set()

    server.script = stall
    cancellation = Cancellation()
    threading.Thread(target=fetch, daemon=True).start()
    assert asked.wait(60)
    cancellation.cancel()
    assert ended.wait(60)
    count = len(server.requests)
    with pytest.raises(WorkCancelled):
        cancellation.run(web.fetch, "/x", 10)
    assert len(server.requests) == count
    server.script = lambda connection, _: reply(connection, 200, b"abc")
    assert web.fetch("/x", 3) == b"abc"


def test_a_server_behind_a_closed_port_is_unavailable(authority: Authority, held_port: int) -> None:
    with pytest.raises(OriginUnavailable, match="cannot be fetched") as caught:
        WebClient(f"https://127.0.0.1:{held_port}", ca_file=authority.file).fetch("/x", 3)
    assert (caught.value.code, caught.value.received) == ("source-away", 0)


def test_a_download_that_is_left_half_way_leaves_nothing_behind(server: ScriptedServer, web: WebClient) -> None:
    """Its limits apply to no other request of this thread, and it may be collected by another thread."""
    server.script = lambda connection, _: reply(connection, 200, b"x" * 100_000)
    pieces = web.stream("/x", 100_000)
    next(pieces)
    assert exchange._current.get() is None
    assert web.fetch("/y", 100_000)

    collector = threading.Thread(target=pieces.close)
    collector.start()
    collector.join()
    assert web.fetch("/z", 100_000)


def test_errors_say_how_much_was_received(server: ScriptedServer, web: WebClient, tmp_path: Path) -> None:
    server.script = lambda connection, _: reply(connection, 500, b"x" * 1000)
    with pytest.raises(OriginUnavailable, match="500") as caught:
        web.fetch("/x", 3)
    assert 20 < caught.value.received <= 1100


def test_a_password_is_withheld_from_what_is_published_even_without_its_user(tmp_path: Path) -> None:
    file = tmp_path / "credentials"
    file.write_text("anna:tulip-9921\n")

    assert authorization_from(file, "models.example").startswith("Basic ")
    assert without_secrets("the server quotes tulip-9921") == "the server quotes ***"
