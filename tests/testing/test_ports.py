"""Ports that are held from the moment they are chosen."""

from __future__ import annotations

import errno
import socket
import sys

import pytest

from hedgerow.testing.ports import held_port

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a server bind a port that is held")


def _server(host: str, port: int) -> socket.socket:
    """A listener as servers make it: with SO_REUSEADDR."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1"])
def test_a_server_may_listen_there_and_again_after_its_end(host: str) -> None:
    if host == "::1" and not socket.has_dualstack_ipv6():
        pytest.skip("there is no IPv6 here")
    with held_port() as port:
        for _ in range(2):
            with _server(host, port), socket.create_connection((host.replace("0.0.0.0", "127.0.0.1"), port)):
                pass


def test_two_servers_do_not_share_it() -> None:
    with held_port() as port, _server("127.0.0.1", port), pytest.raises(OSError, match="in use") as caught:
        _server("127.0.0.1", port)

    assert caught.value.errno == errno.EADDRINUSE


def test_nobody_answers_there_until_a_server_has_come() -> None:
    with held_port() as port, pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_somebody_else_may_not_take_it() -> None:
    with held_port() as port, socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.2", port))


def test_no_port_is_given_to_two() -> None:
    with held_port() as first, held_port() as second, socket.create_server(("127.0.0.1", 0)) as third:
        assert len({first, second, third.getsockname()[1]}) == 3


def test_it_is_anybodys_again_at_the_end() -> None:
    with held_port() as port:
        pass
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
