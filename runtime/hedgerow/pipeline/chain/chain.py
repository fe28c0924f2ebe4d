"""Chain of stages that runs over lists of frames. Synchronous; knows nothing of brokers or asyncio.

Invariant: every frame ends with exactly one outcome: results, dropped with a reason, or dead with an error. If a stage
splits a frame, the parts share one outcome: dead if any part failed, else results if any part gave one, else dropped.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Final

from hedgerow.errors import FrameError, HedgerowError
from hedgerow.frame import Drop, Frame
from hedgerow.pipeline.chain.circuit_breaker import CircuitBreaker
from hedgerow.pipeline.chain.progress import this_thread
from hedgerow.stage import Outcome, Stage, process_each

ABSORBED: Final = "absorbed"
"""Drop reason of a frame for which a stage returned nothing, e.g. samples of a window that is not full yet."""


class StageFailed(HedgerowError):
    """A stage raised something other than FrameError: a bug in the stage."""

    code = "stage-failed"

    def __init__(self, stage: str, cause: Exception) -> None:
        super().__init__(
            f"Stage {stage} raised {type(cause).__name__}: {_text(cause)}",
            remedy=f"Fix the stage; `hedgerow plugin show {stage}` names the package. The dead letter contains the frame.",
        )
        self.__cause__ = cause


def _text(error: Exception) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - a plugin's error may raise anything
        return "(its message cannot be formatted)"


class CircuitOpen(HedgerowError):
    """A stage keeps failing, so its circuit breaker is open."""

    code = "circuit-open"

    def __init__(self, stage: str, failures: int) -> None:
        super().__init__(
            f"Stage {stage} failed {failures} times in a row and is skipped for now",
            remedy="Earlier dead letters have the cause; the stage is tried again automatically.",
        )


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


@dataclass(slots=True)
class ChainRun:
    """One run of a chain over a list.

    Attributes:
        outcomes: one per frame, in order.
        timings: (stage, seconds for the whole list, number of frames), in order.
    """

    outcomes: list[FrameOutcome]
    timings: list[tuple[str, float, int]]


EventSink = Callable[[str, dict[str, Any]], None]
"""Called with an event for operators: its kind and details."""


def _no_events(kind: str, detail: dict[str, Any]) -> None:
    pass


class ChainStep:
    """A stage in a chain: isolates its exceptions, and opens a circuit breaker if it keeps failing.

    While the circuit is open, frames are refused. After each pause one frame of one list is the trial; the rest of that
    list runs only if it succeeds. The lists of other lanes are refused meanwhile.
    """

    def __init__(self, name: str, stage: Stage[Any], on_event: EventSink = _no_events, position: int = 0) -> None:
        self.name = name
        self.position = position
        self.stage = stage
        self.circuit = CircuitBreaker()
        self._on_event = on_event
        # Lanes run lists in parallel; a stage that is not concurrent runs them one at a time.
        self._takes_lists = type(stage).process_many is not Stage.process_many
        self._lock: AbstractContextManager[object] = nullcontext() if stage.concurrent else threading.Lock()

    def run(self, frames: Sequence[Frame]) -> Sequence[Outcome | Exception]:
        """Run the stage over a list; return one outcome per frame, in order. Never raises."""
        if self.circuit.open_until is None:
            return self._run(frames)
        first: Sequence[Outcome | Exception] = []
        if self.circuit.take_trial(time.monotonic()):
            first, frames = self._run(frames[:1], trial=True), frames[1:]
            if not self.circuit.is_open:
                return [*first, *self._run(frames)] if frames else first
        return [*first, *[CircuitOpen(self.name, self.circuit.failures)] * len(frames)]

    def _run(self, frames: Sequence[Frame], *, trial: bool = False) -> Sequence[Outcome | Exception]:
        outcomes = self._call(frames)
        for outcome in outcomes:
            if isinstance(outcome, Exception) and not isinstance(outcome, FrameError):
                if self.circuit.failed(time.monotonic(), trial=trial):
                    self._on_event("circuit-open", {"stage": self.name, "error": _text(outcome)})
            elif self.circuit.failures and self.circuit.succeeded():
                self._on_event("circuit-closed", {"stage": self.name})
        return outcomes

    def _call(self, frames: Sequence[Frame]) -> Sequence[Outcome | Exception]:
        try:
            with self._lock:
                outcomes = self._process(frames)
            if len(outcomes) == len(frames):
                return outcomes
            error: Exception = ValueError(f"process_many returned {len(outcomes)} outcomes for {len(frames)} frames")
        except Exception as raised:  # noqa: BLE001 - a plugin may raise anything
            error = raised
        except SystemExit as raised:  # a stage must not end the lane's thread
            error = RuntimeError(f"SystemExit: {raised}")
        if len(frames) == 1:
            return [error]
        # Run the frames one at a time, so that only the bad ones fail.
        return [self._call([frame])[0] for frame in frames]

    def _process(self, frames: Sequence[Frame]) -> Sequence[Outcome | Exception]:
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
            next_frames: list[Frame] = []
            next_owners: list[int] = []
            for owner, outcome in zip(owners, step_outcomes, strict=True):
                if outcome.__class__ is Frame:
                    next_frames.append(outcome)
                    next_owners.append(owner)
                else:
                    _record(outcomes[owner], owner, outcome, step.name, next_frames, next_owners)
            if progress is not None:
                progress.leave()
            timings.append((step.name, time.perf_counter() - started, len(live)))
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
            except Exception as error:  # noqa: BLE001 - a plugin may raise anything
                step._on_event("stage-close-failed", {"stage": step.name, "error": _text(error)})


def _record(
    frame_outcome: FrameOutcome,
    owner: int,
    outcome: Outcome | Exception,
    stage: str,
    next_frames: list[Frame],
    next_owners: list[int],
) -> None:
    """Record a stage's outcome that is not a single frame."""
    if isinstance(outcome, Exception):
        if frame_outcome.error is None:
            frame_outcome.error = outcome if isinstance(outcome, HedgerowError) else StageFailed(stage, outcome)
            frame_outcome.stage = stage
    elif isinstance(outcome, Drop):
        frame_outcome.dropped = frame_outcome.dropped or outcome.reason
        frame_outcome.stage = frame_outcome.stage or stage
    else:
        try:
            parts = _parts(outcome)
        except Exception as error:  # noqa: BLE001 - a plugin's generator may raise anything
            _record(frame_outcome, owner, error, stage, next_frames, next_owners)
            return
        if parts:
            next_frames.extend(parts)
            next_owners.extend([owner] * len(parts))
        else:
            frame_outcome.dropped = frame_outcome.dropped or ABSORBED
            frame_outcome.stage = frame_outcome.stage or stage


def _parts(outcome: Any) -> tuple[Frame, ...]:
    """Return the frames of an outcome.

    Raises: TypeError: it contains something else; and whatever a generator raises.
    """
    if outcome is None:
        return ()
    if isinstance(outcome, Frame):
        return (outcome,)
    parts = tuple(outcome)
    for part in parts:
        if not isinstance(part, Frame):
            raise TypeError(f"process returned a {type(part).__name__} instead of a Frame")
    return parts
