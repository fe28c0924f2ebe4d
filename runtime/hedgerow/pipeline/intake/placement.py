"""Assigns streams to lanes, for pipelines whose streams are pinned to a lane. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable


class Placement:
    """Assigns each new stream to the lane with the fewest streams, and keeps it there.

    Args:
        lanes: number of lanes.
    """

    def __init__(self, lanes: int) -> None:
        self._lanes: dict[str, int] = {}
        self._streams = [0] * lanes

    def __len__(self) -> int:
        """Return the number of streams that have a lane."""
        return len(self._lanes)

    def __call__(self, stream: str) -> int:
        """Return the lane of a stream, counted from 0."""
        lane = self._lanes.get(stream)
        if lane is None:
            lane = self._lanes[stream] = self._streams.index(min(self._streams))
            self._streams[lane] += 1
        return lane

    def sweep(self, known: Iterable[str], busy: Callable[[str, int], bool]) -> None:
        """Remove streams that are no longer known.

        Args:
            known: the streams to retain.
            busy: whether a lane still holds frames of a stream; until those have left, the stream stays in its lane.
        """
        for stream in self._lanes.keys() - set(known):
            if not busy(stream, lane := self._lanes[stream]):
                del self._lanes[stream]
                self._streams[lane] -= 1
