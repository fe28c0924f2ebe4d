"""`vad-window` loses and repeats no sample, whatever the frames' sizes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hedgerow import Frame, FrameBatch, FrameError, Irregular, Stage, StreamTable
from hedgerow.testing import frame, run_pipeline, run_stage
from hedgerow_audio.vad import VadWindow, VadWindowConfig

NOISE = np.random.default_rng(2).normal(0, 0.1, 9_000).astype(np.float32)


@given(st.lists(st.integers(1, 3000), max_size=20).map(lambda sizes: [*sizes, 97]))
def test_the_size_of_frames_does_not_change_windows(chunks, sizes: list[int]) -> None:  # type: ignore[no-untyped-def]
    """Each has 512 new samples after the previous 64; times and positions are those of the sound."""
    run = run_stage(VadWindow, chunks(NOISE, 16_000, sizes, began_at=50.0))
    windows = np.stack([one.tensors["input"][0] for one in run.out])

    assert not run.dead
    assert len(windows) == len(NOISE) // 512
    np.testing.assert_array_equal(windows[:, 64:].ravel(), NOISE[: len(windows) * 512])
    np.testing.assert_array_equal(windows[1:, :64], windows[:-1, -64:])
    assert not windows[0, :64].any()
    assert [one.meta["position"] for one in run.out] == list(range(0, len(windows) * 512, 512))
    assert [one.meta["window_at"] for one in run.out] == pytest.approx(
        [50.0 + number * 0.032 for number in range(len(windows))], abs=1e-6
    )


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from("abc"), st.sampled_from(["window", "window", "window", "short", "late", "nan"])
        ),
        max_size=8,
    )
)
def test_columns_make_the_same_windows_as_frames_one_by_one(rounds: list[dict[str, str]]) -> None:
    """Streams in one list do not affect each other, whatever else the list holds."""
    both = [VadWindow(VadWindowConfig()) for _ in range(2)]
    for stage in both:
        stage.setup(SimpleNamespace(stream_table=StreamTable))  # type: ignore[arg-type]
    for number, kinds in enumerate(rounds):
        frames = []
        for stream, kind in kinds.items():
            sound = NOISE[number * 512 :][: 300 if kind == "short" else 512] * (1 + "abc".index(stream))
            if kind == "nan":
                sound[7] = np.nan
            at = 50 + number * 0.032 + (9.0 if kind == "late" else 0.0)
            frames.append(Frame(array=sound, stream=stream, sequence=number, captured_at=at, meta={"rate": 16_000}))
        together = _as_columns(both[0], frames)
        alone = [outcome for one in frames for outcome in Stage.process_many(both[1], [one])]

        assert [_comparable(outcome) for outcome in together] == [_comparable(outcome) for outcome in alone]


def _as_columns(stage: VadWindow, frames: list[Frame]) -> list[Any]:
    """Return the outcome of each frame, from columns where the stage takes them."""
    batch = FrameBatch.of(frames)
    try:
        if batch is None:
            raise Irregular
        returned = stage.process_batch(batch)
    except Irregular:
        return list(stage.process_many(frames))
    return [
        stage.process_many([frame])[0] if row in batch.left else returned.frame(row) for row, frame in enumerate(frames)
    ]


def _comparable(outcome: Any) -> Any:
    """Return an outcome as plain values."""
    if isinstance(outcome, Exception):
        return str(outcome)
    windows = outcome if isinstance(outcome, list) else [outcome]
    return [(one.stream, one.tensors["input"].tobytes(), one.tensors["input"].shape, one.meta) for one in windows]


def test_only_the_first_window_has_begins_set(chunks) -> None:  # type: ignore[no-untyped-def]
    out = run_stage(VadWindow, chunks(NOISE, 16_000, 1000)).out

    assert [one.meta["begins"] for one in out] == [True] + [False] * (len(out) - 1)


@pytest.mark.parametrize("jump_s", [2.0, -2.0])
def test_a_jump_in_time_restarts_the_stream(chunks, jump_s: float) -> None:  # type: ignore[no-untyped-def]
    frames = chunks(NOISE, 16_000, 1000)
    for one in frames[5:]:
        one.captured_at += jump_s

    out = run_stage(VadWindow, frames).out

    assert [one.meta["position"] for one in out if one.meta["begins"]] == [0, 0]
    again = next(one for one in out[1:] if one.meta["begins"])
    assert not again.tensors["input"][0, :64].any()
    np.testing.assert_array_equal(again.tensors["input"][0, 64:], NOISE[5000:5512])
    assert again.meta["window_at"] == frames[5].captured_at


def test_a_missing_sequence_number_restarts_the_stream(chunks) -> None:  # type: ignore[no-untyped-def]
    frames = chunks(NOISE, 16_000, 1000)

    assert sum(one.meta["begins"] for one in run_stage(VadWindow, frames[:3] + frames[4:]).out) == 2


def test_jitter_within_the_tolerance_is_not_a_gap(chunks) -> None:  # type: ignore[no-untyped-def]
    """Frames timestamped on arrival jitter."""
    frames = chunks(NOISE, 16_000, 1000)
    for number, one in enumerate(frames):
        one.captured_at += 0.1 * (number % 2)

    assert sum(one.meta["begins"] for one in run_stage(VadWindow, frames).out) == 1


def test_frames_without_a_time_are_checked_by_number(chunks) -> None:  # type: ignore[no-untyped-def]
    frames = chunks(np.tile(NOISE, 4), 16_000, 9000)
    for one in frames:
        one.captured_at = 0.0

    assert sum(one.meta["begins"] for one in run_stage(VadWindow, frames).out) == 1


def test_a_wrong_rate_is_refused_without_affecting_other_frames(chunks) -> None:  # type: ignore[no-untyped-def]
    good = chunks(NOISE, 16_000, 1000)
    wrong = frame(NOISE[:100], stream=good[0].stream, meta={"rate": 8000})
    not_finite = frame(np.full(100, np.inf, np.float32), stream=good[0].stream, meta={"rate": 16_000})

    run = run_stage(VadWindow, [*good[:4], wrong, not_finite, *good[4:]])

    assert run.dead == {"wrong-rate": 1, "not-finite": 1}
    assert "resample" in run.errors[0].remedy
    assert len(run.out) == len(NOISE) // 512


def test_a_frame_of_too_many_windows_is_refused_and_restarts_the_stream(chunks) -> None:  # type: ignore[no-untyped-def]
    """One long recording must not block other streams for minutes."""
    frames = chunks(NOISE, 16_000, [512, 512 * 4 + 511, 512 * 5, 512])

    run = run_stage(VadWindow, frames, max_windows=4)

    assert run.dead == {"too-many-windows": 1}
    assert run.errors[0].remedy.startswith("Send shorter frames")
    assert [one.meta["position"] // 512 for one in run.out][:7] == [0, 1, 2, 3, 4, 0, 1]


@pytest.mark.filterwarnings("error")
def test_sound_whose_square_overflows_is_accepted() -> None:
    run = run_stage(VadWindow, [frame(np.full(512, 3e38, np.float32), meta={"rate": 16_000})])

    assert (run.out[0].tensors["input"][0, 64:] == np.float32(3e38)).all()


def test_a_frame_that_fills_no_window_is_absorbed(chunks) -> None:  # type: ignore[no-untyped-def]
    assert run_stage(VadWindow, chunks(NOISE[:400], 16_000, 100)).dropped == {"absorbed": 4}


@given(
    st.lists(
        st.tuples(
            st.binary(max_size=3000),
            st.sampled_from(["", "audio/pcm", "audio/wav", "text/plain"]),
            st.dictionaries(st.sampled_from(["rate", "channels", "sampled_at"]), st.sampled_from([0, 2, 8000, 48_000])),
            st.integers(0, 30),
            st.floats(-1e9, 1e12),
        ),
        max_size=12,
    )
)
def test_bad_input_affects_only_its_own_frame(messages) -> None:  # type: ignore[no-untyped-def]
    frames = [
        frame(payload, content_type=kind, meta=meta, sequence=number, captured_at=at)
        for payload, kind, meta, number, at in messages
    ]

    run = run_pipeline(["pcm16", {"resample": {"rate": 16_000}}, "vad-window"], frames)

    assert all(isinstance(error, FrameError) for error in run.errors), run.errors
    assert all(one.tensors["input"].shape == (1, 576) and np.isfinite(one.tensors["input"]).all() for one in run.out)
