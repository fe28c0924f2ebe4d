"""HTTPS client for model origins: TLS, proxies, credentials and broken connections.

Rules:
- HTTPS only, after redirects too. Certificates are verified against the system's CAs, SSL_CERT_FILE, or a configured
  file.
- Credentials are read again for each request, so they can be changed at any time. They are sent only to the server's
  host, and to the token service that a registry names.
- No more bytes are read than requested.
- HTTPS_PROXY and NO_PROXY are respected.
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

from hedgerow.errors import BusError, ConfigError, keep_secret

Response = urllib3.response.BaseHTTPResponse

_TIMEOUT: Final = urllib3.Timeout(connect=10, read=20)
_RETRIES: Final = urllib3.Retry(connect=1, read=1, redirect=3, status=0, other=0, backoff_factor=0.5)
_ATTEMPTS: Final = 3
"""Most connections for one download."""
_BLOCK: Final = 1 << 16
_NO_COMPRESSION: Final = {"Accept-Encoding": "identity"}
_LONGEST_TOKEN: Final = 64 << 10
_PARAMETER: Final = re.compile(r'(\w+)="([^"]*)"')


class OriginUnavailable(BusError):
    """A model origin is unreachable or does not deliver: wait, or check it."""

    code = "source-away"


class NotFound(Exception):
    """The server does not have the requested file."""


class WebClient:
    """Client of one web server.

    Args:
        base: https://HOST[:PORT][/PATH].
        ca_file: trusted CAs; None: the system's.
        credentials_file: `USER:PASSWORD`, a token, or Docker's `config.json`.
        parallel: most connections kept open.
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
                f"{ca_file} cannot be used to verify {base}: {error.strerror or error}",
                remedy="Put the CA's certificate there, as PEM.",
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
        """Send a request; the content of the response is not read yet.

        Args:
            method: HTTP method.
            url: absolute, or relative to the server's base.
            headers: additional headers.
            body: content to send.
        Raises: OriginUnavailable: the server is unreachable, the connection breaks, or the credentials are refused.
        """
        url = self._absolute(url)
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
                    f"{url} redirects to {response.url}, which is not HTTPS",
                    remedy="Configure that server to redirect to HTTPS.",
                )
            yield response
        except urllib3.exceptions.HTTPError as error:
            raise _unavailable(url, error) from error
        finally:
            if response is not None:
                response.close()

    def stream(self, url: str, max_bytes: int, *, missing: tuple[int, ...] = (404, 410)) -> Iterator[bytes]:
        """Yield the content of a file in pieces.

        Args:
            url: absolute, or relative to the server's base.
            max_bytes: stop reading one byte above this.
            missing: statuses that mean that the file does not exist.
        Raises:
            NotFound: the file does not exist.
            OriginUnavailable: the server is unreachable, or the connection breaks.
        """
        url = self._absolute(url)
        with self.request("GET", url, headers=_NO_COMPRESSION) as response:
            _expect(response, url, (200,), missing)
            left = max_bytes + 1
            while left > 0 and (piece := response.read1(min(_BLOCK, left))):
                left -= len(piece)
                yield piece

    def fetch(self, url: str, size: int, offset: int | None = None) -> bytes:
        """Download a file or a part of it; resume if the connection breaks.

        Args:
            url: absolute, or relative to the server's base.
            size: number of bytes.
            offset: start of the part; None: the whole file, which has `size` bytes.
        Raises:
            NotFound: the file does not exist.
            OriginUnavailable: the server is unreachable, sends too little, or does not support ranges; or the
                connection breaks repeatedly.
        """
        url, received = self._absolute(url), bytearray()
        for _ in range(_ATTEMPTS):
            start = (offset or 0) + len(received)
            partial = offset is not None or len(received) > 0
            range_header = {"Range": f"bytes={start}-{(offset or 0) + size - 1}"} if partial else {}
            try:
                with self.request("GET", url, headers=_NO_COMPRESSION | range_header) as response:
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
                    if len(received) == size:
                        if partial or response.headers.get("Content-Length") == str(size):
                            response.drain_conn()  # so that the connection can be reused
                        return bytes(received)
            except OriginUnavailable as error:
                if not isinstance(error.__cause__, urllib3.exceptions.ProtocolError | urllib3.exceptions.TimeoutError):
                    raise
        raise OriginUnavailable(
            f"The connection for {url} broke {_ATTEMPTS} times, last after {len(received):,} of {size:,} bytes",
            remedy="Check that server and the network to it.",
        )

    def _absolute(self, url: str) -> str:
        return url if "://" in url else f"{self.base}{url}"

    def _send(self, method: str, url: str, headers: Mapping[str, str], body: bytes | IO[bytes] | None) -> Response:
        if body is not None and not isinstance(body, bytes):
            body.seek(0)
        authorization = self._authorization() if urlsplit(url).netloc == self._host else {}
        return self._pool.request(
            method,
            url,
            headers={**headers, **authorization},
            body=body,
            preload_content=False,
            decode_content=False,
            timeout=_TIMEOUT,
            retries=_RETRIES,
        )

    def _authorization(self) -> dict[str, str]:
        if self._token:
            return {"Authorization": f"Bearer {self._token}"}
        credentials = self._credentials()
        return {"Authorization": credentials} if credentials else {}

    def _credentials(self) -> str:
        """Return the value of the `Authorization` header, or ""."""
        if self._credentials_file is None:
            return ""
        try:
            text = self._credentials_file.read_text("utf-8").strip()
            if text.startswith("{"):
                hosts = orjson.loads(text).get("auths", {})
                found = hosts.get(self._host) or hosts.get(f"https://{self._host}") or {}
                keep_secret(str(found.get("auth", "")))
                return f"Basic {found['auth']}" if "auth" in found else ""
        except (OSError, ValueError, AttributeError) as error:
            raise ConfigError(
                f"{self._credentials_file} cannot be used: {error}",
                remedy="Put USER:PASSWORD there, a token, or Docker's config.json with `auths`.",
                outside="The credentials file of a model origin cannot be used",
            ) from error
        line = text.partition("\n")[0]
        keep_secret(line)
        return f"Basic {base64.b64encode(line.encode()).decode()}" if ":" in line else f"Bearer {line}" if line else ""

    def _get_token(self, challenge: str) -> bool:
        """Request the token that a registry requires; return whether there is one.

        See "Token Authentication" of the OCI distribution specification.
        """
        kind, _, rest = challenge.partition(" ")
        parameters = dict(_PARAMETER.findall(rest))
        realm = parameters.pop("realm", "")
        if kind.lower() != "bearer" or not realm.startswith("https://"):
            return False
        query = {key: parameters[key] for key in ("service", "scope") if key in parameters}
        credentials = self._credentials()
        response = self._pool.request(
            "GET",
            f"{realm}?{urlencode(query)}",
            headers={"Authorization": credentials} if credentials else {},
            preload_content=False,
            timeout=_TIMEOUT,
            retries=_RETRIES,
        )
        try:
            reply = orjson.loads(response.read(_LONGEST_TOKEN)) if response.status == 200 else {}
            token = reply.get("token") or reply.get("access_token")
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
