"""What a model's metadata says about the features it takes: written by `train`, read by the stages.

| key | holds |
|---|---|
| `hedgerow.edges_hz` | band edges, JSON list |
| `hedgerow.scale` | `db` or `linear` |
| `hedgerow.rate` | samples a second |
| `hedgerow.window` | samples in a window |
| `hedgerow.threshold` | score from which a window counts as anomalous |
"""

from __future__ import annotations

from typing import NoReturn

from pydantic import BaseModel, ConfigDict, Field, Json, ValidationError

from hedgerow import ModelHandle
from hedgerow.errors import ModelMismatch
from hedgerow_signal.features import Scale

PREFIX = "hedgerow."


class FeatureSpec(BaseModel):
    """The features a model was trained on."""

    model_config = ConfigDict(frozen=True)

    edges_hz: tuple[float, ...] = Field(min_length=2)
    scale: Scale
    rate: float | None = Field(gt=0)
    window: int | None = Field(gt=0)

    @classmethod
    def of(cls, model: ModelHandle) -> FeatureSpec:
        """Read it from a model's metadata.

        Raises: ModelMismatch: the metadata does not say, or makes no sense.
        """
        said = {key: model.metadata.get(PREFIX + key) for key in cls.model_fields}
        try:
            return _Written.model_validate(said).spec()
        except ValidationError as error:
            _unsaid(model, "the features it takes", error)


class _Written(BaseModel):
    """The same as text."""

    edges_hz: Json[tuple[float, ...]]
    scale: Scale
    rate: float
    window: int

    def spec(self) -> FeatureSpec:
        return FeatureSpec(edges_hz=self.edges_hz, scale=self.scale, rate=self.rate, window=self.window)


def threshold_of(model: ModelHandle) -> float:
    """The score from which a window counts as anomalous.

    Raises: ModelMismatch: the metadata does not say, or makes no sense.
    """
    try:
        return float(model.metadata[PREFIX + "threshold"])
    except (KeyError, ValueError) as error:
        _unsaid(model, "its threshold", error)


def _unsaid(model: ModelHandle, what: str, cause: Exception) -> NoReturn:
    raise ModelMismatch(
        f"Model {model.name} does not say {what} in its metadata ({PREFIX}*)",
        remedy="Give the stage's own settings (`edges_hz`, `threshold`), or a model made by hedgerow_signal.train.",
    ) from cause
