"""The proxy that fails on demand, in front of a plain echo server."""

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


def _dial(proxy: FaultProxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=5)


def _echo(line: socket.socket, data: bytes) -> bytes:
    line.sendall(data)
    back = b""
    while len(back) < len(data):
        piece = line.recv(65_536)
        if not piece:
            break
        back += piece
    return back


def test_untouched_it_passes_and_records_everything(proxy: FaultProxy) -> None:
    data = bytes(range(256)) * 1000
    with _dial(proxy) as line:
        assert _echo(line, data) == data

    assert proxy.up == proxy.down == data
    assert proxy.connections == 1


def _ended(line: socket.socket) -> bool:
    """Whether the other end has gone, by an end of file or a reset."""
    try:
        return line.recv(1) == b""
    except ConnectionResetError:
        return True


def test_a_cut_ends_connections_and_refuses_new_ones_until_restored(proxy: FaultProxy) -> None:
    with _dial(proxy) as line:
        _echo(line, b"1")
        proxy.cut()
        assert _ended(line)
    with pytest.raises(ConnectionRefusedError):
        _dial(proxy)
    proxy.restore()
    with _dial(proxy) as line:
        assert _echo(line, b"2") == b"2"


def test_a_drop_lets_new_connections_in(proxy: FaultProxy) -> None:
    with _dial(proxy) as line:
        _echo(line, b"1")
        proxy.drop()
        assert _ended(line)
    with _dial(proxy) as line:
        assert _echo(line, b"2") == b"2"


def test_a_reset_is_seen_as_one(proxy: FaultProxy) -> None:
    with _dial(proxy) as line:
        _echo(line, b"1")
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            line.recv(1)


def test_half_open_is_silence(proxy: FaultProxy) -> None:
    with _dial(proxy) as line:
        _echo(line, b"1")
        proxy.half_open()
        line.settimeout(0.2)
        line.sendall(b"2")
        with pytest.raises(TimeoutError):
            line.recv(1)


def test_a_throttled_line_still_brings_everything(proxy: FaultProxy) -> None:
    data = b"x" * 5_000
    with _dial(proxy) as line:
        proxy.throttle(100_000)
        assert _echo(line, data) == data


def test_a_delayed_line_still_brings_everything(proxy: FaultProxy) -> None:
    with _dial(proxy) as line:
        proxy.delay(0.01)
        assert _echo(line, b"late") == b"late"
