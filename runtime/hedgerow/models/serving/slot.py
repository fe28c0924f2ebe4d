"""Slot: serves a model to all pipelines that name it, and can change to another version while they run.

    stages ──▶ slot ──▶ serving engine                a frame list pins one of them when it starts
                   └──▶ engine on trial, for some of the streams

Rules:
- A frame list pins the versions it starts with, so it never mixes two. Requests outside a list go to the engine that
  serves at that moment.
- An engine is freed only when no list runs on it.
- A list with streams of both versions is divided once, by a single reading of the split, so frames of a stream keep their
  order.
- Versions that do not fit the stages that are set up are refused before they get here.
- While nothing serves (a gap, if memory does not suffice for two versions), requests wait.
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
    """Engines pinned by the frame list that runs in this thread."""

    engines: Mapping[Slot, Engine] = MappingProxyType({})


_pinned: Final = _Pinned()
_NOTHING: Final[Mapping[Any, Any]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Split:
    """A version on trial that serves some of the streams.

    Attributes:
        engine: the loaded version.
        percent: share of the streams it serves.
    """

    engine: Engine
    percent: int

    def takes(self, stream: str) -> bool:
        """Return whether it serves a stream; always the same for a stream."""
        return bucket(stream, self.engine.source.digest) < self.percent


class Slot:
    """A model as stages use it, whichever version serves; a `stage.ModelHandle`.

    Args:
        config: the model's settings in the node's file.
        base_dir: folder that relative paths are relative to.
        engine: the first engine to serve.
    Attributes:
        never_waits: some callers must not wait, so gaps are impossible: they run on the event loop, which would have to
            end the gap.
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
        self._retired: set[Engine] = set()
        self._closed = False

    # Interface for stages

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Inputs that callers provide; see `ModelHandle.inputs`."""
        return self._current().inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Outputs that callers receive."""
        return self._current().outputs

    @property
    def state(self) -> Mapping[str, str]:
        """Hidden state, input name → output name."""
        return self._current().state

    @property
    def state_token(self) -> object:
        """Identifies the version's hidden state; see `ModelHandle.state_token`."""
        return self._current().state_token

    @property
    def batch_axis(self) -> Mapping[str, int]:
        """Batch axis of inputs and outputs, where it is not 0."""
        return self._current().batch_axis

    @property
    def metadata(self) -> Mapping[str, str]:
        """The model's own metadata."""
        return self._current().metadata

    def zero_state(self) -> dict[str, Array]:
        """Return the initial hidden state of a stream, by input name."""
        return self._current().zero_state()

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
        engine = self.acquire()  # outside a frame list: in a test of a stage, or in a stage's own thread
        try:
            return engine.infer_each(requests)
        finally:
            self.release(engine)

    def infer_batch(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model on rows of several frames as one request; see `ModelHandle.infer_batch`."""
        engine = _pinned.engines.get(self)
        if engine is not None:
            return engine.infer_batch(inputs)
        engine = self.acquire()
        try:
            return engine.infer_batch(inputs)
        finally:
            self.release(engine)

    # Interface for the node

    @property
    def serving(self) -> Engine | None:
        """The engine that serves; None in a gap."""
        return self._serving

    @property
    def on_trial(self) -> Split | None:
        """The version that serves some of the streams, if there is one."""
        return self._split

    def acquire(self, on_trial: bool = False) -> Engine:
        """Return the engine for a new frame list, waiting while nothing serves. Call `release` when done.

        Args:
            on_trial: use the engine on trial, if there still is one.
        """
        with self._lock:
            while True:
                if on_trial and self._split is not None:
                    engine = self._split.engine
                    break
                if self._serving is not None or self._closed:
                    engine = self._serving or self._last  # a closed engine raises an error when used
                    break
                self._changed.wait()
            engine.active_lists += 1
            return engine

    def release(self, engine: Engine) -> None:
        """Release an engine after a frame list."""
        with self._lock:
            engine.active_lists -= 1
            if engine.active_lists or engine is self._serving:
                return
            self._changed.notify_all()
            if engine not in self._retired:
                return
            self._retired.remove(engine)
        engine.close()

    def info(self) -> ServedModel:
        """Return what serves, or in a gap what served last, with its statistics."""
        return self._last.info()

    def split(self, engine: Engine, percent: int) -> None:
        """Let an engine serve some of the streams, starting with their next list."""
        with self._lock:
            self._split = Split(engine, percent)

    def promote(self, engine: Engine) -> Engine | None:
        """Let an engine serve all streams, starting with their next list. Returns: the previous one; None in a gap."""
        with self._lock:
            before, self._serving, self._split = self._serving, engine, None
            self._last = engine
            engine.since = time.time()
            self._changed.notify_all()
            return before

    def end_split(self) -> None:
        """Let the serving engine serve all streams again, starting with their next list."""
        with self._lock:
            self._split = None

    def start_gap(self) -> Engine | None:
        """Stop serving: requests wait for the next `promote`. Returns: the engine that served."""
        with self._lock:
            before, self._serving, self._split = self._serving, None, None
            return before

    def wait_until_idle(self, engine: Engine, timeout_s: float | None = None) -> bool:
        """Wait until no list runs on an engine that no longer serves. Returns: False: the time is up."""
        with self._lock:
            return self._changed.wait_for(lambda: not engine.active_lists, timeout_s)

    def retire(self, engine: Engine, timeout_s: float) -> None:
        """Free an engine that no longer serves, once no list runs on it.

        Args:
            timeout_s: how long to wait for its lists; after that, the last of them frees it.
        """
        with self._lock:
            if not self._changed.wait_for(lambda: not engine.active_lists, timeout_s):
                self._retired.add(engine)
                return
        engine.close()

    def close(self) -> None:
        """Free the model; requests that wait in a gap fail."""
        with self._lock:
            self._closed = True
            self._split = None
            self._changed.notify_all()
        self._last.close()

    @property
    def closed(self) -> bool:
        """Whether it has been closed, because nothing uses the model any more."""
        return self._closed

    def _current(self) -> Engine:
        return _pinned.engines.get(self) or self._last


def bucket(stream: str, salt: str) -> int:
    """Hash a stream to a number from 0 to 99. Another salt distributes the streams differently."""
    return xxhash.xxh32_intdigest(f"{salt}/{stream}".encode()) % 100


class Pins:
    """Pins the engines of a frame list in the thread that runs it: `with Pins(slots) as engines`.

    Args:
        slots: the pipeline's slots.
        on_trial: for each slot, whether the version on trial serves the list's streams; None: none does.
    """

    __slots__ = ("_on_trial", "_slots", "engines")

    def __init__(self, slots: Sequence[Slot], on_trial: Iterable[bool] | None = None) -> None:
        self._slots = slots
        self._on_trial = on_trial
        self.engines: tuple[Engine, ...] = ()

    def __enter__(self) -> tuple[Engine, ...]:
        slots = self._slots
        if self._on_trial is None:
            self.engines = tuple([slot.acquire() for slot in slots])
        else:
            self.engines = tuple([slot.acquire(trial) for slot, trial in zip(slots, self._on_trial, strict=True)])
        _pinned.engines = dict(zip(slots, self.engines, strict=True))
        return self.engines

    def __exit__(self, *_: object) -> None:
        _pinned.engines = _NOTHING
        for slot, engine in zip(self._slots, self.engines, strict=True):
            slot.release(engine)
