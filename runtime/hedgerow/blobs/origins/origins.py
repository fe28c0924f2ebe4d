"""Model origins besides the region: a web server with the repository's folder, an OCI registry.

Their content is verified like any other, so a copy may be anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple, Protocol
from urllib.parse import quote, urlsplit

import structlog

from hedgerow.blobs.errors import ContentMissing
from hedgerow.blobs.store.parts import hex_of
from hedgerow.config import OriginSection
from hedgerow.errors import HedgerowError
from hedgerow.models.bundle.manifest import Chunk, File, digest_of
from hedgerow.trust.documents import Documents
from hedgerow.web import NotFound, WebClient

log = structlog.get_logger(__name__)

_MANIFEST: Final = re.compile(r"targets/[^/]+/[^/]+/([0-9a-f]{64})\.manifest\.json")


class PlacedChunk(NamedTuple):
    """A chunk and its place in a file."""

    chunk: Chunk
    file: File
    offset: int


class ModelOrigin(Protocol):
    """A source of chunks. Its methods block; several threads may call them at once."""

    @property
    def url(self) -> str:
        """Its URL in the node's configuration."""
        ...

    def fetch(self, piece: PlacedChunk) -> bytes:
        """Return a chunk, unverified.

        Raises:
            ContentMissing: the origin does not have it.
            OriginUnavailable: the origin is unavailable.
        """
        ...

    def manifest(self, path: str, max_bytes: int) -> bytes:
        """Return a manifest, unverified.

        Args:
            path: in the repository: `targets/NAME/VERSION/HASH.manifest.json`.
            max_bytes: size limit; the content may exceed it by one piece.
        Raises:
            NotFound: the origin does not have it.
            OriginUnavailable: the origin is unavailable.
        """
        ...


class HttpsOrigin:
    """A web server that serves a repository's folder or a copy of it; chunks are at `blobs/sha256/ab/HEX`."""

    def __init__(self, web: WebClient) -> None:
        self._web = web

    @property
    def url(self) -> str:
        """See `ModelOrigin`."""
        return self._web.base

    def fetch(self, piece: PlacedChunk) -> bytes:
        """See `ModelOrigin.fetch`."""
        name = hex_of(piece.chunk.digest)
        try:
            return self._web.fetch(f"/blobs/sha256/{name[:2]}/{name}", piece.chunk.size)
        except NotFound as error:
            raise _missing(self.url, piece.chunk.digest, "Copy the repository's folder there again.") from error

    def manifest(self, path: str, max_bytes: int) -> bytes:
        """See `ModelOrigin.manifest`."""
        return b"".join(self._web.stream(f"/{quote(path)}", max_bytes))


class OciOrigin:
    """A repository in an OCI registry. Files and manifests are its blobs; a chunk is a range of a blob."""

    def __init__(self, url: str, web: WebClient) -> None:
        self.url = url
        self._web = web

    def fetch(self, piece: PlacedChunk) -> bytes:
        """See `ModelOrigin.fetch`."""
        try:
            return self._web.fetch(f"/blobs/{piece.file.digest}", piece.chunk.size, piece.offset)
        except NotFound as error:
            raise _missing(self.url, piece.file.digest, "Push the version there: `hedgerow model push`.") from error

    def manifest(self, path: str, max_bytes: int) -> bytes:
        """See `ModelOrigin.manifest`."""
        return b"".join(self._web.stream(f"/blobs/sha256:{manifest_hash(path)}", max_bytes))


class OriginDocuments:
    """A repository's documents (`trust.documents.Documents`): manifests from mirrors, metadata from the region.

    Metadata must be current, so only the region serves it. A manifest never changes, may be large, and has its digest in its
    name.
    """

    def __init__(self, region: Documents, sources: Sequence[ModelOrigin]) -> None:
        self._region = region
        self._sources = sources

    def get(self, path: str, max_bytes: int) -> Iterator[bytes]:
        """See `Documents.get`."""
        for source in self._sources if manifest_hash(path) else ():
            try:
                content = source.manifest(path, max_bytes)
            except NotFound:
                continue
            except HedgerowError as error:
                log.info("manifest-elsewhere", source=source.url, error=str(error))
                continue
            if digest_of(content) == f"sha256:{manifest_hash(path)}":
                yield content
                return
            log.warning("manifest-damaged", source=source.url, path=path)
        yield from self._region.get(path, max_bytes)

    def forget(self) -> None:
        """See `Documents.forget`."""
        self._region.forget()


def manifest_hash(path: str) -> str:
    """Return the digest in a manifest's path, hexadecimal; "" for other documents."""
    found = _MANIFEST.fullmatch(path)
    return found[1] if found else ""


def open_origins(sections: Sequence[OriginSection]) -> list[ModelOrigin]:
    """Open the configured mirrors, in order. Raises: ConfigError: a CA or credentials file cannot be read."""
    return [_open(section) for section in sections]


def web_client(section: OriginSection) -> WebClient:
    """Return the HTTP client for a mirror. Raises: ConfigError: its CA or credentials file cannot be read."""
    parts = urlsplit(section.url)
    base = section.url if parts.scheme == "https" else f"https://{parts.netloc}/v2{parts.path.rstrip('/')}"
    return WebClient(base, ca_file=section.ca_file, credentials_file=section.credentials_file)


def placed_chunks(files: Sequence[File]) -> Mapping[str, PlacedChunk]:
    """Return all chunks of some files by digest, hexadecimal."""
    pieces: dict[str, PlacedChunk] = {}
    for file in files:
        offset = 0
        for chunk in file.chunks:
            pieces.setdefault(hex_of(chunk.digest), PlacedChunk(chunk, file, offset))
            offset += chunk.size
    return pieces


def _open(section: OriginSection) -> ModelOrigin:
    web = web_client(section)
    return HttpsOrigin(web) if section.url.startswith("https:") else OciOrigin(section.url, web)


def _missing(url: str, digest: str, remedy: str) -> ContentMissing:
    return ContentMissing(f"{url} does not have {digest}", remedy=remedy)
