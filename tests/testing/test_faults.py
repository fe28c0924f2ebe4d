"""The fault proxy, in front of an echo server."""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Iterator

import pytest

from hedgerow.testing.faults import FaultProxy


class _Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        try:
            while data := self.request.recv(65_536):
                self.request.sendall(data)
        except OSError:
            pass


@pytest.fixture
def proxy() -> Iterator[FaultProxy]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Echo) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        with FaultProxy("127.0.0.1", server.server_address[1], record=True) as proxy:
            yield proxy
        server.shutdown()


def _connect(proxy: FaultProxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=60)


def _echo(connection: socket.socket, data: bytes) -> bytes:
    connection.sendall(data)
    reply = b""
    while len(reply) < len(data):
        piece = connection.recv(65_536)
        if not piece:
            break
        reply += piece
    return reply


def test_without_faults_everything_is_forwarded_and_recorded(proxy: FaultProxy) -> None:
    data = bytes(range(256)) * 1000
    with _connect(proxy) as connection:
        assert _echo(connection, data) == data

    assert proxy.up == proxy.down == data
    assert proxy.connections == 1


def _closed(connection: socket.socket) -> bool:
    """Whether the other end has closed the connection, or reset it."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_a_cut_closes_connections_and_refuses_new_ones_until_restored(proxy: FaultProxy) -> None:
    with _connect(proxy) as connection:
        _echo(connection, b"1")
        proxy.cut()
        assert _closed(connection)
    with pytest.raises(ConnectionRefusedError):
        _connect(proxy)
    proxy.restore()
    with _connect(proxy) as connection:
        assert _echo(connection, b"2") == b"2"


def test_after_a_drop_new_connections_are_accepted(proxy: FaultProxy) -> None:
    with _connect(proxy) as connection:
        _echo(connection, b"1")
        proxy.drop()
        assert _closed(connection)
    with _connect(proxy) as connection:
        assert _echo(connection, b"2") == b"2"


def test_a_reset_is_received_as_a_reset(proxy: FaultProxy) -> None:
    with _connect(proxy) as connection:
        _echo(connection, b"1")
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            connection.recv(1)


def test_a_half_open_connection_is_silent(proxy: FaultProxy) -> None:
    with _connect(proxy) as connection:
        _echo(connection, b"1")
        proxy.half_open()
        connection.settimeout(0.2)
        connection.sendall(b"2")
        with pytest.raises(TimeoutError):
            connection.recv(1)


def test_a_throttled_connection_forwards_everything(proxy: FaultProxy) -> None:
    data = b"x" * 5_000
    with _connect(proxy) as connection:
        proxy.throttle(100_000)
        assert _echo(connection, data) == data


def test_a_delayed_connection_forwards_everything(proxy: FaultProxy) -> None:
    with _connect(proxy) as connection:
        proxy.delay(0.01)
        assert _echo(connection, b"late") == b"late"
