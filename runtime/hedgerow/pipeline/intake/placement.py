"""Which lane a stream belongs to, where it must stay in one. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable


class Placement:
    """Gives every stream a lane: the one that has fewest when the stream is first seen, and then always that one.

    Args:
        lanes: how many there are.
    """

    def __init__(self, lanes: int) -> None:
        self._lanes: dict[str, int] = {}
        self._streams = [0] * lanes

    def __len__(self) -> int:
        """Streams that have a lane."""
        return len(self._lanes)

    def __call__(self, stream: str) -> int:
        """The lane of a stream, counted from 0."""
        lane = self._lanes.get(stream)
        if lane is None:
            lane = self._lanes[stream] = self._streams.index(min(self._streams))
            self._streams[lane] += 1
        return lane

    def sweep(self, known: Iterable[str], busy: Callable[[str, int], bool]) -> None:
        """Let go of streams that are forgotten.

        Args:
            known: streams that are not.
            busy: whether a lane still holds frames of a stream, which must all leave before it may get another lane.
        """
        for stream in self._lanes.keys() - set(known):
            if not busy(stream, lane := self._lanes[stream]):
                del self._lanes[stream]
                self._streams[lane] -= 1
