"""The `resample` stage: sound at any rate becomes sound at the rate a model wants."""

from __future__ import annotations

from typing import Literal

import numpy as np
import soxr
from pydantic import Field

from hedgerow import Frame, PerStream, Stage, StageConfig, StageContext
from hedgerow_audio.samples import MAX_RATE, MIN_RATE, Continuity, Samples, mono, rate_of, sampled_at


class ResampleConfig(StageConfig):
    """The rate wanted."""

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
    """A resampler and what went through it."""

    def __init__(self, rate: int, config: ResampleConfig) -> None:
        self.rate = rate
        self.continuity = Continuity()
        self._target = config.rate
        self._soxr = soxr.ResampleStream(rate, config.rate, 1, dtype="float32", quality=config.quality)
        self._taken = 0
        self._given = 0

    @property
    def delay_s(self) -> float:
        """How far what comes out next lies behind what goes in next."""
        return self._taken / self.rate - self._given / self._target

    def convert(self, samples: Samples) -> Samples:
        out: Samples = self._soxr.resample_chunk(samples)
        self._taken += len(samples)
        self._given += len(out)
        return out


class Resample(Stage[ResampleConfig]):
    """Change the sampling rate, with the SoX resampler; its filter runs on from frame to frame of a stream.

    One frame comes out for each that goes in. The filter looks ahead, so sound comes out some milliseconds late, at
    first not at all (an empty array); `sampled_at` says when the samples that do come out were taken. After a gap, or
    when the sensor's rate changes, it begins anew and what the filter still held is lost.
    """

    def setup(self, context: StageContext) -> None:
        """Make the state."""
        self._converters: PerStream[_Converter | None] = context.per_stream(lambda: None)

    def process(self, frame: Frame) -> Frame:
        """Raises: FrameError: the frame is not mono sound of a known rate."""
        samples, rate = mono(frame), rate_of(frame)
        if rate == self.config.rate:
            return frame
        at, gap_s = sampled_at(frame), self.config.max_gap_s
        converter = self._converters[frame.stream]
        if converter is None or converter.rate != rate or converter.continuity.broken_by(frame, at, gap_s):
            converter = self._converters[frame.stream] = _Converter(rate, self.config)
        out_at = at - converter.delay_s
        out = converter.convert(np.ascontiguousarray(samples))
        converter.continuity.take(frame, at + len(samples) / rate)
        return frame.with_array(out, rate=self.config.rate, sampled_at=out_at)
