"""Brings chunks from other sources than the region: the first that works, in the order of the node's file.

Rules:
- A source that fails is left alone for a while, and the next one is asked; after the last one, the region. Each time that is
  said once, with the reason.
- A chunk is asked for once at a time, however long it takes.
- Requests have threads of their own, a few: they hold up nothing else, and no more than a few chunks are in memory.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import structlog

from hedgerow.blobs.errors import ContentDamaged
from hedgerow.blobs.origins.origins import ModelOrigin, PlacedChunk
from hedgerow.blobs.store.parts import fits, hex_of
from hedgerow.errors import HedgerowError, internal

log = structlog.get_logger(__name__)

PARALLEL: Final = 8
"""Requests at once."""
_REST_S: Final = (30.0, 900.0)
"""How long a source that failed is left alone: at first, and at most."""


@dataclass(slots=True)
class _MirrorState:
    """How it is with a source."""

    source: ModelOrigin
    rests_until: float = float("-inf")
    rest_s: float = _REST_S[0]
    failures: int = 0
    bytes: int = 0


class Mirrors:
    """All other sources.

    Args:
        sources: the one to be asked first, first.
        came: takes a chunk that was checked, and says when it is safe.
        gave_up: told of chunks, hexadecimal, that only the region may have now.
        on_event: takes what operators should know.
    """

    def __init__(
        self,
        sources: Sequence[ModelOrigin],
        came: Callable[[str, bytes], Awaitable[None]],
        gave_up: Callable[[str], None],
        on_event: Callable[[str, dict[str, Any]], None],
    ) -> None:
        self._states = [_MirrorState(source) for source in sources]
        self._came = came
        self._gave_up = gave_up
        self._event = on_event
        self._threads = ThreadPoolExecutor(PARALLEL, "sources") if sources else None
        self._tasks: dict[str, asyncio.Task[None]] = {}

    @property
    def usable(self) -> bool:
        """Whether a source may be asked now."""
        return self._next() is not None

    @property
    def bytes(self) -> dict[str, int]:
        """Bytes of chunks that came, by source."""
        return {state.source.url: state.bytes for state in self._states}

    @property
    def failures(self) -> dict[str, int]:
        """Times that a source was left alone, by source."""
        return {state.source.url: state.failures for state in self._states}

    def bring(self, piece: PlacedChunk) -> bool:
        """Have a chunk brought. Returns: False if that is being done already."""
        key = hex_of(piece.chunk.digest)
        if key in self._tasks:
            return False
        task = self._tasks[key] = asyncio.create_task(self._bring(key, piece), name=f"bring {key[:8]}")
        task.add_done_callback(lambda _: self._tasks.pop(key, None))
        return True

    def stop(self) -> None:
        """Let go of what is not under way yet."""
        for task in self._tasks.values():
            task.cancel()

    async def close(self) -> None:
        """End all of it."""
        self.stop()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)

    async def _bring(self, key: str, piece: PlacedChunk) -> None:
        while (state := self._next()) is not None:
            try:
                data = await asyncio.get_running_loop().run_in_executor(self._threads, _ask, state.source, piece)
            except HedgerowError as error:
                self._failed(state, error)
            else:
                state.rest_s = _REST_S[0]
                state.bytes += len(data)
                await self._came(key, data)
                return
        self._gave_up(key)

    def _next(self) -> _MirrorState | None:
        now = time.monotonic()
        return next((state for state in self._states if state.rests_until <= now), None)

    def _failed(self, state: _MirrorState, error: HedgerowError) -> None:
        now = time.monotonic()
        if state.rests_until > now:  # others that were under way have said so
            return
        state.failures += 1
        state.rests_until, state.rest_s = now + state.rest_s, min(4 * state.rest_s, _REST_S[1])
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


def _ask(source: ModelOrigin, piece: PlacedChunk) -> bytes:
    """(thread) A chunk, checked."""
    try:
        data = source.bring(piece)
    except HedgerowError:
        raise
    except Exception as error:
        raise internal(error) from error
    if not fits(piece.chunk, data):
        raise ContentDamaged(
            f"{source.url} gave something else for {piece.chunk.digest}",
            remedy="Copy the repository there again; somebody may have changed it.",
        )
    return data
