"""Chain of stages that runs over lists of frames. Synchronous; knows nothing of brokers or asyncio.

Invariant: every frame ends with exactly one outcome: results, dropped with a reason, or dead with an error. If a stage
splits a frame, the parts share one outcome: dead if any part failed, else results if any part gave one, else dropped.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from itertools import compress, islice
from traceback import clear_frames
from typing import Any, Final, TypeAlias, cast

from hedgerow.errors import FrameError, HedgerowError, text_of
from hedgerow.frame import Drop, Frame
from hedgerow.pipeline.chain.circuit_breaker import CircuitBreaker
from hedgerow.pipeline.chain.progress import this_thread
from hedgerow.pipeline.chain.stage_failure import CircuitOpen, StageFailed, without_text
from hedgerow.stage import MOST_PARTS, Stage, process_each
from hedgerow.text import visible

ABSORBED: Final = "absorbed"
"""Drop reason of a frame for which a stage returned nothing, e.g. samples of a window that is not full yet."""


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


@dataclass(slots=True)
class ChainRun:
    """One run of a chain over a list.

    Attributes:
        outcomes: one per frame, in order.
        timings: (stage, seconds for the whole list, number of frames), in order.
    """

    outcomes: list[FrameOutcome]
    timings: list[tuple[str, float, int]]


_LONGEST_REASON: Final = 64
_ONLY_FRAMES: Final = {Frame}
"""Types of the outcomes of most lists; not `isinstance`, as an object may claim to be of another class."""

StepOutcome: TypeAlias = Frame | Drop | tuple[Frame, ...] | HedgerowError
"""What a step makes of a frame: a frame, a drop, the frames it was split into (none: it was absorbed), or an error."""

EventSink = Callable[[str, dict[str, Any]], None]
"""Called with an event for operators: its kind and details."""


FailureSink = Callable[[str, HedgerowError], None]
"""Called with each failure of a stage that is no fault of the frame: the stage's name and the error."""


def _no_events(kind: str, detail: dict[str, Any]) -> None:
    pass


def _no_failures(stage: str, failure: HedgerowError) -> None:
    pass


class ChainStep:
    """A stage in a chain: isolates its exceptions, and opens a circuit breaker if it keeps failing.

    While the circuit is open, frames are refused. After each pause one frame of one list is the trial; the rest of that
    list runs only if it succeeds. The lists of other lanes are refused meanwhile.
    """

    def __init__(
        self,
        name: str,
        stage: Stage[Any],
        on_event: EventSink = _no_events,
        on_failure: FailureSink = _no_failures,
        position: int = 0,
    ) -> None:
        self.name = name
        self.position = position
        self._on_failure = on_failure
        self.stage = stage
        self.circuit = CircuitBreaker()
        self._on_event = on_event
        # Lanes run lists in parallel; a stage that is not concurrent runs them one at a time.
        self._takes_lists = type(stage).process_many is not Stage.process_many
        self._lock: AbstractContextManager[object] = nullcontext() if stage.concurrent else threading.Lock()

    def run(self, frames: Sequence[Frame]) -> Sequence[StepOutcome]:
        """Run the stage over a list; return one outcome per frame, in order. Never raises."""
        if self.circuit.open_until is None:
            return self._run(frames)
        first: Sequence[StepOutcome] = []
        if self.circuit.take_trial(time.monotonic()):
            first, frames = self._run(frames[:1], trial=True), frames[1:]
            if not self.circuit.is_open:
                return [*first, *self._run(frames)] if frames else first
        return [*first, *[CircuitOpen(self.name, self.circuit.failures)] * len(frames)]

    def _run(self, frames: Sequence[Frame], *, trial: bool = False) -> Sequence[StepOutcome]:
        streams = [frame.stream for frame in frames]  # a stage may change its frames
        outcomes = self._call(frames)
        if set(map(type, outcomes)) == _ONLY_FRAMES and not self.circuit.failures:
            with suppress(AttributeError):  # a frame without attributes is looked at below
                if [outcome.stream for outcome in outcomes] == streams:
                    return outcomes
        for position, outcome in enumerate(outcomes):
            error: BaseException | None = None
            try:
                # Not `isinstance`: an object may claim to be of another class.
                if outcome is None:
                    outcomes[position] = ()
                elif type(outcome) is not Frame or outcome.stream != streams[position]:
                    if issubclass(type(outcome), BaseException):
                        error = outcome
                    else:
                        outcomes[position] = _checked(outcome, streams[position])
            except BaseException as raised:  # noqa: BLE001 - a plugin may return anything
                error = raised
            if error is not None:
                outcomes[position] = self._failed(error, trial=trial)
                clear_frames(error.__traceback__)  # their variables hold the frame, and the error: a cycle
            elif self.circuit.failures and self.circuit.succeeded():
                self._on_event("circuit-closed", {"stage": self.name})
        return outcomes

    def _call(self, frames: Sequence[Frame]) -> list[Any]:
        """Return what the stage returns for each frame, or an error that it raised."""
        try:
            with self._lock:
                returned: list[Any] = self._process(frames)
                if self._takes_lists:  # else it is our own
                    returned = returned.copy() if type(returned) is list else _listed(returned, len(frames))
            if len(returned) == len(frames):
                return returned
            count = f"more than {len(frames)}" if len(returned) > len(frames) else str(len(returned))
            error: BaseException = ValueError(f"process_many returned {count} outcomes for {len(frames)} frames")
        except BaseException as raised:  # noqa: BLE001 - a plugin may raise anything, such as a panic of native code
            error = raised
        if len(frames) == 1:
            return [error]
        # Run the frames one at a time, so that only the bad ones fail.
        return [self._call([frame])[0] for frame in frames]

    def _failed(self, error: BaseException, *, trial: bool) -> HedgerowError:
        if issubclass(type(error), FrameError):
            return cast(FrameError, error)
        failure = (
            cast(HedgerowError, error) if issubclass(type(error), HedgerowError) else StageFailed(self.name, error)
        )
        self._on_failure(self.name, failure)
        if self.circuit.failed(time.monotonic(), trial=trial):
            self._on_event("circuit-open", {"stage": self.name, "error": without_text(failure)})
        return failure

    def _process(self, frames: Sequence[Frame]) -> Any:
        """Run the stage while this thread's progress says so: a lane that waits for its turn does not hang."""
        progress = this_thread.progress
        if self._takes_lists:
            if progress is not None:
                progress.enter(self.position, len(frames))
            return self.stage.process_many(frames)
        outcomes = [] if progress is None else progress.enter_each(self.position)
        return process_each(self.stage.process, frames, outcomes)


class Chain:
    """Stages in order."""

    def __init__(self, steps: Sequence[ChainStep]) -> None:
        self.steps = tuple(steps)

    def run(self, frames: Sequence[Frame]) -> ChainRun:
        """Run a list of frames through all stages. Never raises."""
        outcomes = [FrameOutcome() for _ in frames]
        timings: list[tuple[str, float, int]] = []
        live: list[Frame] = list(frames)
        owners: list[int] = list(range(len(live)))
        progress = this_thread.progress
        for step in self.steps:
            if not live:
                break
            started = time.perf_counter()
            step_outcomes = step.run(live)
            if set(map(type, step_outcomes)) == _ONLY_FRAMES:
                if progress is not None:
                    progress.leave()
                timings.append((step.name, time.perf_counter() - started, len(live)))
                live = cast(list[Frame], step_outcomes)
                continue
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
                    outcome = StageFailed(step.name, ValueError(f"more than {MOST_PARTS:,} parts of one frame"))
                outcomes[owner].record(step.name, outcome)
                any_died = any_died or outcomes[owner].error is not None
            if progress is not None:
                progress.leave()
            timings.append((step.name, time.perf_counter() - started, len(live)))
            if any_died and parts_of:  # the other parts of a dead frame need not run
                alive = [outcomes[owner].error is None for owner in next_owners]
                next_frames, next_owners = list(compress(next_frames, alive)), list(compress(next_owners, alive))
            live, owners = next_frames, next_owners
        for owner, frame in zip(owners, live, strict=True):
            outcomes[owner].results.append(frame)
        for frame_outcome in outcomes:
            if frame_outcome.error is not None:
                frame_outcome.results, frame_outcome.dropped = [], None
            elif frame_outcome.results:
                frame_outcome.dropped = None
        return ChainRun(outcomes, timings)

    def close(self) -> None:
        """Close every stage, even if closing one of them fails."""
        for step in self.steps:
            try:
                step.stage.close()
            except BaseException as error:  # noqa: BLE001 - a plugin may raise anything
                step._on_event("stage-close-failed", {"stage": step.name, "error": text_of(error)})


def _listed(outcomes: Any, count: int) -> list[Any]:
    """Return what `process_many` returned as a list, at most one longer than it should be."""
    if isinstance(outcomes, (Set, Mapping)):
        raise TypeError(f"process_many returned a {type(outcomes).__name__}, which has no order")
    return list(islice(outcomes, count + 1))


def _checked(outcome: Any, stream: str) -> Drop | Frame | tuple[Frame, ...]:
    """Return what a stage returned for a frame of `stream`, as a drop, a frame, or the frames that it was split into.

    Raises: TypeError, ValueError: it is something else; and whatever a generator raises.
    """
    kind = type(outcome)
    if outcome is None:
        return ()
    if issubclass(kind, Drop):
        return Drop(visible(text_of(outcome.reason)[:_LONGEST_REASON]) or "dropped")
    parts: tuple[Any, ...]
    if kind is list:  # before those that ask an abstract class, which takes longer than all the rest
        parts = tuple(outcome)
    elif issubclass(kind, Frame):
        parts = (outcome,)
    elif issubclass(kind, (str, bytes, Mapping)) or not issubclass(kind, Iterable):
        raise TypeError(f"process returned a {kind.__name__} instead of a Frame")
    else:
        parts = tuple(islice(outcome, MOST_PARTS + 1))
    if len(parts) > MOST_PARTS:
        raise ValueError(f"process returned more than {MOST_PARTS:,} frames for one frame")
    for part in parts:
        if not issubclass(type(part), Frame):
            raise TypeError(f"process returned a {type(part).__name__} instead of a Frame")
        if part.stream != stream:
            raise ValueError(f"process returned a frame of stream {part.stream!r} for a frame of stream {stream!r}")
    return parts[0] if len(parts) == 1 and type(parts[0]) is Frame else parts
