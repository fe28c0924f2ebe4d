"""Segments of speech from recordings, with the real model on both backends."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from hedgerow import Frame
from hedgerow.errors import ConfigError
from hedgerow.testing import frame, run_pipeline, run_stage
from hedgerow_audio.speech import Speech

STAGES: list[Any] = ["pcm16", {"resample": {"rate": 16_000}}, "vad-window", {"infer": {"model": "vad"}}]

# Speech in the recordings, in seconds, marked by ear.
SPOKEN = {
    "Front_Center.wav": [(0.1, 0.5), (0.8, 1.4)],
    "cards/001.wav": [(0.25, 0.95)],
    "goforward.raw": [(0.5, 2.25)],
    "librivox/sense_and_sensibility_01_austen_64kb-0880.wav": [(0.3, 2.8)],
}


def spans(run: Any) -> list[tuple[float, float]]:
    assert not run.dead, run.errors
    return [(one["start_s"], one["end_s"]) for one in run.results]


@pytest.mark.parametrize("name", sorted(SPOKEN))
def test_recorded_speech_is_located(name: str, recording, chunks, vad) -> None:  # type: ignore[no-untyped-def]
    run = run_pipeline([*STAGES, "speech"], chunks(*recording(name)), models={"vad": vad})

    assert np.ravel(spans(run)) == pytest.approx(np.ravel(SPOKEN[name]), abs=0.15)
    for one in run.results:
        assert one["kind"] == "segment"
        assert one["complete"]
        assert 0.8 < one["probability"] <= one["peak"] <= 1
        assert one["start"] == pytest.approx(1_700_000_000 + one["start_s"], abs=0.001)
        assert one["end"] == pytest.approx(1_700_000_000 + one["end_s"], abs=0.001)


def test_noise_contains_no_speech(recording, chunks, vad) -> None:  # type: ignore[no-untyped-def]
    run = run_pipeline([*STAGES, "speech"], chunks(*recording("Noise.wav")), models={"vad": vad})

    assert spans(run) == []
    assert run.dropped["no-speech"] > 20


def test_silence_contains_no_speech(chunks, vad) -> None:  # type: ignore[no-untyped-def]
    run = run_pipeline([*STAGES, "speech"], chunks(np.zeros(32_000, "<i2"), 16_000), models={"vad": vad})

    assert run.out == []
    assert run.dropped == {"no-speech": 20}


def test_both_backends_find_the_same_segments(recording, chunks, vads) -> None:  # type: ignore[no-untyped-def]
    frames = chunks(*recording("numbers.raw"))
    stages = [*STAGES, {"speech": {"every_window": True}}]

    one, two = (run_pipeline(stages, frames, models={"vad": vad}).results for vad in vads.values())

    assert [item["kind"] for item in one] == [item["kind"] for item in two]
    assert [item["probability"] for item in one] == pytest.approx([item["probability"] for item in two], abs=1e-3)
    assert [item["end_s"] for item in one if item["kind"] == "segment"] == [
        item["end_s"] for item in two if item["kind"] == "segment"
    ]


def test_sixteen_streams_together_equal_each_alone(recording, chunks, vads) -> None:  # type: ignore[no-untyped-def]
    """Windows share batches; hidden states must not mix."""
    pcm, rate = recording("Front_Center.wav")
    models = {"vad": vads["onnxruntime"]}
    stages = [*STAGES, {"speech": {"every_window": True}}]
    streams = [chunks(np.roll(pcm, 3_000 * number), rate, 4_800, stream=f"mic/{number}") for number in range(16)]

    together = run_pipeline(stages, [one for turn in zip(*streams, strict=True) for one in turn], models=models)

    for number in (0, 7, 15):
        alone = run_pipeline(stages, streams[number], models=models).results
        shared = [one.result for one in together.out if one.stream == f"mic/{number}"]
        assert [one["kind"] for one in shared] == [one["kind"] for one in alone]
        assert [one["probability"] for one in shared] == pytest.approx([one["probability"] for one in alone], abs=1e-4)


@pytest.mark.parametrize("sizes", [[160], [7, 20_001, 1], [90_000]], ids=["10 ms", "uneven", "at once"])
def test_the_size_of_frames_does_not_change_segments(sizes, recording, chunks, vads) -> None:  # type: ignore[no-untyped-def]
    pcm, rate = recording("cards/004.wav")
    models = {"vad": vads["onnxruntime"]}
    cut = [*sizes, 480]

    usual = run_pipeline([*STAGES, "speech"], chunks(pcm, rate), models=models).results
    other = run_pipeline([*STAGES, "speech"], chunks(pcm, rate, cut), models=models).results

    assert len(usual) == 2
    for one, two in zip(usual, other, strict=True):
        assert two == pytest.approx(one, abs=1e-5)


def test_processing_a_list_equals_processing_one_by_one(recording, chunks, vads) -> None:  # type: ignore[no-untyped-def]
    frames = chunks(*recording("cards/002.wav"))
    models = {"vad": vads["onnxruntime"]}

    together = run_pipeline([*STAGES, "speech"], frames, models=models)
    one_by_one = run_pipeline([*STAGES, "speech"], frames, models=models, together=False)

    assert len(together.results) == 1
    assert together.results[0] == pytest.approx(one_by_one.results[0])
    assert together.dropped == one_by_one.dropped


def test_a_lost_frame_ends_the_segment_as_incomplete(recording, chunks, vads) -> None:  # type: ignore[no-untyped-def]
    frames = chunks(*recording("goforward.raw"))
    del frames[15]

    run = run_pipeline([*STAGES, "speech"], frames, models={"vad": vads["onnxruntime"]})

    assert [one["complete"] for one in run.results] == [False, True]
    assert run.results[0]["end"] == pytest.approx(1_700_000_001.5, abs=0.04)


def test_a_gap_resets_the_hidden_state(recording, chunks, vad) -> None:  # type: ignore[no-untyped-def]
    """The hidden state belongs to the sound before the gap."""
    stages = [*STAGES, {"speech": {"every_window": True}}]
    frames = chunks(*recording("goforward.raw"))

    def probabilities(frames: list[Any]) -> list[float]:
        results = run_pipeline(stages, frames, models={"vad": vad}).results
        return [one["probability"] for one in results if one["kind"] == "window"]

    alone = probabilities(frames[12:])

    assert probabilities(frames[:10] + frames[12:])[-len(alone) :] == pytest.approx(alone, abs=1e-5)


def windows(probabilities: list[float], **meta: Any) -> list[Any]:
    return [
        frame(
            b"",
            sequence=number,
            tensors={"output": np.full((1, 1), probability, np.float32)},
            meta={"position": number * 512, "window_at": 10 + number * 0.032, **meta},
        )
        for number, probability in enumerate(probabilities)
    ]


def test_every_window_adds_a_result_per_window() -> None:
    run = run_stage(Speech, windows([0.1, 0.75]), every_window=True)

    assert run.results[1] == {"kind": "window", "at": 10.032, "at_s": 0.032, "probability": 0.75, "speaking": True}
    assert not run.results[0]["speaking"]


def test_silence_is_dropped_and_speech_absorbed_until_it_ends() -> None:
    run = run_stage(Speech, windows([0.0] * 5 + [0.9] * 10 + [0.0] * 6))

    assert len(run.out) == 1
    assert run.dropped == {"no-speech": 6, "absorbed": 14}


def test_a_frame_without_probability_or_position_is_refused() -> None:
    bad = [
        frame(b""),
        frame(b"", tensors={"output": np.zeros(2, np.float32)}),
        frame(b"", tensors={"output": np.array([[np.nan]], np.float32)}),
        frame(b"", tensors={"output": np.array([[0.9]], np.float32)}),
    ]
    good = windows([0.9] * 10 + [0.0] * 10)

    run = run_stage(Speech, good[:5] + bad + good[5:])

    assert run.dead == {"no-probability": 3, "no-position": 1}
    assert run.results == run_stage(Speech, good).results


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"threshold": 0.4, "release": 0.5}, "release"),
        ({"pad_s": 0.2}, "overlap"),
        ({"max_speech_s": 0.1}, "max_speech_s"),
        ({"treshold": 0.4}, "threshold"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(config: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_stage(Speech, [], **config)


def test_what_is_no_probability_during_speech_changes_nothing_as_columns_either() -> None:
    """It is refused, and the segment goes on without it."""

    def frames() -> list[Frame]:
        streams = []
        for number in range(5):
            made = windows([0.9] * 12 + [0.0] * 8)
            for each in made:
                each.stream = f"s/{number}"
            streams.append(made)
        for stream, at, value in ((1, 5, math.nan), (2, 6, -0.2), (3, 7, 1.5)):
            streams[stream][at] = streams[stream][at].with_tensors({"output": np.array([[value]], np.float32)})
        return [frame for turn in zip(*streams, strict=True) for frame in turn]

    alone, columns = run_stage(Speech, frames()), run_stage(Speech, frames(), columns=True)

    assert columns.columns
    assert columns.dead == alone.dead == {"no-probability": 3}
    assert columns.dropped == alone.dropped
    assert sorted(map(str, columns.results)) == sorted(map(str, alone.results))
