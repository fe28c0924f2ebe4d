"""A version that runs on live frames and is not heard: what it gives is compared with what the serving one gave.

    serving engine ──batches, copied──▶ a short queue ──▶ one thread ──▶ the shadow, and the comparison

Rules:
- The serving version never waits for its shadow: what the queue has no room for is shed and counted.
- Only what both give is compared, value by value, within the shadow's tolerance.
- A model with hidden state is given the serving version's, so each step is compared alone; state itself is not compared.
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

from hedgerow.errors import HedgerowError
from hedgerow.frame import Array
from hedgerow.models.bundle.golden import compare
from hedgerow.models.bundle.manifest import Tolerance
from hedgerow.models.serving.engine import Engine
from hedgerow.models.serving.observer import Observer

log = structlog.get_logger(__name__)

WAITING: Final = 4
"""Batches that may wait for the shadow."""

_NICE: Final = 10

_Batch = tuple[dict[str, Array], dict[str, Array], int]


class Shadow:
    """Runs a version beside the serving one, from when it is made until `stop`.

    Attributes:
        compared: frames whose outputs were compared.
        disagreed: of them, frames that differ by more than the tolerance, or that the shadow failed on.
        shed: frames it had no time for.
        worst: how far the worst value was off, in tolerances.
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
        self._thread = threading.Thread(target=self._work, name=f"{shadow.name}-shadow", daemon=True)
        self._thread.start()
        serving.observers = (*serving.observers, self)

    def __call__(self, batch: Mapping[str, Array], outputs: Mapping[str, Array], rows: int, took_s: float) -> None:
        """See one batch of the serving version."""
        if self._queue.full():
            self.shed += rows
            return
        # Copied: stages may write into what they gave and what they got.
        ins, outs = ({name: np.array(array) for name, array in each.items()} for each in (batch, outputs))
        try:
            self._queue.put_nowait((ins, outs, rows))
        except Full:
            self.shed += rows

    def stop(self) -> None:
        """Run on no more frames. Returns when the batch under way is through."""
        self._serving.observers = tuple(each for each in self._serving.observers if each is not self)
        with suppress(Empty):
            while True:
                self._queue.get_nowait()
        self._queue.put(None)
        self._thread.join()
        self.observer.stop()

    def _work(self) -> None:
        with suppress(OSError):  # this thread alone; what it does can wait
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        while (taken := self._queue.get()) is not None:
            try:
                self._compare(*taken)
            except Exception as error:  # whatever a library does, the comparison goes on
                log.exception("shadow-failed", model=self._shadow.name, error=repr(error))
                self.disagreed += taken[2]

    def _compare(self, batch: dict[str, Array], right: dict[str, Array], rows: int) -> None:
        self.compared += rows
        try:
            got = self._shadow.run_batch(batch)
        except HedgerowError:
            self.failed += rows
            self.disagreed += rows
            return
        self.observer(batch, got, rows, 0.0)
        axes = self._shadow.signature.output_axes
        off = np.zeros(rows)
        for name, array in right.items():
            if name in self._hidden or name not in got:
                continue
            axis = axes.get(name, 0)
            if array.ndim > axis and array.shape[axis] >= rows and got[name].shape == array.shape:
                for row in range(rows):
                    apart, _ = compare(array.take([row], axis), got[name].take([row], axis), self._tolerance.of(name))
                    off[row] = max(off[row], apart)
            else:
                apart, _ = compare(array, got[name], self._tolerance.of(name))
                off = np.maximum(off, apart)
        self.disagreed += int((off > 1).sum())
        self.worst = max(self.worst, float(off.max(initial=0.0)))
