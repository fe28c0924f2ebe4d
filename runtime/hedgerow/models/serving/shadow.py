"""Shadow: a version that runs on live frames without publishing results, for comparison with the serving version.

    serving engine ──copies of batches──▶ short queue ──▶ one thread ──▶ shadow and comparison

Rules:
- The serving version never waits for its shadow: batches that do not fit into the queue are shed and counted.
- Outputs that both versions have are compared, value by value, within the shadow's tolerance.
- A model with hidden state receives the serving version's state, so each step is compared separately; state itself is not
  compared.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from queue import Empty, Full, Queue
from typing import Final

import numpy as np
import structlog

from hedgerow import tasks
from hedgerow.errors import HedgerowError
from hedgerow.frame import Array
from hedgerow.models.bundle.golden import compare
from hedgerow.models.bundle.manifest import Tolerance
from hedgerow.models.serving.engine import Engine
from hedgerow.models.serving.observer import Observer

log = structlog.get_logger(__name__)

WAITING: Final = 4
"""Largest number of batches waiting for the shadow."""

_NICE: Final = 10

_Batch = tuple[dict[str, Array], dict[str, Array], int]


class Shadow:
    """Runs a version as shadow of the serving one, from its creation until `stop`.

    Attributes:
        compared: frames whose outputs were compared.
        disagreed: compared frames that differ by more than the tolerance, or that the shadow failed on.
        failed: frames that the shadow failed on.
        shed: frames that were skipped for lack of time.
        worst: deviation of the worst value, in tolerances.
        observer: observes the shadow's outputs.
    """

    def __init__(self, serving: Engine, shadow: Engine) -> None:
        self.compared = 0
        self.disagreed = 0
        self.failed = 0
        self.shed = 0
        self.worst = 0.0
        self.observer = Observer(shadow)
        self._serving = serving
        self._shadow = shadow
        self._tolerance = shadow.model_version.variant.tolerance if shadow.model_version is not None else Tolerance()
        self._hidden = set(shadow.state.values())
        self._queue: Queue[_Batch | None] = Queue(WAITING)
        self._thread = tasks.supervise_thread(self._work, "shadow")
        serving.observers = (*serving.observers, self)

    def __call__(self, batch: Mapping[str, Array], outputs: Mapping[str, Array], rows: int, took_s: float) -> None:
        """Queue a copy of a batch of the serving version."""
        if self._queue.full():
            self.shed += rows
            return
        # Copied: stages may write to their inputs and outputs.
        ins, outs = ({name: np.array(array) for name, array in each.items()} for each in (batch, outputs))
        try:
            self._queue.put_nowait((ins, outs, rows))
        except Full:
            self.shed += rows

    def stop(self) -> None:
        """Stop, after finishing the batch in progress."""
        self._serving.observers = tuple(each for each in self._serving.observers if each is not self)
        with suppress(Empty):
            while True:
                self._queue.get_nowait()
        self._queue.put(None)
        self._thread.join()
        self.observer.stop()

    def _work(self) -> None:
        with suppress(OSError):  # applies to this thread only
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        while (taken := self._queue.get()) is not None:
            try:
                self._compare(*taken)
            except Exception as error:  # a library's failure must not end the comparison
                log.exception("shadow-failed", model=self._shadow.name, error=repr(error))
                self.disagreed += taken[2]

    def _compare(self, batch: dict[str, Array], expected: dict[str, Array], rows: int) -> None:
        signature = self._shadow.signature
        if rows > 1 and self._shadow.max_batch == 1 and signature.fixed is None:  # the serving version takes batches
            axes = self._serving.signature.output_axes
            for row in range(rows):
                self._compare(_row(batch, signature.axes, row), _row(expected, axes, row), 1)
            return
        self.compared += rows
        try:
            actual = self._shadow.run_batch(batch)
        except HedgerowError:
            self.failed += rows
            self.disagreed += rows
            return
        self.observer(batch, actual, rows, 0.0)
        axes = signature.output_axes
        off = np.zeros(rows)
        for name, array in expected.items():
            if name in self._hidden or name not in actual:
                continue
            axis = axes.get(name, 0)
            if array.ndim > axis and array.shape[axis] >= rows and actual[name].shape == array.shape:
                for row in range(rows):
                    deviation, _ = compare(
                        array.take([row], axis), actual[name].take([row], axis), self._tolerance.of(name)
                    )
                    off[row] = max(off[row], deviation)
            else:
                deviation, _ = compare(array, actual[name], self._tolerance.of(name))
                off = np.maximum(off, deviation)
        self.disagreed += int((off > 1).sum())
        self.worst = max(self.worst, float(off.max(initial=0.0)))


def _row(arrays: Mapping[str, Array], axes: Mapping[str, int | None], row: int) -> dict[str, Array]:
    """Return one row of a batch, and arrays without a batch axis as they are."""
    return {
        name: array if (axis := axes.get(name)) is None else array.take([row], axis) for name, array in arrays.items()
    }
