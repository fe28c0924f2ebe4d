"""Schema of a node's configuration file.

Rules:
- Frozen, unknown keys refused, units in names (`max_age_s`, `max_bytes`).
- Every field has a description: it is the documentation, the JSON Schema and the editor's hint.
- These classes check values on their own. `configcheck.py` checks that stages and models exist.

`configfile.py` reads files and adds line numbers to errors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    SecretStr,
    field_validator,
    model_serializer,
    model_validator,
)

from hedgerow.errors import SHORTEST_SECRET, ConfigError
from hedgerow.labels import check_labels
from hedgerow.topics import ROOT, Address, check_filter, is_name, overlap, without_group


class Section(BaseModel):
    """A part of the configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _valid_name(text: str) -> str:
    if not is_name(text):
        raise ValueError("use 1 to 64 letters, digits, `.`, `_` or `-`, beginning with a letter or digit")
    return text


def _valid_filter(text: str) -> str:
    try:
        return check_filter(text)
    except ConfigError as error:
        raise ValueError(error.explain()) from error


def _valid_labels(labels: dict[str, str]) -> dict[str, str]:
    try:
        check_labels(labels)
    except ConfigError as error:
        raise ValueError(error.explain()) from error
    return labels


_ADDRESS_LABELS: Final = ("region", "site", "node")


def _no_address(labels: dict[str, str]) -> dict[str, str]:
    for key in _ADDRESS_LABELS:
        if key in labels:
            raise ValueError(
                f"the label {key!r} is part of the node's address\n  → Set `node: {{{'name' if key == 'node' else key}: …}}`, or "
                "use another key."
            )
    return labels


def _valid_prefix(text: str) -> str:
    prefix = _valid_filter(text).rstrip("/")
    if not prefix or prefix.startswith("$") or "+" in prefix or "#" in prefix:
        raise ValueError("must be the first levels of topics, without wildcards, such as `answers`")
    if overlap(f"{prefix}/#", f"{ROOT}/#"):
        raise ValueError(f"must not reach into {ROOT}: what a node publishes there, the region takes for its own word")
    return prefix


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Name = Annotated[str, AfterValidator(_valid_name)]
Filters = Annotated[
    tuple[Annotated[str, AfterValidator(_valid_filter)], ...],
    Field(min_length=1),
    BeforeValidator(_as_list, json_schema_input_type=str | Annotated[list[str], Field(min_length=1)]),
]


class NodeSection(Section):
    """The node's identity, and its share of the machine."""

    region: Name = Field("local", description="Region the site belongs to.")
    site: Name = Field("site", description="Site (one LAN, one broker) the node belongs to.")
    name: Name = Field("node", description="Name of the node, unique within its site.")
    labels: Annotated[dict[str, str], AfterValidator(_valid_labels), AfterValidator(_no_address)] = Field(
        default_factory=dict,
        description="Labels by which rollouts select nodes and signatures choose them, in addition to the automatic ones (`arch`, "
        "`cores`, `site` …). The region cannot change them.",
        examples=[{"hardware": "nuc", "ring": "early"}],
    )
    state_dir: Path = Field(
        Path(".hedgerow"),
        description="Folder for the node's state: outbox, fetched, compiled and tuned models. Relative to this file.",
    )
    drain_s: float = Field(10, gt=0, description="Longest time to finish frames in flight when stopping or reloading.")
    threads: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Cores this node may use; by default those that the container or the affinity mask allows.",
    )
    event_loop: Literal["asyncio", "uvloop"] = Field(
        "asyncio",
        description="`uvloop` (`pip install hedgerow[uvloop]`) uses less CPU if most frames are QoS 1 or stages compute very "
        "little; with a model it made no difference, or used more. Measure.",
    )

    @property
    def address(self) -> Address:
        """The node's address in the topic tree."""
        return Address(self.region, self.site, self.name)


class TlsSection(Section):
    """Certificates for the broker."""

    ca_file: Path | None = Field(
        None, description="CA that signed the broker's certificate, relative to this file; by default the system's CAs."
    )
    cert_file: Path | None = Field(None, description="This node's certificate, PEM, relative to this file.")
    key_file: Path | None = Field(None, description="This node's private key, PEM, relative to this file.")
    crl_file: Path | None = Field(
        None,
        description="Revocation lists of all CAs, PEM, relative to this file; a broker whose certificate is revoked is then refused.",
    )
    min_version: Literal["1.2", "1.3"] = Field(
        "1.3", description="Oldest TLS version accepted. Use 1.2 only for brokers without 1.3."
    )


_BROKER_URL: Final = re.compile(
    r"^(mqtts?://(\[[0-9a-fA-F:.]+\]|[^/\s:@\[\]]+)(:[0-9]{1,5})?"
    r"|wss?://(\[[0-9a-fA-F:.]+\]|[^/\s:@\[\]?#]+)(:[0-9]{1,5})?(/[^\s?#@]*)?|unix://?/\S+)$"
)


class BrokerSection(Section):
    """The site's MQTT 5 broker."""

    url: str = Field(
        "mqtt://127.0.0.1:1883",
        json_schema_extra={"pattern": _BROKER_URL.pattern},
        description="mqtt://HOST:PORT, mqtts://HOST:PORT (TLS), wss://HOST:PORT/PATH (WebSocket with TLS; ws:// without it) or "
        "unix:///path/to/socket.",
        examples=[
            "mqtt://127.0.0.1:1883",
            "mqtts://broker.site.lan:8883",
            "wss://mqtt.example/mqtt",
            "unix:///run/mosquitto.sock",
        ],
    )
    username: str | None = Field(None, description="User name, if the broker requires one.")
    password: SecretStr | None = Field(
        None, description="Password. Prefer `password_file` or HEDGEROW_BROKER__PASSWORD."
    )
    password_file: Path | None = Field(
        None, description="File with the password on its first line, relative to this file."
    )
    tls: TlsSection = Field(TlsSection(), description="Certificates, for mqtts:// and wss://.")
    keepalive_s: int = Field(30, ge=5, le=65535, description="Longest silence before the link is considered dead.")
    session_expiry_s: int = Field(
        86_400,
        ge=0,
        le=2**32 - 1,
        description="How long the broker keeps QoS 1 frames for this node while it is disconnected.",
    )

    @field_validator("url")
    @classmethod
    def _broker_address(cls, url: str) -> str:
        if not _BROKER_URL.match(url):
            raise ValueError(
                "must be a broker address\n  → Write mqtt://HOST:PORT, mqtts://HOST:PORT, wss://HOST:PORT/PATH or "
                "unix:///path/to/socket. User name and password have their own settings."
            )
        port = re.search(r"^[a-z]+://[^/]*:([0-9]+)(/|$)", url)
        if port is not None and not 1 <= int(port[1]) <= 65_535:
            raise ValueError(
                "must have a port from 1 to 65535\n  → Write the port that the broker listens on, or none."
            )
        return url

    @field_validator("password")
    @classmethod
    def _long_enough(cls, password: SecretStr | None) -> SecretStr | None:
        if password is not None and 0 < len(password) < SHORTEST_SECRET:
            raise ValueError(
                f"must have at least {SHORTEST_SECRET} characters\n  → Anyone guesses a shorter one, and errors cannot withhold it. "
                "Set a longer one at the broker, and here."
            )
        return password

    @model_validator(mode="after")
    def _single_password_source(self) -> BrokerSection:
        if self.password is not None and self.password_file is not None:
            raise ValueError("give `password` or `password_file`, not both")
        return self

    def anchored(self, folder: Path) -> BrokerSection:
        """Return a copy with its paths relative to `folder`."""
        files = {name: folder / path for name, path in self.tls if isinstance(path, Path)}
        changes: dict[str, Any] = {"tls": self.tls.model_copy(update=files)}
        if self.password_file is not None:
            changes["password_file"] = folder / self.password_file
        return self.model_copy(update=changes)


class ModelConfig(Section):
    """A model and how to run it."""

    path: str = Field(
        description="Model file (.onnx, .xml, .tflite), relative to this file; `package:NAME/path/inside` for a file inside an "
        "installed Python package; or `bundle:NAME` for the version of that model that the region assigns to this node.",
        examples=["models/door.onnx", "package:silero_vad/data/silero_vad_16k_op15.onnx", "bundle:door"],
    )
    backend: Literal["auto", "onnxruntime", "openvino"] = Field(
        "auto",
        description="`auto` uses the fastest backend that `hedgerow tune` measured on this machine, else the first that can run the model.",
    )
    device: str = Field("CPU", description="CPU, GPU, NPU, CUDA, TensorRT: as the backend names it.")
    if_device_missing: Literal["fail", "degrade"] = Field(
        "fail", description="`degrade` runs on the CPU instead and reports that in every health report."
    )
    max_batch: int | None = Field(
        None, ge=1, description="Maximum number of frames in one inference; by default as tuned, else 16."
    )
    streams: int | None = Field(
        None, ge=1, le=1024, description="Inferences that run in parallel; by default as tuned, else 1."
    )
    threads: int | None = Field(
        None, ge=1, le=1024, description="Threads an inference may use; by default the node's cores ÷ streams."
    )
    constants: dict[str, bool | int | float] = Field(
        default_factory=dict, description="Inputs with a fixed value, e.g. a sampling rate."
    )
    state: dict[str, str] = Field(
        default_factory=dict,
        description="Hidden state kept per stream: input name → output with its next value. Starts at zero.",
    )
    batch_axis: dict[str, int] = Field(
        default_factory=dict, description="Batch axis of inputs and outputs where it is not 0."
    )
    open_batch: bool = Field(
        False,
        description="Batch requests although the file fixes the batch axis to 1. OpenVINO only; as with "
        "any model, the node batches only if trials at load prove that outputs split by frame.",
    )
    static_batches: bool = Field(
        False,
        description="Compile the model once for each of the batch sizes 1, 2, 3, 4, 6, 8, 12, 16 … `max_batch` and pad a batch "
        "to the next size. OpenVINO is slower whenever the batch size changes; each size costs load time and memory.",
    )
    static_shapes: bool = Field(
        True,
        description="Compile a model whose inputs may have any size for the sizes that recur, in the background, and keep what is "
        "measured to be faster: at most four. Each holds the weights again. OpenVINO only.",
    )
    options: dict[str, Any] = Field(default_factory=dict, description="Options passed to the backend unchanged.")


class QueueSection(Section):
    """Where frames wait; bounded in age, count and bytes."""

    policy: Literal["latest", "fifo"] = Field(
        "latest",
        description="When a stream's queue is full: `latest` drops its oldest frame, `fifo` the new one. QoS 0 only.",
    )
    max_age_s: float | None = Field(
        None,
        gt=0,
        description="A frame that has waited longer is dropped before it is decoded. Default: 5 s for QoS 0, never for QoS 1.",
    )
    deadline_s: float | None = Field(
        None,
        gt=0,
        description="How long after its frame's arrival a result is still of use. A frame that would miss this deadline is "
        "dropped before it is processed, so under overload the node works only on frames it can finish in time.",
    )
    max_rate_per_stream: float | None = Field(
        None,
        gt=0,
        description="Maximum number of frames per second from one stream. Frames above it are dropped on arrival; dropped QoS 1 frames are "
        "then acknowledged. Default: no limit.",
    )
    max_rate_per_topic: float | None = Field(
        None,
        gt=0,
        description="The same for one topic, whatever streams its payloads name: a sensor can invent names of streams.",
    )
    max_frames_per_stream: int = Field(8, ge=1, description="Maximum number of waiting frames of one stream.")
    max_qos1_frames_per_topic: int | None = Field(
        None,
        ge=1,
        description="Maximum number of waiting QoS 1 frames of one stream, or of all streams that one topic names. Above it they are "
        "dropped as `policy` says, and acknowledged, so that a sensor which sends more than the stages can process does not delay "
        "the others. It also drops what one sensor sent while the node was stopped. Default: they wait at the broker, and delay "
        "all frames behind them; event `topic-floods`.",
    )
    max_frames: int = Field(4096, ge=1, description="Maximum number of waiting frames of all streams together.")
    max_bytes: int = Field(256 * 2**20, ge=1024, description="Maximum size of all waiting payloads together, in bytes.")


class StreamSection(Section):
    """How streams are told apart."""

    by: Literal["topic", "level", "field"] = Field(
        "topic",
        description="`topic`: by the topic; `level`: by one level of the topic, with those before it where they may differ; `field`: "
        "by a field of a JSON or MessagePack payload.",
    )
    level: int | None = Field(None, ge=0, description="For `level`: the level of the topic, counted from 0.")
    field: str | None = Field(
        None, min_length=1, description="For `field`: the name of a top-level field of the payload."
    )
    across_topics: bool = Field(
        False,
        description="A stream that a payload names (the `stream` of an envelope, or `field`) may have frames of several topics. By "
        "default it belongs to the topic that it came on, and is named TOPIC#NAME unless the pipeline has a single topic. With "
        "`level`, streams are named by that level alone. Risk: whoever may publish on one of the pipeline's topics can write into "
        "the streams of all others.",
    )
    max_streams: int = Field(
        10_000,
        ge=1,
        description="Maximum number of streams whose state is kept; that of the stream silent for longest is dropped first.",
    )

    @model_validator(mode="after")
    def _has_stream_key(self) -> StreamSection:
        if self.by == "level" and self.level is None:
            raise ValueError("`by: level` needs `level`")
        if self.by == "field" and self.field is None:
            raise ValueError("`by: field` needs `field`")
        return self


class FieldsSection(Section):
    """Which fields of a result's `result` mapping are published."""

    keep: tuple[str, ...] | None = Field(None, description="Publish only these fields.")
    drop: tuple[str, ...] = Field((), description="Publish all fields but these.")

    @model_validator(mode="after")
    def _keep_or_drop(self) -> FieldsSection:
        if self.keep is not None and self.drop:
            raise ValueError("give `keep` or `drop`, not both")
        return self

    def __bool__(self) -> bool:
        """Whether any field is removed."""
        return self.keep is not None or bool(self.drop)


class PublishSection(Section):
    """How results are published."""

    format: Literal["json", "msgpack"] = Field("json", description="Encoding of results.")
    qos: Literal[0, 1] = Field(1, description="QoS of results.")
    expiry_s: int | None = Field(
        None, ge=1, le=2**32 - 1, description="The broker discards a result that was not delivered within this time."
    )
    durable: bool = Field(
        False,
        description="Results must reach the region: they are written to the node's outbox before their frame is acknowledged, "
        "and stay there until the region acknowledges them. See `outbox:`.",
    )
    priority: int = Field(
        0, ge=0, le=9, description="For durable results: higher priorities are sent first and given up last."
    )
    ttl_s: float | None = Field(
        None,
        gt=0,
        description="A durable result not acknowledged by the region within this time is given up; a gap takes its place.",
    )
    fields: FieldsSection = Field(
        FieldsSection(),
        description="Which fields of a result are published, e.g. `{keep: [detections]}`. A result without fields (a picture, a "
        "list) is published empty with `keep` and whole with `drop`.",
    )

    @model_validator(mode="after")
    def _consistent_durability(self) -> PublishSection:
        if self.durable and self.qos == 0:
            raise ValueError("durable results have `qos: 1`")
        if self.durable and self.expiry_s is not None:
            raise ValueError(
                "durable results have no `expiry_s`, since the broker would discard them silently: use `ttl_s`"
            )
        if not self.durable and (self.priority or self.ttl_s is not None):
            raise ValueError("`priority` and `ttl_s` are for durable results: add `durable: true`")
        return self


class DeadLettersSection(Section):
    """What dead letters contain."""

    payload: bool | None = Field(
        None,
        description="Whether a dead letter contains the frame's payload, if it has at most 1 MiB. Default: yes, unless "
        "`publish: {fields: …}` keeps part of the results back.",
    )


class StageEntry(Section):
    """One stage of a pipeline: its name and its configuration.

    Written `name` or `name: {key: value}`; with a time limit `{name: …, config: {…}, timeout_s: …}`.
    """

    name: str
    config: dict[str, Any] = Field(default_factory=dict)
    timeout_s: float | None = Field(
        None, gt=0, description="Longest time for one frame in this stage, instead of the pipeline's `stage_timeout_s`."
    )

    @model_serializer
    def _as_written(self) -> str | dict[str, Any]:
        if self.timeout_s is not None:
            return {"name": self.name, "config": self.config, "timeout_s": self.timeout_s}
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
    json_schema_input_type=str
    | Annotated[dict[str, dict[str, Any] | None], Field(min_length=1, max_length=1)]
    | StageEntry,
)


class PipelineConfig(Section):
    """A subscription and the stages its frames run through."""

    subscribe: Filters = Field(
        description="Topic filter, or a list of them. None may match what the node itself publishes; the results of another "
        "pipeline may be processed.",
        examples=["plant/+/door/image"],
    )
    qos: Literal[0, 1] = Field(
        1, description="QoS of the subscription; a frame arrives with its sender's QoS, or this one if lower."
    )
    if_qos_lowered: Literal["fail", "degrade"] = Field(
        "degrade",
        description="If the broker grants only QoS 0 where `qos: 1` was requested, frames can be lost. `degrade` processes those "
        "that arrive, and reports it in the log, in health and as event `qos-lowered`; `fail` takes none.",
    )
    content_type: str | None = Field(
        None,
        description="Content type of payloads whose sender does not state one (MQTT 3.1.1 sensors cannot).",
        examples=["image/jpeg"],
    )
    stream: StreamSection = Field(StreamSection(), description="How streams are told apart.")
    queue: QueueSection = Field(QueueSection(), description="Where frames wait.")
    receive_maximum: int = Field(
        256,
        ge=1,
        le=65_535,
        description="Maximum number of unacknowledged QoS 1 frames in this pipeline; the broker holds back the rest.",
    )
    max_payload_bytes: int = Field(
        32 * 2**20, ge=1, description="A larger payload is discarded, and its frame is dead-lettered."
    )
    batch: int = Field(64, ge=1, description="Maximum number of frames that run through the stages together.")
    lanes: int | None = Field(
        None,
        ge=0,
        le=64,
        description="Lists of frames that run in parallel, never two of one stream. Default: one per core, or fewer, if "
        "measuring under load shows that fewer are faster because of the interpreter lock. 0: on the node's event loop, which "
        "has the lowest latency, but a stage that hangs then stops the whole node.",
    )
    workers: int = Field(
        0,
        ge=0,
        le=64,
        description="Separate processes that run the stages; 0: threads of the node. For pipelines bound by Python. Each "
        "loads its own copy of the models, and a stream always goes to the same one.",
    )
    worker_max_bytes: int | None = Field(
        None,
        ge=2**20,
        description="Resident memory above which a worker is replaced, between two lists of frames; one that reaches twice as "
        "much within a list is killed. Its stages' state is lost. Default: no limit.",
    )
    worker_max_frames: int | None = Field(
        None,
        ge=1,
        description="Number of frames after which a worker is replaced, between two lists, for stages that leak. Default: never.",
    )
    stage_timeout_s: float = Field(
        600,
        gt=0,
        description="Longest time that a stage may take for one frame, or n times as long for a list of n frames if it takes "
        "lists at once. With `workers`, a worker whose stage takes longer is replaced, and the frame that takes so long is "
        "dead-lettered. Without, `/healthz` fails, so that a supervisor restarts the node.",
    )
    stages: tuple[Annotated[StageEntry, _ShortForm], ...] = Field(
        min_length=1, description="The stages, in order: `name` or `name: {key: value}`. See `hedgerow plugin list`."
    )
    folder: Path | None = Field(
        None,
        description="Folder of the files that its stages read, relative to this file; they can then read no others, and write "
        "none. By default paths of stages are relative to this file too, and may lead anywhere.",
    )
    publish: PublishSection = Field(PublishSection(), description="How results are published.")
    dead_letters: DeadLettersSection = Field(DeadLettersSection(), description="What dead letters contain.")
    clock_tolerance_s: float = Field(
        60, gt=0, description="A frame captured further in the future than this is dead-lettered."
    )

    @property
    def dead_letters_have_payload(self) -> bool:
        """Whether dead letters contain the frame's payload."""
        chosen = self.dead_letters.payload
        return not self.publish.fields if chosen is None else chosen


class OutboxSection(Section):
    """The durable queue of results for the region: a file `outbox.db` in `state_dir`."""

    max_bytes: int = Field(
        2**30,
        ge=2**20,
        description="Maximum size on disk in bytes, plus 12 MB (its log, and a reserve for a full disk).",
    )
    when_full: Literal["evict", "refuse"] = Field(
        "evict",
        description="`evict` gives up the oldest result of the lowest priority and leaves a gap. `refuse` accepts no new ones: "
        "QoS 1 frames then wait at the broker, QoS 0 frames are dropped.",
    )
    max_packet_bytes: int | None = Field(
        None,
        ge=1024,
        description="Largest MQTT packet that the brokers and bridges on the way to the region pass on; a larger one never "
        "arrives. The frame of a larger result is dead-lettered as `result-too-large`. A topology sets it to "
        "`limits.bridge_packet_bytes`. Default: the limit of the site's broker.",
    )
    window: int = Field(
        256, ge=2, le=65_535, description="Maximum number of results sent to the region and not yet acknowledged."
    )
    window_bytes: int = Field(16 * 2**20, ge=1024, description="Maximum size of such results together, in bytes.")
    backlog_share: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="Share of the window for results that waited during an outage; the rest is for new ones.",
    )
    commit_every_s: float = Field(
        0.0,
        ge=0,
        le=10,
        description="Longest time to collect results before they are written together, in seconds, to spare a card or flash disk; 0 "
        "writes at once. Results reach the region later by that time. QoS 1 frames are acknowledged after the write, so none is "
        "lost; a crash or power cut loses results of QoS 0 frames from this time.",
    )
    keep_acknowledged_s: float = Field(
        86_400.0,
        ge=0,
        description="How long a result stays in the file after the region has acknowledged it, in seconds. If the region's store is put "
        "back to a backup, what it had acknowledged since is sent again; so this should be longer than the time between two backups. "
        "0: it is deleted at once, and a restore loses it.",
    )
    keep_acknowledged_bytes: int = Field(
        64 * 2**20,
        ge=0,
        description="Maximum size of such results together, in bytes; the oldest are deleted first. A quarter of `max_bytes` at most, and "
        "less whenever results that wait for the region need the space.",
    )


class OriginSection(Section):
    """A model origin other than the region."""

    url: str = Field(
        pattern=r"^(https|oci)://[^\s/@]+(/\S*)?$",
        description="https://HOST[:PORT]/PATH: a web server that serves the repository's folder. oci://HOST[:PORT]/NAME: a "
        "repository in an OCI registry, filled with `hedgerow model push`.",
    )
    ca_file: Path | None = Field(
        None, description="CAs for its certificate, PEM, relative to this file; by default the system's."
    )
    credentials_file: Path | None = Field(
        None,
        description="File with the credentials, relative to this file: USER:PASSWORD, a token, or Docker's `config.json`. Read "
        "again for each use, and sent to this HOST[:PORT] only.",
    )
    token_hosts: tuple[str, ...] = Field(
        (),
        max_length=16,
        description="Other hosts, HOST[:PORT], that get the credentials in exchange for a token, such as auth.docker.io. They "
        "see the credentials: list only the registry's own token service.",
    )
    redirect_hosts: tuple[str, ...] = Field(
        (),
        max_length=16,
        description="Other hosts, HOST[:PORT], that it may redirect to although their addresses are not public, such as an "
        "object store on the LAN. Whoever controls this origin can make the node send requests there, without credentials.",
    )

    def anchored(self, folder: Path) -> OriginSection:
        """Return a copy with its paths relative to `folder`."""
        files = {"ca_file": self.ca_file, "credentials_file": self.credentials_file}
        return self.model_copy(update={name: folder / path for name, path in files.items() if path is not None})


def _from_url(value: Any) -> Any:
    return {"url": value} if isinstance(value, str) else value


Origin = Annotated[OriginSection, BeforeValidator(_from_url, json_schema_input_type=str | OriginSection)]


class FleetSection(Section):
    """Signed models from the region, which decides the versions to serve. Off without `root_file`."""

    root_file: Path | None = Field(
        None,
        description="Root of trust, created by `hedgerow trust init`. Models that it does not vouch for are not served. Relative "
        "to this file.",
    )
    store_max_bytes: int = Field(
        4 * 2**30,
        ge=2**20,
        description="Maximum size of fetched models on disk, in bytes; those unused for longest are deleted first.",
    )
    fetch_bytes_per_s: int | None = Field(
        None,
        ge=1024,
        description="Maximum rate of fetching, in bytes per second. By default there is no fixed limit; fetching gives way to "
        "results.",
    )
    serve_neighbours: bool = Field(True, description="Whether to serve this node's models to other nodes of the site.")
    origins: tuple[Origin, ...] = Field(
        (),
        validation_alias=AliasChoices("origins", "sources"),
        description="Model origins to try before the region, in this order: https://HOST/PATH, a web server with the repository's "
        "folder, or oci://HOST/NAME, a registry. Their content is verified all the same.",
        examples=[["https://models.example/repository"]],
    )
    max_crashes: int = Field(
        1,
        ge=1,
        description="Number of crashes of the process during the swap to a version after which the version is quarantined. "
        "Three unexplained ends (a kill, a power cut, out of memory) count as one crash.",
    )

    _renamed_keys: dict[str, str] = PrivateAttr(default_factory=dict)

    @model_validator(mode="wrap")
    @classmethod
    def _accept_sources(cls, value: Any, handler: ModelWrapValidatorHandler[FleetSection]) -> FleetSection:
        """Accept `sources`, the former name of `origins`."""
        uses_former_name = isinstance(value, Mapping) and "sources" in value
        if uses_former_name and "origins" in value:
            raise ValueError("has both `origins` and `sources`, its former name\n  → Move all entries to `origins`.")
        section = handler(value)
        if uses_former_name:
            section._renamed_keys["fleet.sources"] = "fleet.origins"
        return section

    def anchored(self, folder: Path) -> FleetSection:
        """Return a copy with its paths relative to `folder`."""
        changes: dict[str, Any] = {"origins": tuple(origin.anchored(folder) for origin in self.origins)}
        if self.root_file is not None:
            changes["root_file"] = folder / self.root_file
        return self.model_copy(update=changes)


class RangeSection(Section):
    """Least and most that a setting may be changed to from outside."""

    min: float | None = Field(None, allow_inf_nan=False, description="Least value; by default the node's own bound.")
    max: float | None = Field(None, allow_inf_nan=False, description="Most; by default the node's own bound.")

    @model_validator(mode="after")
    def _in_order(self) -> RangeSection:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError("`min` is more than `max`")
        return self


Limit = RangeSection | Literal["fixed"]
CommandName = Literal["ping", "health", "info", "pause", "resume", "adjust", "reload", "snapshot", "release", "stop"]
"""Commands of a node. None of them can bring a configuration along."""
Adjustable = Literal[
    "batch",
    "lanes",
    "queue.policy",
    "queue.max_age_s",
    "queue.deadline_s",
    "queue.max_rate_per_stream",
    "queue.max_frames_per_stream",
    "queue.max_frames",
    "queue.max_bytes",
]
"""Settings of a pipeline that may be changed from outside without a signature, beside its stages' thresholds."""


class RemoteSection(Section):
    """What the node does for others: which commands, where it replies, and which changes of its pipelines. Only this file can extend it."""

    commands: tuple[CommandName, ...] = Field(
        get_args(CommandName),
        description="Commands that the node carries out. Whoever may publish to its command topics can give them; leave out "
        "what nobody needs from outside.",
    )
    reply_prefixes: tuple[Annotated[str, AfterValidator(_valid_prefix)], ...] = Field(
        (),
        description="Beginnings of further topics on which the node may reply to commands, such as `answers` for `answers/1`. By "
        "default it replies only below its own `reply/` and its site's. Risk: whoever may command the node makes it publish there.",
        examples=[["answers"]],
    )
    frames_may_leave: bool = Field(
        False,
        description="Whether `snapshot` may reply to a request from above the site. Risk: its reply carries a raw frame, which "
        "then leaves the site.",
    )
    keep_running: tuple[Name, ...] = Field(
        (),
        description="Pipelines that nobody outside may pause, stop, or have drop frames for their age or rate, or for less room in the "
        "queue than this file gives; then nobody may stop the node by command either.",
    )
    limits: dict[Adjustable, Limit] = Field(
        default_factory=dict,
        description="Narrower limits for settings that may be changed from outside: `{min: …, max: …}`, or `fixed`: not at all.",
        examples=[{"batch": {"max": 16}, "lanes": "fixed"}],
    )
    thresholds: dict[Name, dict[str, Limit]] = Field(
        default_factory=dict,
        description="Narrower limits for thresholds of stages, by pipeline: `STAGE.SETTING`, or `*` for all others. By default "
        "those that the stage itself accepts.",
        examples=[{"doors": {"yolo.min_score": {"min": 0.3, "max": 0.8}, "*": "fixed"}}],
    )
    signed_pipelines: bool = Field(
        False,
        description="Whether a desired document may name pipelines that an owner's key has signed for this node. They may "
        "subscribe to any topic that the node may read, run any installed stage and publish any result; needs "
        "`fleet: root_file`.",
    )
    signed_may_stop: bool = Field(
        False,
        description="Whether signed pipelines may replace or end those in `keep_running`. Risk: whoever holds an owner's key can "
        "then stop what must not stop.",
    )
    unsigned_pipelines: bool = Field(
        False,
        description="Whether unsigned desired documents may change everything in `pipelines:`, as they once could. Risk: "
        "whoever can set desired state, such as a compromised region or broker, can then read and write any file that the "
        "node's user may, and send frames anywhere that the node may publish.",
    )

    @field_validator("limits")
    @classmethod
    def _limits_that_limit(cls, limits: dict[Adjustable, Limit]) -> dict[Adjustable, Limit]:
        for path, limit in limits.items():
            if path == "queue.policy" and limit != "fixed":
                raise ValueError(
                    f"{path} is `latest` or `fifo`, and has neither `min` nor `max`\n  → Write `{path}: fixed`."
                )
            if isinstance(limit, RangeSection) and limit.min is None and limit.max is None:
                raise ValueError(
                    f"{path} has neither `min` nor `max`\n  → Give one of them, or `fixed`; or remove the line."
                )
            if isinstance(limit, RangeSection) and limit.max is not None and limit.max <= 0:
                raise ValueError(f"{path} can never be {limit.max:g} or less\n  → Write `{path}: fixed`.")
        return limits


class MetricsSection(Section):
    """Prometheus metrics and health probes over HTTP: /metrics, /healthz, /readyz."""

    enabled: bool = Field(True, description="Whether to listen.")
    host: str = Field(
        "127.0.0.1",
        pattern=r"^[A-Za-z0-9.:_-]{1,255}$",
        description="Address to listen on; 0.0.0.0 inside a container.",
    )
    port: int = Field(9464, ge=0, le=65_535, description="Port; 0 picks a free one and logs it.")
    flow_timeout_s: float | None = Field(
        None, gt=0, description="Not ready if no frame has arrived for this long. Default: never."
    )


class LogSection(Section):
    """The node's log."""

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Lowest level that is logged.")
    format: Literal["auto", "console", "json"] = Field(
        "auto", description="`auto`: readable on a terminal, JSON otherwise."
    )


class NodeConfig(Section):
    """A node's configuration.

    Any value may be overridden from the environment: HEDGEROW_BROKER__URL=mqtts://broker:8883.
    """

    model_config = ConfigDict(title="Hedgerow node")

    node: NodeSection = Field(NodeSection(), description="The node's identity.")
    broker: BrokerSection = Field(BrokerSection(), description="The site's broker.")
    models: dict[Name, ModelConfig] = Field(default_factory=dict, description="Models by name.")
    pipelines: dict[Name, PipelineConfig] = Field(default_factory=dict, description="Pipelines by name.")
    outbox: OutboxSection = Field(OutboxSection(), description="The durable queue of results for the region.")
    fleet: FleetSection = Field(FleetSection(), description="Models from the region.")
    remote: RemoteSection = Field(RemoteSection(), description="What the node does for others.")
    metrics: MetricsSection = Field(MetricsSection(), description="Metrics and probes.")
    log: LogSection = Field(LogSection(), description="Logging.")

    @model_validator(mode="after")
    def _no_replies_as_frames(self) -> NodeConfig:
        for prefix in self.remote.reply_prefixes:
            for name, filters in self.subscriptions.items():
                for pattern in filters:
                    if overlap(f"{prefix}/#", without_group(pattern)):
                        raise ValueError(
                            f"replies below {prefix!r} would be frames of pipeline {name}, which subscribes to {pattern!r}\n"
                            "  → Choose another prefix under `remote: reply_prefixes`."
                        )
        return self

    @property
    def subscriptions(self) -> Mapping[str, tuple[str, ...]]:
        """Topic filters of the pipelines, by name."""
        return {name: pipeline.subscribe for name, pipeline in self.pipelines.items()}

    @property
    def renamed_keys(self) -> Mapping[str, str]:
        """Keys given by their former names: former name → current name."""
        return self.fleet._renamed_keys
