"""Documents over HTTPS: from a web server that gives out the repository's folder, or a copy of it.

It is believed no more than the blob channel is: whatever comes is verified, so a copy may be anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final
from urllib.parse import quote

from hedgerow.trust.documents import DocumentMissing
from hedgerow.web import NotThere, Web

_MISSING: Final = (403, 404, 410)
"""Stores of files say 403 of what is not there to those who may not list them."""


class HttpsDocuments:
    """The documents of a repository on a web server (`trust.documents.Documents`).

    Args:
        web: the server; below its address are `metadata/` and `targets/`.
    """

    def __init__(self, web: Web) -> None:
        self._web = web

    def get(self, path: str, max_bytes: int) -> Iterator[bytes]:
        """See `Documents.get`. Raises: SourceAway: it cannot be reached, or breaks off."""
        try:
            yield from self._web.stream(f"/{quote(path)}", max_bytes, missing=_MISSING)
        except NotThere as error:
            raise DocumentMissing(path) from error

    def forget(self) -> None:
        """See `Documents.forget`; nothing is remembered."""
