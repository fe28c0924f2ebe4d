"""Find the fastest way to run a model on this machine, by measuring.

Rules:
- Every backend that can open the file is measured, at several streams and batch sizes.
- Measurements are interleaved, round after round in another order, and the median counts: another process that takes
  the machine for a second then spoils a round, not a setting.
- A backend whose outputs differ from the first one's is shown and never chosen.
- Of the settings within 5 % of the fastest, the one whose inference takes the least time wins.
"""

from __future__ import annotations

import random
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from hedgerow.backends.base import Backend, Session, SessionOptions, fixed_to_one
from hedgerow.backends.tuned import Choice
from hedgerow.errors import HedgerowError
from hedgerow.frame import Array

TOLERANCE: Final = 1e-2
"""Largest difference between two backends' outputs, relative to the largest value, that still counts as agreement."""

_FLOOR: Final = 1e-3
"""A largest value below this counts as this: a detector that sees nothing gives rounding noise, which never agrees."""

_NEARLY: Final = 0.95
_ROUNDS: Final = 5

Feed = Callable[[int], Mapping[str, Array]]
"""Makes the inputs of a batch of so many rows."""


@dataclass(slots=True)
class Setting:
    """One way to run the model, and how fast it was.

    Attributes:
        backend: name of the backend.
        streams: inferences at the same time.
        threads: threads each may use.
        batch: rows in one inference.
        rates: rows a second, one entry a round.
        times_s: how long one inference took, one entry a round.
        failed: why it cannot run like this; None: it can.
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
        """Median of the rounds; 0 if it was never measured."""
        return statistics.median(self.rates) if self.rates else 0.0

    @property
    def time_s(self) -> float:
        """Median time of one inference."""
        return statistics.median(self.times_s) if self.times_s else float("inf")


@dataclass(slots=True)
class Tuning:
    """What was found.

    Attributes:
        settings: all that were tried.
        refused: why a backend was not measured or is not to be chosen, by name.
        differences: how far a backend's outputs are from the first one's, relative to the largest value, by name.
        choice: the best setting; None: there is none.
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
        backends: those that may open it; the first that can sets what outputs are right.
        feed: makes inputs; called once a batch size.
        batches: rows to try in one inference, ascending.
        cores: cores the node owns; streams × threads never exceed them.
        vendor: options passed to the vendor's library as they are.
        batch_axes, open_batch: see `SessionOptions`; a backend that cannot open the axis is measured with single rows.
        seconds: time for all measurements. Loading comes on top, and every setting is run at least once unless the ones
            before it used the time up.
        progress: told what part of the time is over, 0..1.
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
            single = open_batch and fixed_to_one(sessions[backend.name, 1].inputs, axes)
            tuning.settings += [
                Setting(backend.name, streams, max(1, cores // streams), batch)
                for batch in (batches[:1] if single else batches)
                for streams in _streams(cores)
            ]
        _compare(tuning, sessions, inputs)
        _measure(tuning, sessions, inputs, seconds, progress or _unseen)
    finally:
        for session in sessions.values():
            session.close()
    tuning.choice = _best(tuning)
    return tuning


def _unseen(done: float) -> None:
    pass


def _streams(cores: int) -> list[int]:
    """1, 2, 4… up to the cores, and the cores themselves."""
    return sorted({1 << power for power in range(cores.bit_length()) if 1 << power <= cores} | {cores})


def _compare(
    tuning: Tuning, sessions: Mapping[tuple[str, int], Session], inputs: Mapping[int, Mapping[str, Array]]
) -> None:
    """Whether backends agree on the smallest batch."""
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


def difference(right: Mapping[str, Array], other: Mapping[str, Array]) -> float:
    """How far outputs are apart: the largest difference over the largest value, of the worst output; inf: not alike.

    Whole numbers and booleans count by how many of them differ.
    """
    if right.keys() != other.keys():
        return float("inf")
    return max((_distance(array, other[name]) for name, array in right.items()), default=0.0)


def _distance(right: Array, other: Array) -> float:
    if right.shape != other.shape or right.dtype != other.dtype:
        return float("inf")
    if right.size == 0:
        return 0.0
    if right.dtype.kind != "f":
        return float(np.mean(right != other))
    one, two = right.astype(np.float64), other.astype(np.float64)
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
    began = time.perf_counter()
    # Settings of a backend that disagrees are measured too: whoever decides about it should know what it would gain.
    live = [
        setting for setting in tuning.settings if setting.backend not in tuning.refused or _differs(tuning, setting)
    ]
    order = random.Random(0)
    for number in range(_ROUNDS):
        for place, setting in enumerate(live):
            over = time.perf_counter() - began
            left = seconds - over
            if left <= 0:
                return
            progress(over / seconds)
            share = left / ((_ROUNDS - number) * len(live) - place)
            _run(setting, sessions[setting.backend, setting.streams], inputs[setting.batch], share)
        live = [setting for setting in live if setting.failed is None]
        order.shuffle(live)
    progress(1.0)


def _differs(tuning: Tuning, setting: Setting) -> bool:
    return setting.backend in tuning.differences


def _run(setting: Setting, session: Session, batch: Mapping[str, Array], seconds: float) -> None:
    """Run one setting for a while, on as many threads as it has streams."""
    times: list[list[float]] = [[] for _ in range(setting.streams)]
    errors: list[str] = []
    if not setting.rates:
        try:
            session.run(batch)  # the first run with a shape allocates and compiles
        except HedgerowError as error:
            setting.failed = str(error)
            return
    began = time.perf_counter()

    def work(own: list[float]) -> None:
        try:
            while not own or time.perf_counter() - began < seconds:
                start = time.perf_counter()
                session.run(batch)
                own.append(time.perf_counter() - start)
        except HedgerowError as error:
            errors.append(str(error))

    helpers = [threading.Thread(target=work, args=(own,)) for own in times[1:]]
    for helper in helpers:
        helper.start()
    work(times[0])
    for helper in helpers:
        helper.join()
    took = time.perf_counter() - began
    if errors:
        setting.failed = errors[0]
        return
    every = [one for own in times for one in own]
    setting.rates.append(len(every) * setting.batch / took)
    setting.times_s.append(statistics.median(every))


def _best(tuning: Tuning) -> Choice | None:
    able = [
        setting
        for setting in tuning.settings
        if setting.rates and setting.failed is None and setting.backend not in tuning.refused
    ]
    if not able:
        return None
    fastest = max(setting.rows_per_s for setting in able)
    best = min(
        (setting for setting in able if setting.rows_per_s >= _NEARLY * fastest), key=lambda setting: setting.time_s
    )
    return Choice(best.backend, best.streams, best.threads, best.batch, best.rows_per_s)
