"""`resample` changes the rate and preserves the sound."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hedgerow.testing import frame, run_stage
from hedgerow_audio.resample import Resample


def tone(hz: float, rate: int, seconds: float) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.sin(2 * np.pi * hz * np.arange(round(rate * seconds)) / rate).astype(np.float32) * np.float32(0.5)


def joined(frames):  # type: ignore[no-untyped-def]
    return np.concatenate([one.array for one in frames])


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000])
def test_a_tone_keeps_its_pitch_and_loudness(rate: int, chunks) -> None:  # type: ignore[no-untyped-def]
    run = run_stage(Resample, chunks(tone(1000, rate, 2.0), rate, 441), rate=16_000)
    sound = joined(run.out)[1600:17_600]
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound))))

    assert {one.meta["rate"] for one in run.out} == {16_000}
    assert np.argmax(spectrum) == 1000
    assert np.sqrt(np.mean(sound**2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.01)


def test_frequencies_above_the_new_nyquist_are_filtered_out(chunks) -> None:  # type: ignore[no-untyped-def]
    """A tone of 12 kHz must not alias to 4 kHz."""
    sound = joined(run_stage(Resample, chunks(tone(12_000, 48_000, 1.0), 48_000, 480), rate=16_000).out)

    assert np.abs(sound[800:-800]).max() < 1e-3


@given(st.lists(st.integers(1, 5000), max_size=12).map(lambda sizes: [*sizes, 997]))
def test_the_size_of_frames_does_not_change_the_sound(chunks, sizes: list[int]) -> None:  # type: ignore[no-untyped-def]
    sound = np.random.default_rng(1).normal(0, 0.1, 20_000).astype(np.float32)
    whole = joined(run_stage(Resample, chunks(sound, 44_100, 20_000), rate=16_000).out)
    parts = joined(run_stage(Resample, chunks(sound, 44_100, sizes), rate=16_000).out)
    both = min(len(whole), len(parts))

    assert both > 6000
    np.testing.assert_allclose(parts[:both], whole[:both], atol=1e-5)


def test_sampled_at_accounts_for_the_filters_delay(chunks) -> None:  # type: ignore[no-untyped-def]
    """The filter adds delay; the time of a click must not change."""
    click = np.zeros(48_000, np.float32)
    click[30_000] = 0.9

    run = run_stage(Resample, chunks(click, 48_000, 480, began_at=100.0), rate=16_000)
    found = [
        one.meta["sampled_at"] + int(np.argmax(one.array)) / 16_000
        for one in run.out
        if len(one.array) and one.array.max() > 0.1
    ]

    assert found == pytest.approx([100.0 + 30_000 / 48_000], abs=1 / 16_000)


def test_sound_at_the_right_rate_passes_unchanged(chunks) -> None:  # type: ignore[no-untyped-def]
    sound = tone(440, 16_000, 0.1)

    assert run_stage(Resample, chunks(sound, 16_000, 1600), rate=16_000).out[0].array.tolist() == sound.tolist()


def test_streams_do_not_leak_into_each_other(chunks) -> None:  # type: ignore[no-untyped-def]
    loud = chunks(tone(440, 48_000, 0.5), 48_000, 480, stream="loud")
    silent = chunks(np.zeros(24_000, np.float32), 48_000, 480, stream="silent")

    out = run_stage(Resample, [one for pair in zip(loud, silent, strict=True) for one in pair], rate=16_000).out

    assert not joined([one for one in out if one.stream == "silent"]).any()


def test_the_filter_restarts_after_a_gap(chunks) -> None:  # type: ignore[no-untyped-def]
    frames = chunks(tone(440, 48_000, 1.0), 48_000, 4800)
    alone = joined(run_stage(Resample, frames[5:], rate=16_000).out)

    after_a_lost_frame = joined(run_stage(Resample, frames[:4] + frames[5:], rate=16_000).out[4:])

    np.testing.assert_array_equal(after_a_lost_frame, alone)


def test_a_bad_frame_is_dead_lettered_and_is_not_a_gap(chunks) -> None:  # type: ignore[no-untyped-def]
    good = chunks(tone(440, 48_000, 0.1), 48_000, 480)
    bad = [
        frame(np.full(480, np.nan, np.float32), meta={"rate": 48_000}),
        frame(np.zeros((480, 2), np.float32), meta={"rate": 48_000}),
        frame(np.zeros(480, np.int16), meta={"rate": 48_000}),
        frame(np.zeros(480, np.float32)),
        frame(b"undecoded"),
    ]

    run = run_stage(Resample, good[:5] + bad + good[5:], rate=16_000)

    assert run.dead == {"not-finite": 1, "not-mono": 2, "no-rate": 1, "not-decoded": 1}
    np.testing.assert_array_equal(joined(run.out), joined(run_stage(Resample, good, rate=16_000).out))
