"""The `anomaly` stage: compares a model's score with a threshold and explains it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import Field, model_validator

from hedgerow import Drop, Frame, FrameError, FrameSpec, Stage, StageConfig, StageContext, StageMismatch
from hedgerow.stage import THRESHOLD
from hedgerow_signal.metadata import threshold_of


class AnomalyConfig(StageConfig):
    """Threshold, and contents of the result."""

    model: str | None = Field(None, description="Take the threshold from this model's metadata.")
    threshold: float | None = Field(
        None, gt=0, description="Scores above this are anomalous; overrides the model's.", json_schema_extra=THRESHOLD
    )
    only_anomalous: bool = Field(False, description="Drop normal windows as `normal`.")
    label: str | None = Field(
        None,
        description="Field of the message with the known label, added to the result as `label`; for labelled data.",
    )
    score: str = Field("score", description="Name of the model's output with the score.")
    deviations: str = Field(
        "deviations",
        description="Name of the model's output with each feature's deviation, if it has one; used for `because`.",
    )

    @model_validator(mode="after")
    def _threshold_known(self) -> AnomalyConfig:
        if self.model is None and self.threshold is None:
            raise ValueError("set `model` or `threshold`")
        return self


class Anomaly(Stage[AnomalyConfig]):
    """Decide from a window's score whether it is anomalous.

    The result is {"at": Unix seconds of the window, "score", "threshold", "anomalous", "features": by name, "because":
    the three features furthest from normal, in standard deviations, by name, largest first}.
    """

    concurrent = True

    def setup(self, context: StageContext) -> None:
        """Find the threshold.

        Raises: ModelMismatch: no threshold is configured, and the model's metadata has none.
        """
        config = self.config
        if config.threshold is not None:
            self._threshold = config.threshold
        elif config.model is not None:
            self._threshold = threshold_of(context.model(config.model))

    def output_spec(self, incoming: FrameSpec) -> FrameSpec:
        """Take a score. Raises: StageMismatch: it is missing, or not one number."""
        found = incoming.expect_tensor(
            self.config.score, remedy="Put `infer` with an anomaly model before it, or correct `score`."
        )
        if math.prod(size for size in found.shape or () if size is not None) > 1:
            raise StageMismatch(
                "one score", f"{self.config.score}: {found}", remedy="Correct `score`, or use an anomaly model."
            )
        return incoming

    def process(self, frame: Frame) -> Frame | Drop:
        """Raises: FrameError: the score is missing or not finite."""
        score = frame.tensors.get(self.config.score)
        if score is None or np.size(score) != 1:
            got = "nothing" if score is None else str(list(np.shape(score)))
            raise FrameError(
                f"Expected one number in output {self.config.score!r}, got {got}",
                code="no-score",
                remedy="Put `infer` with an anomaly model before this stage, or correct `score`.",
            )
        value = float(np.reshape(score, ()))
        if not np.isfinite(value):
            raise FrameError(
                f"The score is {value}, not a finite number",
                code="no-score",
                remedy="Correct `score`, or check the model with this frame's input.",
            )
        if self.config.only_anomalous and value <= self._threshold:
            return Drop("normal")
        return frame.with_result(
            {
                "at": frame.meta.get("window_at", frame.captured_at),
                "score": value,
                "threshold": self._threshold,
                "anomalous": value > self._threshold,
                **({} if self.config.label is None else {"label": frame.fields.get(self.config.label)}),
                **self._explanation(frame),
            }
        )

    def _explanation(self, frame: Frame) -> dict[str, Any]:
        features = frame.meta.get("features", {})
        deviations = np.ravel(frame.tensors.get(self.config.deviations, ())).tolist()
        if not isinstance(features, Mapping) or not features or len(deviations) != len(features):
            return {"features": features}
        worst = sorted(zip(features, deviations, strict=True), key=lambda item: -abs(item[1]))[:3]
        return {"features": features, "because": dict(worst)}
