"""Fetches chunks from mirrors, in the order of the node's configuration.

Rules:
- A mirror that fails is skipped for a while and the next one is tried; after the last one, the region. Each failure is
  reported once, with the reason.
- At most one request per chunk is in progress.
- Requests run in their own small thread pool: they block nothing else, and only a few chunks are in memory.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import structlog

from hedgerow import tasks
from hedgerow.blobs.errors import ContentDamaged
from hedgerow.blobs.origins.origins import ModelOrigin, PlacedChunk
from hedgerow.blobs.store.parts import hex_of, matches
from hedgerow.errors import HedgerowError, internal

log = structlog.get_logger(__name__)

PARALLEL: Final = 8
"""Limit on concurrent requests."""
_PAUSE_S: Final = (30.0, 900.0)
"""How long a failed mirror is skipped: at first, and at most."""


@dataclass(slots=True)
class _MirrorState:
    """State of a mirror."""

    source: ModelOrigin
    paused_until: float = float("-inf")
    pause_s: float = _PAUSE_S[0]
    failures: int = 0
    bytes: int = 0


class Mirrors:
    """All mirrors of a node.

    Args:
        sources: the mirrors, in the order in which to try them.
        on_chunk: called with digest (hexadecimal) and verified content; awaited.
        on_failure: called with the digest (hexadecimal) of a chunk that no mirror delivered.
        on_event: called with events for operators.
    """

    def __init__(
        self,
        sources: Sequence[ModelOrigin],
        on_chunk: Callable[[str, bytes], Awaitable[None]],
        on_failure: Callable[[str], None],
        on_event: Callable[[str, dict[str, Any]], None],
    ) -> None:
        self._states = [_MirrorState(source) for source in sources]
        self._on_chunk = on_chunk
        self._on_failure = on_failure
        self._event = on_event
        self._threads = ThreadPoolExecutor(PARALLEL, "sources") if sources else None
        self._tasks: dict[str, asyncio.Task[None]] = {}

    @property
    def usable(self) -> bool:
        """Whether any mirror may be used now."""
        return self._next() is not None

    @property
    def bytes(self) -> dict[str, int]:
        """Bytes of chunks fetched, by mirror."""
        return {state.source.url: state.bytes for state in self._states}

    @property
    def failures(self) -> dict[str, int]:
        """Times a mirror failed, by mirror."""
        return {state.source.url: state.failures for state in self._states}

    def fetch(self, piece: PlacedChunk) -> bool:
        """Start fetching a chunk. Returns: False if it is being fetched already."""
        key = hex_of(piece.chunk.digest)
        if key in self._tasks:
            return False
        task = self._tasks[key] = tasks.start(self._fetch(key, piece), "fetch from a mirror")
        task.add_done_callback(lambda _: self._tasks.pop(key, None))
        return True

    def stop(self) -> None:
        """Cancel fetches; requests already sent run to their end."""
        for task in self._tasks.values():
            task.cancel()

    async def close(self) -> None:
        """Cancel all fetches and shut the threads down."""
        try:
            await tasks.cancel(*self._tasks.values())
        finally:
            if self._threads is not None:
                self._threads.shutdown(wait=False, cancel_futures=True)

    async def _fetch(self, key: str, piece: PlacedChunk) -> None:
        while (state := self._next()) is not None:
            try:
                data = await asyncio.get_running_loop().run_in_executor(
                    self._threads, _fetch_checked, state.source, piece
                )
            except HedgerowError as error:
                self._failed(state, error)
            else:
                state.pause_s = _PAUSE_S[0]
                state.bytes += len(data)
                await self._on_chunk(key, data)
                return
        self._on_failure(key)

    def _next(self) -> _MirrorState | None:
        now = time.monotonic()
        return next((state for state in self._states if state.paused_until <= now), None)

    def _failed(self, state: _MirrorState, error: HedgerowError) -> None:
        now = time.monotonic()
        if state.paused_until > now:  # reported by a concurrent request
            return
        state.failures += 1
        state.paused_until, state.pause_s = now + state.pause_s, min(4 * state.pause_s, _PAUSE_S[1])
        following = self._next()
        detail = {
            "source": state.source.url,
            "next": "region" if following is None else following.source.url,
            "code": error.code,
            "error": str(error),
            "remedy": error.remedy,
        }
        log.warning("source-left-alone", **detail)
        self._event("source-left-alone", detail)


def _fetch_checked(source: ModelOrigin, piece: PlacedChunk) -> bytes:
    """(thread) Fetch and verify a chunk."""
    try:
        data = source.fetch(piece)
    except HedgerowError:
        raise
    except Exception as error:
        raise internal(error) from error
    if not matches(piece.chunk, data):
        raise ContentDamaged(
            f"{source.url} sent damaged data for chunk {piece.chunk.digest}",
            remedy="Copy the repository there again; it may have been changed.",
        )
    return data
