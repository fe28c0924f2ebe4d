"""Documents over HTTPS, from a web server with the repository's folder or a copy of it.

The server is trusted no more than the blob channel: every document is verified, so a copy may be anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final
from urllib.parse import quote

from hedgerow.trust.documents import DocumentMissing
from hedgerow.web import NotFound, WebClient

_MISSING: Final = (403, 404, 410)
"""Object stores answer 403 for a missing file to clients that may not list them."""


class HttpsDocuments:
    """The documents of a repository on a web server (`trust.documents.Documents`).

    Args:
        web: the server, with `metadata/` and `targets/` below its address.
    Attributes:
        name: its address.
    """

    def __init__(self, web: WebClient) -> None:
        self._web = web
        self.name = web.base

    def get(self, path: str, max_bytes: int) -> Iterator[bytes]:
        """See `Documents.get`. Raises: OriginUnavailable: the server cannot be reached, or the connection breaks."""
        try:
            yield from self._web.stream(f"/{quote(path)}", max_bytes, missing=_MISSING)
        except NotFound as error:
            raise DocumentMissing(path) from error

    def forget(self) -> None:
        """See `Documents.forget`; nothing is cached."""
