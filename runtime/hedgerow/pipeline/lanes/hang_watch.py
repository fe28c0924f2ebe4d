"""Tells when a lane's stage makes no progress. Pure: no clock, no threads."""

from __future__ import annotations

from typing import NamedTuple

from hedgerow.pipeline.chain.progress import StageCall


class Hang(NamedTuple):
    """A stage that makes no progress.

    Attributes:
        stage: name of the stage.
        waited_s: how long it has finished no frame.
        limit_s: how long it may take.
    """

    stage: str
    waited_s: float
    limit_s: float

    @property
    def expired(self) -> bool:
        """Whether it has taken longer than it may."""
        return self.waited_s > self.limit_s


class HangWatch:
    """Watches one lane. Whatever it works on counts from the first look at it.

    Attributes:
        reported: the hang in progress has been reported.
    """

    def __init__(self) -> None:
        self.reported = False
        self._call: StageCall | None = None
        self._since: float  # set by the first look

    def look(self, call: StageCall | None, now: float) -> float:
        """Return for how many seconds the same call has finished no frame.

        Args:
            call: what the lane is in now; None: no stage, or a stage's turn.
            now: monotonic seconds.
        """
        if call is None or call != self._call:
            self._call, self._since, self.reported = call, now, False
        return now - self._since
