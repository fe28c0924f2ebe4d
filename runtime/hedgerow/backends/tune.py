"""Finds the fastest settings for a model on this machine, by measuring.

Rules:
- Every backend that can open the file is measured with several stream counts and batch sizes.
- Measurements are interleaved in rounds, each in another order, and the median counts: another process that uses the
  machine for a second then spoils a round, not a setting.
- A backend whose outputs differ from those of the first is listed but never chosen.
- Of the settings within 5 % of the highest throughput, the one with the lowest latency wins.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from hedgerow import tasks
from hedgerow.backends.base import Backend, Session, SessionOptions, input_fixed_to_one
from hedgerow.backends.tuned import Choice
from hedgerow.errors import HedgerowError
from hedgerow.frame import Array

TOLERANCE: Final = 1e-2
"""Largest difference between two backends' outputs, relative to the largest value, that counts as agreement."""

_FLOOR: Final = 1e-3
"""Smallest scale for relative differences: a detector that sees nothing outputs rounding noise, which never agrees."""

_NEARLY: Final = 0.95
_ROUNDS: Final = 5

Feed = Callable[[int], Mapping[str, Array]]
"""Returns the inputs of a batch with the given number of rows."""


@dataclass(slots=True)
class Setting:
    """A combination of settings, with its measurements.

    Attributes:
        backend: name of the backend.
        streams: concurrent inferences.
        threads: threads per inference.
        batch: rows per inference.
        rates: rows per second, one entry per round.
        times_s: time per inference, one entry per round.
        failed: why the model cannot run with these settings; None: it can.
    """

    backend: str
    streams: int
    threads: int
    batch: int
    rates: list[float] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)
    failed: str | None = None

    @property
    def rows_per_s(self) -> float:
        """Median rate of the rounds; 0: not measured."""
        return statistics.median(self.rates) if self.rates else 0.0

    @property
    def time_s(self) -> float:
        """Median time per inference; infinite: not measured."""
        return statistics.median(self.times_s) if self.times_s else float("inf")


@dataclass(slots=True)
class Tuning:
    """The result of tuning a model.

    Attributes:
        settings: all settings that were tried.
        refused: why a backend was not measured or cannot be chosen, by name.
        differences: by backend, how far its outputs are from those of the first, relative to the largest value.
        choice: the best settings; None: none works.
    """

    settings: list[Setting] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    differences: dict[str, float] = field(default_factory=dict)
    choice: Choice | None = None


def tune(
    path: Path,
    backends: Sequence[Backend],
    feed: Feed,
    batches: Sequence[int],
    *,
    cores: int,
    device: str = "CPU",
    vendor: Mapping[str, Any] | None = None,
    batch_axes: Mapping[str, int | None] | None = None,
    open_batch: bool = False,
    seconds: float = 20.0,
    progress: Callable[[float], None] | None = None,
) -> Tuning:
    """Measure a model.

    Args:
        path: the model's file.
        backends: backends to try; the first that can run the model provides the reference outputs.
        feed: returns inputs; called once per batch size.
        batches: rows per inference to try, ascending.
        cores: cores the node may use; streams × threads never exceed them.
        vendor: options passed unchanged to the vendor's library.
        batch_axes, open_batch: see `SessionOptions`; a backend that cannot open the axis is measured with single rows.
        seconds: time for all measurements, loading not included. Every setting runs at least once, unless earlier ones
            have used up the time.
        progress: called with the share of the time that has passed, 0..1.
    """
    tuning, axes = Tuning(), batch_axes or {}
    inputs = {batch: feed(batch) for batch in batches}
    sessions: dict[tuple[str, int], Session] = {}
    try:
        for backend in backends:
            try:
                for streams in _streams(cores):
                    options = SessionOptions(
                        device, max(1, cores // streams), streams, vendor or {}, axes, open_batch=open_batch
                    )
                    sessions[backend.name, streams] = backend.open(path, options)
            except HedgerowError as error:
                tuning.refused[backend.name] = f"{error} ({error.remedy})"
                continue
            single = open_batch and input_fixed_to_one(sessions[backend.name, 1].inputs, axes)
            tuning.settings += [
                Setting(backend.name, streams, max(1, cores // streams), batch)
                for batch in (batches[:1] if single else batches)
                for streams in _streams(cores)
            ]
        _compare(tuning, sessions, inputs)
        _measure(tuning, sessions, inputs, seconds, progress or _no_progress)
    finally:
        for session in sessions.values():
            session.close()
    tuning.choice = _best(tuning)
    return tuning


def _no_progress(share: float) -> None:
    pass


def _streams(cores: int) -> list[int]:
    """Return 1, 2, 4 … up to the number of cores, and that number."""
    return sorted({1 << power for power in range(cores.bit_length()) if 1 << power <= cores} | {cores})


def _compare(
    tuning: Tuning, sessions: Mapping[tuple[str, int], Session], inputs: Mapping[int, Mapping[str, Array]]
) -> None:
    """Compare the backends' outputs for the smallest batch with those of the first."""
    batch = inputs[min(inputs)]
    reference: tuple[str, dict[str, Array]] | None = None
    for (name, streams), session in sessions.items():
        if streams > 1 or name in tuning.refused:
            continue
        try:
            outputs = session.run(batch)
        except HedgerowError as error:
            tuning.refused[name] = f"{error} ({error.remedy})"
            continue
        if reference is None:
            reference = name, outputs
            continue
        tuning.differences[name] = worst = difference(reference[1], outputs)
        if not worst <= TOLERANCE:
            tuning.refused[name] = (
                f"its outputs differ from those of {reference[0]} by {worst:.1%} of the largest value"
            )


def difference(reference: Mapping[str, Array], other: Mapping[str, Array]) -> float:
    """Return the largest difference over the largest value, for the worst output; inf: names, shapes or types differ.

    For integers and booleans it is the share of values that differ.
    """
    if reference.keys() != other.keys():
        return float("inf")
    return max((_distance(array, other[name]) for name, array in reference.items()), default=0.0)


def _distance(reference: Array, other: Array) -> float:
    if reference.shape != other.shape or reference.dtype != other.dtype:
        return float("inf")
    if reference.size == 0:
        return 0.0
    if reference.dtype.kind != "f":
        return float(np.mean(reference != other))
    one, two = reference.astype(np.float64), other.astype(np.float64)
    same = (one == two) | (np.isnan(one) & np.isnan(two))
    if same.all():
        return 0.0
    apart = np.abs(np.where(same, 0.0, one) - np.where(same, 0.0, two)).max()
    if not np.isfinite(apart):
        return float("inf")
    return float(apart / max(np.abs(one[np.isfinite(one)]).max(initial=0.0), _FLOOR))


def _measure(
    tuning: Tuning,
    sessions: Mapping[tuple[str, int], Session],
    inputs: Mapping[int, Mapping[str, Array]],
    seconds: float,
    progress: Callable[[float], None],
) -> None:
    started = time.perf_counter()
    # A backend that disagrees is measured too, to show what it would gain.
    live = [
        setting for setting in tuning.settings if setting.backend not in tuning.refused or _differs(tuning, setting)
    ]
    order = random.Random(0)
    for number in range(_ROUNDS):
        for position, setting in enumerate(live):
            elapsed_s = time.perf_counter() - started
            left_s = seconds - elapsed_s
            if left_s <= 0:
                return
            progress(elapsed_s / seconds)
            share_s = left_s / ((_ROUNDS - number) * len(live) - position)
            _run(setting, sessions[setting.backend, setting.streams], inputs[setting.batch], share_s)
        live = [setting for setting in live if setting.failed is None]
        order.shuffle(live)
    progress(1.0)


def _differs(tuning: Tuning, setting: Setting) -> bool:
    return setting.backend in tuning.differences


def _run(setting: Setting, session: Session, batch: Mapping[str, Array], seconds: float) -> None:
    """Measure a setting for some seconds, with a thread per stream."""
    times: list[list[float]] = [[] for _ in range(setting.streams)]
    errors: list[str] = []
    if not setting.rates:
        try:
            session.run(batch)  # the first run with a shape allocates and compiles
        except HedgerowError as error:
            setting.failed = str(error)
            return
    started = time.perf_counter()

    def work(own: list[float]) -> None:
        try:
            while not own or time.perf_counter() - started < seconds:
                start = time.perf_counter()
                session.run(batch)
                own.append(time.perf_counter() - start)
        except HedgerowError as error:
            errors.append(str(error))

    helpers = [tasks.start_thread(partial(work, own), "tuning") for own in times[1:]]
    work(times[0])
    for helper in helpers:
        helper.join()
    took_s = time.perf_counter() - started
    if errors:
        setting.failed = errors[0]
        return
    all_times = [one for own in times for one in own]
    setting.rates.append(len(all_times) * setting.batch / took_s)
    setting.times_s.append(statistics.median(all_times))


def _best(tuning: Tuning) -> Choice | None:
    usable = [
        setting
        for setting in tuning.settings
        if setting.rates and setting.failed is None and setting.backend not in tuning.refused
    ]
    if not usable:
        return None
    fastest = max(setting.rows_per_s for setting in usable)
    best = min(
        (setting for setting in usable if setting.rows_per_s >= _NEARLY * fastest), key=lambda setting: setting.time_s
    )
    return Choice(best.backend, best.streams, best.threads, best.batch, best.rows_per_s)
