"""The `centerface` stage: decodes faces from CenterFace's heat map."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from hedgerow import Frame
from hedgerow_vision.detection.detections import Candidates, Detector, DetectorConfig, tensor
from hedgerow_vision.detection.source import Source
from hedgerow_vision.detection.values import check_probabilities


class CenterFaceConfig(DetectorConfig):
    """Names of the model's outputs; the defaults are those of the published model."""

    labels: tuple[str, ...] = Field(("face",), description="Label of the detections.")
    heat: str = Field("537", description="Name of the tensor with the heat map, (1, 1, h, w).")
    sizes: str = Field("538", description="Name of the tensor with the sizes, (1, 2, h, w): logarithms, height first.")
    offsets: str = Field("539", description="Name of the tensor with the offsets within a cell, (1, 2, h, w): y first.")
    points: str = Field("540", description="Name of the tensor with the landmarks, (1, 2K, h, w): y first.")


class CenterFace(Detector[CenterFaceConfig]):
    """Decode CenterFace: boxes, and the eyes, the nose and the corners of the mouth.

    Xu et al. 2019, "CenterFace: Joint Face Detection and Alignment Using Face as Point"; Zhou et al. 2019, "Objects as
    Points".
    """

    @property
    def outputs(self) -> tuple[str, ...]:
        """See `Detector.outputs`."""
        config = self.config
        return config.heat, config.sizes, config.offsets, config.points

    def check(self, source: Source) -> None:
        """See `Detector.check`."""
        source.check_floats(*self.outputs)
        source.check_classes(1, "CenterFace")

    def decode_outputs(self, frame: Frame, source: Source) -> Candidates:
        """See `Detector.decode_outputs`."""
        config = self.config
        heat = tensor(frame, config.heat, 1, None, None)[0]
        sizes = tensor(frame, config.sizes, 2, *heat.shape)
        offsets = tensor(frame, config.offsets, 2, *heat.shape)
        landmarks = tensor(frame, config.points, None, *heat.shape)
        check_probabilities(float(heat.min()), float(heat.max()), config.heat)
        rows, columns = np.nonzero(heat >= config.min_score)
        at = (slice(None), rows, columns)
        # Size of a cell as a fraction of the input; sizes and offsets are in cells, the heat is at a cell's centre.
        cell = np.array([1 / heat.shape[1], 1 / heat.shape[0]])
        size = np.exp(np.clip(sizes[at][::-1].T, -20, 20)) * cell
        centre = (np.stack([columns, rows], axis=1) + offsets[at][::-1].T + 0.5) * cell
        corner = np.clip(centre - size / 2, 0, 1)
        boxes = np.concatenate([corner, np.minimum(corner + size, 1)], axis=1)
        points = (
            landmarks[at].T.reshape(len(rows), len(landmarks) // 2, 2)[:, :, ::-1] * size[:, None] + corner[:, None]
        )
        return Candidates(boxes, heat[rows, columns], np.zeros(len(rows), np.intp), points)
