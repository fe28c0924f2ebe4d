"""Messages between a region and its nodes about models: desired and reported documents.

Rules:
- A desired document is complete: everything it does not name is as in the node's own file. A higher generation supersedes a
  lower one, whatever its outcome.
- A region whose node holds a generation that the region did not give (a broker on the way was taken over) names that one in
  `supersedes`; the node then takes the document although its generation is lower.
- A document grants no trust: signatures decide what a model is, and a document only chooses among signed models.
- A reported document has the digest of the running file, as results do, not of the requested one.
- Both are retained, so a client that connects later gets the newest one.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import orjson
from pydantic import AfterValidator, Field, field_validator

from hedgerow.errors import ConfigError
from hedgerow.labels import check_labels
from hedgerow.topics import is_name
from hedgerow.wire.messages import ErrorBody, WireMessage
from hedgerow.wire.ranges import MAX_GENERATION, Count, Generation, Quantity, Seconds, UnixTime

DIGEST_PATTERN = r"^sha256:[0-9a-f]{64}$"
VERSION_PATTERN = r"^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?$"


def _named(text: str) -> str:
    if not is_name(text):
        raise ValueError("not a valid name")
    return text


def _labelled(labels: dict[str, str]) -> dict[str, str]:
    try:
        check_labels(labels)
    except ConfigError as error:
        raise ValueError(str(error)) from error
    return labels


Named = Annotated[str, AfterValidator(_named)]
Digest = Annotated[str, Field(pattern=DIGEST_PATTERN)]
Version = Annotated[str, Field(pattern=VERSION_PATTERN, max_length=64)]
LabelMap = Annotated[dict[str, str], AfterValidator(_labelled)]

JobState = Literal["queued", "in-progress", "succeeded", "failed", "timed-out", "rejected", "removed", "canceled"]
"""Progress of a node with a desired document; the states are those of AWS IoT Jobs."""


class ModelRef(WireMessage):
    """A version of a model, or of signed pipelines. The digest is of its manifest, and so covers everything in the bundle."""

    name: Named
    version: Version
    digest: Digest

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


class SwapPolicy(WireMessage):
    """How a node swaps to another version of a model, and when it rolls back by itself.

    A new version is loaded beside the old one, warmed up and checked against its golden cases. Then it optionally runs on live
    frames without publishing (`shadow_s`), or serves some of the streams (`split_percent` for `split_s`). Then it serves all,
    under canary analysis: if it breaks a limit, the node rolls back.
    """

    shadow_s: Seconds = Field(0, ge=0, description="Seconds to run on live frames without publishing results.")
    split_percent: int = Field(0, ge=0, le=99, description="Percentage of the streams to serve at first.")
    split_s: Seconds = Field(0, ge=0, description="Seconds to serve only those streams.")
    probation_s: Seconds = Field(
        60, ge=0, description="Seconds of canary analysis, while it serves all streams, before the version is kept."
    )
    min_frames: Count = Field(
        20,
        ge=0,
        description="Frames it must serve to be kept; until then canary analysis continues, up to ten times as long.",
    )
    max_error_share: float = Field(0.01, ge=0, le=1, description="Share of its frames that may fail.")
    max_disagreement: float = Field(
        0.05, ge=0, le=1, description="Share of a shadow's outputs that may differ by more than their tolerance."
    )
    max_slowdown: float = Field(
        2.0,
        gt=0,
        allow_inf_nan=False,
        description="Factor by which its time per frame may exceed that of the old version.",
    )
    max_growth_bytes: Count = Field(
        256 * 2**20, ge=0, description="Bytes by which the node's memory may grow during canary analysis."
    )
    max_shift: float = Field(
        0.5,
        gt=0,
        allow_inf_nan=False,
        description="Distance that its outputs may have from the manifest's baseline, as population stability index.",
    )
    memory: Literal["refuse", "brief-gap"] = Field(
        "refuse",
        description="If both versions do not fit into memory: refuse the new one, or unload the old one first while frames wait.",
    )
    timeout_s: Seconds = Field(
        3600, gt=0, description="Seconds for the whole swap, including the fetch, before it is cancelled."
    )


class Desired(WireMessage):
    """Desired document: what a node should run.

    Attributes:
        node: its address, so that a misdelivered document is noticed.
        generation: ascending per node; lower ones are ignored.
        supersedes: a generation that the node holds and its region never gave; at this one alone, it goes back to a lower one.
        at: Unix seconds of its creation.
        expires_at: Unix seconds after which a node must not start on it; None: never.
        models: name in the node's file → version to serve.
        withdrawn: models whose versions from the region are not to serve any more. One without a file in the node's own
            configuration is unloaded, if no pipeline needs it.
        pipelines: name → changes of a pipeline's queue, rate, lanes, batch and thresholds; null: it does not run. A node may
            allow all changes, merged like a topology's `override`.
        signed_pipelines: pipelines that an owner has signed, which run beside or instead of those in the node's file.
        labels: labels that the region sets, to select nodes for rollouts; no signature counts them.
        swap: how to swap to other versions.
        rollout: name of the rollout that caused it; None: an operator did.
    """

    schema_: Literal["hedgerow.desired/1"] = Field("hedgerow.desired/1", alias="schema")
    node: str
    generation: int = Field(ge=1, le=MAX_GENERATION)
    supersedes: Count | None = None
    at: UnixTime
    expires_at: UnixTime | None = None
    models: dict[Named, ModelRef] = Field(default_factory=dict)
    withdrawn: list[Named] = Field(default_factory=list)
    pipelines: dict[Named, dict[str, Any] | None] = Field(default_factory=dict)
    signed_pipelines: ModelRef | None = None
    labels: LabelMap = Field(default_factory=dict)
    swap: SwapPolicy = SwapPolicy()
    rollout: str | None = None

    @field_validator("pipelines")
    @classmethod
    def _storable(cls, pipelines: dict[str, Any]) -> dict[str, Any]:
        """Refuse what a node could not store, or would read back as something else: NaN as null, which removes a setting."""
        for name, changes in pipelines.items():
            try:
                stored = orjson.loads(orjson.dumps(changes))
            except orjson.JSONEncodeError as error:
                raise ValueError(f"the changes of {name} cannot be stored: {error}") from error
            if stored != changes:
                raise ValueError(f"the changes of {name} have NaN or infinity, which JSON cannot express")
        return pipelines


class ReportedModel(WireMessage):
    """A model that a node serves.

    Attributes:
        model: the version; None: the node's own file.
        variant: of the bundle.
        file_digest: of the running file, as in results.
        backend, device: what runs it.
        since: Unix seconds since it serves.
        results: frames processed since then.
        stage: stage of its swap; `probation` is canary analysis.
        previous: the version that a rollback would restore.
    """

    model: ModelRef | None = None
    variant: str | None = None
    file_digest: str
    backend: str
    device: str
    since: UnixTime
    results: Count = 0
    stage: Literal["split", "probation", "kept"] = "kept"
    previous: ModelRef | None = None


class Quarantined(WireMessage):
    """A version that this node does not load again by itself, and why."""

    digest: Digest
    name: Named
    version: Version
    code: str
    reason: str
    at: UnixTime


class Reported(WireMessage):
    """Reported document: what a node runs, and its progress with the desired document.

    Attributes:
        generation: of the desired document last accepted; 0: none yet.
        state: progress with it.
        step: current step (`verify`, `fetch`, `load`, `golden`, `shadow`, `split`, `switch`, `probation` …) with the model's
            name; empty when done.
        progress: of that step, 0 to 1; None: unknown.
        error: why it failed, was rejected or rolled back.
        rolled_back: models that the node rolled back by itself in this generation.
        configured: models in the node's file: name → the only bundle that it accepts, or "" for any. None: not known, from an
            older version of Hedgerow.
        signed_pipelines: those that run.
        labels: the node's own labels: from its file and the machine.
        store_bytes, store_max_bytes: size and quota of the model store.
    """

    schema_: Literal["hedgerow.reported/1"] = Field("hedgerow.reported/1", alias="schema")
    node: str
    session: str
    at: UnixTime
    generation: Generation = 0
    state: JobState = "succeeded"
    step: str = ""
    progress: Quantity | None = None
    error: ErrorBody | None = None
    rolled_back: list[Named] = Field(default_factory=list)
    configured: dict[Named, str] | None = None
    models: dict[str, ReportedModel] = Field(default_factory=dict)
    pipelines: dict[str, str] = Field(default_factory=dict)
    signed_pipelines: ModelRef | None = None
    quarantined: list[Quarantined] = Field(default_factory=list)
    labels: LabelMap = Field(default_factory=dict)
    store_bytes: Count = 0
    store_max_bytes: Count = 0
