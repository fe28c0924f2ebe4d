"""Documents over HTTPS: from a web server that gives out the repository's folder, or a copy of it.

It is believed no more than the blob channel is: whatever comes is verified, so a copy may be anywhere.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3

from hedgerow.errors import BusError
from hedgerow.trust.documents import DocumentMissing

_TIMEOUT: Final = urllib3.Timeout(connect=10, read=20)
_RETRIES: Final = urllib3.Retry(connect=2, read=1, redirect=3, status=0, other=0, backoff_factor=0.5)
_MISSING: Final = (403, 404, 410)
"""Stores of files say 403 of what is not there to those who may not list them."""
_BLOCK: Final = 1 << 16


class SourceAway(BusError):
    """A web server with models cannot be reached, or gives nothing: wait, or look at it."""

    code = "source-away"


class HttpsDocuments:
    """The documents of a repository on a web server (`trust.documents.Documents`).

    Args:
        url: https://HOST/PATH; below it are `metadata/` and `targets/`.
        ca_file: authorities to believe; None: the system's, or those that SSL_CERT_FILE names.
    Raises: OSError: `ca_file` cannot be read.
    """

    def __init__(self, url: str, ca_file: Path | None = None) -> None:
        self._base = url.rstrip("/")
        context = ssl.create_default_context(cafile=ca_file)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        proxy = getproxies().get("https")
        if proxy and not proxy_bypass(urlsplit(url).hostname or ""):
            self._pool: urllib3.PoolManager = urllib3.ProxyManager(proxy, ssl_context=context)
        else:
            self._pool = urllib3.PoolManager(ssl_context=context)

    def get(self, path: str, max_bytes: int) -> Iterator[bytes]:
        """See `Documents.get`. Raises: SourceAway: it cannot be reached, or breaks off."""
        url = f"{self._base}/{quote(path)}"
        try:
            response = self._pool.request(
                "GET",
                url,
                headers={"Accept-Encoding": "identity"},
                preload_content=False,
                decode_content=False,
                timeout=_TIMEOUT,
                retries=_RETRIES,
            )
        except urllib3.exceptions.HTTPError as error:
            raise _away(url, error) from error
        try:
            if response.status in _MISSING:
                raise DocumentMissing(path)
            if response.status != 200 or not _secure(response, url):
                raise SourceAway(
                    f"{url} answers with {response.status} {response.reason or ''}".rstrip(),
                    remedy="Look at that server; it is to give out the repository's folder over HTTPS as it is.",
                )
            left = max_bytes + 1
            while left > 0 and (piece := response.read1(min(_BLOCK, left))):
                left -= len(piece)
                yield piece
            if left > 0:
                response.release_conn()  # read to its end: the connection serves the next document
        except urllib3.exceptions.HTTPError as error:
            raise _away(url, error) from error
        finally:
            response.close()

    def forget(self) -> None:
        """See `Documents.forget`; nothing is remembered."""


def _secure(response: urllib3.response.BaseHTTPResponse, url: str) -> bool:
    """Whether a redirection has not led away from HTTPS."""
    return urlsplit(response.url or url).scheme in ("https", "")


def _away(url: str, error: urllib3.exceptions.HTTPError) -> SourceAway:
    cause = error.reason if isinstance(error, urllib3.exceptions.MaxRetryError) and error.reason else error
    return SourceAway(
        f"{url} cannot be fetched: {cause}",
        remedy="Check name, network and certificate of that server, or leave it out of `fleet: sources`.",
    )
