"""Compiles a model for the input shapes that recur, in the background, and keeps what is measured to be faster.

A backend that plans a run by its shapes does so at every change of them; pictures of one camera, or batches of one size, recur.

    counted ──▶ compiled at low priority ──▶ outputs compared ──▶ on trial: A-B-B-A on live batches ──▶ kept, or discarded

No batch is run for the trial alone, and none waits for it.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

import numpy as np
import structlog

from hedgerow import tasks
from hedgerow.backends.background import low_priority
from hedgerow.backends.base import Session
from hedgerow.errors import HedgerowError
from hedgerow.frame import Array
from hedgerow.models.session.memory import free_bytes

log = structlog.get_logger(__name__)

Shapes: TypeAlias = tuple[tuple[int, ...], ...]
"""Shape of each input, in the session's order."""

_RECURS: Final = 32
"""Runs with the same shapes, among the last `_PERIOD`, after which it is compiled for them."""
_PERIOD: Final = 4096
_MOST_COUNTED: Final = 256
_MOST_KEPT: Final = 4
_TRIAL_RUNS: Final = 24
"""Live batches on either side of a trial."""
_FASTER: Final = 0.95
_ROUNDING: Final = 1e-5
"""Largest difference of outputs, relative to the largest value: for other shapes a backend chooses other kernels."""
_FREE_BYTES: Final = 512 << 20
"""Least free memory to compile for another shape: each holds the weights again."""


class _Variant:
    """The model compiled for one set of shapes."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.kept = False
        self.used_at = 0  # run number
        self._turn = 0
        self._own_s: list[float] = []
        self._others_s: list[float] = []

    def takes_turn(self) -> bool:
        """Return whether the next batch is for this session: always once it is kept, A-B-B-A until then."""
        self._turn += 1
        return self.kept or self._turn % 4 in (2, 3)

    def record(self, took_s: float, *, own: bool) -> float | None:
        """Record a batch of the trial. Returns: the median time ÷ that of the other session, when the trial ends."""
        (self._own_s if own else self._others_s).append(took_s)
        if self.kept or min(len(self._own_s), len(self._others_s)) < _TRIAL_RUNS:
            return None
        return statistics.median(self._own_s) / statistics.median(self._others_s)


class RecurringShapes:
    """Runs a model whose inputs may have any size, on what is fastest for their shapes. Thread-safe.

    Args:
        model: its name, for the log.
        session: the model for any shapes.
        unchanged: whether its file is still the one that the session was opened from.
        clock: returns seconds.
    """

    def __init__(
        self,
        model: str,
        session: Session,
        unchanged: Callable[[], bool],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._model = model
        self._session = session
        self._unchanged = unchanged
        self._clock = clock
        self._names = [spec.name for spec in session.inputs]
        self._lock = threading.Lock()
        self._variants: dict[Shapes, _Variant] = {}
        self._counts: dict[Shapes, int] = {}
        self._rejected: set[Shapes] = set()
        self._runs = 0
        self._idle = threading.Event()  # nothing is being compiled
        self._idle.set()
        self._active = True

    @staticmethod
    def may_help(session: Session) -> bool:
        """Whether a session's inputs may have several shapes, for none of which it is compiled."""
        return not session.batch_sizes and any(None in spec.shape or not spec.shape for spec in session.inputs)

    @property
    def kept(self) -> list[Shapes]:
        """Shapes that the model is compiled for."""
        return [shapes for shapes, variant in list(self._variants.items()) if variant.kept]

    def run(self, batch: Mapping[str, Array]) -> tuple[dict[str, Array], float]:
        """Run one batch; see `Session.run`.

        Returns: its outputs, and the seconds that the backend took.
        Raises: InferenceError: the backend failed.
        """
        if not self._active:
            return self._timed(self._session, batch)
        shapes = tuple([batch[name].shape for name in self._names])
        self._runs += 1
        variant = self._variants.get(shapes)
        if variant is None:
            outputs, took_s = self._timed(self._session, batch)
            self._count(shapes, batch, outputs)
            return outputs, took_s
        variant.used_at = self._runs
        own = variant.takes_turn()
        try:
            outputs, took_s = self._timed(variant.session if own else self._session, batch)
        except HedgerowError as error:
            if not own:
                raise
            self._reject(shapes, str(error))  # closing lets other callers' runs finish, or fail and come here
            return self._timed(self._session, batch)
        if not variant.kept and (ratio := variant.record(took_s, own=own)) is not None:
            self._judge(shapes, variant, ratio)
        return outputs, took_s

    def close(self) -> None:
        """Free what was compiled."""
        with self._lock:
            self._active = False
            variants, self._variants = list(self._variants.values()), {}
        for variant in variants:
            variant.session.close()

    def _timed(self, session: Session, batch: Mapping[str, Array]) -> tuple[dict[str, Array], float]:
        started = self._clock()
        outputs = session.run(batch)
        return outputs, self._clock() - started

    def _count(self, shapes: Shapes, batch: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        """Count a run with shapes that it is not compiled for; start to compile once they recur."""
        counts = self._counts
        if self._runs % _PERIOD == 0 or len(counts) > _MOST_COUNTED:
            counts.clear()
        count = counts[shapes] = counts.get(shapes, 0) + 1
        if count < _RECURS or not self._idle.is_set() or shapes in self._rejected:
            return
        with self._lock:
            counts.clear()
            if not self._idle.is_set() or not self._active or not self._has_room():
                return
            self._idle.clear()
            try:
                sample = {name: batch[name].copy() for name in self._names}
                expected = {name: array.copy() for name, array in outputs.items()}
                tasks.start_thread(lambda: self._compile(shapes, sample, expected), f"compilation of {self._model}")
            except Exception as error:  # noqa: BLE001 - no memory, no threads: the live request that came here goes on
                self._remember_rejected(shapes)
                self._idle.set()
                log.warning("shape-not-compiled", model=self._model, shapes=_text(shapes), why=str(error))

    def _has_room(self) -> bool:
        """Whether one more may be kept; makes room by one that is no longer used."""
        if len(self._variants) < _MOST_KEPT:
            free = free_bytes()
            return free is None or free > _FREE_BYTES
        shapes, oldest = min(self._variants.items(), key=lambda entry: entry[1].used_at)
        if self._runs - oldest.used_at < _PERIOD:
            return False
        del self._variants[shapes]
        oldest.session.close()
        return True

    def _compile(self, shapes: Shapes, sample: Mapping[str, Array], expected: Mapping[str, Array]) -> None:
        """(thread) Compile for these shapes, and put it on trial if its outputs are the same."""
        try:
            self._put_on_trial(shapes, sample, expected)
        finally:
            self._idle.set()

    def _put_on_trial(self, shapes: Shapes, sample: Mapping[str, Array], expected: Mapping[str, Array]) -> None:
        session = None
        try:
            with low_priority():
                session = self._session.for_shapes(dict(zip(self._names, shapes, strict=True)))
                if session is None:  # this backend gains nothing by it
                    self._active = False
                    return
                outputs = session.run(sample)
            problem = _difference(outputs, expected) if self._unchanged() else "its file has changed"
        except Exception as error:  # noqa: BLE001 - whatever a backend raises, frames run on the other session
            problem = str(error) or type(error).__name__
        if problem is None and session is not None:
            with self._lock:
                if self._active:
                    self._variants[shapes] = _Variant(session)
                    return
        if session is not None:
            session.close()
        if problem is not None:
            self._remember_rejected(shapes)
            log.warning("shape-not-compiled", model=self._model, shapes=_text(shapes), why=problem)

    def _judge(self, shapes: Shapes, variant: _Variant, ratio: float) -> None:
        if ratio > _FASTER:
            self._reject(shapes, f"it takes {ratio:.2f} of the time, more than {_FASTER}")
            return
        variant.kept = True
        log.info("shape-compiled", model=self._model, shapes=_text(shapes), time_ratio=round(ratio, 3))

    def _reject(self, shapes: Shapes, why: str) -> None:
        with self._lock:
            variant = self._variants.pop(shapes, None)
        if variant is not None:
            variant.session.close()
            self._remember_rejected(shapes)
            log.info("shape-not-compiled", model=self._model, shapes=_text(shapes), why=why)

    def _remember_rejected(self, shapes: Shapes) -> None:
        if len(self._rejected) >= _MOST_COUNTED:
            self._rejected.clear()
        self._rejected.add(shapes)


def _text(shapes: Shapes) -> str:
    return ", ".join("x".join(map(str, shape)) or "1" for shape in shapes)


def _difference(outputs: Mapping[str, Array], expected: Mapping[str, Array]) -> str | None:
    """Return how outputs differ by more than rounding; None: they do not."""
    for name, right in expected.items():
        found = outputs[name]
        if found.shape != right.shape or found.dtype != right.dtype:
            return f"output {name} is {found.dtype}{list(found.shape)} instead of {right.dtype}{list(right.shape)}"
        if right.dtype.kind != "f":
            if not np.array_equal(found, right):
                return f"output {name} is another"
            continue
        largest = float(np.max(np.abs(right[np.isfinite(right)]), initial=0.0))
        if not np.allclose(found, right, rtol=0, atol=_ROUNDING * largest, equal_nan=True):
            return f"output {name} differs by more than {_ROUNDING:g} of its largest value"
    return None
