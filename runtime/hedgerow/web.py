"""Web servers that models come from: TLS, proxies, credentials and broken connections, in one place.

Rules:
- HTTPS only, also where a redirection leads. Certificates are checked against the system's authorities, those that
  SSL_CERT_FILE names, or a file of one's own.
- Credentials are read anew for each request, so that they may be changed, and go to no other host than the server's; but to
  where a registry says that it gives out tokens.
- No more bytes are read than were asked for.
- HTTPS_PROXY and NO_PROXY count.
"""

from __future__ import annotations

import base64
import re
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final
from urllib.parse import urlencode, urlsplit
from urllib.request import getproxies, proxy_bypass

import orjson
import urllib3

from hedgerow.errors import BusError, ConfigError

Response = urllib3.response.BaseHTTPResponse

_TIMEOUT: Final = urllib3.Timeout(connect=10, read=20)
_RETRIES: Final = urllib3.Retry(connect=1, read=1, redirect=3, status=0, other=0, backoff_factor=0.5)
_BREAKS: Final = 3
"""Times that a connection may break before what was asked for has come."""
_BLOCK: Final = 1 << 16
_AS_IT_IS: Final = {"Accept-Encoding": "identity"}
_LONGEST_TOKEN: Final = 64 << 10
_PARAMETER: Final = re.compile(r'(\w+)="([^"]*)"')


class OriginUnavailable(BusError):
    """A web server with models cannot be reached, or gives nothing: wait, or look at it."""

    code = "source-away"


class NotFound(Exception):
    """The server says that it does not have it."""


class WebClient:
    """A web server.

    Args:
        base: https://HOST[:PORT][/PATH].
        ca_file: authorities to believe; None: the system's.
        credentials_file: what to show there: `USER:PASSWORD`, a token, or Docker's `config.json`.
        parallel: connections that are kept.
    Raises: ConfigError: a file cannot be read.
    """

    def __init__(
        self, base: str, *, ca_file: Path | None = None, credentials_file: Path | None = None, parallel: int = 8
    ) -> None:
        self.base = base.rstrip("/")
        self._host = urlsplit(base).netloc
        self._credentials_file = credentials_file
        self._token = ""
        try:
            context = ssl.create_default_context(cafile=ca_file)
        except OSError as error:  # an SSLError is one
            raise ConfigError(
                f"{ca_file} cannot be used to check {base}: {error.strerror or error}",
                remedy="Put the authority's certificate there, PEM.",
            ) from error
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._credentials()
        proxy = getproxies().get("https")
        if proxy and not proxy_bypass(self._host):
            self._pool: urllib3.PoolManager = urllib3.ProxyManager(proxy, maxsize=parallel, ssl_context=context)
        else:
            self._pool = urllib3.PoolManager(maxsize=parallel, ssl_context=context)

    @contextmanager
    def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | IO[bytes] | None = None,
    ) -> Iterator[Response]:
        """Ask for something; the answer's content is not read yet.

        Args:
            url: whole, or what follows the server's own.
        Raises: OriginUnavailable: there is no answer, it breaks off, or the credentials do not do.
        """
        url = url if "://" in url else f"{self.base}{url}"
        response: Response | None = None
        try:
            response = self._send(method, url, headers or {}, body)
            if response.status == 401 and self._get_token(response.headers.get("WWW-Authenticate", "")):
                response.drain_conn()
                response = self._send(method, url, headers or {}, body)
            if response.status == 401:
                raise _refused(response, url)
            if urlsplit(response.url or url).scheme not in ("https", ""):
                raise OriginUnavailable(
                    f"{url} leads to {response.url}, which is not HTTPS", remedy="Let that server redirect to HTTPS."
                )
            yield response
        except urllib3.exceptions.HTTPError as error:
            raise _away(url, error) from error
        finally:
            if response is not None:
                response.close()

    def stream(self, url: str, max_bytes: int, *, missing: tuple[int, ...] = (404, 410)) -> Iterator[bytes]:
        """What is there, piece by piece.

        Args:
            max_bytes: no more than a piece beyond is read.
            missing: statuses that say that there is nothing.
        Raises:
            NotFound: there is nothing.
            OriginUnavailable: it cannot be reached, or breaks off.
        """
        with self.request("GET", url, headers=_AS_IT_IS) as response:
            _expect(response, url, (200,), missing)
            left = max_bytes + 1
            while left > 0 and (piece := response.read1(min(_BLOCK, left))):
                left -= len(piece)
                yield piece

    def fetch(self, url: str, size: int, offset: int | None = None) -> bytes:
        """Some bytes; where the connection breaks, it goes on from there.

        Args:
            size: how many.
            offset: where they begin in what is there; None: they are all of it.
        Raises:
            NotFound: the server does not have it.
            OriginUnavailable: it cannot be reached, breaks off again and again, gives less, or no parts though these were asked for.
        """
        got = bytearray()
        for _ in range(_BREAKS):
            begin = (offset or 0) + len(got)
            part = offset is not None or len(got) > 0
            asked = {"Range": f"bytes={begin}-{(offset or 0) + size - 1}"} if part else {}
            try:
                with self.request("GET", url, headers=_AS_IT_IS | asked) as response:
                    if part and response.status == 200:
                        if offset:
                            raise OriginUnavailable(
                                f"{url} gives the whole where a part was asked for",
                                remedy="Use a server that knows HTTP ranges.",
                            )
                        got.clear()
                    _expect(response, url, (206, 200) if part else (200,))
                    while len(got) < size and (piece := response.read1(min(_BLOCK, size - len(got)))):
                        got += piece
                    if len(got) == size:
                        if part or response.headers.get("Content-Length") == str(size):
                            response.drain_conn()  # at its end: the connection serves what comes next
                        return bytes(got)
            except OriginUnavailable as error:
                if not isinstance(error.__cause__, urllib3.exceptions.ProtocolError | urllib3.exceptions.TimeoutError):
                    raise
        raise OriginUnavailable(
            f"{url} broke off {_BREAKS} times, at last after {len(got):,} of {size:,} bytes",
            remedy="Look at that server, and at what lies between it and here.",
        )

    def _send(self, method: str, url: str, headers: Mapping[str, str], body: bytes | IO[bytes] | None) -> Response:
        if body is not None and not isinstance(body, bytes):
            body.seek(0)
        shown = self._shown() if urlsplit(url).netloc == self._host else {}
        return self._pool.request(
            method,
            url,
            headers={**headers, **shown},
            body=body,
            preload_content=False,
            decode_content=False,
            timeout=_TIMEOUT,
            retries=_RETRIES,
        )

    def _shown(self) -> dict[str, str]:
        if self._token:
            return {"Authorization": f"Bearer {self._token}"}
        credentials = self._credentials()
        return {"Authorization": credentials} if credentials else {}

    def _credentials(self) -> str:
        """What goes into `Authorization`; empty: nothing."""
        if self._credentials_file is None:
            return ""
        try:
            text = self._credentials_file.read_text("utf-8").strip()
            if text.startswith("{"):
                known = orjson.loads(text).get("auths", {})
                found = known.get(self._host) or known.get(f"https://{self._host}") or {}
                return f"Basic {found['auth']}" if "auth" in found else ""
        except (OSError, ValueError, AttributeError) as error:
            raise ConfigError(
                f"{self._credentials_file} cannot be used: {error}",
                remedy="Put USER:PASSWORD there, a token, or Docker's config.json with `auths`.",
            ) from error
        line = text.partition("\n")[0]
        return f"Basic {base64.b64encode(line.encode()).decode()}" if ":" in line else f"Bearer {line}" if line else ""

    def _get_token(self, challenge: str) -> bool:
        """Get the token that a registry wants to see. Returns: whether there is one.

        As the distribution specification says, "Token Authentication".
        """
        kind, _, rest = challenge.partition(" ")
        wanted = dict(_PARAMETER.findall(rest))
        realm = wanted.pop("realm", "")
        if kind.lower() != "bearer" or not realm.startswith("https://"):
            return False
        known = {key: wanted[key] for key in ("service", "scope") if key in wanted}
        credentials = self._credentials()
        response = self._pool.request(
            "GET",
            f"{realm}?{urlencode(known)}",
            headers={"Authorization": credentials} if credentials else {},
            preload_content=False,
            timeout=_TIMEOUT,
            retries=_RETRIES,
        )
        try:
            told = orjson.loads(response.read(_LONGEST_TOKEN)) if response.status == 200 else {}
            token = told.get("token") or told.get("access_token")
        except (ValueError, AttributeError):
            return False
        finally:
            response.close()
        self._token = token if isinstance(token, str) else ""
        return bool(self._token)


def _expect(response: Response, url: str, statuses: tuple[int, ...], missing: tuple[int, ...] = (404, 410)) -> None:
    if response.status in missing:
        raise NotFound(url)
    if response.status == 403:
        raise _refused(response, url)
    if response.status not in statuses:
        raise OriginUnavailable(
            f"{url} answers with {response.status} {response.reason or ''}".rstrip(), remedy="Look at that server."
        )


def _refused(response: Response, url: str) -> OriginUnavailable:
    return OriginUnavailable(
        f"{url} answers with {response.status} {response.reason or ''}".rstrip(),
        remedy="Check the credentials for it (`credentials_file`), and what they may do there.",
    )


def _away(url: str, error: urllib3.exceptions.HTTPError) -> OriginUnavailable:
    cause = error.reason if isinstance(error, urllib3.exceptions.MaxRetryError) and error.reason else error
    return OriginUnavailable(
        f"{url} cannot be fetched: {cause}",
        remedy="Check name, network and certificate of that server, or leave it out of `fleet: sources`.",
    )
