"""The part of a list that goes on through a chain, as columns or as frames, and how the other frames ended."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import compress
from operator import itemgetter
from typing import Final, NamedTuple, TypeAlias

from hedgerow.columns.frame_batch import FrameBatch
from hedgerow.errors import HedgerowError
from hedgerow.frame import Drop, Frame
from hedgerow.pipeline.chain.stage_failure import StageFailed
from hedgerow.stage import MOST_PARTS

ABSORBED: Final = "absorbed"
"""Drop reason of a frame for which a stage returned nothing, e.g. samples of a window that is not full yet."""


_MOST_STACKED_BYTES: Final = 1 << 14
"""Bytes of a frame's arrays above which frames are not made into columns again: it takes longer than it saves."""

StepOutcome: TypeAlias = Frame | Drop | tuple[Frame, ...] | HedgerowError
"""What a step makes of a frame: a frame, a drop, the frames it was split into (none: it was absorbed), or an error."""


@dataclass(slots=True)
class FrameOutcome:
    """How one frame ended: exactly one of `results`, `dropped` and `error` is set.

    Attributes:
        results: frames to publish.
        dropped: reason it was dropped.
        error: why it is dead.
        stage: the stage that dropped it or failed.
    """

    results: list[Frame] = field(default_factory=list)
    dropped: str | None = None
    error: HedgerowError | None = None
    stage: str = ""

    def record(self, stage: str, outcome: StepOutcome) -> None:
        """Record how one part of the frame ended in a stage."""
        if isinstance(outcome, HedgerowError):
            if self.error is None:
                self.error, self.stage = outcome, stage
            return
        self.dropped = self.dropped or (outcome.reason if isinstance(outcome, Drop) else ABSORBED)
        self.stage = self.stage or stage


class Live(NamedTuple):
    """What has not ended yet of a list.

    Attributes:
        batch: columns; None: there are none.
        rows: position in the list of each row, ascending.
        frames: frames beside the columns.
        owners: position in the list of what each of these was made from, ascending.
    """

    batch: FrameBatch | None
    rows: Sequence[int]
    frames: Sequence[Frame]
    owners: Sequence[int]


def next_frames(
    stage: str,
    owners: Sequence[int],
    step_outcomes: Sequence[StepOutcome],
    outcomes: list[FrameOutcome] | dict[int, FrameOutcome],
) -> tuple[list[Frame], list[int]]:
    """Return the frames that go on and their owners, and record how the others ended."""
    next_frames: list[Frame] = []
    next_owners: list[int] = []
    parts_of: dict[int, int] = {}
    any_died = False
    for owner, outcome in zip(owners, step_outcomes, strict=True):
        if type(outcome) is Frame:
            next_frames.append(outcome)
            next_owners.append(owner)
            continue
        if isinstance(outcome, tuple) and not isinstance(outcome, Drop) and outcome:
            made = parts_of[owner] = parts_of.get(owner, 0) + len(outcome)
            if made <= MOST_PARTS:
                next_frames.extend(outcome)
                next_owners.extend([owner] * len(outcome))
                continue
            outcome = StageFailed(stage, ValueError(f"more than {MOST_PARTS:,} parts of one frame"))
        outcomes[owner].record(stage, outcome)
        any_died = any_died or outcomes[owner].error is not None
    if any_died and parts_of:  # the other parts of a dead frame need not run
        ended = outcomes if isinstance(outcomes, dict) else dict(enumerate(outcomes))
        alive = [owner not in ended or ended[owner].error is None for owner in next_owners]
        next_frames, next_owners = list(compress(next_frames, alive)), list(compress(next_owners, alive))
    return next_frames, next_owners


def conclude(
    frames: Sequence[Frame],
    owners: Sequence[int],
    outcomes: list[FrameOutcome] | dict[int, FrameOutcome],
    all_outcomes: Iterable[FrameOutcome],
) -> None:
    """Record the frames that reached the end, and leave each outcome with one kind of end."""
    for owner, frame in zip(owners, frames, strict=True):
        outcomes[owner].results.append(frame)
    for outcome in all_outcomes:
        if outcome.error is not None:
            outcome.results, outcome.dropped = [], None
        elif outcome.results:
            outcome.dropped = None


def merged(
    frames: Sequence[Frame], owners: Sequence[int], more: Sequence[tuple[int, Frame]]
) -> tuple[Sequence[Frame], Sequence[int]]:
    """Return frames with their owners, and more of them, in the order of their owners."""
    if not more:
        return frames, owners
    merged = sorted([*zip(owners, frames, strict=True), *more], key=itemgetter(0))
    return [frame for _, frame in merged], [owner for owner, _ in merged]


def stacked(frames: Sequence[Frame]) -> FrameBatch | None:
    """Return frames as columns; None if they are not alike, or so large that copying them takes too long."""
    try:
        first = frames[0]
        arrays = [*([first.array] if first.has_array else []), *first.tensors.values()]
        if sum(array.nbytes for array in arrays) <= _MOST_STACKED_BYTES:
            return FrameBatch.of(frames)
    except Exception:  # noqa: BLE001 - a stage may have set anything in its frames
        return None
    return None
