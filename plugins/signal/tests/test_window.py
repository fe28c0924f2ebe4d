"""`window` loses and repeats no sample, whatever the frames' sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hedgerow import Frame
from hedgerow.errors import ConfigError
from hedgerow.testing import frame, run_stage
from hedgerow_signal.window import Window

RAMP = np.arange(5_000, dtype=np.float32)


def cut(samples: np.ndarray[Any, Any], sizes: list[int], rate: float = 100.0, **fields: Any) -> list[Frame]:
    """Cut into frames of these sizes, repeating the last, from 1000 Unix seconds on."""
    sizes, frames, at = list(sizes), [], 0
    while at < len(samples):
        size = sizes.pop(0) if len(sizes) > 1 else sizes[0]
        part = samples[at : at + size]
        frames.append(frame(part, sequence=len(frames), captured_at=1000 + at / rate, **fields))
        at += size
    return frames


@given(
    sizes=st.lists(st.integers(1, 400), max_size=30).map(lambda sizes: [*sizes, 50]),
    size=st.integers(1, 600),
    overlap=st.integers(0, 599),
)
def test_the_size_of_frames_does_not_change_windows_of_samples(sizes: list[int], size: int, overlap: int) -> None:
    hop = max(size - overlap, 1 + size // 20)
    run = run_stage(Window, cut(RAMP[:2000], sizes), size=size, hop=hop, rate=100)

    starts = list(range(0, 2000 - size + 1, hop))
    assert not run.dead
    assert [one.array[0] for one in run.out] == starts
    assert all(
        np.array_equal(one.array, RAMP[start : start + size]) for one, start in zip(run.out, starts, strict=True)
    )
    assert [one.meta["position"] for one in run.out] == starts
    assert [one.meta["window_at"] for one in run.out] == pytest.approx([1000 + start / 100 for start in starts])


def test_without_overlap_every_sample_is_in_one_window() -> None:
    run = run_stage(Window, cut(RAMP, [37]), size=500, rate=100)

    np.testing.assert_array_equal(np.concatenate([one.array for one in run.out]), RAMP)


def test_channels_stay_side_by_side() -> None:
    axes = np.stack((RAMP, -RAMP, RAMP * 2), axis=1)

    run = run_stage(Window, cut(axes, [130]), size=256, hop=128, channels=3, rate=100)

    np.testing.assert_array_equal(run.out[1].array, axes[128:384])


def test_single_readings_make_windows() -> None:
    run = run_stage(Window, cut(RAMP[:30], [1]), size=10)

    assert [one.array[0] for one in run.out] == [0, 10, 20]
    assert run.dropped == {"absorbed": 27}


def test_streams_do_not_mix() -> None:
    one, two = cut(RAMP[:100], [10], stream="one"), cut(-RAMP[:100], [10], stream="two")

    out = run_stage(Window, [item for pair in zip(one, two, strict=True) for item in pair], size=50).out

    assert all((item.array <= 0).all() == (item.stream == "two") for item in out[1:])
    assert len(out) == 4


@pytest.mark.parametrize("jump_s", [10.0, -10.0])
def test_a_jump_in_time_restarts_the_stream(jump_s: float) -> None:
    frames = cut(RAMP[:1000], [100])
    for one in frames[5:]:
        one.captured_at += jump_s

    out = run_stage(Window, frames, size=300, rate=100).out

    assert [one.array[0] for one in out] == [0, 500]
    assert out[1].meta["position"] == 0
    assert out[1].meta["begins"]
    assert out[1].meta["window_at"] == frames[5].captured_at


def test_a_missing_sequence_number_restarts_the_stream() -> None:
    frames = cut(RAMP[:1000], [100])

    assert [one.array[0] for one in run_stage(Window, frames[:4] + frames[5:], size=300).out] == [0, 500]


def test_the_frames_rate_overrides_the_configured_rate() -> None:
    frames = cut(RAMP[:1000], [100], rate=50.0, meta={"rate": "50"})

    out = run_stage(Window, frames, size=1000, rate=100).out

    assert len(out) == 1
    assert out[0].meta["rate"] == 50


def test_a_frame_of_too_many_windows_is_refused() -> None:
    """A few million samples with a small hop would take minutes and much memory."""
    most = frame(RAMP[: 100 + 3 * 10], sequence=0)
    one_more = frame(RAMP[: 100 + 4 * 10], sequence=1, stream="other")

    run = run_stage(Window, [most, one_more], size=100, hop=10, max_windows=4)

    assert len(run.out) == 4
    assert run.dead == {"too-many-windows": 1}
    assert "5 windows" in str(run.errors[0])


def test_the_largest_frame_with_the_smallest_hop_is_refused_by_default() -> None:
    assert run_stage(Window, [frame(np.zeros(4_000_000, np.float32))], size=16).dead == {"too-many-windows": 1}


def test_bad_frames_are_dead_lettered_and_do_not_affect_the_stream() -> None:
    good = cut(RAMP[:1000], [100])
    bad = [
        frame(np.full(5, np.nan)),
        frame(np.full(5, 1e300)),
        frame(np.zeros((5, 2))),
        frame(np.array(3.0)),
        frame(np.zeros(5, complex)),
        frame(np.zeros(5), meta={"rate": -1}),
        frame(np.zeros(5), meta={"rate": [1]}),
        frame(b"undecoded"),
    ]

    run = run_stage(Window, good[:5] + bad + good[5:], size=1000, rate=100)

    assert run.dead == {
        "not-finite": 1, "out-of-range": 1, "wrong-shape": 2, "not-numbers": 1, "bad-rate": 2, "not-decoded": 1
    }  # fmt: skip
    np.testing.assert_array_equal(run.out[0].array, RAMP[:1000])


@pytest.mark.parametrize("samples", [np.array([16777217, 1]), np.array([1700000000.123, 1.0])])
def test_samples_of_too_many_digits_are_not_rounded(samples: np.ndarray[Any, Any]) -> None:
    run = run_stage(Window, [frame(samples), frame(samples % 1024)], size=2)

    assert run.dead == {"out-of-range": 1}
    assert "float32" in run.errors[0].remedy
    assert len(run.out) == 1


def test_a_hop_that_would_skip_samples_is_refused() -> None:
    with pytest.raises(ConfigError, match="would skip samples"):
        run_stage(Window, [], size=10, hop=11)
