"""Drift detection: the frames it covers, what it reports, and how much time it takes."""

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

LENGTH_S, MIN_FRAMES = 10.0, 20
SIGNATURE = Signature(
    "twice",
    ModelConfig(path="twice.onnx"),
    (TensorSpec("x", (None, 4), np.dtype(np.float32)),),
    (TensorSpec("y", (None, 4), np.dtype(np.float32)),),
)


def noise(frames: int, seed: int = 1) -> Array:
    return np.random.default_rng(seed).normal(size=(frames, 4)).astype(np.float32)


def baseline(of: Array) -> Baseline:
    distributions = {}
    for name, values in (("x", of), ("y", 2 * of)):
        accumulator = Accumulator()
        accumulator.add(values)
        distributions[name] = accumulator.distribution()
    return Baseline(samples=len(of), inputs={"x": distributions["x"]}, outputs={"y": distributions["y"]})


BASELINE = baseline(noise(1000, seed=0))


class LiveWindow:
    """The window of a model that doubles its input, with a frame every tenth of a second."""

    def __init__(self) -> None:
        self.window = DriftWindow(BASELINE, SIGNATURE, length_s=LENGTH_S, min_frames=MIN_FRAMES)
        self.at = 0.0

    def add(self, inputs: Array, outputs: Array | None = None) -> DriftReport:
        for row, out in zip(inputs, 2 * inputs if outputs is None else outputs, strict=True):
            self.at += 0.1
            self.window.add(self.at, {"x": row[np.newaxis]}, {"y": out[np.newaxis]}, 1)
        return self.window.report()


@given(
    st.lists(st.tuples(st.floats(0.01, 3.0), st.integers(1, 8)), min_size=1, max_size=120),
    st.integers(1, 40),
)
def test_drift_covers_one_to_two_windows_and_enough_frames(batches: Sequence[tuple[float, int]], least: int) -> None:
    window = DriftWindow(BASELINE, SIGNATURE, length_s=LENGTH_S, min_frames=least)
    times = list(accumulate(gap for gap, _ in batches))
    for at, (_, rows) in zip(times, batches, strict=True):
        window.add(at, {"x": noise(rows)}, {"y": noise(rows)}, rows)
        report = window.report()
        added = [(time, size) for time, (_, size) in zip(times, batches, strict=True) if time <= at]

        def frames_since(seconds: float) -> int:
            return sum(size for time, size in added if time > at - seconds)  # noqa: B023 - called here

        if report.drift is None:
            assert report.looked_at == frames_since(np.inf), "no half was discarded yet"
            continue
        assert report.looked_at >= least
        assert report.looked_at >= frames_since(LENGTH_S)
        if least == 1:
            assert report.looked_at <= frames_since(2 * (LENGTH_S + 3.0))


def test_drift_is_not_known_before_a_full_window_has_passed() -> None:
    live = LiveWindow()

    assert live.add(noise(99)) == DriftReport(99)
    assert live.add(noise(5)).drift is not None


def test_frames_like_the_authors_samples_have_not_drifted() -> None:
    report = LiveWindow().add(noise(150))

    assert report.drift is not None
    assert report.input_drift is not None
    assert max(report.drift, report.input_drift) < 0.1


def test_a_drifting_sensor_shifts_inputs_and_a_drifting_model_only_outputs() -> None:
    sensor, model = LiveWindow().add(noise(150) + 2), LiveWindow().add(noise(150), noise(150) + 5)

    assert sensor.input_drift is not None
    assert sensor.input_drift > 1
    assert (model.input_drift or 0) < 0.1
    assert (model.drift or 0) > 1


def test_a_drift_that_is_over_is_forgotten_after_two_windows() -> None:
    live = LiveWindow()
    moved = live.add(noise(150) + 2).drift or 0
    after = live.add(noise(220)).drift or 0

    assert (moved > 1, after < 0.1) == (True, True)


def test_a_few_similar_frames_are_no_drift() -> None:
    """A few seconds of a stream may be all speech or all silence."""
    live = LiveWindow()

    assert live.add(np.zeros((50, 4), np.float32)).drift is None
    assert (live.add(noise(150)).drift or 0) < 1.0


def test_nan_is_reported_at_once_and_forgotten_with_its_window() -> None:
    live = LiveWindow()
    bad = np.full((3, 4), np.nan, np.float32)

    assert live.add(noise(3), bad) == DriftReport(3, 3)
    assert live.add(noise(220)).not_finite == 0


def test_padding_is_ignored() -> None:
    live = LiveWindow()
    padded = np.concatenate([noise(2), np.full((2, 4), np.inf, np.float32)])

    live.window.add(1.0, {"x": padded}, {"y": padded}, 2)

    assert live.window.report() == DriftReport(2)


@given(st.lists(st.floats(1e-6, 0.5), min_size=1, max_size=30), st.floats(1e-5, 1e-2))
def test_sampling_takes_a_hundredth_of_the_time_however_long_a_sample_takes(
    durations: list[float], gap_s: float
) -> None:
    now, spent, longest = 0.0, 0.0, max(durations)
    remaining = iter(durations)

    class Slow(dict[str, Array]):
        def items(self):  # type: ignore[no-untyped-def]
            nonlocal now, spent
            took = next(remaining, 0.0)
            now, spent = now + took, spent + took
            return super().items()

    monitor = DriftMonitor(BASELINE, SIGNATURE, clock=lambda: now)
    row = noise(1)
    for _ in range(200):
        monitor({"x": row}, Slow(y=row), 1, 0.0)
        now += gap_s

    assert spent - longest <= 0.01 * now + 1e-9


def test_idle_time_does_not_add_up_to_a_burst_of_sampling() -> None:
    now = 3600.0

    def clock() -> float:
        nonlocal now
        now += 0.001  # so each sample takes a millisecond
        return now

    monitor = DriftMonitor(BASELINE, SIGNATURE, clock=clock)
    for _ in range(100):
        monitor({"x": noise(1)}, {"y": noise(1)}, 1, 0.0)

    assert monitor.report().looked_at <= 2


class LiveMonitor:
    """A drift monitor whose clock the test advances; sampling takes no time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.monitor = DriftMonitor(BASELINE, SIGNATURE, clock=lambda: self.now)

    def add(self, frames: int, every_s: float = 0.0, outputs: Array | None = None) -> DriftReport:
        for _ in range(frames):
            self.monitor({"x": noise(1)}, {"y": noise(1) if outputs is None else outputs}, 1, 0.0)
            self.now += every_s
        return self.monitor.report()


def test_before_the_first_frame_the_report_is_empty() -> None:
    assert LiveMonitor().monitor.report() == DriftReport(looked_at=0, not_finite=0, drift=None, input_drift=None)


def test_all_frames_are_sampled_if_sampling_takes_no_time() -> None:
    assert LiveMonitor().add(3).looked_at == 3


def test_drift_covers_at_least_a_minute() -> None:
    live = LiveMonitor()

    assert live.add(120, every_s=0.5).drift is None
    assert live.now == 60.0
    assert live.add(1).drift is not None


def test_drift_covers_at_least_a_hundred_frames() -> None:
    live = LiveMonitor()

    assert live.add(100, every_s=1.0).drift is None
    assert live.add(1).drift is not None


def test_a_report_covers_both_halves() -> None:
    live = LiveMonitor()
    bad = np.full((1, 4), np.nan, np.float32)
    live.add(100, every_s=1.0)
    live.add(2, every_s=1.0, outputs=bad)
    live.add(98, every_s=1.0)
    report = live.add(3, outputs=bad)

    assert (report.looked_at, report.not_finite) == (103, 5)


def test_drift_is_rounded_to_four_places() -> None:
    report = LiveWindow().add(noise(150) + 1)

    for drift in (report.drift, report.input_drift):
        assert drift == round(drift or 0, 4) != round(drift or 0, 3)


def test_sampling_starts_again_at_once_after_a_reset() -> None:
    now = 5.0

    def clock() -> float:
        nonlocal now
        now += 0.5
        return now

    monitor = DriftMonitor(BASELINE, SIGNATURE, clock=clock)
    monitor({"x": noise(1)}, {"y": noise(1)}, 1, 0.0)
    monitor.reset()
    assert monitor.report() == DriftReport()
    monitor({"x": noise(1)}, {"y": noise(1)}, 1, 0.0)
    assert monitor.report() == DriftReport(1)


def test_a_batch_does_not_wait_while_another_is_sampled() -> None:
    live = LiveMonitor()

    class Meanwhile(dict[str, Array]):
        def items(self):  # type: ignore[no-untyped-def]
            live.monitor({"x": noise(1)}, {"y": noise(1)}, 1, 0.0)  # arrives while this one is sampled
            return super().items()

    live.monitor({"x": noise(1)}, Meanwhile(y=noise(1)), 1, 0.0)

    assert live.monitor.report().looked_at == 1


DOUBLE = "(float[N,3] x) => (float[N,3] y) { y = Add(x, x) }"


@pytest.mark.parametrize("has_baseline", [True, False])
def test_only_versions_whose_bundle_has_statistics_are_monitored(
    make_version: Callable[..., ModelVersion], *, has_baseline: bool
) -> None:
    candidate = make_version(DOUBLE, baseline=has_baseline)
    pool = ModelPool(cores=1)
    pool.assign("door", candidate)
    slot = pool.acquire("door", ModelConfig(path="bundle:door"), candidate.folder)

    slot.infer([{"x": np.ones((1, 3), np.float32)}])

    assert slot.info().looked_at == int(has_baseline)
    assert bool(slot.serving and slot.serving.observers) == has_baseline
    pool.close()
