"""Where a model serves: one slot for every pipeline that names the model. It can go over to another version.

    stages hold ──▶ slot ──▶ the engine that serves      a list of frames pins one of them when it begins
                        └──▶ an engine on trial, for some of the streams

Rules:
- A list of frames pins the versions that it begins with, so it never mixes two. Who asks outside a list gets the one that
  serves at that moment.
- An engine is let go of only when no list runs on it any more.
- A list that goes to two versions is divided by what was on trial at one moment, so a stream's frames keep their order.
- A version must fit what the stages saw of the model when they were set up; else it never gets here.
- While nothing serves (a gap, where memory does not allow two), whoever asks waits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import xxhash

from hedgerow.backends.base import TensorSpec
from hedgerow.config import ModelConfig
from hedgerow.errors import HedgerowError
from hedgerow.frame import Array
from hedgerow.models.serving.engine import Engine
from hedgerow.models.serving.served_model import ServedModel


class _Pinned(threading.local):
    """What the list that runs in this thread runs on."""

    engines: Mapping[Slot, Engine] = MappingProxyType({})


_pinned: Final = _Pinned()
_NOTHING: Final[Mapping[Any, Any]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Split:
    """A version on trial that serves some of the streams.

    Attributes:
        engine: that version, loaded.
        percent: of the streams.
    """

    engine: Engine
    percent: int

    def takes(self, stream: str) -> bool:
        """Whether it serves a stream; always the same answer."""
        return lot(stream, self.engine.source.digest) < self.percent


class Slot:
    """A model that stages hold, whichever version of it serves; a `stage.ModelHandle`.

    Args:
        config: what the node's file says of the model.
        base_dir: what a relative path in it is relative to.
        engine: what serves to begin with.
    Attributes:
        never_waits: whether some of its callers must not be kept waiting, so that there can be no gap: they are the event
            loop, which would have to end it.
    """

    def __init__(self, config: ModelConfig, base_dir: Path, engine: Engine) -> None:
        self.name = engine.name
        self.config = config
        self.base_dir = base_dir
        self.never_waits = False
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._serving: Engine | None = engine
        self._last = engine
        self._split: Split | None = None
        self._late: set[Engine] = set()
        self._closed = False

    # What stages see

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What a caller must give; see `ModelHandle.inputs`."""
        return self._here().inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What comes back."""
        return self._here().outputs

    @property
    def state(self) -> Mapping[str, str]:
        """Hidden state, input name → output name."""
        return self._here().state

    @property
    def state_token(self) -> object:
        """What hidden state belongs to; see `ModelHandle.state_token`."""
        return self._here().state_token

    @property
    def batch_axis(self) -> Mapping[str, int]:
        """Axis batches are stacked on, of the inputs and outputs where it is not 0."""
        return self._here().batch_axis

    @property
    def metadata(self) -> Mapping[str, str]:
        """The model's own metadata."""
        return self._here().metadata

    def zero_state(self) -> dict[str, Array]:
        """Hidden state of a stream that has just begun, by input name."""
        return self._here().zero_state()

    def infer(self, requests: Sequence[Mapping[str, Array]]) -> list[dict[str, Array]]:
        """Run the model on every request; see `ModelHandle.infer`."""
        outcomes = self.infer_each(requests)
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome
        return outcomes  # type: ignore[return-value] # none is an exception

    def infer_each(self, requests: Sequence[Mapping[str, Array]]) -> list[dict[str, Array] | HedgerowError]:
        """Run the model on every request; see `ModelHandle.infer_each`."""
        engine = _pinned.engines.get(self)
        if engine is not None:
            return engine.infer_each(requests)
        engine = self.take()  # outside a list: a test of a stage, a thread of an author's own
        try:
            return engine.infer_each(requests)
        finally:
            self.give_back(engine)

    # What the node sees

    @property
    def serving(self) -> Engine | None:
        """The engine that serves; None in a gap."""
        return self._serving

    @property
    def on_trial(self) -> Split | None:
        """The version that serves some of the streams, if there is one."""
        return self._split

    def take(self, on_trial: bool = False) -> Engine:
        """The engine for a list that begins; waits while nothing serves. Give it back with `give_back`.

        Args:
            on_trial: take the one on trial, if there still is one.
        """
        with self._lock:
            while True:
                if on_trial and self._split is not None:
                    engine = self._split.engine
                    break
                if self._serving is not None or self._closed:
                    engine = self._serving or self._last  # a closed one says that it is
                    break
                self._changed.wait()
            engine.lists += 1
            return engine

    def give_back(self, engine: Engine) -> None:
        """Say that a list no longer runs on an engine."""
        with self._lock:
            engine.lists -= 1
            if engine.lists or engine is self._serving:
                return
            self._changed.notify_all()
            if engine not in self._late:
                return
            self._late.remove(engine)
        engine.close()

    def info(self) -> ServedModel:
        """What serves, or, in a gap, what served last, and what it has done so far."""
        return self._last.info()

    def split(self, engine: Engine, percent: int) -> None:
        """Let an engine serve some of the streams, from their next list on."""
        with self._lock:
            self._split = Split(engine, percent)

    def promote(self, engine: Engine) -> Engine | None:
        """Let an engine serve all streams, from their next list on. Returns: the one that served before; None in a gap."""
        with self._lock:
            before, self._serving, self._split = self._serving, engine, None
            self._last = engine
            engine.since = time.time()
            self._changed.notify_all()
            return before

    def end_split(self) -> None:
        """Let the serving engine serve all streams again, from their next list on."""
        with self._lock:
            self._split = None

    def start_gap(self) -> Engine | None:
        """Let nothing serve: whoever asks waits for the next `promote`. Returns: the one that served."""
        with self._lock:
            before, self._serving, self._split = self._serving, None, None
            return before

    def wait_until_idle(self, engine: Engine, timeout_s: float | None = None) -> bool:
        """Wait until no list runs on an engine that no longer serves. Returns: whether it is so."""
        with self._lock:
            return self._changed.wait_for(lambda: not engine.lists, timeout_s)

    def retire(self, engine: Engine, patience_s: float) -> None:
        """Free an engine that no longer serves, when no list runs on it.

        Args:
            patience_s: how long to wait for that here; after it the last of those lists frees it.
        """
        with self._lock:
            if not self._changed.wait_for(lambda: not engine.lists, patience_s):
                self._late.add(engine)
                return
        engine.close()

    def close(self) -> None:
        """Free the model; whoever waits in a gap gets an error."""
        with self._lock:
            self._closed = True
            self._split = None
            self._changed.notify_all()
        self._last.close()

    @property
    def closed(self) -> bool:
        """Whether nobody needs it any more."""
        return self._closed

    def _here(self) -> Engine:
        return _pinned.engines.get(self) or self._last


def lot(stream: str, salt: str) -> int:
    """A number from 0 to 99 that a stream always draws; other streams are others' for another salt."""
    return xxhash.xxh32_intdigest(f"{salt}/{stream}".encode()) % 100


class Pins:
    """The versions that one list runs on, in the thread that runs it: `with Pins(slots) as engines`.

    Args:
        slots: those of the pipeline.
        sides: of each slot, whether the list's streams are served by the version on trial.
    """

    __slots__ = ("_sides", "_slots", "engines")

    def __init__(self, slots: Sequence[Slot], sides: Iterable[bool] | None = None) -> None:
        self._slots = slots
        self._sides = sides
        self.engines: tuple[Engine, ...] = ()

    def __enter__(self) -> tuple[Engine, ...]:
        slots = self._slots
        if self._sides is None:
            self.engines = tuple([slot.take() for slot in slots])
        else:
            self.engines = tuple([slot.take(side) for slot, side in zip(slots, self._sides, strict=True)])
        _pinned.engines = dict(zip(slots, self.engines, strict=True))
        return self.engines

    def __exit__(self, *_: object) -> None:
        _pinned.engines = _NOTHING
        for slot, engine in zip(self._slots, self.engines, strict=True):
            slot.give_back(engine)
