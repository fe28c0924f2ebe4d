"""Progress of a list through the stages: which stage it is in, and how far, for those who watch for a hang.

The thread that runs the stages writes a few words at each stage; nothing is written per frame. The words may be shared
memory: then another process can read them, and they outlive this one.
"""

from __future__ import annotations

import threading
from collections.abc import Sized
from typing import Final, NamedTuple

SIZE: Final = 16
"""Bytes of the words."""

_STAGE, _CALLS, _DONE, _FRAMES = range(4)
_WORD: Final = 0xFFFF_FFFF
_NOTHING: Final[tuple[()]] = ()


class StageCall(NamedTuple):
    """A call of a stage that has not returned.

    Attributes:
        stage: position of the stage in its pipeline, from 0; the number of stages: results are being encoded.
        number: number of the call, so that two calls can be told apart.
        done: frames of the list that the stage has finished; 0 if it takes lists at once.
        frames: frames that the stage works on now: 1, or the whole list if it takes lists at once.
    """

    stage: int
    number: int
    done: int
    frames: int


class StageProgress:
    """Which stage one thread is in.

    Args:
        memory: writable buffer of `SIZE` bytes.
    """

    def __init__(self, memory: bytearray | memoryview) -> None:
        self._words = memoryview(memory).cast("I")
        self._outcomes: Sized = _NOTHING
        self._words[_STAGE] = 0

    def enter(self, stage: int, frames: int, outcomes: Sized = _NOTHING) -> None:
        """Note that a stage begins.

        Args:
            stage: its position, from 0.
            frames: frames that it works on at once.
            outcomes: grows by one with each frame that it has finished.
        """
        words = self._words
        words[_CALLS] = (words[_CALLS] + 1) & _WORD
        words[_DONE] = 0
        words[_FRAMES] = frames
        self._outcomes = outcomes
        words[_STAGE] = stage + 1

    def leave(self) -> None:
        """Note that the stage has returned."""
        self._words[_STAGE] = 0
        self._outcomes = _NOTHING

    def publish(self) -> None:
        """Write the number of finished frames where other processes can read it; for another thread."""
        self._words[_DONE] = len(self._outcomes)

    def now(self) -> StageCall | None:
        """(any thread) Return the call in progress; None: no stage runs, or it waits for its turn."""
        stage, number, done, frames = self._words
        return StageCall(stage - 1, number, max(done, len(self._outcomes)), frames) if stage else None


class _ThisThread(threading.local):
    progress: StageProgress | None = None


this_thread = _ThisThread()
"""`progress` notes what this thread does; None: nobody watches it."""
