"""The `speech` stage: turns the speech probabilities of windows into segments."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from pydantic import Field, model_validator

from hedgerow import (
    Drop,
    Frame,
    FrameBatch,
    FrameError,
    FrameSpec,
    Irregular,
    Stage,
    StageConfig,
    StageContext,
    StageMismatch,
)
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
        """Create the per-stream state: the segmenter of a stream in which someone speaks, which is all that lasts."""
        self._thresholds = self.config.thresholds
        self._streams = context.stream_table(segmenter=((), object))

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

    def process_batch(self, batch: FrameBatch) -> FrameBatch:
        """Take all probabilities at once; only a stream in which someone speaks is looked at by itself.

        Raises: Irregular: there is no probability for each row, or no position.
        """
        output = batch.tensors.get(self.config.output)
        if output is None or output.size != len(batch) or output.dtype.kind != "f":
            raise Irregular
        values = output.reshape(-1)
        probabilities = values.tolist()
        try:
            positions = list(map(int, batch.meta_column("position")))
            times = list(map(float, batch.meta_column("window_at")))
        except (TypeError, ValueError, OverflowError):
            raise Irregular from None
        table_rows = self._streams.rows(batch.streams)
        segmenters = self._streams.take("segmenter", table_rows).tolist()
        speaking = [segmenter is not None for segmenter in segmenters]
        busy = [row for row, yes in enumerate(speaking) if yes or probabilities[row] >= self._thresholds.on]
        if not self.config.every_window:
            for row in set(range(len(batch))).difference(busy):
                batch.leave(row, _NO_SPEECH)
        for row in np.flatnonzero(~((values >= 0) & (values <= 1))).tolist():
            batch.defer(row)
        for row in busy:
            if not 0 <= probabilities[row] <= 1:
                continue
            window = probabilities[row], positions[row], times[row]
            ended, speaking[row] = self._feed(int(table_rows[row]), segmenters[row], *window)
            if ended or not self.config.every_window:
                batch.leave(row, self._outcome(batch.frame(row), window, ended, speaking[row]))
        if not self.config.every_window:
            return batch
        return batch.with_result_columns(
            kind=["window"] * len(batch),
            at=times,
            at_s=[position / RATE for position in positions],
            probability=probabilities,
            speaking=speaking,
        )

    def process(self, frame: Frame) -> Frame | list[Frame] | Drop | None:
        """Raises: FrameError: the frame has no probability, or no position."""
        window = self._read(frame)
        row = self._streams.row(frame.stream)
        ended, speaking = self._feed(row, self._streams.take("segmenter", row).item(), *window)
        return self._outcome(frame, window, ended, speaking)

    def _feed(
        self, row: int, segmenter: Segmenter | None, probability: float, position: int, at: float
    ) -> tuple[list[Segment], bool]:
        """Add a window to its stream. Returns: the segments that ended, and whether one is open."""
        if segmenter is None and probability < self._thresholds.on:  # most windows are silence
            return [], False
        segmenter = segmenter or Segmenter(self._thresholds)
        ended = segmenter.feed(probability, position, at)
        self._streams.put("segmenter", row, segmenter if segmenter.speaking else None)
        return ended, segmenter.speaking

    def _outcome(
        self, frame: Frame, window: tuple[float, int, float], ended: list[Segment], speaking: bool
    ) -> Frame | list[Frame] | Drop | None:
        results = [_segment_result(segment) for segment in ended]
        if self.config.every_window:
            probability, position, at = window
            results.insert(0, _window_result(at, position, probability, speaking))
        if results:
            return frame.with_result(results[0]) if len(results) == 1 else [frame.with_result(each) for each in results]
        return None if speaking else _NO_SPEECH

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
