"""The `fft-bands` stage: computes spectral and time-domain features of a window."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import Field, model_validator

from hedgerow import ArraySpec, Frame, FrameError, FrameSpec, Stage, StageConfig, StageContext, StageMismatch
from hedgerow_signal.features import Scale, features, names
from hedgerow_signal.metadata import FeatureSpec
from hedgerow_signal.window import MAX_RATE, rate

Hertz = Annotated[float, Field(ge=0, le=MAX_RATE / 2)]


class FftBandsConfig(StageConfig):
    """Features to compute; best taken from the model that uses them."""

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
            raise ValueError("set either `model` or `edges_hz`")
        if self.edges_hz and len(self.edges_hz) < 2:
            raise ValueError("`edges_hz` needs at least two edges")
        if any(low >= high for low, high in itertools.pairwise(self.edges_hz)):
            raise ValueError("`edges_hz` must ascend")
        if self.edges_hz and self.rate is not None and self.edges_hz[-1] > self.rate / 2:
            raise ValueError(f"the last edge, {self.edges_hz[-1]:g} Hz, is above half the rate, {self.rate / 2:g} Hz")
        return self


class FftBands(Stage[FftBandsConfig]):
    """Compute energy in frequency bands, RMS, crest factor and kurtosis of a window (`features.py` has the sources).

    The features are `tensors[tensor]`, float32 (1, features); meta `features` has them by name. A window is (n,), or
    (n, channels), whose features are concatenated channel by channel. For pipelines that end here, the result is {"at":
    Unix seconds of the window, "features": by name}.
    """

    concurrent = True

    def setup(self, context: StageContext) -> None:
        """Read which features the model takes.

        Raises: ModelMismatch: its metadata lacks them.
        """
        config = self.config
        self._spec = (
            FeatureSpec(edges_hz=config.edges_hz, scale=config.scale, rate=None, window=None)
            if config.model is None
            else FeatureSpec.of(context.model(config.model))
        )

    def output_spec(self, incoming: FrameSpec) -> FrameSpec:
        """Take windows; give their features.

        Raises: StageMismatch: their length or rate is not what the model was trained on.
        """
        spec, size = self._spec, self._spec.window
        accepted = (ArraySpec(shape=(size,)), ArraySpec(shape=(size, None)))
        remedy = f"Put `window: {{size: {size or '…'}}}` before it."
        shape = incoming.expect_array(*accepted, remedy=remedy).shape
        rate = incoming.meta.get("rate") or (self.config.rate if incoming.unstated else None)
        if rate is not None and spec.rate is not None and abs(rate - spec.rate) > 0.005 * spec.rate:
            remedy = "Correct `rate`, or train a model for this sensor."
            raise StageMismatch(f"windows at {spec.rate:g} samples a second", f"windows at {rate:g}", remedy=remedy)
        rate = spec.rate or rate
        if shape is not None and shape[0] is not None and rate is not None:
            _check_resolution(shape[0], rate, spec.edges_hz)
        channels = None if shape is None else 1 if len(shape) == 1 else shape[1]
        count = None if channels is None else len(names(spec.edges_hz, channels))
        return incoming.with_tensors({self.config.tensor: ArraySpec("float32", (1, count))}, features=None)

    def process(self, frame: Frame) -> Frame:
        """Raises: FrameError: the window is not numeric, or its rate or length does not match the model."""
        array, sampled = frame.array, self._rate(frame)
        spec = self._spec
        if array.ndim not in (1, 2) or array.size == 0 or array.dtype.kind not in "iuf":
            raise FrameError(
                f"Expected (n,) or (n, channels), got {array.dtype}{list(array.shape)}", code="wrong-shape"
            )
        if not np.isfinite(array).all():
            raise FrameError("The samples contain NaN or infinity", code="not-finite")
        if spec.window is not None and len(array) != spec.window:
            raise FrameError(
                f"The window has {len(array)} samples, but the model was trained on {spec.window}",
                code="wrong-window",
                remedy=f"Put `window: {{size: {spec.window}}}` before this stage.",
            )
        if spec.edges_hz[-1] > sampled / 2:
            raise FrameError(
                f"The last edge, {spec.edges_hz[-1]:g} Hz, is above half the sampling rate, {sampled / 2:g} Hz",
                code="wrong-rate",
                remedy="Correct `edges_hz`, or the rate that the sensor sends.",
            )
        try:
            with np.errstate(over="ignore", invalid="ignore"):
                computed = features(array.T, sampled, spec.edges_hz, spec.scale)
        except ValueError as error:
            raise FrameError(
                str(error), code="window-too-short", remedy="Use longer windows or wider bands."
            ) from error
        if not np.isfinite(computed).all():
            raise FrameError("The samples are so large that their energy overflows", code="not-finite")
        channels = 1 if array.ndim == 1 else array.shape[1]
        row = computed.reshape(1, -1)
        named = dict(zip(names(spec.edges_hz, channels), row[0].tolist(), strict=True))
        result = {"at": frame.meta.get("window_at", frame.captured_at), "features": named}
        return frame.with_tensors({self.config.tensor: row}, features=named).with_result(result)

    def _rate(self, frame: Frame) -> float:
        value = frame.meta.get("rate", self.config.rate)
        trained = self._spec.rate
        if value is None:
            if trained is None:
                raise FrameError(
                    "The sampling rate is unknown",
                    code="no-rate",
                    remedy="Set `rate` of `window` or `fft-bands`, or send it with the payload.",
                )
            return trained
        sampled = rate(value)
        if trained is None:
            return sampled
        # Tolerate inaccurate sensor clocks; half a per cent does not move energy to another band.
        if abs(sampled - trained) > 0.005 * trained:
            raise FrameError(
                f"The sampling rate is {sampled:g} Hz, but the model was trained at {trained:g} Hz",
                code="wrong-rate",
                remedy="Correct `rate`, or train a model for this sensor.",
            )
        return trained


def _check_resolution(size: int, rate: float, edges_hz: Sequence[float]) -> None:
    """Check that windows of this size and rate have every band. Raises: StageMismatch: they do not."""
    gets = f"windows of {size} at {rate:g} samples a second"
    if edges_hz[-1] > rate / 2:
        takes = f"at least {2 * edges_hz[-1]:g} samples a second, for its last edge"
        raise StageMismatch(takes, gets, remedy="Correct `edges_hz`, or the rate.")
    try:
        features(np.zeros(size, np.float32), rate, edges_hz)
    except ValueError as error:
        raise StageMismatch(
            "longer windows", f"{gets}: {error}", remedy="Use longer windows or wider bands."
        ) from error
