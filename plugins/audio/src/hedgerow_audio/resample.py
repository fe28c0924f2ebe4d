"""The `resample` stage: converts sound to another sampling rate."""

from __future__ import annotations

from typing import Literal

import numpy as np
import soxr
from pydantic import Field

from hedgerow import ArraySpec, Frame, FrameSpec, PerStream, Stage, StageConfig, StageContext
from hedgerow_audio.samples import MAX_RATE, MIN_RATE, Continuity, Samples, mono, mono_spec, rate_of, sampled_at


class ResampleConfig(StageConfig):
    """Output rate and quality."""

    rate: int = Field(16_000, ge=MIN_RATE, le=MAX_RATE, description="Output rate, samples a second.")
    quality: Literal["QQ", "LQ", "MQ", "HQ", "VHQ"] = Field(
        "HQ", description="Quality of the SoX resampler, from quick to very high; higher quality adds delay."
    )
    max_gap_s: float = Field(
        0.5,
        gt=0,
        description="A jump in time longer than this starts the stream over. Set it below a frame's length to detect single "
        "lost frames, if the sensor timestamps them.",
    )


class _Converter:
    """A resampler, with counts of the samples that went in and came out."""

    def __init__(self, rate: int, config: ResampleConfig) -> None:
        self.rate = rate
        self.continuity = Continuity()
        self._target = config.rate
        self._soxr = soxr.ResampleStream(rate, config.rate, 1, dtype="float32", quality=config.quality)
        self._samples_in = 0
        self._samples_out = 0

    @property
    def delay_s(self) -> float:
        """By how much the next output sample is older than the next input sample."""
        return self._samples_in / self.rate - self._samples_out / self._target

    def convert(self, samples: Samples) -> Samples:
        out: Samples = self._soxr.resample_chunk(samples)
        self._samples_in += len(samples)
        self._samples_out += len(out)
        return out


class Resample(Stage[ResampleConfig]):
    """Change the sampling rate with the SoX resampler, whose filter continues across the frames of a stream.

    Returns one frame per input frame. The filter delays sound by some milliseconds, so the first frames may be empty
    arrays; `sampled_at` is the capture time of the samples returned. After a gap, or when the sensor's rate changes,
    the stream starts over and samples still in the filter are discarded.
    """

    def setup(self, context: StageContext) -> None:
        """Create the per-stream state."""
        self._converters: PerStream[_Converter | None] = context.per_stream(lambda: None)

    def output_spec(self, incoming: FrameSpec) -> FrameSpec:
        """Take mono sound; give it at the new rate. Raises: StageMismatch: there is none."""
        mono_spec(incoming)
        return incoming.with_array(ArraySpec("float32", (None,)), rate=self.config.rate, sampled_at=None)

    def process(self, frame: Frame) -> Frame:
        """Raises: FrameError: the frame is not mono sound with a known rate."""
        samples, rate = mono(frame), rate_of(frame)
        if rate == self.config.rate:
            return frame
        at, gap_s = sampled_at(frame), self.config.max_gap_s
        converter = self._converters[frame.stream]
        if converter is None or converter.rate != rate or converter.continuity.broken_by(frame, at, gap_s):
            converter = self._converters[frame.stream] = _Converter(rate, self.config)
        out_at = at - converter.delay_s
        out = converter.convert(np.ascontiguousarray(samples))
        converter.continuity.record(frame, at + len(samples) / rate)
        return frame.with_array(out, rate=self.config.rate, sampled_at=out_at)
