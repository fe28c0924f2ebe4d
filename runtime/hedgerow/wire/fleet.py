"""What a region and its nodes tell each other of models: what should run, and what provably runs.

Rules:
- A desired document is whole: what it does not name is to be as the node's own file says. A higher generation supersedes
  a lower one, whatever became of that.
- It is no authority: which model is which is settled by signatures. A document may only choose among signed models.
- A reported document says what results say: the digest of the file that made them, not of the one that was asked for.
- Both are retained, so whoever comes late knows the last word.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from hedgerow.errors import ConfigError
from hedgerow.labels import check_labels
from hedgerow.topics import is_name
from hedgerow.wire.messages import ErrorBody, WireMessage

DIGEST_PATTERN = r"^sha256:[0-9a-f]{64}$"
VERSION_PATTERN = r"^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?$"


def _named(text: str) -> str:
    if not is_name(text):
        raise ValueError("no name")
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
"""How far a node is with a desired document: the words of AWS IoT Jobs."""


class ModelRef(WireMessage):
    """A version of a model. The digest is that of its manifest's bytes, and so of everything in the bundle."""

    name: Named
    version: Version
    digest: Digest

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


class SwapPolicy(WireMessage):
    """How a node goes over to another version of a model, and when it comes back by itself.

    A new version is loaded beside the old one, warmed up and tried on its golden inputs. Then, if told to, it runs on live
    frames unseen (`shadow_s`), or serves part of the streams (`split_percent` for `split_s`). Then it serves all, on
    probation: if it breaks a limit, the old one serves again.
    """

    shadow_s: float = Field(0, ge=0, description="Seconds it runs on live frames without being heard.")
    split_percent: int = Field(0, ge=0, le=99, description="Share of the streams it serves at first.")
    split_s: float = Field(0, ge=0, description="Seconds of that.")
    probation_s: float = Field(60, ge=0, description="Seconds it serves all before it is kept.")
    min_frames: int = Field(
        20, ge=0, description="Frames it has to have served to be kept; until then probation goes on, up to tenfold."
    )
    max_error_share: float = Field(0.01, ge=0, le=1, description="Share of its frames that may fail.")
    max_disagreement: float = Field(
        0.05, ge=0, le=1, description="Share of a shadow's outputs that may differ by more than its tolerance."
    )
    max_slowdown: float = Field(2.0, gt=0, description="Times the old one's time a frame that it may take.")
    max_growth_bytes: int = Field(
        256 * 2**20, ge=0, description="Memory the node may gain while it serves on probation."
    )
    max_shift: float = Field(
        0.5,
        gt=0,
        description="How far its outputs' distribution may be from the manifest's baseline: population stability index.",
    )
    memory: Literal["refuse", "brief-gap"] = Field(
        "refuse",
        description="If both do not fit into memory: refuse the new one, or unload the old one first. Frames then wait.",
    )
    timeout_s: float = Field(
        3600, gt=0, description="Seconds from begin to end, fetching included, after which it is given up."
    )


class Desired(WireMessage):
    """What a node is to run.

    Attributes:
        node: its address, so that a document that strays is noticed.
        generation: counts up by node; a lower one is old news.
        at: Unix seconds; when it was made.
        expires_at: Unix seconds after which a node that has not begun with it must not begin; None: never.
        models: model's name in the node's file → version to serve.
        pipelines: pipeline's name → what is different from the node's file, merged as a topology's `override` is; null: it
            does not run.
        labels: the node's labels that the region sets.
        swap: how to go over to other versions.
        rollout: on whose behalf; None: an operator's own hand.
    """

    schema_: Literal["hedgerow.desired/1"] = Field("hedgerow.desired/1", alias="schema")
    node: str
    generation: int = Field(ge=1)
    at: float
    expires_at: float | None = None
    models: dict[Named, ModelRef] = Field(default_factory=dict)
    pipelines: dict[Named, dict[str, Any] | None] = Field(default_factory=dict)
    labels: LabelMap = Field(default_factory=dict)
    swap: SwapPolicy = SwapPolicy()
    rollout: str | None = None


class ReportedModel(WireMessage):
    """A model of a node, as it serves.

    Attributes:
        model: the version that serves; None: a file of the node's own.
        variant: which of the bundle's variants.
        file_digest: of the file that runs, as results carry it.
        backend, device: what runs it, and where.
        since: Unix seconds since which it serves.
        results: frames that went through it since then.
        stage: how far the version is on its way to being kept.
        previous: the version that would serve if this one were taken back.
    """

    model: ModelRef | None = None
    variant: str | None = None
    file_digest: str
    backend: str
    device: str
    since: float
    results: int = 0
    stage: Literal["split", "probation", "kept"] = "kept"
    previous: ModelRef | None = None


class Quarantined(WireMessage):
    """A version that this node will not load again by itself, and why."""

    digest: Digest
    name: Named
    version: Version
    code: str
    reason: str
    at: float


class Reported(WireMessage):
    """What a node runs, and how far it is with what it should run.

    Attributes:
        generation: of the desired document last taken in; 0: none yet.
        state: how far it is with that.
        step: what it is doing: `verify`, `fetch`, `load`, `golden`, `shadow`, `split`, `switch`, `probation` …, with the
            model's name; empty when it is done.
        progress: 0..1 of that step, where it is known.
        error: why it failed, was rejected or rolled back.
        rolled_back: models that are back on their previous version, by themselves, in this generation.
        labels: all of the node's labels: its file's, the machine's, the region's.
        store_bytes, store_max_bytes: what the model store takes and may take.
    """

    schema_: Literal["hedgerow.reported/1"] = Field("hedgerow.reported/1", alias="schema")
    node: str
    session: str
    at: float
    generation: int = 0
    state: JobState = "succeeded"
    step: str = ""
    progress: float | None = None
    error: ErrorBody | None = None
    rolled_back: list[Named] = Field(default_factory=list)
    models: dict[str, ReportedModel] = Field(default_factory=dict)
    pipelines: dict[str, str] = Field(default_factory=dict)
    quarantined: list[Quarantined] = Field(default_factory=list)
    labels: LabelMap = Field(default_factory=dict)
    store_bytes: int = 0
    store_max_bytes: int = 0
