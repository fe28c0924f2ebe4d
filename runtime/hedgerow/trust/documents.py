"""Sources of a repository's documents behind one interface, and tuf's fetcher on top of it.

A path is `metadata/3.root.json` or `targets/NAME/VERSION/HASH.manifest.json`, as in the repository's folder.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Final, Protocol

from tuf.api.exceptions import DownloadHTTPError, DownloadLengthMismatchError, SlowRetrievalError
from tuf.ngclient.fetcher import FetcherInterface

from hedgerow.tasks import check_cancelled
from hedgerow.trust.errors import BadRepository

_PATIENCE_S: Final = 30.0
_SLOWEST_BYTES_S: Final = 1024.0
"""Time limit of a document, once its source has begun to send: the patience, plus its size at the slowest rate."""
_BLOCK: Final = 1 << 16


class DocumentMissing(Exception):  # noqa: N818, RUF100  # a normal answer: it ends the chain of roots
    """There is no such document."""


class Documents(Protocol):
    """A source of documents."""

    def get(self, path: str, max_bytes: int) -> Iterator[bytes]:
        """Yield a document in pieces.

        The source limits the time until the first piece, and between pieces. An unreachable source is not a refusal: it
        raises a `BusError`, and the next source is asked.

        Args:
            max_bytes: the caller needs no more; the source may stop once it has sent more than this.
        Raises: DocumentMissing: there is none.
        """
        ...

    def forget(self) -> None:
        """Drop cached documents, because one of them was refused."""
        ...


def source_name(documents: Documents) -> str:
    """Return what operators call a source: its address, if it has one."""
    return str(getattr(documents, "name", type(documents).__name__))


class FolderDocuments:
    """The documents of a repository in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, path: str, max_bytes: int) -> Iterator[bytes]:
        """See `Documents.get`."""
        parts = PurePosixPath(path).parts
        if parts[:1] not in (("metadata",), ("targets",)) or ".." in parts:
            raise DocumentMissing(path)
        try:
            with (self._folder / path).open("rb") as file:
                left = max_bytes + 1
                while left > 0 and (block := file.read(min(_BLOCK, left))):
                    left -= len(block)
                    yield block
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise DocumentMissing(path) from error
        except OSError as error:
            raise BadRepository(
                f"{self._folder / path} cannot be read: {error.strerror}", remedy="Let this user read the repository."
            ) from error

    def forget(self) -> None:
        """See `Documents.forget`; nothing is cached."""


class TufFetcher(FetcherInterface):
    """tuf's fetcher on top of documents.

    Attributes:
        documents: their source.
        path: of the document requested last.
        data: the bytes of it received so far.
        max_bytes: its largest permitted size.
        seconds: time from its first piece to its last.
    """

    def __init__(self, documents: Documents, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.documents = documents
        self._monotonic = monotonic
        self.path = ""
        self.data = b""
        self.max_bytes = 0
        self.seconds = 0.0

    def _fetch(self, url: str) -> Iterator[bytes]:
        return self.documents.get(url, self.max_bytes)

    @contextmanager
    def download_file(self, url: str, max_length: int) -> Iterator[IO[bytes]]:
        """Yield the document, held in memory: none is larger than a manifest may be.

        Raises:
            DownloadHTTPError: there is none.
            DownloadLengthMismatchError: it is too long; at most one piece beyond the limit is read.
            SlowRetrievalError: it takes too long.
        """
        self.path, self.data, self.max_bytes = url, b"", max_length
        began, pieces, self.seconds = None, bytearray(), 0.0
        try:
            for piece in self._fetch(url):
                began = self._monotonic() if began is None else began
                check_cancelled()
                pieces += piece
                if len(pieces) > max_length:
                    raise DownloadLengthMismatchError(f"{url} has more than {max_length} bytes")
                self.seconds = self._monotonic() - began
                if self.seconds > _PATIENCE_S + len(pieces) / _SLOWEST_BYTES_S:
                    raise SlowRetrievalError(f"{url}: {len(pieces)} bytes in {self.seconds:.0f} s")
        except DocumentMissing as error:
            raise DownloadHTTPError(f"{url} is not there", 404) from error
        finally:
            self.data = bytes(pieces)
        yield io.BytesIO(self.data)
