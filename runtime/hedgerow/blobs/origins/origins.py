"""Other places than the region that chunks come from: a web server with the repository's folder, an OCI registry.

What comes from there is checked as anything else is, so a copy may be anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple, Protocol
from urllib.parse import quote, urlsplit

import structlog

from hedgerow.blobs.errors import ContentMissing
from hedgerow.blobs.store.parts import hex_of
from hedgerow.config import SourceSection
from hedgerow.errors import HedgerowError
from hedgerow.models.bundle.manifest import Chunk, File, digest_of
from hedgerow.trust.documents import Documents
from hedgerow.web import NotFound, WebClient

log = structlog.get_logger(__name__)

_MANIFEST: Final = re.compile(r"targets/[^/]+/[^/]+/([0-9a-f]{64})\.manifest\.json")


class PlacedChunk(NamedTuple):
    """A chunk, and where it belongs."""

    chunk: Chunk
    file: File
    offset: int


class ModelOrigin(Protocol):
    """A place that chunks come from. Blocks; may be asked by several threads at once."""

    @property
    def url(self) -> str:
        """What it is called in the node's file."""
        ...

    def bring(self, piece: PlacedChunk) -> bytes:
        """A chunk, not checked yet.

        Raises:
            ContentMissing: it is not there.
            OriginUnavailable: nothing comes.
        """
        ...

    def manifest(self, path: str, max_bytes: int) -> bytes:
        """A manifest, not checked yet.

        Args:
            path: in the repository: `targets/NAME/VERSION/HASH.manifest.json`.
            max_bytes: no more than a piece beyond comes.
        Raises:
            NotFound: it is not there.
            OriginUnavailable: nothing comes.
        """
        ...


class HttpsOrigin:
    """A web server that gives out a repository's folder as it is, or a copy of it: `blobs/sha256/ab/HEX` is a chunk."""

    def __init__(self, web: WebClient) -> None:
        self._web = web

    @property
    def url(self) -> str:
        """See `ModelOrigin`."""
        return self._web.base

    def bring(self, piece: PlacedChunk) -> bytes:
        """See `ModelOrigin.bring`."""
        name = hex_of(piece.chunk.digest)
        try:
            return self._web.fetch(f"/blobs/sha256/{name[:2]}/{name}", piece.chunk.size)
        except NotFound as error:
            raise _missing(self.url, piece.chunk.digest, "Copy the repository's folder there again.") from error

    def manifest(self, path: str, max_bytes: int) -> bytes:
        """See `ModelOrigin.manifest`."""
        return b"".join(self._web.stream(f"/{quote(path)}", max_bytes))


class OciOrigin:
    """A repository of an OCI registry: files and manifests are blobs there, and a chunk is a part of one."""

    def __init__(self, url: str, web: WebClient) -> None:
        self.url = url
        self._web = web

    def bring(self, piece: PlacedChunk) -> bytes:
        """See `ModelOrigin.bring`."""
        try:
            return self._web.fetch(f"/blobs/{piece.file.digest}", piece.chunk.size, piece.offset)
        except NotFound as error:
            raise _missing(self.url, piece.file.digest, "Bring the version there: `hedgerow model push`.") from error

    def manifest(self, path: str, max_bytes: int) -> bytes:
        """See `ModelOrigin.manifest`."""
        return b"".join(self._web.stream(f"/blobs/sha256:{hash_of(path)}", max_bytes))


class OriginDocuments:
    """A repository's documents (`trust.documents.Documents`): manifests from other sources, all else from the region.

    Metadata is what the region says, as it is now. A manifest never changes and may be large; its name has its digest.
    """

    def __init__(self, region: Documents, sources: Sequence[ModelOrigin]) -> None:
        self._region = region
        self._sources = sources

    def get(self, path: str, max_bytes: int) -> Iterator[bytes]:
        """See `Documents.get`."""
        for source in self._sources if hash_of(path) else ():
            try:
                content = source.manifest(path, max_bytes)
            except NotFound:
                continue
            except HedgerowError as error:
                log.info("manifest-elsewhere", source=source.url, error=str(error))
                continue
            if digest_of(content) == f"sha256:{hash_of(path)}":
                yield content
                return
            log.warning("manifest-damaged", source=source.url, path=path)
        yield from self._region.get(path, max_bytes)

    def forget(self) -> None:
        """See `Documents.forget`."""
        self._region.forget()


def hash_of(path: str) -> str:
    """The digest that a manifest's name says, hexadecimal; empty: it is another document."""
    found = _MANIFEST.fullmatch(path)
    return found[1] if found else ""


def open_sources(sections: Sequence[SourceSection]) -> list[ModelOrigin]:
    """The sources that a node's file names, in their order. Raises: ConfigError: a file that one needs cannot be read."""
    return [_open(section) for section in sections]


def web_of(section: SourceSection) -> WebClient:
    """How to reach a source. Raises: ConfigError: a file that it needs cannot be read."""
    parts = urlsplit(section.url)
    base = section.url if parts.scheme == "https" else f"https://{parts.netloc}/v2{parts.path.rstrip('/')}"
    return WebClient(base, ca_file=section.ca_file, credentials_file=section.credentials_file)


def pieces_of(files: Sequence[File]) -> Mapping[str, PlacedChunk]:
    """All chunks of some files, by digest, hexadecimal."""
    pieces: dict[str, PlacedChunk] = {}
    for file in files:
        offset = 0
        for chunk in file.chunks:
            pieces.setdefault(hex_of(chunk.digest), PlacedChunk(chunk, file, offset))
            offset += chunk.size
    return pieces


def _open(section: SourceSection) -> ModelOrigin:
    web = web_of(section)
    return HttpsOrigin(web) if section.url.startswith("https:") else OciOrigin(section.url, web)


def _missing(url: str, digest: str, remedy: str) -> ContentMissing:
    return ContentMissing(f"{url} does not have {digest}", remedy=remedy)
