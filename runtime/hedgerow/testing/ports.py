"""Reserves TCP ports before a server listens on them.

    with held_port() as port:
        ...  # write it into files, start the server, kill it, start it again

A port that was merely found free can be taken by another process at any moment. A held port is bound by a socket that
never
listens: the kernel does not assign it to other processes or outgoing connections, and clients are refused until a
    server
listens. A server that sets SO_REUSEADDR, as nearly all do, can listen on it, and again after it was killed.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def held_port() -> Iterator[int]:
    """Yield a TCP port, on all addresses of this machine, that no other process gets while the block runs."""
    with _bound() as holder:
        port: int = holder.getsockname()[1]
        if sys.platform != "linux":
            holder.close()  # only Linux lets a server bind a port held by a socket that does not listen
        yield port


def _bound() -> socket.socket:
    # A server may listen on every address, so the port must be free on all.
    dual_stack = socket.has_dualstack_ipv6()
    holder = socket.socket(socket.AF_INET6 if dual_stack else socket.AF_INET)
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if dual_stack:
        holder.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    holder.bind(("", 0))
    return holder
