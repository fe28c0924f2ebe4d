"""A chain of stages, run over lists of frames. Synchronous; knows nothing of brokers, threads or asyncio.

The law it keeps: every frame that goes in comes out with exactly one fate — results, dropped with a reason, or dead
with an error. A frame that a stage made several of shares one fate: dead if any part failed, else results if any
part gave one, else dropped.
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
from hedgerow.pipeline.chain.circuit_breaker import Circuit
from hedgerow.stage import Outcome, Stage

ABSORBED: Final = "absorbed"
"""Drop reason of a frame that a stage took in and gave nothing out for, e.g. samples of a window not yet full."""


class StageFailed(HedgerowError):
    """A stage raised something that is not a FrameError: a bug in the stage."""

    code = "stage-failed"

    def __init__(self, stage: str, cause: Exception) -> None:
        super().__init__(
            f"Stage {stage} raised {type(cause).__name__}: {_text(cause)}",
            remedy=f"Mend the stage; `hedgerow plugin show {stage}` says who ships it. The dead letter carries the frame.",
        )
        self.__cause__ = cause


def _text(error: Exception) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - an author's error may raise anything
        return "(its message cannot be made)"


class CircuitOpen(HedgerowError):
    """A stage keeps failing and is not called for a while."""

    code = "circuit-open"

    def __init__(self, stage: str, failures: int) -> None:
        super().__init__(
            f"Stage {stage} failed {failures} times in a row and is not called for now",
            remedy="See the dead letters before this one for the cause; the stage is tried again by itself.",
        )


@dataclass(slots=True)
class FrameOutcome:
    """What became of one frame: exactly one of results, dropped, error is set.

    Attributes:
        results: what is to be published for it.
        dropped: why it was dropped.
        error: why it is dead.
        stage: where it was dropped or died.
    """

    results: list[Frame] = field(default_factory=list)
    dropped: str | None = None
    error: HedgerowError | None = None
    stage: str = ""


@dataclass(slots=True)
class ChainRun:
    """One list taken through a chain.

    Attributes:
        outcomes: one a frame, in order.
        timings: (stage, seconds it took for the whole list, frames it saw), in order.
    """

    outcomes: list[FrameOutcome]
    timings: list[tuple[str, float, int]]


EventSink = Callable[[str, dict[str, Any]], None]
"""Takes an event: its kind and what there is to say."""


def _no_events(kind: str, detail: dict[str, Any]) -> None:
    pass


class ChainStep:
    """A stage in a chain, observed: isolates exceptions, opens a circuit when the stage keeps failing.

    While the circuit is open, frames are refused. After its pause one frame of one list is the try; the rest of that
    list goes on only if it succeeds, and the lists of other lanes are refused meanwhile.
    """

    def __init__(self, name: str, stage: Stage[Any], on_event: EventSink = _no_events) -> None:
        self.name = name
        self.stage = stage
        self.circuit = Circuit()
        self._on_event = on_event
        # Lists run through the chain side by side; each stage that is not concurrent takes them one after the other.
        self._turn: AbstractContextManager[object] = nullcontext() if stage.concurrent else threading.Lock()

    def run(self, frames: Sequence[Frame]) -> Sequence[Outcome | Exception]:
        """Run the stage over a list; one outcome a frame, in order. Never raises."""
        if self.circuit.open_until is None:
            return self._watched(frames)
        tried: Sequence[Outcome | Exception] = []
        if self.circuit.take_try(time.monotonic()):
            tried, frames = self._watched(frames[:1], trying=True), frames[1:]
            if not self.circuit.is_open:
                return [*tried, *self._watched(frames)] if frames else tried
        return [*tried, *[CircuitOpen(self.name, self.circuit.failures)] * len(frames)]

    def _watched(self, frames: Sequence[Frame], *, trying: bool = False) -> Sequence[Outcome | Exception]:
        outcomes = self._call(frames)
        for outcome in outcomes:
            if isinstance(outcome, Exception) and not isinstance(outcome, FrameError):
                if self.circuit.failed(time.monotonic(), trying=trying):
                    self._on_event("circuit-open", {"stage": self.name, "error": _text(outcome)})
            elif self.circuit.failures and self.circuit.succeeded():
                self._on_event("circuit-closed", {"stage": self.name})
        return outcomes

    def _call(self, frames: Sequence[Frame]) -> Sequence[Outcome | Exception]:
        try:
            with self._turn:
                outcomes = self.stage.process_many(frames)
            if len(outcomes) == len(frames):
                return outcomes
            error: Exception = ValueError(f"process_many gave {len(outcomes)} outcomes for {len(frames)} frames")
        except Exception as raised:  # noqa: BLE001 - an author's stage may raise anything
            error = raised
        except SystemExit as raised:  # a stage may not end the thread that many frames depend on
            error = RuntimeError(f"SystemExit: {raised}")
        if len(frames) == 1:
            return [error]
        # One bad frame must not take its neighbours along.
        return [self._call([frame])[0] for frame in frames]


class Chain:
    """Stages in order."""

    def __init__(self, steps: Sequence[ChainStep]) -> None:
        self.steps = tuple(steps)

    def run(self, frames: Sequence[Frame]) -> ChainRun:
        """Take a list of frames through all stages. Never raises."""
        outcomes = [FrameOutcome() for _ in frames]
        timings: list[tuple[str, float, int]] = []
        live: list[Frame] = list(frames)
        owners: list[int] = list(range(len(live)))
        for step in self.steps:
            if not live:
                break
            began = time.perf_counter()
            step_outcomes = step.run(live)
            onward: list[Frame] = []
            onward_owners: list[int] = []
            for owner, outcome in zip(owners, step_outcomes, strict=True):
                if outcome.__class__ is Frame:
                    onward.append(outcome)
                    onward_owners.append(owner)
                else:
                    _settle(outcomes[owner], owner, outcome, step.name, onward, onward_owners)
            timings.append((step.name, time.perf_counter() - began, len(live)))
            live, owners = onward, onward_owners
        for owner, frame in zip(owners, live, strict=True):
            outcomes[owner].results.append(frame)
        for settled in outcomes:
            if settled.error is not None:
                settled.results, settled.dropped = [], None
            elif settled.results:
                settled.dropped = None
        return ChainRun(outcomes, timings)

    def close(self) -> None:
        """Close every stage; one that fails to close does not keep the others from it."""
        for step in self.steps:
            try:
                step.stage.close()
            except Exception as error:  # noqa: BLE001 - an author's stage may raise anything
                step._on_event("stage-close-failed", {"stage": step.name, "error": _text(error)})


def _settle(
    settled: FrameOutcome,
    owner: int,
    outcome: Outcome | Exception,
    stage: str,
    onward: list[Frame],
    onward_owners: list[int],
) -> None:
    """Take in an outcome that is not simply one frame."""
    if isinstance(outcome, Exception):
        if settled.error is None:
            settled.error = outcome if isinstance(outcome, HedgerowError) else StageFailed(stage, outcome)
            settled.stage = stage
    elif isinstance(outcome, Drop):
        settled.dropped = settled.dropped or outcome.reason
        settled.stage = settled.stage or stage
    else:
        try:
            parts = _parts(outcome)
        except Exception as error:  # noqa: BLE001 - an author's generator may raise anything
            _settle(settled, owner, error, stage, onward, onward_owners)
            return
        if parts:
            onward.extend(parts)
            onward_owners.extend([owner] * len(parts))
        else:
            settled.dropped = settled.dropped or ABSORBED
            settled.stage = settled.stage or stage


def _parts(outcome: Any) -> tuple[Frame, ...]:
    """The frames of an outcome. Raises: TypeError: it holds something else; and whatever a generator raises."""
    if outcome is None:
        return ()
    if isinstance(outcome, Frame):
        return (outcome,)
    parts = tuple(outcome)
    for part in parts:
        if not isinstance(part, Frame):
            raise TypeError(f"process gave a {type(part).__name__}, not a Frame")
    return parts
