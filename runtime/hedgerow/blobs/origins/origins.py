"""Model origins besides the region: a web server with the repository's folder, an OCI registry.

Their content is verified like any other, so a copy may be anywhere.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import quote, urlsplit

import structlog

from hedgerow.blobs.errors import ContentDamaged, ContentMissing
from hedgerow.blobs.store.parts import hex_of, matches
from hedgerow.config import OriginSection
from hedgerow.errors import HedgerowError, internal
from hedgerow.models.bundle.manifest import Chunk, File, digest_of
from hedgerow.tasks import WorkCancelled
from hedgerow.trust.documents import Documents, source_name
from hedgerow.web import NotFound, WebClient

log = structlog.get_logger(__name__)

_PAUSE_S: Final = (30.0, 900.0)
"""How long a failed mirror is skipped: at first, and at most."""
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


@dataclass(slots=True)
class OriginState:
    """How an origin has behaved.

    Attributes:
        failures: times that it failed and was skipped for a while.
        bytes: bytes of chunks fetched from it.
    """

    source: ModelOrigin
    failures: int = 0
    bytes: int = 0
    _paused_until: float = float("-inf")
    _pause_s: float = _PAUSE_S[0]

    def usable(self, now: float) -> bool:
        """Return whether it may be asked."""
        return self._paused_until <= now

    def failed(self, now: float) -> None:
        """Skip it for a while, each time for longer."""
        self.failures += 1
        self._paused_until, self._pause_s = now + self._pause_s, min(4 * self._pause_s, _PAUSE_S[1])

    def delivered(self, size: int) -> None:
        """Note that it delivered what was asked for."""
        self._pause_s = _PAUSE_S[0]
        self.bytes += size


def failure_detail(source: ModelOrigin, following: str, error: HedgerowError) -> dict[str, Any]:
    """Return what operators are told about an origin that is skipped; `following` is what is asked instead."""
    return {
        "source": source.url,
        "next": following,
        "bytes": getattr(error, "received", 0),
        "seconds": round(getattr(error, "seconds", 0.0), 1),
        "code": error.code,
        "error": str(error),
        "remedy": error.remedy,
    }


class OriginDocuments:
    """A repository's documents (`trust.documents.Documents`): manifests from mirrors, metadata from the region.

    Metadata must be current, so only the region serves it. A manifest never changes, may be large, and has its digest in its
    name. A mirror that fails is skipped for a while.

    Args:
        region: the region's documents.
        sources: the mirrors, in the order in which to try them.
        on_event: called with events for operators, from the thread that asks.
    Attributes:
        name: that of the region.
    """

    def __init__(
        self,
        region: Documents,
        sources: Sequence[ModelOrigin],
        on_event: Callable[[str, dict[str, Any]], None] = lambda _kind, _detail: None,
    ) -> None:
        self._region = region
        self._states = [OriginState(source) for source in sources]
        self._event = on_event
        self.name = source_name(region)

    def get(self, path: str, max_bytes: int) -> Iterator[bytes]:
        """See `Documents.get`."""
        for state in self._states if manifest_hash(path) else ():
            if not state.usable(time.monotonic()):
                continue
            try:
                content = state.source.manifest(path, max_bytes)
                if digest_of(content) != f"sha256:{manifest_hash(path)}":
                    raise _damaged(state.source, path)
            except NotFound:
                continue
            except HedgerowError as error:
                state.failed(time.monotonic())
                log.info("manifest-elsewhere", source=state.source.url, error=str(error))
                self._event("source-left-alone", failure_detail(state.source, self._next(), error))
            else:
                state.delivered(0)
                yield content
                return
        yield from self._region.get(path, max_bytes)

    def _next(self) -> str:
        now = time.monotonic()
        return next((state.source.url for state in self._states if state.usable(now)), self.name)

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
    return WebClient(
        base,
        ca_file=section.ca_file,
        credentials_file=section.credentials_file,
        token_hosts=section.token_hosts,
        redirect_hosts=section.redirect_hosts,
    )


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


def _damaged(source: ModelOrigin, what: str) -> ContentDamaged:
    return ContentDamaged(
        f"{source.url} sent damaged data for {what}",
        remedy="Copy the repository there again; it may have been changed.",
    )


def fetch_checked(source: ModelOrigin, piece: PlacedChunk) -> bytes:
    """Fetch and verify a chunk. Raises: HedgerowError: it cannot be fetched, or is damaged."""
    try:
        data = source.fetch(piece)
    except (HedgerowError, WorkCancelled):
        raise
    except Exception as error:
        raise internal(error) from error
    if not matches(piece.chunk, data):
        raise _damaged(source, f"chunk {piece.chunk.digest}")
    return data


def _missing(url: str, digest: str, remedy: str) -> ContentMissing:
    return ContentMissing(f"{url} does not have {digest}", remedy=remedy)
