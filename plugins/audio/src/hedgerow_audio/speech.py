"""The `speech` stage: turns the speech probabilities of windows into segments."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from pydantic import Field, model_validator

from hedgerow import Drop, Frame, FrameError, FrameSpec, Stage, StageConfig, StageContext, StageMismatch
from hedgerow.stage import THRESHOLD
from hedgerow_audio.segments import Segment, Segmenter, Thresholds
from hedgerow_audio.vad import RATE, SIZE

_NO_SPEECH: Final = Drop("no-speech")


class SpeechConfig(StageConfig):
    """Thresholds for speech. The defaults are those of Silero VAD."""

    threshold: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="Speech begins with a window of at least this probability.",
        json_schema_extra=THRESHOLD,
    )
    release: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Speech may end with a window of a lower probability than this; by default threshold - 0.15.",
        json_schema_extra=THRESHOLD,
    )
    min_speech_s: float = Field(0.25, ge=0, description="Shorter speech is ignored.")
    min_silence_s: float = Field(0.1, ge=0, description="Shorter silence does not end a segment.")
    pad_s: float = Field(0.03, ge=0, description="Segments are extended by this on either side.")
    max_speech_s: float = Field(30, gt=0, description="A longer segment is reported in parts, with `complete: false`.")
    every_window: bool = Field(False, description="Also give a result for every window (32 ms).")
    output: str = Field("output", description="Name of the model's output with the probability.")

    @model_validator(mode="after")
    def _sensible(self) -> SpeechConfig:
        if self.release is not None and self.release > self.threshold:
            raise ValueError("`release` must not be above `threshold`")
        if 2 * self.pad_s > self.min_silence_s:
            raise ValueError("`pad_s` must be at most half of `min_silence_s`, or segments would overlap")
        if self.max_speech_s <= self.min_speech_s:
            raise ValueError("`max_speech_s` must be above `min_speech_s`")
        return self

    @property
    def thresholds(self) -> Thresholds:
        """The settings in samples."""
        return Thresholds(
            on=self.threshold,
            off=max(self.threshold - 0.15, 0.01) if self.release is None else self.release,
            min_speech=round(self.min_speech_s * RATE),
            min_silence=round(self.min_silence_s * RATE),
            pad=round(self.pad_s * RATE),
            max_speech=round(self.max_speech_s * RATE),
            size=SIZE,
        )


class Speech(Stage[SpeechConfig]):
    """Find segments of speech; returns a result when a segment ends.

    A segment is {"kind": "segment", "start", "end": Unix seconds, "start_s", "end_s": seconds since the stream began or
    last started over, "probability": mean over its windows, "peak": the highest, "complete"}. `complete` is false if a
    gap ended the segment, or if it was split because of its length. With `every_window`, each window also gives
    {"kind": "window", "at", "at_s", "probability", "speaking"}.

    A window of silence is dropped as `no-speech`; a window within ongoing speech is absorbed.
    """

    def setup(self, context: StageContext) -> None:
        """Create the per-stream state."""
        thresholds = self.config.thresholds
        self._segmenters = context.per_stream(lambda: Segmenter(thresholds))

    def output_spec(self, incoming: FrameSpec) -> FrameSpec:
        """Take a probability, and its position in the sound. Raises: StageMismatch: one is missing."""
        found = incoming.expect_tensor(
            self.config.output, remedy="Put `infer` with a voice activity model before it, or correct `output`."
        )
        if math.prod(size for size in found.shape or () if size is not None) > 1:
            raise StageMismatch(
                "one probability",
                f"{self.config.output}: {found}",
                remedy="Correct `output`, or use a voice activity model.",
            )
        for key in ("position", "window_at"):
            incoming.expect_meta(key, remedy="Put `vad-window` before `infer`.")
        return incoming

    def process(self, frame: Frame) -> Frame | list[Frame] | Drop | None:
        """Raises: FrameError: the frame has no probability, or no position."""
        probability, position, at = self._read(frame)
        segmenter = self._segmenters[frame.stream]
        ended = segmenter.feed(probability, position, at)
        results = [_segment_result(segment) for segment in ended] if ended else []
        if self.config.every_window:
            results.insert(0, _window_result(at, position, probability, segmenter.speaking))
        if results:
            return frame.with_result(results[0]) if len(results) == 1 else [frame.with_result(each) for each in results]
        return None if segmenter.speaking else _NO_SPEECH

    def _read(self, frame: Frame) -> tuple[float, int, float]:
        output = frame.tensors.get(self.config.output)
        if output is None or np.size(output) != 1:
            got = "nothing" if output is None else str(list(np.shape(output)))
            raise FrameError(
                f"Expected one probability in output {self.config.output!r}, got {got}",
                code="no-probability",
                remedy="Put `infer` with a voice activity model before this stage, or correct `output`.",
            )
        probability = float(np.asarray(output).item())
        if not 0 <= probability <= 1:
            raise FrameError(
                f"Output {self.config.output!r} is {probability}, not a probability from 0 to 1",
                code="no-probability",
                remedy="Correct `output`, or use a voice activity model.",
            )
        meta = frame.meta
        if "position" not in meta or "window_at" not in meta:
            raise FrameError(
                "The window's position in the stream is unknown",
                code="no-position",
                remedy="Put `vad-window` before `infer`.",
            )
        return probability, int(meta["position"]), float(meta["window_at"])


def _segment_result(segment: Segment) -> dict[str, Any]:
    return {
        "kind": "segment",
        "start": segment.at,
        "end": segment.at + (segment.end - segment.start) / RATE,
        "start_s": segment.start / RATE,
        "end_s": segment.end / RATE,
        "probability": segment.mean,
        "peak": segment.peak,
        "complete": segment.complete,
    }


def _window_result(at: float, position: int, probability: float, speaking: bool) -> dict[str, Any]:
    return {"kind": "window", "at": at, "at_s": position / RATE, "probability": probability, "speaking": speaking}
