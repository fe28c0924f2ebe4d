"""Limits of one request to a web server, enforced where bytes pass: on its sockets.

An HTTP library limits single reads: a server that sends a byte every few seconds, headers without end or `100 Continue` without
end would be waited for without end. Here every read and write belongs to an exchange, which knows how long it may still take.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import ssl
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

import urllib3

from hedgerow import tasks
from hedgerow.web.errors import OriginEndless, OriginSlow, OriginUnavailable, RedirectRefused
from hedgerow.web.places import is_address, is_public, same_address

PATIENCE_S: Final = 30.0
LEAST_BYTES_PER_S: Final = 4096
"""Time limit of a request: the patience, plus the time its content takes at the least rate."""
OVERHEAD_BYTES: Final = 256 << 10
"""Limit on bytes that are no content: headers, redirects, tokens, texts of errors."""
_CONNECT_S: Final = 10.0
_READ_S: Final = 20.0
"""Limits of a single wait."""

_current: ContextVar[Exchange | None] = ContextVar("exchange", default=None)


class Exchange:
    """The limits of a request.

    Args:
        url: what is requested, for messages.
        max_bytes: most bytes of content to receive, repetitions included.
        proxied: whether a proxy resolves names and connects.
    """

    def __init__(self, url: str, max_bytes: int, *, proxied: bool = False) -> None:
        self.url = url
        self.received = 0
        self._max_bytes = max_bytes + OVERHEAD_BYTES
        self._content = 0
        self._proxied = proxied
        self._began = time.monotonic()
        self._socket: socket.socket | None = None
        self._server: str | None = None  # address of the server that the request goes to
        self._redirected_by: str | None = None  # address of the one that sent it there
        self._limited = False

    @contextmanager
    def running(self) -> Iterator[Exchange]:
        """Apply the limits to what this thread sends and receives; end its waits if its work is cancelled.

        Raises: OriginUnavailable: with the bytes received, and the time taken.
        """
        token = _current.set(self)
        try:
            with tasks.interrupted_by(self._interrupt):
                yield self
        except OriginUnavailable as error:
            error.received, error.seconds = self.received, time.monotonic() - self._began
            raise
        finally:
            _current.reset(token)

    def progressed(self, size: int) -> None:
        """Note bytes of content, which extend the deadline. Raises: OriginSlow: the time is up all the same."""
        self._content += size
        self.left_s(_READ_S)

    def left_s(self, most_s: float) -> float:
        """Return how long to wait at most. Raises: OriginSlow: the time is up."""
        tasks.check_cancelled()
        passed_s = time.monotonic() - self._began
        left_s = PATIENCE_S + self._content / LEAST_BYTES_PER_S - passed_s
        if left_s <= 0:
            raise OriginSlow(
                f"{self.url} delivered {self._content:,} bytes in {passed_s:.0f} s",
                remedy=f"Check that server and the link to it: after {PATIENCE_S:.0f} s it must have sent "
                f"{LEAST_BYTES_PER_S:,} bytes per second.",
            )
        return min(left_s, most_s)

    # Redirects

    def redirected(self, *, anywhere: bool) -> None:
        """Note that the next request follows a redirect.

        Args:
            anywhere: whether it leads to a configured host, so that any address will do.
        """
        self._limited, self._redirected_by = not anywhere, self._server

    def check_host(self, host: str) -> None:
        """Raises: RedirectRefused: a redirect leads to an address that is not public, or to a name that only the proxy resolves.

        Without a proxy, names are checked when they resolve.
        """
        if is_address(host):
            if not self._may_reach(host):
                raise _not_public(self.url, host, host)
        elif self._proxied and self._limited:
            raise RedirectRefused(
                f"{self.url} redirects to {host}, whose address only the proxy knows: it may not be public",
                remedy="If that is right, add the host to the origin's `redirect_hosts`; else find out who changed that server.",
            )

    def resolve(self, host: str, port: int) -> list[tuple[int, str]]:
        """Return the addresses of a host, with their families; nothing resolves it again before they are used.

        Raises:
            OriginSlow: it takes too long.
            RedirectRefused: a redirect leads to an address that is not public.
            OSError: there are none.
        """
        answer: Future[list[Any]] = Future()
        if is_address(host):
            answer.set_result(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        else:  # the system's resolver can neither be interrupted nor given a deadline
            tasks.start_thread(lambda: _answer(answer, host, port), "resolver")
        try:
            with tasks.interrupted_by(lambda: _give_up(answer)):
                found = answer.result(self.left_s(_READ_S))
        except TimeoutError:
            self.left_s(_READ_S)
            raise
        addresses = [(family, str(place[0])) for family, _, _, _, place in found]
        for _, address in addresses:
            if not self._proxied and not self._may_reach(address):
                raise _not_public(self.url, host, address)
        return addresses

    def _may_reach(self, address: str) -> bool:
        if not self._limited or is_public(address):
            return True
        return self._redirected_by is not None and same_address(address, self._redirected_by)

    # Sockets

    def connect(self, host: str, port: int) -> socket.socket:
        """Return a socket connected to a host, or to the proxy. Raises: OSError: none of its addresses can be reached."""
        failure = OSError(errno.EHOSTUNREACH, "no address")
        for family, address in self.resolve(host, port):
            self._socket = connecting = socket.socket(family, socket.SOCK_STREAM)
            try:
                connecting.settimeout(self.left_s(_CONNECT_S))
                connecting.connect((address, port))
                connecting.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except BaseException as error:
                connecting.close()
                tasks.check_cancelled()
                if not isinstance(error, OSError):
                    raise
                failure = error
            else:
                return connecting
        raise failure

    def before(self, through: socket.socket, most_s: float = _READ_S) -> None:
        """Prepare a socket for one wait."""
        self._socket = through
        through.settimeout(self.left_s(most_s))

    def before_sending(self, through: socket.socket) -> None:
        """As `before`; also check that the server is one that this request may reach: a connection may be an older one."""
        self.before(through)
        if self._proxied:
            return
        self._server = through.getpeername()[0]
        if not self._may_reach(self._server):
            raise _not_public(self.url, self._server, self._server)

    def after_receiving(self, size: int) -> None:
        """Count bytes received. Raises: OriginEndless: there are too many."""
        tasks.check_cancelled()
        self.received += size
        if self.received > self._max_bytes:
            raise OriginEndless(
                f"{self.url} sends more than {self._max_bytes:,} bytes",
                remedy="That server is broken or hostile: check it.",
            )

    def _interrupt(self) -> None:
        """(any thread) End the wait of this request."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)


class ExchangeSocket(ssl.SSLSocket):
    """A TLS connection whose every wait belongs to the exchange of its thread."""

    def do_handshake(self, block: bool = False) -> None:
        """See `ssl.SSLSocket`; the whole handshake has the limit of one wait."""
        if (exchange := _current.get()) is not None:
            exchange.before(self, _CONNECT_S)
        super().do_handshake(block)

    def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:
        """See `ssl.SSLSocket`."""
        if (exchange := _current.get()) is None:
            return super().recv_into(buffer, nbytes, flags)
        exchange.before(self)
        try:
            size = super().recv_into(buffer, nbytes, flags)
        except OSError:
            exchange.left_s(_READ_S)
            raise
        exchange.after_receiving(size)
        return size

    def send(self, data: Any, flags: int = 0) -> int:
        """See `ssl.SSLSocket`. What the server takes counts as progress: it may be a large file."""
        if (exchange := _current.get()) is None:
            return super().send(data, flags)
        exchange.before_sending(self)
        try:
            size = super().send(data, flags)
        except OSError:
            exchange.left_s(_READ_S)
            raise
        exchange.progressed(size)
        return size


class ExchangeConnection(urllib3.connection.HTTPSConnection):
    """A connection to an address that the exchange has checked."""

    def _new_conn(self) -> socket.socket:
        exchange = _current.get()
        if exchange is None:
            return super()._new_conn()
        try:
            return exchange.connect(self.host.strip("[]"), self.port)
        except socket.gaierror as error:
            raise urllib3.exceptions.NameResolutionError(self.host, self, error) from error
        except OSError as error:
            exchange.left_s(_CONNECT_S)
            raise urllib3.exceptions.NewConnectionError(
                self, f"Failed to establish a new connection: {error}"
            ) from error


class ExchangePool(urllib3.HTTPSConnectionPool):
    """A pool of such connections."""

    ConnectionCls = ExchangeConnection


def _answer(answer: Future[list[Any]], host: str, port: int) -> None:
    """(in a thread of its own) Resolve a name."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        with contextlib.suppress(Exception):
            answer.set_exception(error)
    else:
        with contextlib.suppress(Exception):
            answer.set_result(found)


def _give_up(answer: Future[list[Any]]) -> None:
    with contextlib.suppress(Exception):
        answer.set_exception(tasks.WorkCancelled())


def _not_public(url: str, host: str, address: str) -> RedirectRefused:
    where = host if host == address else f"{host} ({address})"
    return RedirectRefused(
        f"{url} redirects to {where}, which is not a public address",
        remedy="If that is right, add the host to the origin's `redirect_hosts`; else find out who changed that server.",
    )
