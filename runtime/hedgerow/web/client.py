"""Requests to one web server, and wherever it redirects them."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final
from urllib.parse import urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3

from hedgerow.errors import ConfigError
from hedgerow.web.credentials import LONGEST_TOKEN, authorization_from, parse_challenge, parse_token
from hedgerow.web.errors import CredentialsWithheld, NotFound, OriginUnavailable, RedirectRefused
from hedgerow.web.exchange import Exchange, ExchangePool, ExchangeSocket
from hedgerow.web.places import WebOrigin, origin_of, origin_of_host

Response = urllib3.response.BaseHTTPResponse

_TIMEOUT: Final = urllib3.Timeout(connect=10, read=20)
"""Of waits that are not the exchange's: for a proxy."""
_ATTEMPTS: Final = 3
"""Most connections for one download."""
_MOST_REDIRECTS: Final = 3
_REDIRECTS: Final = (301, 302, 303, 307, 308)
_KEEPS_METHOD: Final = (307, 308)
_BLOCK: Final = 1 << 16
_NO_COMPRESSION: Final = {"Accept-Encoding": "identity"}
_BROKEN: Final = (urllib3.exceptions.ProtocolError, urllib3.exceptions.TimeoutError)
_NO_CONNECTION: Final = urllib3.exceptions.NewConnectionError  # also a TimeoutError


class WebClient:
    """Client of one web server.

    Args:
        base: https://HOST[:PORT][/PATH].
        ca_file: trusted CAs; None: the system's.
        credentials_file: `USER:PASSWORD`, a token, or Docker's `config.json`.
        parallel: most connections kept open.
        token_hosts: other HOST[:PORT] that get the credentials, in exchange for a token.
        redirect_hosts: other HOST[:PORT] that may be redirected to although their address is not public.
    Raises: ConfigError: a file cannot be read, or a host is none.
    """

    def __init__(
        self,
        base: str,
        *,
        ca_file: Path | None = None,
        credentials_file: Path | None = None,
        parallel: int = 8,
        token_hosts: Collection[str] = (),
        redirect_hosts: Collection[str] = (),
    ) -> None:
        self.base = base.rstrip("/")
        self._host = urlsplit(base).netloc
        self._credentials_file = credentials_file
        self._token = ""
        self._origin = _configured(base, origin_of, base)
        self._token_origins = {self._origin, *(_configured(host, origin_of_host, base) for host in token_hosts)}
        self._redirect_origins = {self._origin, *(_configured(host, origin_of_host, base) for host in redirect_hosts)}
        try:
            context = ssl.create_default_context(cafile=ca_file)
        except OSError as error:  # an SSLError is one
            raise ConfigError(
                f"{ca_file} cannot be used to verify {base}: {error.strerror or error}",
                remedy="Put the CA's certificate there, as PEM.",
            ) from error
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.sslsocket_class = ExchangeSocket
        self._credentials()
        proxy = getproxies().get("https")
        self._proxied = bool(proxy) and not proxy_bypass(self._host)
        if proxy and self._proxied:
            self._pool: urllib3.PoolManager = urllib3.ProxyManager(proxy, maxsize=parallel, ssl_context=context)
        else:
            self._pool = urllib3.PoolManager(maxsize=parallel, ssl_context=context)
        self._pool.pool_classes_by_scheme = {"https": ExchangePool}

    @contextmanager
    def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | IO[bytes] | None = None,
        max_bytes: int = _BLOCK,
    ) -> Iterator[Response]:
        """Send a request; the content of the response is not read yet.

        Args:
            method: HTTP method.
            url: absolute, or relative to the server's base.
            headers: additional headers.
            body: content to send.
            max_bytes: most bytes of content to receive.
        Raises: OriginUnavailable: the server is unreachable or too slow, the connection breaks, the credentials are
            refused, or it redirects to where this node does not go.
        """
        with self._exchange(url, max_bytes) as exchange, self._open(exchange, method, url, headers, body) as response:
            yield response

    def stream(self, url: str, max_bytes: int, *, missing: tuple[int, ...] = (404, 410)) -> Iterator[bytes]:
        """Yield the content of a file in pieces.

        Args:
            url: absolute, or relative to the server's base.
            max_bytes: stop reading one byte above this.
            missing: statuses that mean that the file does not exist.
        Raises:
            NotFound: the file does not exist.
            OriginUnavailable: see `request`.
        """
        url, left = self._absolute(url), max_bytes + 1
        exchange = Exchange(url, max_bytes, proxied=self._proxied)
        with exchange.running(), _translated(url):
            response = self._reply(exchange, "GET", url, _NO_COMPRESSION)
        try:
            _expect(response, url, (200,), missing)
            while left > 0:
                with exchange.running(), _translated(url):  # not while the caller has a piece
                    piece = response.read1(min(_BLOCK, left))
                    exchange.progressed(len(piece))
                if not piece:
                    return
                left -= len(piece)
                yield piece
        finally:
            response.close()

    def fetch(self, url: str, size: int, offset: int | None = None) -> bytes:
        """Download a file or a part of it; resume if the connection breaks.

        Args:
            url: absolute, or relative to the server's base.
            size: number of bytes.
            offset: start of the part; None: the whole file, which has `size` bytes.
        Raises:
            NotFound: the file does not exist.
            OriginUnavailable: see `request`; or the server sends too little, or does not support ranges; or the
                connection breaks repeatedly.
        """
        with self._exchange(url, 2 * size) as exchange:
            return self._fetch(exchange, self._absolute(url), size, offset)

    def _fetch(self, exchange: Exchange, url: str, size: int, offset: int | None) -> bytes:
        received, credited = bytearray(), 0
        for _ in range(_ATTEMPTS):
            start = (offset or 0) + len(received)
            partial = offset is not None or len(received) > 0
            range_header = {"Range": f"bytes={start}-{(offset or 0) + size - 1}"} if partial else {}
            try:
                with self._open(exchange, "GET", url, _NO_COMPRESSION | range_header) as response:
                    if partial and response.status == 200:
                        if offset:
                            raise OriginUnavailable(
                                f"{url} returns the whole file instead of the requested range",
                                remedy="Use a server that supports HTTP ranges.",
                            )
                        received.clear()
                    _expect(response, url, (206, 200) if partial else (200,))
                    while len(received) < size and (piece := response.read1(min(_BLOCK, size - len(received)))):
                        received += piece
                        if len(received) > credited:  # not again for what is sent again
                            exchange.progressed(len(received) - credited)
                            credited = len(received)
                    if len(received) == size:
                        if partial or response.headers.get("Content-Length") == str(size):
                            response.drain_conn()  # so that the connection can be reused
                        return bytes(received)
            except OriginUnavailable as error:
                if not isinstance(error.__cause__, _BROKEN) or isinstance(error.__cause__, _NO_CONNECTION):
                    raise
        raise OriginUnavailable(
            f"The connection for {url} broke {_ATTEMPTS} times, last after {len(received):,} of {size:,} bytes",
            remedy="Check that server and the network to it.",
        )

    # One request

    @contextmanager
    def _exchange(self, url: str, max_bytes: int) -> Iterator[Exchange]:
        with Exchange(self._absolute(url), max_bytes, proxied=self._proxied).running() as exchange:
            yield exchange

    @contextmanager
    def _open(
        self,
        exchange: Exchange,
        method: str,
        url: str,
        headers: Mapping[str, str] | None,
        body: bytes | IO[bytes] | None = None,
    ) -> Iterator[Response]:
        url = self._absolute(url)
        with _translated(url):
            response = self._reply(exchange, method, url, headers or {}, body)
            try:
                yield response
            finally:
                response.close()

    def _reply(
        self,
        exchange: Exchange,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | IO[bytes] | None = None,
    ) -> Response:
        """Send a request, follow redirects, and log in if the server itself asks for that."""
        response, place = self._follow(exchange, method, url, headers, body)
        if response.status == 401 and place == self._origin:
            challenge = response.headers.get("WWW-Authenticate", "")
            _finish(response)
            if self._get_token(exchange, challenge):
                response, place = self._follow(exchange, method, url, headers, body)
        encoding = response.headers.get("Content-Encoding", "identity").lower()
        if response.status != 401 and encoding == "identity":
            return response
        response.close()
        if response.status == 401:
            raise _refused(response, url)
        raise OriginUnavailable(
            f"{url} is sent compressed ({encoding!r}), although this node asks for it as it is",
            remedy="Configure that server to send these files uncompressed.",
        )

    def _absolute(self, url: str) -> str:
        return url if "://" in url else f"{self.base}{url}"

    def _follow(
        self,
        exchange: Exchange,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | IO[bytes] | None,
    ) -> tuple[Response, WebOrigin]:
        """Return the reply that is no redirect, and the origin that sent it."""
        first = url
        for _ in range(_MOST_REDIRECTS + 1):
            try:
                place = origin_of(url)
            except ValueError as error:
                raise RedirectRefused(
                    f"{first} leads to {url[:200]!r}, {error}",
                    remedy="Configure that server to redirect to HTTPS, and to a plain URL.",
                ) from error
            exchange.redirected(anywhere=place in self._redirect_origins)
            exchange.check_host(place.host)
            response = self._send(exchange, method, url, place, headers, body)
            target = response.headers.get("Location") if response.status in _REDIRECTS else None
            if target is None:
                return response, place
            _finish(response)
            if method not in ("GET", "HEAD") and response.status not in _KEEPS_METHOD:
                raise RedirectRefused(
                    f"{url} answers {method} with a redirect ({response.status}) that would not repeat it",
                    remedy="Configure the address that it redirects to.",
                )
            url = urljoin(url, target)
        raise RedirectRefused(
            f"{first} redirects more than {_MOST_REDIRECTS} times, last to {url[:200]!r}", remedy="Check that server."
        )

    def _send(
        self,
        exchange: Exchange,
        method: str,
        url: str,
        place: WebOrigin,
        headers: Mapping[str, str],
        body: bytes | IO[bytes] | None,
    ) -> Response:
        """Send one request; once more if the connection was one that the server had closed."""
        authorization = self._authorization() if place == self._origin else {}
        for last in (False, True):
            if body is not None and not isinstance(body, bytes):
                body.seek(0)
            try:
                return self._pool.request(
                    method,
                    url,
                    headers={**headers, **authorization},
                    body=body,
                    preload_content=False,
                    decode_content=False,
                    timeout=_TIMEOUT,
                    retries=False,
                    redirect=False,
                )
            except _BROKEN:
                exchange.left_s(0)
                if last or method == "POST":
                    raise
        raise AssertionError("unreachable")

    # Credentials

    def _authorization(self) -> dict[str, str]:
        if self._token:
            return {"Authorization": f"Bearer {self._token}"}
        credentials = self._credentials()
        return {"Authorization": credentials} if credentials else {}

    def _credentials(self) -> str:
        return authorization_from(self._credentials_file, self._host)

    def _get_token(self, exchange: Exchange, header: str) -> bool:
        """Request the token that a registry requires; return whether there is one.

        Raises: CredentialsWithheld: the token is to be had from a host that is not the registry's.
        """
        challenge = parse_challenge(header)
        if challenge is None:
            return False
        try:
            place = origin_of(challenge.realm)
        except ValueError as error:
            raise self._withheld(challenge.realm, f"{error}") from error
        if place not in self._token_origins:
            raise self._withheld(challenge.realm, "which is another host")
        exchange.redirected(anywhere=True)
        credentials = self._credentials()
        response = self._pool.request(
            "GET",
            challenge.url,
            headers=_NO_COMPRESSION | ({"Authorization": credentials} if credentials else {}),
            preload_content=False,
            decode_content=False,
            timeout=_TIMEOUT,
            retries=False,
            redirect=False,  # credentials go no further
        )
        try:
            self._token = parse_token(response.read(LONGEST_TOKEN)) if response.status == 200 else ""
        finally:
            response.close()
        return bool(self._token)

    def _withheld(self, realm: str, why: str) -> CredentialsWithheld:
        return CredentialsWithheld(
            f"{self.base} wants the credentials sent to {realm[:200]!r}, {why}; they were not sent",
            remedy="If that is its token service, add the host to the origin's `token_hosts`; else find out who changed "
            "that server.",
        )


def _configured(text: str, parse: Callable[[str], WebOrigin], base: str) -> WebOrigin:
    try:
        return parse(text)
    except ValueError as error:
        raise ConfigError(
            f"The model origin {base} cannot be used because of {text!r}, {error}",
            remedy="Use https://HOST[:PORT]/PATH for the origin, and HOST[:PORT] for other hosts.",
        ) from error


@contextmanager
def _translated(url: str) -> Iterator[None]:
    """Translate the HTTP library's exceptions. Raises: OriginUnavailable."""
    try:
        yield
    except urllib3.exceptions.HTTPError as error:
        raise _unavailable(url, error) from error


def _finish(response: Response) -> None:
    """Finish with a reply nobody reads; reuse its connection if little is left of it."""
    if response.headers.get("Content-Length", "").isdigit() and int(response.headers["Content-Length"]) <= _BLOCK:
        response.drain_conn()
    response.close()


def _expect(response: Response, url: str, statuses: tuple[int, ...], missing: tuple[int, ...] = (404, 410)) -> None:
    if response.status in missing:
        raise NotFound(url)
    if response.status == 403:
        raise _refused(response, url)
    if response.status not in statuses:
        raise OriginUnavailable(
            f"{url} responded with {response.status} {response.reason or ''}".rstrip(), remedy="Check that server."
        )


def _refused(response: Response, url: str) -> OriginUnavailable:
    return OriginUnavailable(
        f"{url} responded with {response.status} {response.reason or ''}".rstrip(),
        remedy="Check its credentials (`credentials_file`) and their permissions.",
    )


def _unavailable(url: str, error: urllib3.exceptions.HTTPError) -> OriginUnavailable:
    cause = error.reason if isinstance(error, urllib3.exceptions.MaxRetryError) and error.reason else error
    return OriginUnavailable(
        f"{url} cannot be fetched: {cause}",
        remedy="Check the server's name, network and certificate, or remove it from `fleet: origins`.",
    )
