"""Progress of a list through the stages: which stage it is in, and how far, for those who watch for a hang.

The thread that runs the stages writes a few words at each stage. Within a list, the length of the list of outcomes shows how
far the stage is, so a lane writes nothing per frame. The words may be shared memory: then another process can read them, and
they outlive this one.
"""

from __future__ import annotations

import threading
from struct import Struct
from typing import Any, Final, NamedTuple

SIZE: Final = 16
"""Bytes of the words."""

_STAGE, _, _DONE, _ = range(4)
_LAYOUT: Final = Struct("=4I")
_WORD: Final = 0xFFFF_FFFF
_NO_OUTCOMES: Final[list[Any]] = []


class StageCall(NamedTuple):
    """A call of a stage that has not returned.

    Attributes:
        stage: position of the stage in its pipeline, from 0; the number of stages, or -1: results are being encoded.
        number: number of the call, so that two calls can be told apart.
        done: frames of the list that the stage has finished; 0 if it takes lists at once.
        frames: frames that the stage works on now: 1, or the whole list if it takes lists at once.
    """

    stage: int
    number: int
    done: int
    frames: int


class _SharedOutcomes(list[Any]):
    """A list that writes its length where other processes can read it."""

    def __init__(self, words: memoryview) -> None:
        super().__init__()
        self._words = words

    def append(self, outcome: Any) -> None:
        super().append(outcome)
        self._words[_DONE] += 1


class StageProgress:
    """Which stage one thread is in.

    Args:
        memory: writable buffer of `SIZE` bytes.
        shared: whether another process watches the progress within a list.
    """

    def __init__(self, memory: bytearray | memoryview, *, shared: bool = False) -> None:
        self._memory = memoryview(memory)
        self._words = self._memory.cast("I")
        self._calls = 0
        self._outcomes = _NO_OUTCOMES
        self._shared = shared
        self._words[_STAGE] = 0

    def enter(self, stage: int, frames: int) -> None:
        """Note that a stage begins, which works on this many frames at once; `stage` counts from 0."""
        self._calls = calls = (self._calls + 1) & _WORD
        _LAYOUT.pack_into(self._memory, 0, stage + 1, calls, 0, frames)  # one call, as this is done for each stage

    def enter_each(self, stage: int) -> list[Any]:
        """Note that a stage begins which takes frame by frame; return the list for its outcomes, which shows how far it is."""
        self._outcomes = outcomes = _SharedOutcomes(self._words) if self._shared else []
        self.enter(stage, 1)
        return outcomes

    def leave(self) -> None:
        """Note that the stage has returned."""
        self._words[_STAGE] = 0
        self._outcomes = _NO_OUTCOMES

    def now(self) -> StageCall | None:
        """(any thread) Return the call in progress; None: no stage runs, or it waits for its turn."""
        stage, number, done, frames = self._words
        return StageCall(stage - 1, number, max(done, len(self._outcomes)), frames) if stage else None


class _ThisThread(threading.local):
    progress: StageProgress | None = None


this_thread = _ThisThread()
"""`progress` notes what this thread does; None: nobody watches it."""
