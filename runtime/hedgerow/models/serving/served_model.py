"""The model version that serves, with its statistics, and its representations in results, health and reports."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hedgerow.wire.fleet import ModelRef, ReportedModel
from hedgerow.wire.messages import ModelHealth


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that serves, and its statistics.

    Attributes:
        name: the model's name in the configuration.
        path: its file.
        digest: `sha256:…` of its file.
        version: version of its bundle; None: a file named in the node's configuration.
        bundle: digest of the bundle's manifest.
        bundle_name: the model's name in the bundle, which may differ from `name`.
        variant: variant of the bundle.
        since: when it started to serve, Unix seconds.
        backend, backend_version: the backend, and the version of its library.
        device: the device in use, by its name in the backend.
        device_asked: the requested device.
        degraded: why it does not run on the requested device; None: it does.
        passed_over: why preferred backends were not used, by name.
        streams: concurrent inferences.
        threads: threads per inference.
        max_batch: most rows in a batch; 1: the model takes no batches.
        unbatched: why batching stopped although the model claims to take batches; None: it did not.
        inputs, outputs: as text, `name: dtype[shape]`.
        inferences: number of runs of the backend.
        frames: number of rows in these runs.
        failures: number of requests that failed.
        batches: number of runs by rows.
        busy_s: time in the backend, all streams together.
        looked_at, not_finite, drift, input_drift: recent observations of live frames; see `drift.DriftReport`.
    """

    name: str
    path: str
    digest: str
    version: str | None
    bundle: str | None
    bundle_name: str | None
    variant: str | None
    since: float
    backend: str
    backend_version: str
    device: str
    device_asked: str
    degraded: str | None
    passed_over: Mapping[str, str]
    streams: int
    threads: int
    max_batch: int
    unbatched: str | None
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    inferences: int
    frames: int
    failures: int
    batches: Mapping[int, int]
    busy_s: float
    looked_at: int = 0
    not_finite: int = 0
    drift: float | None = None
    input_drift: float | None = None

    @property
    def ref(self) -> ModelRef | None:
        """Reference to the bundle; None: a file named in the node's configuration."""
        if self.version is None or self.bundle is None:
            return None
        return ModelRef(name=self.bundle_name or self.name, version=self.version, digest=self.bundle)

    def as_lineage(self) -> dict[str, str]:
        """Return the model's part of a result's lineage."""
        lineage = {"name": self.name, "digest": self.digest, "backend": self.backend, "device": self.device}
        return lineage if self.version is None else {**lineage, "version": self.version}

    def as_health(self) -> ModelHealth:
        """Return the model's part of a health report."""
        return ModelHealth.model_validate(self, from_attributes=True)

    def as_reported(self, stage: Literal["split", "probation", "kept"], previous: ModelRef | None) -> ReportedModel:
        """Return the model's part of the document that the node reports to its region.

        Args:
            stage: the stage of the version's swap.
            previous: the version that a rollback would restore.
        """
        return ReportedModel(
            model=self.ref,
            variant=self.variant,
            file_digest=self.digest,
            backend=self.backend,
            device=self.device,
            since=self.since,
            results=self.frames,
            stage=stage,
            previous=previous,
        )

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, to send to another process of this node."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> ServedModel:
        """Create it from the values of `as_dict`."""
        return cls(**{**fields, "inputs": tuple(fields["inputs"]), "outputs": tuple(fields["outputs"])})

    def __add__(self, other: ServedModel) -> ServedModel:
        """Merge the same model in two processes: add counts, take the larger drift."""
        added = ("inferences", "frames", "failures", "busy_s", "looked_at", "not_finite")
        counts = {key: getattr(self, key) + getattr(other, key) for key in added}
        return dataclasses.replace(
            self,
            **counts,
            drift=_larger(self.drift, other.drift),
            input_drift=_larger(self.input_drift, other.input_drift),
        )


def _larger(one: float | None, other: float | None) -> float | None:
    return max((each for each in (one, other) if each is not None), default=None)
