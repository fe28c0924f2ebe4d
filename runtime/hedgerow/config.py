"""What a node's configuration file may say.

Rules:
- Frozen, unknown keys refused, units in names (`max_age_s`, `max_bytes`).
- Every field has a description: it is the documentation, the JSON Schema and the editor's hint.
- These classes say what is valid by itself. Whether a stage or a model exists is found out when the node builds.

Reading files, with line numbers in the errors, is `configfile.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    model_serializer,
    model_validator,
)

from hedgerow.errors import ConfigError
from hedgerow.labels import check_labels
from hedgerow.topics import Address, check_filter, is_name


class Section(BaseModel):
    """A part of the configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _name(text: str) -> str:
    if not is_name(text):
        raise ValueError("use 1 to 64 letters, digits, `.`, `_` or `-`, beginning with a letter or digit")
    return text


def _filter(text: str) -> str:
    try:
        return check_filter(text)
    except ConfigError as error:
        raise ValueError(error.explain()) from error


def _labelled(labels: dict[str, str]) -> dict[str, str]:
    try:
        check_labels(labels)
    except ConfigError as error:
        raise ValueError(error.explain()) from error
    return labels


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Name = Annotated[str, AfterValidator(_name)]
Filters = Annotated[
    tuple[Annotated[str, AfterValidator(_filter)], ...],
    Field(min_length=1),
    BeforeValidator(_listed, json_schema_input_type=str | Annotated[list[str], Field(min_length=1)]),
]


class NodeSection(Section):
    """Who this node is."""

    region: Name = Field("local", description="Region the site belongs to.")
    site: Name = Field("site", description="Site (one LAN, one broker) the node stands in.")
    name: Name = Field("node", description="Name of the node, unique within its site.")
    labels: Annotated[dict[str, str], AfterValidator(_labelled)] = Field(
        default_factory=dict,
        description="What the region chooses nodes by, besides what the machine says of itself (`arch`, `cores`, `site` …).",
        examples=[{"hardware": "nuc", "ring": "early"}],
    )
    state_dir: Path = Field(
        Path(".hedgerow"),
        description="Folder for what the node keeps (compiled and tuned models), relative to this file.",
    )
    drain_s: float = Field(10, gt=0, description="Longest time to finish frames in flight when stopping or reloading.")
    threads: int | None = Field(
        None, ge=1, description="Cores this node may use; by default those the container or the affinity mask allows."
    )
    event_loop: Literal["asyncio", "uvloop"] = Field(
        "asyncio",
        description="`uvloop` (`pip install hedgerow[uvloop]`) costs less where most frames are QoS 1 or nearly nothing is "
        "computed; with a model it made no difference, or cost more. Measure.",
    )

    @property
    def address(self) -> Address:
        """Where the node stands in the topic tree."""
        return Address(self.region, self.site, self.name)


class TlsSection(Section):
    """Certificates for the broker."""

    ca_file: Path | None = Field(
        None, description="Authority that signed the broker's certificate; the system's if left out."
    )
    cert_file: Path | None = Field(None, description="This node's certificate, PEM.")
    key_file: Path | None = Field(None, description="This node's private key, PEM.")
    crl_file: Path | None = Field(
        None,
        description="Revocation lists of all authorities, PEM; a broker whose certificate is revoked is then refused.",
    )
    min_version: Literal["1.2", "1.3"] = Field(
        "1.3", description="Oldest TLS that will do. 1.2 is for brokers that have nothing newer."
    )


class BrokerSection(Section):
    """The site's MQTT 5 broker."""

    url: str = Field(
        "mqtt://127.0.0.1:1883",
        pattern=r"^(mqtts?://(\[[0-9a-fA-F:.]+\]|[^/\s:@\[\]]+)(:[0-9]{1,5})?|unix://?/\S+)$",
        description="mqtt://HOST:PORT, mqtts://HOST:PORT (TLS) or unix:///path/to/socket.",
        examples=["mqtt://127.0.0.1:1883", "mqtts://broker.site.lan:8883", "unix:///run/mosquitto.sock"],
    )
    username: str | None = Field(None, description="User name, if the broker asks for one.")
    password: SecretStr | None = Field(
        None, description="Password; better in `password_file` or HEDGEROW_BROKER__PASSWORD."
    )
    password_file: Path | None = Field(None, description="File that holds the password on its first line.")
    tls: TlsSection = Field(TlsSection(), description="Certificates, for mqtts://.")
    keepalive_s: int = Field(30, ge=5, le=65535, description="Longest silence before the link counts as dead.")
    session_expiry_s: int = Field(
        86_400, ge=0, description="How long the broker keeps QoS 1 frames for this node while it is away."
    )

    @model_validator(mode="after")
    def _one_password(self) -> BrokerSection:
        if self.password is not None and self.password_file is not None:
            raise ValueError("give `password` or `password_file`, not both")
        return self

    def anchored(self, folder: Path) -> BrokerSection:
        """The same, with paths that count from a folder."""
        files = {name: folder / path for name, path in self.tls if isinstance(path, Path)}
        changes: dict[str, Any] = {"tls": self.tls.model_copy(update=files)}
        if self.password_file is not None:
            changes["password_file"] = folder / self.password_file
        return self.model_copy(update=changes)


class ModelConfig(Section):
    """A model and how to run it."""

    path: str = Field(
        description="Model file (.onnx, .xml, .tflite), relative to this file; `package:NAME/path/inside` for a file inside an "
        "installed Python package; or `bundle:NAME` for whichever version of that model the region has this node serve.",
        examples=["models/door.onnx", "package:silero_vad/data/silero_vad_16k_op15.onnx", "bundle:door"],
    )
    backend: Literal["auto", "onnxruntime", "openvino"] = Field(
        "auto", description="`auto` takes what `hedgerow tune` measured as best here, else the first that can run it."
    )
    device: str = Field("CPU", description="CPU, GPU, NPU, CUDA, TensorRT: in the backend's words.")
    if_device_missing: Literal["fail", "degrade"] = Field(
        "fail", description="`degrade` runs on the CPU instead and says so in every health report."
    )
    max_batch: int | None = Field(None, ge=1, description="Most frames in one inference; by default as tuned, else 16.")
    streams: int | None = Field(None, ge=1, description="Inferences at the same time; by default as tuned, else 1.")
    threads: int | None = Field(
        None, ge=1, description="Threads an inference may use; by default the node's cores ÷ streams."
    )
    constants: dict[str, bool | int | float] = Field(
        default_factory=dict, description="Inputs that always have the same value, e.g. a sampling rate."
    )
    state: dict[str, str] = Field(
        default_factory=dict,
        description="Hidden state kept per stream: input name → the output that is its next value. Begins at zero.",
    )
    batch_axis: dict[str, int] = Field(
        default_factory=dict, description="Axis that batches are stacked on, for inputs and outputs where it is not 0."
    )
    open_batch: bool = Field(
        False,
        description="Let batches form though the file fixes the batch axis to 1. OpenVINO can; the first batch is compared "
        "with single frames, and batches end if they differ.",
    )
    static_batches: bool = Field(
        False,
        description="Compile the model once for each of the batch sizes 1, 2, 3, 4, 6, 8, 12, 16 … `max_batch` and pad a batch "
        "to the next. OpenVINO loses time whenever the size of a batch changes; this costs load time and memory for each.",
    )
    options: dict[str, Any] = Field(default_factory=dict, description="Options passed to the backend as they are.")


class QueueSection(Section):
    """Where frames wait; bounded in age, count and bytes."""

    policy: Literal["latest", "fifo"] = Field(
        "latest",
        description="When a stream's places are taken: `latest` drops its oldest frame, `fifo` the newcomer. QoS 0 only.",
    )
    max_age_s: float | None = Field(
        None,
        gt=0,
        description="A frame that has waited longer is dropped before it is decoded. Left out: 5 s for QoS 0, never for QoS 1.",
    )
    deadline_s: float | None = Field(
        None,
        gt=0,
        description="A result is of no use later than this after its frame came. A frame that will not make it is dropped "
        "first, so that under overload the node does only work that is in time.",
    )
    max_rate_per_stream: float | None = Field(
        None,
        gt=0,
        description="Frames a second that a stream may bring; those above it are dropped as they come, QoS 1 too, which are "
        "then acknowledged. Left out: any number.",
    )
    max_frames_per_stream: int = Field(8, ge=1, description="Places a stream has.")
    max_frames: int = Field(4096, ge=1, description="Places all streams have together.")
    max_bytes: int = Field(256 * 2**20, ge=1024, description="Payload bytes that may wait, all streams together.")


class StreamSection(Section):
    """How streams are told apart."""

    by: Literal["topic", "level", "field"] = Field(
        "topic",
        description="`topic`: each topic is a stream; `level`: one level of the topic; `field`: a field of a JSON or MessagePack payload.",
    )
    level: int | None = Field(None, ge=0, description="For `level`: which level of the topic, counted from 0.")
    field: str | None = Field(None, min_length=1, description="For `field`: its name at the top of the payload.")
    max_streams: int = Field(
        10_000, ge=1, description="Streams whose state is kept; the longest silent one is forgotten first."
    )

    @model_validator(mode="after")
    def _key_named(self) -> StreamSection:
        if self.by == "level" and self.level is None:
            raise ValueError("`by: level` needs `level`")
        if self.by == "field" and self.field is None:
            raise ValueError("`by: field` needs `field`")
        return self


class FieldsSection(Section):
    """Which fields of a result go out: of the mapping that a result's `result` is."""

    keep: tuple[str, ...] | None = Field(None, description="Only these fields.")
    drop: tuple[str, ...] = Field((), description="All fields but these.")

    @model_validator(mode="after")
    def _one_way(self) -> FieldsSection:
        if self.keep is not None and self.drop:
            raise ValueError("give `keep` or `drop`, not both")
        return self

    def __bool__(self) -> bool:
        """Whether any field is held back."""
        return self.keep is not None or bool(self.drop)


class PublishSection(Section):
    """How results go out."""

    format: Literal["json", "msgpack"] = Field("json", description="Encoding of results.")
    qos: Literal[0, 1] = Field(1, description="QoS of results.")
    expiry_s: int | None = Field(None, ge=1, description="The broker forgets a result nobody took after this time.")
    durable: bool = Field(
        False,
        description="Results must reach the region: they go into the node's outbox before their frame is acknowledged, and "
        "stay there until the region says that it has them. See `outbox:`.",
    )
    priority: int = Field(
        0, ge=0, le=9, description="Of durable results: higher ones are sent first and given up last."
    )
    ttl_s: float | None = Field(
        None, gt=0, description="A durable result is of no use after this time; a gap is declared in its place."
    )
    fields: FieldsSection = Field(
        FieldsSection(),
        description="Which fields of a result go out, e.g. `{keep: [detections]}`. One that has none (a picture, a list) goes "
        "out empty with `keep` and whole with `drop`.",
    )

    @model_validator(mode="after")
    def _one_promise(self) -> PublishSection:
        if self.durable and self.qos == 0:
            raise ValueError("durable results have `qos: 1`")
        if self.durable and self.expiry_s is not None:
            raise ValueError(
                "durable results have no `expiry_s`, by which a broker would lose them unseen: use `ttl_s`"
            )
        if not self.durable and (self.priority or self.ttl_s is not None):
            raise ValueError("`priority` and `ttl_s` are for durable results: add `durable: true`")
        return self


class StageEntry(Section):
    """One stage of a pipeline: its name and its configuration. Written `name` or `name: {key: value}`."""

    name: str
    config: dict[str, Any] = Field(default_factory=dict)

    @model_serializer
    def _as_written(self) -> str | dict[str, Any]:
        return {self.name: self.config} if self.config else self.name


def _stage_entry(value: Any) -> Any:
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, dict) and len(value) == 1:
        ((name, config),) = value.items()
        if name not in ("name", "config"):
            if config is not None and not isinstance(config, dict):
                raise ValueError(f"write `{name}: {{key: value}}`")
            return {"name": name, "config": config or {}}
    if isinstance(value, dict) and value.keys() > {"name"}:
        return value
    raise ValueError("a stage is `name` or `name: {key: value}`")


_ShortForm = BeforeValidator(
    _stage_entry,
    json_schema_input_type=str | Annotated[dict[str, dict[str, Any] | None], Field(min_length=1, max_length=1)],
)


class PipelineConfig(Section):
    """A subscription and the stages its frames run through."""

    subscribe: Filters = Field(description="Topic filter, or a list of them.", examples=["plant/+/door/image"])
    qos: Literal[0, 1] = Field(
        1, description="Highest QoS asked for; frames come at the QoS their sensor chose, at most."
    )
    content_type: str | None = Field(
        None,
        description="Type of payloads whose sender does not say (MQTT 3.1.1 sensors never do).",
        examples=["image/jpeg"],
    )
    stream: StreamSection = Field(StreamSection(), description="How streams are told apart.")
    queue: QueueSection = Field(QueueSection(), description="Where frames wait.")
    receive_maximum: int = Field(
        256,
        ge=1,
        le=65_535,
        description="QoS 1 frames the broker may have under way to this pipeline: its back-pressure.",
    )
    max_payload_bytes: int = Field(
        32 * 2**20, ge=1, description="A larger payload is dead-lettered without being kept."
    )
    batch: int = Field(64, ge=1, description="Most frames that run through the stages together.")
    lanes: int | None = Field(
        None,
        ge=0,
        le=64,
        description="Lists of frames that run at the same time, never two of one stream. Left out: as many as the "
        "node has cores, or fewer, if trying under load shows that the interpreter lock makes fewer faster. 0: on the node's "
        "event loop, which answers soonest; but a stage that hangs then stops the whole node.",
    )
    workers: int = Field(
        0,
        ge=0,
        le=64,
        description="Processes of its own that run the stages; 0: threads of the node. For pipelines bound by Python. "
        "Each loads its models anew, and a stream always goes to the same one.",
    )
    stages: tuple[Annotated[StageEntry, _ShortForm], ...] = Field(
        min_length=1, description="The stages, in order: `name` or `name: {key: value}`. See `hedgerow plugin list`."
    )
    publish: PublishSection = Field(PublishSection(), description="How results go out.")
    clock_tolerance_s: float = Field(
        60, gt=0, description="A frame captured further in the future than this is dead-lettered."
    )


class OutboxSection(Section):
    """Where durable results wait until the region has them: a file `outbox.db` in `state_dir`."""

    max_bytes: int = Field(
        2**30, ge=2**20, description="Most bytes it may take on the disk (and 12 MB for its log and for hard times)."
    )
    when_full: Literal["evict", "refuse"] = Field(
        "evict",
        description="`evict` gives up the oldest of the lowest priority and declares a gap. `refuse` takes nothing new: QoS 1 "
        "frames then wait at the broker, QoS 0 ones are dropped.",
    )
    window: int = Field(
        256, ge=2, le=65_535, description="Results under way: sent to the region and not acknowledged by it."
    )
    window_bytes: int = Field(16 * 2**20, ge=1024, description="Bytes of them.")
    backlog_share: float = Field(
        0.5, gt=0, lt=1, description="Part of the window for what waits from an outage; the rest is for what is new."
    )


class SourceSection(Section):
    """A place that models come from besides the region."""

    url: str = Field(
        pattern=r"^(https|oci)://[^\s/@]+(/\S*)?$",
        description="https://HOST[:PORT]/PATH: a web server that gives out the repository's folder. oci://HOST[:PORT]/NAME: a "
        "repository of an OCI registry, filled with `hedgerow model push`.",
    )
    ca_file: Path | None = Field(
        None, description="Authorities for its certificate, PEM, relative to this file; the system's if left out."
    )
    credentials_file: Path | None = Field(
        None,
        description="What to show there, relative to this file: USER:PASSWORD, a token, or Docker's `config.json`. It is read "
        "anew each time.",
    )

    def anchored(self, folder: Path) -> SourceSection:
        """The same, with paths that count from a folder."""
        files = {"ca_file": self.ca_file, "credentials_file": self.credentials_file}
        return self.model_copy(update={name: folder / path for name, path in files.items() if path is not None})


def _spelled_out(value: Any) -> Any:
    return {"url": value} if isinstance(value, str) else value


Source = Annotated[SourceSection, BeforeValidator(_spelled_out, json_schema_input_type=str | SourceSection)]


class FleetSection(Section):
    """Models that come from the region: signed, fetched, tried, and served as it says. Off without `root_file`."""

    root_file: Path | None = Field(
        None,
        description="Root of trust, as `hedgerow trust init` made it: what it does not lead to is not served. Relative to this "
        "file.",
    )
    store_max_bytes: int = Field(
        4 * 2**30, ge=2**20, description="Most bytes that fetched models may take; those unused for longest go first."
    )
    fetch_bytes_per_s: int | None = Field(
        None,
        ge=1024,
        description="Most bytes a second that fetching takes; by default it makes room for results by itself.",
    )
    serve_neighbours: bool = Field(True, description="Whether to give other nodes of the site what this one has.")
    sources: tuple[Source, ...] = Field(
        (),
        description="Where content comes from before the region is asked: https://HOST/PATH, a web server with the repository's "
        "folder, or oci://HOST/NAME, a registry; in this order. What comes is checked all the same.",
        examples=[["https://models.example/repository"]],
    )
    max_crashes: int = Field(
        1,
        ge=1,
        description="Times the process may crash with a version on trial before that is put into quarantine; three ends "
        "without a trace (a kill, a power cut, want of memory) count as a crash.",
    )

    def anchored(self, folder: Path) -> FleetSection:
        """The same, with paths that count from a folder."""
        changes: dict[str, Any] = {"sources": tuple(source.anchored(folder) for source in self.sources)}
        if self.root_file is not None:
            changes["root_file"] = folder / self.root_file
        return self.model_copy(update=changes)


class MetricsSection(Section):
    """Prometheus metrics and health probes over HTTP: /metrics, /healthz, /readyz."""

    enabled: bool = Field(True, description="Whether to listen at all.")
    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 inside a container.")
    port: int = Field(9464, ge=0, le=65_535, description="Port; 0 takes a free one and logs it.")
    flow_timeout_s: float | None = Field(
        None, gt=0, description="Not ready when no frame has come for this long; left out: silence is fine."
    )


class LogSection(Section):
    """What the node says about itself."""

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least important level shown.")
    format: Literal["auto", "console", "json"] = Field(
        "auto", description="`auto`: readable on a terminal, JSON otherwise."
    )


class NodeConfig(Section):
    """A node's configuration.

    Any value may be overridden from the environment: HEDGEROW_BROKER__URL=mqtts://broker:8883.
    """

    model_config = ConfigDict(title="Hedgerow node")

    node: NodeSection = Field(NodeSection(), description="Who this node is.")
    broker: BrokerSection = Field(BrokerSection(), description="The site's broker.")
    models: dict[Name, ModelConfig] = Field(default_factory=dict, description="Models by name.")
    pipelines: dict[Name, PipelineConfig] = Field(default_factory=dict, description="Pipelines by name.")
    outbox: OutboxSection = Field(OutboxSection(), description="Where durable results wait for the region.")
    fleet: FleetSection = Field(FleetSection(), description="Models that come from the region.")
    metrics: MetricsSection = Field(MetricsSection(), description="Metrics and probes.")
    log: LogSection = Field(LogSection(), description="Logging.")
