"""The `fft-bands` stage: a window of samples becomes a handful of features."""

from __future__ import annotations

import itertools
from typing import Annotated

import numpy as np
from pydantic import Field, model_validator

from hedgerow import Frame, FrameError, Stage, StageConfig, StageContext
from hedgerow_signal.features import Scale, features, names
from hedgerow_signal.metadata import FeatureSpec
from hedgerow_signal.window import MAX_RATE, rate

Hertz = Annotated[float, Field(ge=0, le=MAX_RATE / 2)]


class FftBandsConfig(StageConfig):
    """Which features; best taken from the model that wants them."""

    model: str | None = Field(
        None, description="Take edges, scale, rate and window from this model's metadata, so that they always match."
    )
    edges_hz: tuple[Hertz, ...] = Field(
        (), description="Band edges, ascending: [10, 100, 1000] makes the bands 10-100 and 100-1000 Hz."
    )
    scale: Scale = Field("db", description="Energies and RMS in dB re 1 unit, or linear.")
    rate: float | None = Field(
        None, gt=0, le=MAX_RATE, description="Samples a second, if the frame does not state it (meta `rate`)."
    )
    tensor: str = Field("features", description="Name of the model's input.")

    @model_validator(mode="after")
    def _consistent(self) -> FftBandsConfig:
        if (self.model is None) == (not self.edges_hz):
            raise ValueError("give `model` or `edges_hz`, one of them")
        if self.edges_hz and len(self.edges_hz) < 2:
            raise ValueError("`edges_hz` needs two edges or more")
        if any(low >= high for low, high in itertools.pairwise(self.edges_hz)):
            raise ValueError("`edges_hz` must ascend")
        if self.edges_hz and self.rate is not None and self.edges_hz[-1] > self.rate / 2:
            raise ValueError(f"the last edge is above half the rate, {self.rate / 2:g} Hz")
        return self


class FftBands(Stage[FftBandsConfig]):
    """Energy in frequency bands, RMS, crest factor and kurtosis of a window (`features.py` has the sources).

    The features are `tensors[tensor]`, float32 (1, features); meta gets `features`, the same by name. A window is (n,), or
    (n, channels): then the features of all channels stand one after the other. For pipelines that end here, the result
    is {"at": Unix seconds of the window, "features": by name}.
    """

    concurrent = True

    def setup(self, context: StageContext) -> None:
        """Read what the model wants.

        Raises: ModelMismatch: its metadata does not say.
        """
        config = self.config
        self._wanted = (
            FeatureSpec(edges_hz=config.edges_hz, scale=config.scale, rate=None, window=None)
            if config.model is None
            else FeatureSpec.of(context.model(config.model))
        )

    def process(self, frame: Frame) -> Frame:
        """Raises: FrameError: the window has another rate or length than the model wants, or is no window of numbers."""
        array, sampled = frame.array, self._rate(frame)
        wanted = self._wanted
        if array.ndim not in (1, 2) or array.size == 0 or array.dtype.kind not in "iuf":
            raise FrameError(
                f"Expected (n,) or (n, channels), got {array.dtype}{list(array.shape)}", code="wrong-shape"
            )
        if not np.isfinite(array).all():
            raise FrameError("The samples hold NaN or infinity", code="not-finite")
        if wanted.window is not None and len(array) != wanted.window:
            raise FrameError(
                f"The window has {len(array)} samples, the model was trained on {wanted.window}",
                code="wrong-window",
                remedy=f"Put `window: {{size: {wanted.window}}}` before this stage.",
            )
        if wanted.edges_hz[-1] > sampled / 2:
            raise FrameError(
                f"At {sampled:g} samples a second nothing is known above {sampled / 2:g} Hz; "
                f"the last edge is {wanted.edges_hz[-1]:g} Hz",
                code="wrong-rate",
                remedy="Correct `edges_hz`, or the rate the sensor tells.",
            )
        try:
            with np.errstate(over="ignore", invalid="ignore"):
                found = features(array.T, sampled, wanted.edges_hz, wanted.scale)
        except ValueError as error:
            raise FrameError(
                str(error), code="window-too-short", remedy="Use longer windows or wider bands."
            ) from error
        if not np.isfinite(found).all():
            raise FrameError("The samples are so large that their energy overflows", code="not-finite")
        channels = 1 if array.ndim == 1 else array.shape[1]
        row = found.reshape(1, -1)
        named = dict(zip(names(wanted.edges_hz, channels), row[0].tolist(), strict=True))
        told = {"at": frame.meta.get("window_at", frame.captured_at), "features": named}
        return frame.with_tensors({self.config.tensor: row}, features=named).with_result(told)

    def _rate(self, frame: Frame) -> float:
        value = frame.meta.get("rate", self.config.rate)
        trained = self._wanted.rate
        if value is None:
            if trained is None:
                raise FrameError(
                    "The sampling rate is not known",
                    code="no-rate",
                    remedy="Give `rate` here, in `window`, or in the payload.",
                )
            return trained
        sampled = rate(value)
        if trained is None:
            return sampled
        # Sensors' clocks differ a little; half a per cent moves no energy to another band.
        if abs(sampled - trained) > 0.005 * trained:
            raise FrameError(
                f"The samples come at {sampled:g} Hz, the model was trained at {trained:g} Hz",
                code="wrong-rate",
                remedy="Correct `rate`, or train a model for this sensor.",
            )
        return trained
