"""A model's metadata about its features, written by `train` and read by the stages.

| key | value |
|---|---|
| `hedgerow.edges_hz` | band edges, JSON list |
| `hedgerow.scale` | `db` or `linear` |
| `hedgerow.rate` | samples a second |
| `hedgerow.window` | samples in a window |
| `hedgerow.threshold` | scores above this are anomalous |
"""

from __future__ import annotations

from typing import NoReturn

from pydantic import BaseModel, ConfigDict, Field, Json, ValidationError

from hedgerow import ModelHandle
from hedgerow.errors import ModelMismatch
from hedgerow_signal.features import Scale

PREFIX = "hedgerow."


class FeatureSpec(BaseModel):
    """Features that a model was trained on."""

    model_config = ConfigDict(frozen=True)

    edges_hz: tuple[float, ...] = Field(min_length=2)
    scale: Scale
    rate: float | None = Field(gt=0)
    window: int | None = Field(gt=0)

    @classmethod
    def of(cls, model: ModelHandle) -> FeatureSpec:
        """Read the features from a model's metadata.

        Raises: ModelMismatch: the metadata lacks them, or they are invalid.
        """
        values = {key: model.metadata.get(PREFIX + key) for key in cls.model_fields}
        try:
            return _SerialisedSpec.model_validate(values).spec()
        except ValidationError as error:
            _raise_mismatch(model, "features", error)


class _SerialisedSpec(BaseModel):
    """A FeatureSpec as metadata stores it, in text."""

    edges_hz: Json[tuple[float, ...]]
    scale: Scale
    rate: float
    window: int

    def spec(self) -> FeatureSpec:
        return FeatureSpec(edges_hz=self.edges_hz, scale=self.scale, rate=self.rate, window=self.window)


def threshold_of(model: ModelHandle) -> float:
    """Return the score above which a window is anomalous.

    Raises: ModelMismatch: the metadata lacks it, or it is not a number.
    """
    try:
        return float(model.metadata[PREFIX + "threshold"])
    except (KeyError, ValueError) as error:
        _raise_mismatch(model, "threshold", error)


def _raise_mismatch(model: ModelHandle, what: str, cause: Exception) -> NoReturn:
    raise ModelMismatch(
        f"The metadata of model {model.name} ({PREFIX}*) has no valid {what}",
        remedy="Set `edges_hz` or `threshold` of the stage, or use a model trained by hedgerow_signal.train.",
    ) from cause
