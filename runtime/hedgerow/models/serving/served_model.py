"""Which version of a model serves where: the one fact, and each form in which it is told."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hedgerow.wire.fleet import ModelRef, ReportedModel
from hedgerow.wire.messages import ModelHealth


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model as it serves: which version, where, and what it has done.

    Attributes:
        name: the model's name in the configuration.
        path: its file.
        digest: `sha256:…` of its file.
        version: of the bundle it belongs to; None: it is a file of the node's own.
        bundle: digest of that bundle's manifest.
        bundle_name: the model's name there, which the node's file need not share.
        variant: which of the bundle's variants it is.
        since: Unix seconds since which it serves.
        backend: what runs it, and that library's version.
        device: where it runs, as the backend names it.
        device_asked: where it was to run.
        degraded: why it does not run there; None: it does.
        passed_over: why backends that come first were not taken, by name.
        streams: inferences at the same time.
        threads: threads one inference may use.
        max_batch: most rows in a batch; 1: the model takes no batches.
        unbatched: why batches ended although the model says that it takes them; None: they did not.
        inputs, outputs: as text, `name: dtype[shape]`.
        inferences: runs of the backend so far.
        frames: rows they took in.
        failures: requests that failed.
        batches: how many runs had how many rows.
        busy_s: seconds spent in the backend, all streams together.
        looked_at, not_finite, drift, input_drift: what was seen of its live frames of late; see `drift.DriftReport`.
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
        """The bundle's version that serves; None: a file of the node's own."""
        if self.version is None or self.bundle is None:
            return None
        return ModelRef(name=self.bundle_name or self.name, version=self.version, digest=self.bundle)

    def as_lineage(self) -> dict[str, str]:
        """As results name it."""
        named = {"name": self.name, "digest": self.digest, "backend": self.backend, "device": self.device}
        return named if self.version is None else {**named, "version": self.version}

    def as_health(self) -> ModelHealth:
        """As health reports show it."""
        return ModelHealth.model_validate(self, from_attributes=True)

    def as_reported(self, stage: Literal["split", "probation", "kept"], previous: ModelRef | None) -> ReportedModel:
        """As the node reports it to its region.

        Args:
            stage: how far the version is on its way to being kept.
            previous: the version that would serve if this one were taken back.
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
        """Plain values, for another process of this node."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> ServedModel:
        """What `as_dict` was called on."""
        return cls(**{**fields, "inputs": tuple(fields["inputs"]), "outputs": tuple(fields["outputs"])})

    def __add__(self, other: ServedModel) -> ServedModel:
        """The same model in two processes: counts together, the larger drift."""
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
