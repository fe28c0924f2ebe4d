"""What a topology file may say: the region, its sites and nodes, who may do what, and what leaves a site.

Rules:
- As in `config.py`: frozen, unknown keys refused, every field described.
- Whoever connects has a certificate, and its common name is who they are: a node or sensor `SITE/NAME`, a site's bridge
  `SITE`, a person or service `NAME@region` or `NAME@SITE`. `check.py` sees that names do not clash.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field

from hedgerow.config import FieldsSection, Filters, Name, Section

Role = Literal["viewer", "operator", "collector"]
Roles = dict[Role, tuple[Name, ...]]

REGION_AUTHORITY: Final = "region"
"""The folder and suffix of whom the region's authority certifies."""

_BROKER: Final = re.compile(r"(?:mqtts://)?([A-Za-z0-9.-]+|\[[0-9a-fA-F:]+\])(?::([0-9]{1,5}))?")

# What sites may be asked from above unless told. Not `snapshot`: its reply carries a raw frame.
COMMANDS: Final = ("health", "info", "pause", "ping", "reload", "resume", "stop")


def _broker(text: str) -> str:
    match = _BROKER.fullmatch(text)
    if match is None or not 0 < int(match[2] or 8883) < 65_536:
        raise ValueError("write HOST or mqtts://HOST:PORT; between machines there is only TLS")
    return f"mqtts://{match[1]}:{match[2] or 8883}"


def _named(value: Any) -> Any:
    """`[gateway, spare]` is short for `{gateway: , spare: }`."""
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        if len(set(value)) < len(value):
            raise ValueError("a name is there twice")
        value = dict.fromkeys(value)
    return {name: {} if item is None else item for name, item in value.items()} if isinstance(value, dict) else value


def _sensor_topics(filters: tuple[str, ...]) -> tuple[str, ...]:
    for one in filters:
        if one.split("/")[0] in ("hedgerow", "+", "#") or one.startswith("$"):
            raise ValueError(
                f"a sensor may not write {one!r}: its topics begin with a word of their own, not `hedgerow`"
            )
    return filters


def _rule(value: Any) -> Any:
    """`true` is short for all fields; `false` for none, not even the message."""
    if isinstance(value, bool):
        return {} if value else None
    if value is None or not isinstance(value, dict | FieldsSection):
        raise ValueError("write true, false, `{keep: [FIELD, …]}` or `{drop: [FIELD, …]}`")
    return value


Broker = Annotated[str, AfterValidator(_broker)]
Sensors = dict[Name, Annotated[Filters, AfterValidator(_sensor_topics)]]
Up = dict[Name, Annotated[FieldsSection | None, BeforeValidator(_rule, json_schema_input_type=bool | FieldsSection)]]


class NodeEntry(Section):
    """A node of a site."""

    pipelines: Path | None = Field(None, description="Its base file, if it is another than the site's.")
    override: dict[str, Any] = Field(
        default_factory=dict,
        description="What is different on this node, as in a node's configuration. Mappings are merged, anything else is "
        "replaced; null takes away what the base file has.",
        examples=[{"pipelines": {"counter": None}, "log": {"level": "debug"}}],
    )


class SiteSection(Section):
    """A site: one LAN, one broker, its nodes. What it does not say is as at the top of the file."""

    broker: Broker = Field(
        description="Where the site's nodes reach its broker: HOST or mqtts://HOST:PORT.",
        examples=["broker.shop-12.lan"],
    )
    nodes: Annotated[
        dict[Name, NodeEntry],
        Field(min_length=1),
        BeforeValidator(_named, json_schema_input_type=list[str] | dict[str, NodeEntry | None]),
    ] = Field(description="Its nodes: a list of names, or what is different about each by name.")
    pipelines: Path | None = Field(None, description="Base file of its nodes; the file's `pipelines` if left out.")
    sensors: Sensors | None = Field(None, description="Who sends frames, and to which topics; the file's if left out.")
    up: Up | None = Field(None, description="Which results leave this site; the file's `up` if left out.")
    roles: Roles = Field(default_factory=dict, description="Who may do what on the site's own broker, as NAME@SITE.")
    loopback_port: int | None = Field(
        None,
        ge=1,
        le=65_535,
        description="Port of a second listener, without TLS or names, for programs on the broker's own machine: they may "
        "send what sensors send and read results. Left out: there is none.",
    )


class RegionSection(Section):
    """The region: where sites' results go, and where people look."""

    name: Name = Field(description="Its name, second level of every topic.")
    broker: Broker = Field(
        description="Where sites reach its broker: HOST or mqtts://HOST:PORT.", examples=["mqtt.retail.example"]
    )
    external: bool = Field(
        False,
        description="The broker is not ours to configure: any MQTT 5 broker or cluster. Only its ACL is written, to read.",
    )
    roles: Roles = Field(
        {"collector": ("collector",)},
        description="Who may do what: `viewer` reads, `operator` also gives commands, `collector` also acknowledges and sets "
        "what nodes should run. Each is NAME@region.",
    )


class ParentSection(RegionSection):
    """A broker above the region, for those who look at several."""

    name: Name = Field(description="Its name, and that of its authority.")
    broker: Broker = Field(
        description="Where regions reach its broker: HOST or mqtts://HOST:PORT.", examples=["mqtt.example"]
    )
    roles: Roles = Field(default_factory=dict, description="Who may do what, as for a region; each is NAME@PARENT.")
    regions: tuple[Name, ...] = Field((), description="Other regions that connect to it; this one always does.")


class LimitsSection(Section):
    """How much may wait and be under way. The defaults suit a gateway with 4 GB of memory."""

    inflight: int = Field(
        1000, ge=1, le=65_535, description="QoS 1 messages under way to one client at once; the broker's default is 20."
    )
    queue_messages: int = Field(
        1_000_000, ge=1, description="QoS 1 messages that wait for one client that is away; later ones are lost."
    )
    queue_bytes: int = Field(
        512 * 2**20, ge=1024, description="Bytes that wait for one client; what comes first counts."
    )
    packet_bytes: int = Field(
        33_619_968,
        ge=1024,
        le=268_435_455,
        description="Largest packet on a site's LAN: 32 MiB of frame, and its head.",
    )
    bridge_packet_bytes: int = Field(
        2**20, ge=1024, le=268_435_455, description="Largest packet between brokers; a larger one stays at the site."
    )
    autosave_s: int = Field(
        60, ge=1, description="Seconds between writes of what waits; a crash loses what came since."
    )


class MachineSection(Section):
    """Where things lie on the machines that run brokers and nodes. Relative paths count from the topology file."""

    pki: Path = Field(Path("/etc/hedgerow/pki"), description="Certificates: AUTHORITY/issued/NAME/ below it.")
    config: Path = Field(Path("/etc/hedgerow"), description="The rendered folders: SITE/ below it.")
    state: Path = Field(
        Path("/var/lib/hedgerow"), description="What brokers and nodes keep: SITE/broker/ and SITE/NODE/."
    )
    broker_user: Name = Field("mosquitto", description="Who the broker runs as when root starts it.")
    broker_image: str = Field(
        "docker.io/library/eclipse-mosquitto:2.0", description="Container image of the broker.", pattern=r"^\S+$"
    )
    broker_ids: str = Field(
        "1883:1883", pattern=r"^\d+:\d+$", description="Who the broker is in its container, UID:GID."
    )
    broker_memory_bytes: int = Field(
        2**30,
        ge=2**26,
        description="What a broker may take: room for `limits.queue_bytes` of each client that is away.",
    )
    node_image: str = Field("localhost/hedgerow:latest", description="Container image of the nodes.", pattern=r"^\S+$")
    region_image: str = Field(
        "localhost/hedgerow-region:latest", description="Container image of the region's service.", pattern=r"^\S+$"
    )
    node_ids: str = Field(
        "10001:10001",
        pattern=r"^[1-9]\d*:\d+$",
        description="Who nodes and the region's service are in their containers, UID:GID.",
    )
    node_memory_bytes: int = Field(3 * 2**29, ge=2**27, description="What a node may take, models and queues included.")
    region_memory_bytes: int = Field(2**30, ge=2**27, description="What the region's service may take.")
    command: Path = Field(Path("/opt/hedgerow/bin/hedgerow"), description="The command, for nodes without containers.")


class Topology(Section):
    """A region and its sites."""

    model_config = ConfigDict(title="Hedgerow topology")

    region: RegionSection = Field(description="The region.")
    parent: ParentSection | None = Field(None, description="A broker above the region, if there is one.")
    pipelines: Path | None = Field(
        None,
        description="Base file of all nodes: a node's configuration with models and pipelines, relative to this file.",
    )
    sensors: Sensors = Field(
        default_factory=dict,
        description="Sensors that every site has: name → topics it may write.",
        examples=[{"door-camera": "shop/front/door"}],
    )
    up: Up = Field(
        default_factory=dict,
        description="Which results leave the sites, by pipeline: true, false, `{keep: [FIELD, …]}` or `{drop: [FIELD, …]}`. What "
        "is not named stays. Frames and dead letters always stay.",
        examples=[{"visitors": True, "pages": {"drop": ["texts"]}}],
    )
    models: bool = Field(
        False,
        description="Whether the region's service keeps models for the sites: in `models/` where its store is, which `hedgerow "
        "trust init` begins and `hedgerow model publish` fills.",
    )
    commands: tuple[Name, ...] = Field(
        COMMANDS,
        description="Commands that sites take from above. `snapshot` is not among them: its reply carries a raw frame.",
    )
    log_refusals: bool = Field(
        True,
        description="Brokers say in their logs who was refused what: `broker.sh` starts them so. It costs some 20 µs of a core a "
        "message that comes in or goes out; false: only refused connections are logged.",
    )
    sites: dict[Name, SiteSection] = Field(min_length=1, description="The sites by name.")
    limits: LimitsSection = Field(LimitsSection(), description="How much may wait and be under way.")
    machine: MachineSection = Field(MachineSection(), description="Where things lie on the machines.")

    def sensors_of(self, site: str) -> Sensors:
        """The sensors of a site."""
        own = self.sites[site].sensors
        return self.sensors if own is None else own

    def up_of(self, site: str) -> Mapping[str, FieldsSection]:
        """The pipelines of a site whose results leave it, and which fields of them."""
        own = self.sites[site].up
        rules = self.up if own is None else own
        return {name: fields for name, fields in rules.items() if fields is not None}

    def base_of(self, site: str, node: str) -> Path | None:
        """The base file of a node."""
        place = self.sites[site]
        return place.nodes[node].pipelines or place.pipelines or self.pipelines
