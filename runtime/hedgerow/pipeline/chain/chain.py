"""Chain of stages that runs over lists of frames. Synchronous; knows nothing of brokers or asyncio.

Invariant: every frame ends with exactly one outcome: results, dropped with a reason, or dead with an error. If a stage
splits a frame, the parts share one outcome: dead if any part failed, else results if any part gave one, else dropped.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from operator import itemgetter
from traceback import clear_frames
from typing import Any, Final, cast

from hedgerow.columns.frame_batch import DEFERRED, FrameBatch, Irregular
from hedgerow.errors import FrameError, HedgerowError, text_of
from hedgerow.frame import Frame
from hedgerow.pipeline.chain.circuit_breaker import CircuitBreaker
from hedgerow.pipeline.chain.live import FrameOutcome, Live, StepOutcome, conclude, merged, next_frames, stacked
from hedgerow.pipeline.chain.progress import this_thread
from hedgerow.pipeline.chain.returned import checked, checked_batch, listed
from hedgerow.pipeline.chain.stage_failure import CircuitOpen, StageFailed, log_no_columns, without_text
from hedgerow.stage import Stage, process_each, takes_batches


@dataclass(slots=True)
class ChainRun:
    """One run of a chain over a list.

    Attributes:
        outcomes: one per frame, in order.
        timings: (stage, seconds for the whole list, number of frames), in order.
    """

    outcomes: list[FrameOutcome]
    timings: list[tuple[str, float, int]]


@dataclass(slots=True)
class ColumnRun:
    """One run of a chain over a list, as columns as far as possible.

    Attributes:
        batch: the frames that reached the end as rows of columns: each gave one result; None: none did.
        rows: position in the list of each of these.
        outcomes: how each other frame ended, by its position in the list.
        timings: see `ChainRun`.
        columns: (stage, number of frames that it processed as columns), in order; without stages that processed none.
    """

    batch: FrameBatch | None
    rows: Sequence[int]
    outcomes: dict[int, FrameOutcome]
    timings: list[tuple[str, float, int]] = field(default_factory=list)
    columns: list[tuple[str, int]] = field(default_factory=list)


_IN_COLUMNS: Final = object()
"""Stands for a row that stays in the columns, among the outcomes of the others."""
_ONLY_FRAMES: Final = {Frame}
"""Types of the outcomes of most lists; not `isinstance`, as an object may claim to be of another class."""

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
        self.takes_batches = takes_batches(type(stage))
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

    def run_batch(self, given: Live) -> tuple[Live, Sequence[StepOutcome], int]:
        """Run the stage over columns, and over the frames beside them. Never raises.

        Returns: what stays in the columns, with the owners of the outcomes of all others; these outcomes; and how many frames the
        stage processed as columns.
        """
        batch, rows, frames, owners = given
        assert batch is not None  # noqa: S101 - else `run` does it
        if not self.takes_batches or self.circuit.failures or self.circuit.open_until is not None:
            frames, owners = merged(frames, owners, [(row, batch.frame(at)) for at, row in enumerate(rows)])
            return Live(None, (), (), owners), self.run(frames), 0
        returned, left = self._call_batch(batch)
        if not left and not frames:
            return Live(returned, rows, (), ()), (), len(rows)
        # As if all of them had been processed in order, for the circuit breaker.
        deferred = [(rows[at], batch.frame(at)) for at, outcome in left.items() if outcome is DEFERRED]
        frames, owners = merged(frames, owners, deferred)
        streams = [frame.stream for frame in frames]
        done = list(zip(owners, self._call(frames), streams, strict=True)) if frames else []
        done += [(rows[at], outcome, batch.streams[at]) for at, outcome in left.items() if outcome is not DEFERRED]
        kept = [at for at in range(len(rows)) if at not in left]
        done += [(rows[at], _IN_COLUMNS, "") for at in kept]
        done.sort(key=itemgetter(0))
        outcomes = self._accounted([outcome for _, outcome, _ in done], [stream for _, _, stream in done])
        others = [
            (owner, outcome) for (owner, *_), outcome in zip(done, outcomes, strict=True) if outcome is not _IN_COLUMNS
        ]
        if left:
            returned = returned.select(kept) if returned is not None and kept else None
        live = Live(returned, [rows[at] for at in kept], (), [owner for owner, _ in others])
        return live, [outcome for _, outcome in others], len(rows) - len(deferred)

    def _call_batch(self, batch: FrameBatch) -> tuple[FrameBatch | None, dict[int, Any]]:
        """Return what the stage makes of columns, and the outcome of each row that has left them."""
        offered = batch.with_meta()  # a copy, since a stage may change it
        left: dict[int, Any] = {}
        offered.left = left
        try:
            with self._lock:
                if (progress := this_thread.progress) is not None:
                    progress.enter(self.position, len(batch))
                returned = self.stage.process_batch(offered)
        except BaseException as error:  # noqa: BLE001 - a plugin may raise anything, such as a panic of native code
            if not issubclass(type(error), Irregular):
                log_no_columns(self.name, error)
            clear_frames(error.__traceback__)
            return None, dict.fromkeys(range(len(batch)), DEFERRED)
        try:
            return checked_batch(returned, batch, left), left
        except BaseException as error:  # noqa: BLE001 - whatever it returned
            self.takes_batches = False  # it may have changed its state, so these frames are lost; the next are not
            failure = StageFailed(self.name, error)
            return None, dict.fromkeys(range(len(batch)), failure)

    def _run(self, frames: Sequence[Frame], *, trial: bool = False) -> Sequence[StepOutcome]:
        streams = [frame.stream for frame in frames]  # a stage may change its frames
        outcomes = self._call(frames)
        if set(map(type, outcomes)) == _ONLY_FRAMES and not self.circuit.failures:
            with suppress(AttributeError):  # a frame without attributes is looked at below
                if [outcome.stream for outcome in outcomes] == streams:
                    return outcomes
        return self._accounted(outcomes, streams, trial=trial)

    def _accounted(self, outcomes: list[Any], streams: Sequence[str], *, trial: bool = False) -> list[StepOutcome]:
        """Check outcomes, and tell the circuit breaker of each."""
        for position, outcome in enumerate(outcomes):
            error: BaseException | None = None
            try:
                # Not `isinstance`: an object may claim to be of another class.
                if outcome is None:
                    outcomes[position] = ()
                elif outcome is _IN_COLUMNS:
                    pass
                elif type(outcome) is not Frame or outcome.stream != streams[position]:
                    if issubclass(type(outcome), BaseException):
                        error = outcome
                    else:
                        outcomes[position] = checked(outcome, streams[position])
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
                    returned = returned.copy() if type(returned) is list else listed(returned, len(frames))
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
    """Stages in order.

    Attributes:
        first_columnar: position of the first stage that takes columns; None: there is none.
    """

    def __init__(self, steps: Sequence[ChainStep]) -> None:
        self.steps = tuple(steps)
        self.first_columnar = next((at for at, step in enumerate(steps) if step.takes_batches), None)

    def run(self, frames: Sequence[Frame]) -> ChainRun:
        """Run a list of frames through all stages. Never raises."""
        outcomes = [FrameOutcome() for _ in frames]
        timings: list[tuple[str, float, int]] = []
        live: Sequence[Frame] = frames
        owners: Sequence[int] = range(len(live))
        progress = this_thread.progress
        for step in self.steps:
            if not live:
                break
            started, count = time.perf_counter(), len(live)
            step_outcomes = step.run(live)
            if set(map(type, step_outcomes)) == _ONLY_FRAMES:
                live = cast(list[Frame], step_outcomes)
            else:
                live, owners = next_frames(step.name, owners, step_outcomes, outcomes)
            if progress is not None:
                progress.leave()
            timings.append((step.name, time.perf_counter() - started, count))
        conclude(live, owners, outcomes, outcomes)
        return ChainRun(outcomes, timings)

    def run_columns(self, live: Live) -> ColumnRun:
        """Run a list through all stages, as columns wherever a stage takes them. Never raises."""
        run = ColumnRun(None, (), defaultdict(FrameOutcome))
        progress = this_thread.progress
        for step in self.steps:
            started = time.perf_counter()
            if (
                live.batch is None
                and step.takes_batches
                and run.outcomes.keys().isdisjoint(
                    live.owners
                )  # no last part of a frame: how the others ended decides too
                and (batch := stacked(live.frames)) is not None
            ):
                live = Live(batch, live.owners, (), ())
            count = len(live.rows) + len(live.frames)
            if not count:
                break
            outcomes: Sequence[StepOutcome]
            if live.batch is not None:
                live, outcomes, columns = step.run_batch(live)
                if columns:
                    run.columns.append((step.name, columns))
            else:
                outcomes = step.run(live.frames)
            if outcomes:
                live = Live(live.batch, live.rows, *next_frames(step.name, live.owners, outcomes, run.outcomes))
            if progress is not None:
                progress.leave()
            run.timings.append((step.name, time.perf_counter() - started, count))
        run.batch, run.rows = live.batch, live.rows
        conclude(live.frames, live.owners, run.outcomes, run.outcomes.values())
        return run

    def close(self) -> None:
        """Close every stage, even if closing one of them fails."""
        for step in self.steps:
            try:
                step.stage.close()
            except BaseException as error:  # noqa: BLE001 - a plugin may raise anything
                step._on_event("stage-close-failed", {"stage": step.name, "error": text_of(error)})
