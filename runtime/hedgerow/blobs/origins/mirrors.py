"""Fetches chunks from mirrors, in the order of the node's configuration.

Rules:
- A mirror that fails is skipped for a while and the next one is tried; after the last one, the region. Each failure is
  reported once, with the reason.
- A mirror that is slow holds nothing up: while a chunk is late, the region is asked.
- At most one request per chunk is in progress.
- Requests run in their own small thread pool: they block nothing else, and only a few chunks are in memory.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import structlog

from hedgerow import tasks
from hedgerow.blobs.origins.origins import ModelOrigin, OriginState, PlacedChunk, failure_detail, fetch_checked
from hedgerow.blobs.store.parts import hex_of
from hedgerow.errors import HedgerowError

log = structlog.get_logger(__name__)

PARALLEL: Final = 8
"""Limit on concurrent requests."""
PATIENCE_S: Final = 30.0
"""While a chunk has been waited for this long, the region is asked instead."""


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
        self._states = [OriginState(source) for source in sources]
        self._on_chunk = on_chunk
        self._on_failure = on_failure
        self._event = on_event
        self._threads = ThreadPoolExecutor(PARALLEL, "sources") if sources else None
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._began: dict[str, float] = {}

    @property
    def usable(self) -> bool:
        """Whether any mirror may be used now: all others are skipped for a while, and none keeps a chunk waiting."""
        late = any(time.monotonic() - began >= PATIENCE_S for began in self._began.values())
        return not late and self._next() is not None

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
        self._began[key] = time.monotonic()
        task.add_done_callback(lambda _: self._forget(key))
        return True

    def _forget(self, key: str) -> None:
        self._tasks.pop(key, None)
        self._began.pop(key, None)

    def stop(self) -> None:
        """Cancel fetches, and the requests already sent."""
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
        while self._threads is not None and (state := self._next()) is not None:
            try:
                data = await tasks.in_executor(self._threads, fetch_checked, state.source, piece)
            except HedgerowError as error:
                self._failed(state, error)
            else:
                state.delivered(len(data))
                await self._on_chunk(key, data)
                return
        self._on_failure(key)

    def _next(self) -> OriginState | None:
        now = time.monotonic()
        return next((state for state in self._states if state.usable(now)), None)

    def _failed(self, state: OriginState, error: HedgerowError) -> None:
        now = time.monotonic()
        if not state.usable(now):  # reported by a concurrent request
            return
        state.failed(now)
        following = self._next()
        detail = failure_detail(state.source, "region" if following is None else following.source.url, error)
        log.warning("source-left-alone", **detail)
        self._event("source-left-alone", detail)
