"""Ports that are reserved from the moment they are chosen."""

from __future__ import annotations

import errno
import socket
import sys

import pytest

from hedgerow.testing.ports import held_port

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a server bind a port that is held")


def _server(host: str, port: int) -> socket.socket:
    """Return a listener with SO_REUSEADDR, as servers create it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1"])
def test_a_server_can_listen_on_a_held_port_repeatedly(host: str) -> None:
    if host == "::1" and not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    with held_port() as port:
        for _ in range(2):
            with _server(host, port), socket.create_connection((host.replace("0.0.0.0", "127.0.0.1"), port)):
                pass


def test_two_servers_cannot_share_a_held_port() -> None:
    with held_port() as port, _server("127.0.0.1", port), pytest.raises(OSError, match="in use") as caught:
        _server("127.0.0.1", port)

    assert caught.value.errno == errno.EADDRINUSE


def test_connections_are_refused_until_a_server_listens() -> None:
    with held_port() as port, pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_another_process_cannot_bind_a_held_port() -> None:
    with held_port() as port, socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.2", port))


def test_a_held_port_is_not_assigned_twice() -> None:
    with held_port() as first, held_port() as second, socket.create_server(("127.0.0.1", 0)) as third:
        assert len({first, second, third.getsockname()[1]}) == 3


def test_a_port_is_released_at_the_end() -> None:
    with held_port() as port:
        pass
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
