"""Schema of a topology file: the region, its sites and nodes, permissions, and what leaves a site.

Rules:
- As in `config.py`: frozen, unknown keys refused, every field described.
- Every client has a certificate whose common name is its identity: a node or sensor `SITE/NAME`, a site's bridge `SITE`,
  a person or service `NAME@region` or `NAME@SITE`. `check.py` finds clashing names.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field

from hedgerow.config import FieldsSection, Filters, Name, Section

Role = Literal["viewer", "operator", "collector"]
Roles = dict[Role, tuple[Name, ...]]

REGION_AUTHORITY: Final = "region"
"""Folder and name suffix of identities that the region's authority certifies."""

# As in the grammar of OCI references: a registry with its port, a path, a tag, a digest.
_IMAGE: Final = re.compile(
    r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:[0-9]{1,5}(?=/))?(/[a-z0-9]([a-z0-9._-]*[a-z0-9])?)*"
    r"(:[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?(@sha256:[0-9a-f]{64})?"
)
_BROKER: Final = re.compile(r"(?:mqtts://)?([A-Za-z0-9.-]+|\[[0-9a-fA-F:]+\])(?::([0-9]{1,5}))?")

# Commands that sites accept from above by default. Not `snapshot`: its reply carries a raw frame.
COMMANDS: Final = ("adjust", "health", "info", "pause", "ping", "reload", "resume", "stop")


def _broker(text: str) -> str:
    match = _BROKER.fullmatch(text)
    if match is None or not 0 < int(match[2] or 8883) < 65_536:
        raise ValueError("write HOST or mqtts://HOST:PORT; TLS is required between machines")
    if match[1].startswith("["):
        ipaddress.IPv6Address(match[1][1:-1])
    elif re.fullmatch(r"(?!.*\.\.)[A-Za-z0-9].*", match[1]) is None:
        raise ValueError(f"{match[1]!r} is neither a host name nor an address")
    return f"mqtts://{match[1]}:{match[2] or 8883}"


def _named(value: Any) -> Any:
    """`[gateway, spare]` is short for `{gateway: , spare: }`."""
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        if len(set(value)) < len(value):
            raise ValueError("a name is duplicated")
        value = dict.fromkeys(value)
    return {name: {} if item is None else item for name, item in value.items()} if isinstance(value, dict) else value


def _sensor_topics(filters: tuple[str, ...]) -> tuple[str, ...]:
    for one in filters:
        if one.split("/")[0] in ("hedgerow", "+", "#") or one.startswith("$"):
            raise ValueError(
                f"a sensor may not write {one!r}: the first level of its topics must be a fixed name other than `hedgerow`"
            )
        if one != one.strip():
            raise ValueError(f"{one!r} begins or ends with a space, which an access list cannot express")
    return filters


def _rule(value: Any) -> Any:
    """`true` is short for all fields; `false` for none, not even the message."""
    if isinstance(value, bool):
        return {} if value else None
    if value is None or not isinstance(value, dict | FieldsSection):
        raise ValueError("write true, false, `{keep: [FIELD, …]}` or `{drop: [FIELD, …]}`")
    return value


def _image(text: str) -> str:
    if len(text) > 512 or _IMAGE.fullmatch(text) is None:
        raise ValueError("write NAME:TAG or NAME@sha256:DIGEST, as `podman image inspect` prints it")
    return text


Broker = Annotated[str, AfterValidator(_broker)]
Image = Annotated[str, AfterValidator(_image)]
Sensors = dict[Name, Annotated[Filters, AfterValidator(_sensor_topics)]]
Up = dict[Name, Annotated[FieldsSection | None, BeforeValidator(_rule, json_schema_input_type=bool | FieldsSection)]]


EnrolmentPort = Annotated[
    int | None,
    Field(
        ge=1,
        le=65_535,
        description="Port of a second listener, for machines that enrol: with TLS, but without client certificates. They may only ask, "
        "and read the answers to their own requests. Anyone who can reach it may connect, so open it only while machines enrol. "
        "Default: no such listener.",
    ),
]


class NodeEntry(Section):
    """A node of a site."""

    pipelines: Path | None = Field(None, description="Its base file, if different from the site's.")
    enrols: bool | None = Field(
        None,
        description="Whether it makes its own key and enrols, so that `pki apply` issues it no certificate; default: as its site says.",
    )
    override: dict[str, Any] = Field(
        default_factory=dict,
        description="Settings that differ on this node, as in a node's configuration. Mappings are merged, anything else is "
        "replaced; null removes what the base file has.",
        examples=[{"pipelines": {"counter": None}, "log": {"level": "debug"}}],
    )


class SiteSection(Section):
    """A site: one LAN, one broker, its nodes. Anything left out is taken from the top of the file."""

    broker: Broker = Field(
        description="Address at which the site's nodes reach its broker: HOST or mqtts://HOST:PORT.",
        examples=["broker.shop-12.lan"],
    )
    nodes: Annotated[
        dict[Name, NodeEntry],
        Field(min_length=1),
        BeforeValidator(_named, json_schema_input_type=list[str] | dict[str, NodeEntry | None]),
    ] = Field(description="Its nodes: a list of names, or a mapping from name to what differs.")
    pipelines: Path | None = Field(None, description="Base file of its nodes; default: the top-level `pipelines`.")
    sensors: Sensors | None = Field(None, description="Its sensors and their topics; default: the top-level `sensors`.")
    up: Up | None = Field(None, description="Results that leave this site; default: the top-level `up`.")
    roles: Roles = Field(default_factory=dict, description="Roles on the site's own broker, for NAME@SITE.")
    loopback_port: int | None = Field(
        None,
        ge=1,
        le=65_535,
        description="Port of a second listener, without TLS or user names, for programs on the broker's own machine: they may "
        "send what sensors send and read results. Default: no such listener.",
    )
    enrolment_port: EnrolmentPort = None
    enrols: bool = Field(
        False,
        description="Whether its nodes make their own keys and enrol; `pki apply` then issues them no certificates.",
    )
    own_enrolment: bool = Field(
        False,
        description="A service at the site answers machines that enrol at its broker, with a certificate of a collector of the site: requests "
        "do not go to the region, which would refuse them.",
    )


class RegionSection(Section):
    """The region, which receives the sites' results."""

    name: Name = Field(description="Its name, the second level of every topic.")
    broker: Broker = Field(
        description="Address at which sites reach its broker: HOST or mqtts://HOST:PORT.",
        examples=["mqtt.retail.example"],
    )
    external: bool = Field(
        False,
        description="Hedgerow does not configure the broker, which may be any MQTT 5 broker or cluster. Only its ACL is written, for reference.",
    )
    enrolment_port: EnrolmentPort = None
    roles: Roles = Field(
        {"collector": ("collector",)},
        description="Roles: `viewer` reads, `operator` also gives commands, `collector` also acknowledges and sets "
        "desired state. Each member is NAME@region.",
    )


class ParentSection(RegionSection):
    """A broker above the region, for people who watch several."""

    name: Name = Field(description="Its name, and the name of its authority.")
    broker: Broker = Field(
        description="Address at which regions reach its broker: HOST or mqtts://HOST:PORT.", examples=["mqtt.example"]
    )
    roles: Roles = Field(default_factory=dict, description="Roles, as for a region; each member is NAME@PARENT.")
    regions: tuple[Name, ...] = Field((), description="Other regions that connect to it, besides this one.")


class LimitsSection(Section):
    """Limits of connections, sessions and messages. What is left out is derived from the topology: see `brokers.py`."""

    connections: int | None = Field(
        None,
        ge=8,
        le=65_535,
        description="Connections to one listener of a broker; further ones are closed at once, whoever they are. Default: four "
        "for each client of the topology (a node has one for each pipeline, and three more), and 64.",
    )
    enrolment_connections: int | None = Field(
        None,
        ge=1,
        le=65_535,
        description="Connections to a listener for enrolment (`enrolment_port`). Default: as many as can each send a largest packet within a "
        "quarter of the broker's memory; 4 to 64. A machine that waits for approval holds none.",
    )
    session_hours: int = Field(
        48,
        ge=1,
        le=8760,
        description="Hours that a broker keeps the session of an absent client, and what waits for it, even if the client "
        "asked for more.",
    )
    keepalive_s: int = Field(
        1200,
        ge=30,
        le=65_535,
        description="Longest keepalive: a client of MQTT 5 that asks for more, or none, is told to use this. Mosquitto 2.0.11 lets "
        "clients of MQTT 3.1.1 have what they ask for; later versions refuse those that ask for more, or none (identifier rejected).",
    )
    topic_aliases: int = Field(
        0,
        ge=0,
        le=65_535,
        description="Topic aliases that a client may set; each holds up to 64 KiB. Hedgerow uses none.",
    )
    memory_bytes: int | None = Field(
        None,
        ge=2**24,
        description="Memory that a broker allocates. Then it disconnects whoever publishes or connects, without an "
        "acknowledgement, until there is room. Default: three quarters of `machine.broker_memory_bytes`, less 28 kB for each "
        "connection.",
    )
    inflight: int = Field(
        1000, ge=1, le=65_535, description="QoS 1 messages in flight to one client; the broker's default is 20."
    )
    queue_messages: int | None = Field(
        None,
        ge=1,
        le=2**31 - 1,
        description="Messages that wait for one slow or absent client; later ones are lost. Default: as many as half of the "
        "memory holds for all `connections` at 94 bytes each; 10,000 to 100,000.",
    )
    queue_bytes: int | None = Field(
        None,
        ge=1024,
        le=2**31 - 1,
        description="Bytes that wait for one client; whichever limit is reached first applies. Default: three quarters of the "
        "memory, divided by the clients that messages wait for (pipelines and a bridge; collectors and a bridge).",
    )
    packet_bytes: int = Field(
        33_619_968,
        ge=1024,
        le=268_435_455,
        description="Largest packet on a site's LAN: a frame of 32 MiB, and its header.",
    )
    bridge_packet_bytes: int = Field(
        2**20, ge=1024, le=268_435_455, description="Largest packet between brokers; a larger one stays at the site."
    )
    autosave_s: int = Field(
        60, ge=1, description="Seconds between writes of the queues to disk; a crash loses messages received since."
    )


class MachineSection(Section):
    """Paths and users on the machines that run brokers and nodes. Relative paths start at the topology file."""

    pki: Path = Field(Path("/etc/hedgerow/pki"), description="Folder of certificates: AUTHORITY/issued/NAME/.")
    config: Path = Field(Path("/etc/hedgerow"), description="Folder of rendered files: SITE/.")
    state: Path = Field(Path("/var/lib/hedgerow"), description="Folder of state: SITE/broker/ and SITE/NODE/.")
    broker_user: Name = Field("mosquitto", description="User the broker runs as when root starts it.")
    broker_image: Image = Field(
        "docker.io/library/eclipse-mosquitto:2.0",
        description="Container image of the broker, best by digest: NAME@sha256:…",
    )
    broker_ids: str = Field(
        "1883:1883",
        pattern=r"^[1-9][0-9]{0,9}:[0-9]{1,10}$",
        description="UID:GID of the broker in its container; not root.",
    )
    broker_memory_bytes: int = Field(
        2**30,
        ge=2**26,
        description="Memory limit of a broker. Its other limits are derived from it.",
    )
    node_image: Image = Field(
        "localhost/hedgerow:latest", description="Container image of the nodes, best by digest: NAME@sha256:…"
    )
    region_image: Image = Field(
        "localhost/hedgerow-region:latest",
        description="Container image of the region's service, best by digest: NAME@sha256:…",
    )
    node_ids: str = Field(
        "10001:10001",
        pattern=r"^[1-9][0-9]{0,9}:[0-9]{1,10}$",
        description="UID:GID of nodes and the region's service in their containers.",
    )
    node_memory_bytes: int = Field(
        3 * 2**29, ge=2**27, description="Memory limit of a node, including models and queues."
    )
    region_memory_bytes: int = Field(2**30, ge=2**27, description="Memory limit of the region's service.")
    command: Path = Field(
        Path("/opt/hedgerow/bin/hedgerow"), description="Path of the command, for nodes without containers."
    )


class Topology(Section):
    """A region and its sites."""

    model_config = ConfigDict(title="Hedgerow topology")

    region: RegionSection = Field(description="The region.")
    parent: ParentSection | None = Field(None, description="A broker above the region.")
    pipelines: Path | None = Field(
        None,
        description="Base file of all nodes: a node's configuration with models and pipelines, relative to this file.",
    )
    sensors: Sensors = Field(
        default_factory=dict,
        description="Sensors of every site: name → topics it may write.",
        examples=[{"door-camera": "shop/front/door"}],
    )
    up: Up = Field(
        default_factory=dict,
        description="Results that leave the sites, by pipeline: true, false, `{keep: [FIELD, …]}` or `{drop: [FIELD, …]}`. Anything "
        "else stays. Frames and dead letters always stay.",
        examples=[{"visitors": True, "pages": {"drop": ["texts"]}}],
    )
    models: bool = Field(
        False,
        description="Whether the region's service serves models to the sites, from `models/` next to its store. Create it with "
        "`hedgerow trust init`, and fill it with `hedgerow model publish`.",
    )
    commands: tuple[Name, ...] = Field(
        COMMANDS,
        description="Commands that sites accept from above. `snapshot` is not among them: its reply carries a raw frame, which "
        "leaves a site only if the node's file also sets `remote: {frames_may_leave: true}`.",
    )
    log_refusals: bool = Field(
        True,
        description="Whether brokers log every refused request; `broker.sh` then filters their verbose log. It costs some 20 µs of a core per "
        "message in or out; false: only refused connections are logged.",
    )
    shared_subscriptions: bool = Field(
        False,
        description="Whether pipelines may subscribe to `$share/GROUP/…`. Mosquitto lets every client of the site join the group, "
        "whatever its rights: with true, a stolen sensor can take frames from the nodes, and nobody is told.",
    )
    sites: dict[Name, SiteSection] = Field(min_length=1, description="The sites by name.")
    limits: LimitsSection = Field(LimitsSection(), description="Limits of connections, sessions and messages.")
    machine: MachineSection = Field(MachineSection(), description="Paths, users and limits on the machines.")

    def sensors_of(self, site: str) -> Sensors:
        """Return the sensors of a site."""
        own = self.sites[site].sensors
        return self.sensors if own is None else own

    def up_of(self, site: str) -> Mapping[str, FieldsSection]:
        """Return the pipelines of a site whose results leave it, with their fields."""
        own = self.sites[site].up
        rules = self.up if own is None else own
        return {name: fields for name, fields in rules.items() if fields is not None}

    def enrols(self, site: str, node: str) -> bool:
        """Whether a node makes its own key and enrols."""
        own = self.sites[site].nodes[node].enrols
        return self.sites[site].enrols if own is None else own

    def places(self, site: str) -> list[str]:
        """Return the nodes of a site that enrol."""
        return [node for node in self.sites[site].nodes if self.enrols(site, node)]

    def asks(self, site: str) -> bool:
        """Whether machines enrol at a site's broker."""
        return self.sites[site].enrolment_port is not None

    def asks_region(self, site: str) -> bool:
        """Whether machines that enrol at a site's broker are answered by the region."""
        return self.asks(site) and not self.sites[site].own_enrolment

    @property
    def has_enrolment(self) -> bool:
        """Whether machines enrol at some broker."""
        return self.region.enrolment_port is not None or any(map(self.asks, self.sites))

    def base_of(self, site: str, node: str) -> Path | None:
        """Return the base file of a node."""
        place = self.sites[site]
        return place.nodes[node].pipelines or place.pipelines or self.pipelines
