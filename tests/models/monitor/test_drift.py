"""What is seen of a version that serves: of which frames it is, what it says of them, and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hedgerow.backends.base import TensorSpec
from hedgerow.config import ModelConfig
from hedgerow.frame import Array
from hedgerow.models.bundle.distributions import Accumulator
from hedgerow.models.bundle.manifest import Baseline
from hedgerow.models.bundle.version import ModelVersion
from hedgerow.models.monitor.drift import DriftMonitor, DriftReport, DriftWindow
from hedgerow.models.serving.pool import ModelPool
from hedgerow.models.session.signature import Signature

LENGTH_S, LEAST = 10.0, 20
FIT = Signature(
    "twice",
    ModelConfig(path="twice.onnx"),
    (TensorSpec("x", (None, 4), np.dtype(np.float32)),),
    (TensorSpec("y", (None, 4), np.dtype(np.float32)),),
)


def noise(frames: int, seed: int = 1) -> Array:
    return np.random.default_rng(seed).normal(size=(frames, 4)).astype(np.float32)


def baseline(of: Array) -> Baseline:
    spreads = {}
    for name, values in (("x", of), ("y", 2 * of)):
        gathered = Accumulator()
        gathered.add(values)
        spreads[name] = gathered.distribution()
    return Baseline(samples=len(of), inputs={"x": spreads["x"]}, outputs={"y": spreads["y"]})


BASELINE = baseline(noise(1000, seed=0))


class Live:
    """A model that doubles, before whose window a frame comes every tenth of a second."""

    def __init__(self) -> None:
        self.window = DriftWindow(BASELINE, FIT, length_s=LENGTH_S, least_frames=LEAST)
        self.at = 0.0

    def sees(self, inputs: Array, outputs: Array | None = None) -> DriftReport:
        for row, out in zip(inputs, 2 * inputs if outputs is None else outputs, strict=True):
            self.at += 0.1
            self.window.add(self.at, {"x": row[np.newaxis]}, {"y": out[np.newaxis]}, 1)
        return self.window.seen()


@given(
    st.lists(st.tuples(st.floats(0.01, 3.0), st.integers(1, 8)), min_size=1, max_size=120),
    st.integers(1, 40),
)
def test_it_is_of_one_window_to_two_and_of_enough_frames(batches: Sequence[tuple[float, int]], least: int) -> None:
    window = DriftWindow(BASELINE, FIT, length_s=LENGTH_S, least_frames=least)
    times = list(accumulate(gap for gap, _ in batches))
    for at, (_, rows) in zip(times, batches, strict=True):
        window.add(at, {"x": noise(rows)}, {"y": noise(rows)}, rows)
        seen = window.seen()
        so_far = [(time, size) for time, (_, size) in zip(times, batches, strict=True) if time <= at]

        def frames_since(seconds: float) -> int:
            return sum(size for time, size in so_far if time > at - seconds)  # noqa: B023 - called here

        if seen.drift is None:
            assert seen.looked_at == frames_since(np.inf), "nothing has gone yet"
            continue
        assert seen.looked_at >= least
        assert seen.looked_at >= frames_since(LENGTH_S)
        if least == 1:
            assert seen.looked_at <= frames_since(2 * (LENGTH_S + 3.0))


def test_nothing_is_known_of_a_drift_before_a_whole_window_has_passed() -> None:
    live = Live()

    assert live.sees(noise(99)) == DriftReport(99)
    assert live.sees(noise(5)).drift is not None


def test_frames_like_the_authors_samples_have_not_drifted() -> None:
    seen = Live().sees(noise(150))

    assert seen.drift is not None
    assert seen.input_drift is not None
    assert max(seen.drift, seen.input_drift) < 0.1


def test_a_sensor_that_drifts_shows_in_what_comes_in_and_a_model_only_in_what_goes_out() -> None:
    sensor, model = Live().sees(noise(150) + 2), Live().sees(noise(150), noise(150) + 5)

    assert sensor.input_drift is not None
    assert sensor.input_drift > 1
    assert (model.input_drift or 0) < 0.1
    assert (model.drift or 0) > 1


def test_a_drift_that_is_over_is_forgotten_after_two_windows() -> None:
    live = Live()
    moved = live.sees(noise(150) + 2).drift or 0
    after = live.sees(noise(220)).drift or 0

    assert (moved > 1, after < 0.1) == (True, True)


def test_frames_that_are_alike_and_few_are_no_drift() -> None:
    """A few seconds of a stream may be all speech or all silence."""
    live = Live()

    assert live.sees(np.zeros((50, 4), np.float32)).drift is None
    assert (live.sees(noise(150)).drift or 0) < 1.0


def test_what_is_not_finite_shows_at_once_and_goes_with_its_window() -> None:
    live = Live()
    bad = np.full((3, 4), np.nan, np.float32)

    assert live.sees(noise(3), bad) == DriftReport(3, 3)
    assert live.sees(noise(220)).not_finite == 0


def test_padding_is_not_looked_at() -> None:
    live = Live()
    padded = np.concatenate([noise(2), np.full((2, 4), np.inf, np.float32)])

    live.window.add(1.0, {"x": padded}, {"y": padded}, 2)

    assert live.window.seen() == DriftReport(2)


@given(st.lists(st.floats(1e-6, 0.5), min_size=1, max_size=30), st.floats(1e-5, 1e-2))
def test_looking_takes_a_hundredth_of_the_time_however_long_a_look_takes(looks: list[float], gap_s: float) -> None:
    now, spent, longest = 0.0, 0.0, max(looks)
    waiting = iter(looks)

    class Slow(dict[str, Array]):
        def items(self):  # type: ignore[no-untyped-def]
            nonlocal now, spent
            took = next(waiting, 0.0)
            now, spent = now + took, spent + took
            return super().items()

    lookout = DriftMonitor(BASELINE, FIT, clock=lambda: now)
    row = noise(1)
    for _ in range(200):
        lookout({"x": row}, Slow(y=row), 1, 0.0)
        now += gap_s

    assert spent - longest <= 0.01 * now + 1e-9


def test_an_idle_hour_is_not_saved_up_for_a_burst() -> None:
    now = 3600.0

    def clock() -> float:
        nonlocal now
        now += 0.001  # so each look takes a millisecond
        return now

    lookout = DriftMonitor(BASELINE, FIT, clock=clock)
    for _ in range(100):
        lookout({"x": noise(1)}, {"y": noise(1)}, 1, 0.0)

    assert lookout.seen().looked_at <= 2


class AtWork:
    """A lookout at a clock that the test sets; a look takes no time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.lookout = DriftMonitor(BASELINE, FIT, clock=lambda: self.now)

    def sees(self, frames: int, every_s: float = 0.0, outputs: Array | None = None) -> DriftReport:
        for _ in range(frames):
            self.lookout({"x": noise(1)}, {"y": noise(1) if outputs is None else outputs}, 1, 0.0)
            self.now += every_s
        return self.lookout.seen()


def test_before_the_first_frame_nothing_was_seen() -> None:
    assert AtWork().lookout.seen() == DriftReport(looked_at=0, not_finite=0, drift=None, input_drift=None)


def test_frames_of_one_moment_are_looked_at_as_long_as_looking_takes_no_time() -> None:
    assert AtWork().sees(3).looked_at == 3


def test_a_drift_is_of_a_minute_at_least() -> None:
    at_work = AtWork()

    assert at_work.sees(120, every_s=0.5).drift is None
    assert at_work.now == 60.0
    assert at_work.sees(1).drift is not None


def test_a_drift_is_of_a_hundred_frames_at_least() -> None:
    at_work = AtWork()

    assert at_work.sees(100, every_s=1.0).drift is None
    assert at_work.sees(1).drift is not None


def test_what_is_seen_is_of_both_halves() -> None:
    at_work = AtWork()
    bad = np.full((1, 4), np.nan, np.float32)
    at_work.sees(100, every_s=1.0)
    at_work.sees(2, every_s=1.0, outputs=bad)
    at_work.sees(98, every_s=1.0)
    seen = at_work.sees(3, outputs=bad)

    assert (seen.looked_at, seen.not_finite) == (103, 5)


def test_a_drift_is_told_to_four_places() -> None:
    seen = Live().sees(noise(150) + 1)

    for drift in (seen.drift, seen.input_drift):
        assert drift == round(drift or 0, 4) != round(drift or 0, 3)


def test_once_it_has_forgotten_it_begins_anew_at_once() -> None:
    now = 5.0

    def clock() -> float:
        nonlocal now
        now += 0.5
        return now

    lookout = DriftMonitor(BASELINE, FIT, clock=clock)
    lookout({"x": noise(1)}, {"y": noise(1)}, 1, 0.0)
    lookout.forget()
    assert lookout.seen() == DriftReport()
    lookout({"x": noise(1)}, {"y": noise(1)}, 1, 0.0)
    assert lookout.seen() == DriftReport(1)


def test_a_batch_does_not_wait_for_the_look_of_another() -> None:
    at_work = AtWork()

    class Meanwhile(dict[str, Array]):
        def items(self):  # type: ignore[no-untyped-def]
            at_work.lookout({"x": noise(1)}, {"y": noise(1)}, 1, 0.0)  # comes while this one is looked at
            return super().items()

    at_work.lookout({"x": noise(1)}, Meanwhile(y=noise(1)), 1, 0.0)

    assert at_work.lookout.seen().looked_at == 1


DOUBLE = "(float[N,3] x) => (float[N,3] y) { y = Add(x, x) }"


@pytest.mark.parametrize("has_baseline", [True, False])
def test_only_a_version_whose_bundle_has_statistics_is_looked_at(
    make_candidate: Callable[..., ModelVersion], *, has_baseline: bool
) -> None:
    candidate = make_candidate(DOUBLE, baseline=has_baseline)
    pool = ModelPool(cores=1)
    pool.assign("door", candidate)
    slot = pool.acquire("door", ModelConfig(path="bundle:door"), candidate.folder)

    slot.infer([{"x": np.ones((1, 3), np.float32)}])

    assert slot.info().looked_at == int(has_baseline)
    assert bool(slot.serving and slot.serving.observers) == has_baseline
    pool.close()
