"""Mosquitto configurations of sites, regions and parents. Pure: a topology in, texts out.

Limits are derived from what connects to a broker. Mosquitto has none for each user, so what one client may take is small
enough that many of them leave room for others, and `memory_limit` stops the broker before the machine would kill it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from string import Template
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from hedgerow.config import NodeConfig
from hedgerow.topics import Address, Channel, is_name
from hedgerow.topology.acl import pattern, rising
from hedgerow.topology.model import REGION_AUTHORITY, ParentSection, RegionSection, SiteSection, Topology
from hedgerow.topology.nodes import certificate

_LOOPBACK: Final = ("localhost", "127.0.0.1", "[::1]")

_CONNECTION_BYTES: Final = 28_000
"""Memory of an idle TLS connection, which `memory_limit` does not count. Measured, as all of these, with Mosquitto 2.0.11."""
_QUEUED_BYTES: Final = 94
"""Memory of a QoS 1 message in the queue of one more client; the message itself is stored once for all."""

_LINKS_BESIDE_PIPELINES: Final = 3  # a node's own link, its outbox, model chunks
_OTHER_FILES: Final = 64
_LEAST_ENROLLING: Final = 4
_MOST_ENROLLING: Final = 64
_MOST_QUEUED: Final = 100_000
_LEAST_QUEUED: Final = 10_000
_LEAST_QUEUE_BYTES: Final = 2**24
_MOST_QUEUE_BYTES: Final = 2**31 - 1  # Mosquitto reads it into 32 bits


class BrokerLimits(NamedTuple):
    """Limits of one broker.

    Attributes:
        connections: for each listener.
        files: open files of the broker, each connection among them: as many as memory holds. Mosquitto 2.0.11 counts a
            connection that ends twice, so that `max_connections` allows more after each.
        clients: how many connect if all do.
        queue_messages, queue_bytes: for one client.
        memory_bytes: what the broker allocates, without TLS.
    """

    connections: int
    files: int
    clients: int
    queue_messages: int
    queue_bytes: int
    memory_bytes: int


def template(name: str, /, **values: object) -> str:
    """Return a text of `templates/` with its placeholders filled in."""
    return _read(name).substitute({key: str(value) for key, value in values.items()})


def scalar(name: str) -> str:
    """Return a name as YAML; quoted where some reader would see a number, a date or a truth value."""
    words = ("null", "true", "false", "yes", "no", "on", "off", "y", "n")
    return name if name[0].isalpha() and name.lower() not in words else json.dumps(name)


@cache
def _read(name: str) -> Template:
    return Template((resources.files("hedgerow.topology.templates") / f"{name}.txt").read_text("utf-8"))


def site_conf(topology: Topology, site: str, nodes: Mapping[str, NodeConfig]) -> str:
    """Return the configuration of a site's broker, with its bridge to the region.

    Args:
        nodes: configurations of its nodes.
    """
    place, region = topology.sites[site], topology.region
    up = _up_of_site(topology, site)
    text = f"# The broker of site {site}, region {region.name}, for Mosquitto 2.0.11 or later.\n\n"
    allowed = site_limits(topology, site, nodes)
    text += _listener(topology, site, site, place, allowed)
    if place.loopback_port is not None:
        text += template(
            "loopback.conf",
            port=place.loopback_port,
            acl=topology.machine.config / site / "acl.loopback",
            connections=allowed.connections,
        )
    text += _enrolment(topology, site, site, place, topology.limits.packet_bytes)
    text += _limits(topology, site, topology.limits.packet_bytes, allowed)
    return text + _bridge(
        topology,
        site,
        region,
        f"to the region, {region.name}",
        REGION_AUTHORITY,
        up,
        _down(topology, region.name, site),
    )


def region_conf(topology: Topology) -> str:
    """Return the configuration of the region's broker, with a bridge to its parent, if it has one."""
    region, parent = topology.region, topology.parent
    text = f"# The broker of region {region.name}, for Mosquitto 2.0.11 or later.\n\n"
    allowed = region_limits(topology)
    text += _listener(topology, region.name, REGION_AUTHORITY, region, allowed)
    text += _enrolment(topology, region.name, REGION_AUTHORITY, region, topology.limits.bridge_packet_bytes)
    text += _limits(topology, region.name, topology.limits.bridge_packet_bytes, allowed)
    if parent is None:
        return text
    everyone = Address(region.name, "+", "+")
    up = [
        "# Everything that came up from the sites; what must stay there never got here.",
        *(_up(everyone, channel, parent.name) for channel in _ALWAYS_UP),
        _topic(everyone, Channel.RESULT, "out"),
        "# Models come from the region's own repository and have no line here.",
    ]
    return text + _bridge(
        topology, region.name, parent, f"to {parent.name}", parent.name, up, _down(topology, region.name, "+")
    )


def parent_conf(topology: Topology, parent: ParentSection) -> str:
    """Return the configuration of the broker above the region."""
    text = f"# The broker {parent.name}, above the regions, for Mosquitto 2.0.11 or later.\n\n"
    allowed = parent_limits(topology, parent)
    text += _listener(topology, parent.name, parent.name, parent, allowed)
    return text + _limits(topology, parent.name, topology.limits.bridge_packet_bytes, allowed)


def start_files(topology: Topology, name: str, allowed: BrokerLimits) -> dict[str, str]:
    """Return the start script of a broker."""
    text = template(
        "broker.sh",
        where=name,
        purpose=" so that its log shows refused requests" if topology.log_refusals else "",
        config=topology.machine.config / name,
        state=state_of(topology, name),
        files=allowed.files,
        former_min=topology.limits.session_hours * 60,
        user=topology.machine.broker_user,
        start=template("broker-log.sh") if topology.log_refusals else 'exec mosquitto -c "$state/mosquitto.conf"\n',
    )
    return {"broker.sh": text}


def command(topology: Topology, name: str) -> list[str]:
    """Return the command that starts a broker."""
    return ["sh", f"{topology.machine.config / name}/broker.sh"]


_ALWAYS_UP: Final = (Channel.STATUS, Channel.HEALTH, Channel.EVENT, Channel.REPORTED, Channel.REPLY)


def _up_of_site(topology: Topology, site: str) -> Iterator[str]:
    address = Address(topology.region.name, site, "+")
    yield "# Node state, events, and replies to requests from above. Other replies may carry frames, and stay:"
    for channel in _ALWAYS_UP:
        yield _up(address, channel)
    rules = topology.up_of(site)
    yield (
        "# Results, as listed under `up:` in the topology:"
        if rules
        else "# No results: `up:` in the topology names none."
    )
    for pipeline, fields in rules.items():
        if fields:
            listed = ", ".join(name if is_name(name) else json.dumps(name) for name in fields.keep or fields.drop)
            what = f"only {listed}" if fields.keep is not None else f"without {listed}"
            yield f"# {pipeline}: {what} (the node leaves the rest out)"
        yield f"topic {address.topic(Channel.RESULT, pipeline)}/# out 1"
    yield "# Model chunks: requested by one node, sent to all nodes of the site at once. What nodes announce and send to each"
    yield "# other stays at the site and has no line here."
    yield f"topic {address.topic(Channel.BLOB, 'ask')}/# out 1"
    yield _topic(address.everyone(), Channel.BLOB, "in")
    if topology.asks_region(site):
        yield "# Requests of machines that enrol here:"
        yield f"topic {address.everyone().topic(Channel.ENROL, '#')} out 0"
    yield "# Frames and dead letters, which carry frames, have no line here and do not leave."


def _down(topology: Topology, region: str, site: str) -> Iterator[str]:
    address = Address(region, site, "+")
    yield _topic(address, Channel.DESIRED, "in")
    yield _topic(address, Channel.ACK, "in")
    if site in topology.sites and topology.asks_region(site):
        yield "# Answers to machines that enrol here:"
        yield f"topic {address.everyone().topic(Channel.ENROLLED, '#')} in 0"
    for command in topology.commands:
        yield f"topic {address.topic(Channel.COMMAND, command)} in 1"
    if "snapshot" not in topology.commands:
        yield "# `snapshot` is not among the commands: its reply would carry a raw frame, which nodes refuse to send up."


def _topic(address: Address, channel: Channel, way: str) -> str:
    return f"topic {pattern(address, channel)} {way} 1"


def _up(address: Address, channel: Channel, parent: str | None = None) -> str:
    # Health is sent every ten seconds and needs no retry.
    return f"topic {rising(address, channel, parent)} out {0 if channel is Channel.HEALTH else 1}"


def _listener(
    topology: Topology, name: str, authority: str, place: SiteSection | RegionSection, allowed: BrokerLimits
) -> str:
    url = urlsplit(place.broker)
    host = place.broker.removeprefix("mqtts://").rpartition(":")[0]
    here = f" {host.strip('[]')}" if host in _LOOPBACK else ""  # bound to loopback only
    return template(
        "listener.conf",
        listener=f"{url.port}{here}",
        tls=certificate(topology, authority, "broker"),
        acl=topology.machine.config / name / "acl",
        connections=allowed.connections,
        clients=allowed.clients,
        aliases=topology.limits.topic_aliases,
    )


def _enrolment(
    topology: Topology, name: str, authority: str, place: SiteSection | RegionSection, packet_bytes: int
) -> str:
    """Return the listener for machines that enrol, if there is one."""
    if place.enrolment_port is None:
        return ""
    host = place.broker.removeprefix("mqtts://").rpartition(":")[0]
    here = f" {host.strip('[]')}" if host in _LOOPBACK else ""
    fitting = topology.machine.broker_memory_bytes // 4 // packet_bytes
    return template(
        "enrolment.conf",
        listener=f"{place.enrolment_port}{here}",
        tls=certificate(topology, authority, "broker"),
        acl=topology.machine.config / name / "acl.enrolment",
        connections=topology.limits.enrolment_connections or min(_MOST_ENROLLING, max(_LEAST_ENROLLING, fitting)),
    )


def enrolment_url(place: SiteSection | RegionSection) -> str | None:
    """Return where machines enrol at a broker; None if they don't."""
    if place.enrolment_port is None:
        return None
    return f"{place.broker.rpartition(':')[0]}:{place.enrolment_port}"


def _limits(topology: Topology, name: str, packet_bytes: int, allowed: BrokerLimits) -> str:
    settings = topology.limits
    waiting = min(allowed.queue_messages, allowed.queue_bytes // 1000)
    return template(
        "limits.conf",
        inflight=settings.inflight,
        rate=f"{settings.inflight * 25:,}",
        queue_messages=allowed.queue_messages,
        queue_bytes=allowed.queue_bytes,
        queue_mib=f"{allowed.queue_bytes / 2**20:.3g}",
        hours=f"{waiting / 20 / 3600:.2g}",
        packet_bytes=packet_bytes,
        memory_bytes=allowed.memory_bytes,
        memory_mib=allowed.memory_bytes >> 20,
        keepalive_s=settings.keepalive_s,
        session_hours=settings.session_hours,
        state=state_of(topology, name),
        autosave_s=settings.autosave_s,
        user=topology.machine.broker_user,
    )


def site_limits(topology: Topology, site: str, nodes: Mapping[str, NodeConfig]) -> BrokerLimits:
    """Return the limits of a site's broker.

    Args:
        nodes: configurations of its nodes.
    """
    pipelines = sum(len(config.pipelines) for config in nodes.values())
    clients = pipelines + _LINKS_BESIDE_PIPELINES * len(nodes) + len(topology.sensors_of(site))
    people = sum(len(names) for names in topology.sites[site].roles.values())
    return _derived(topology, clients + people, queues=pipelines + 1)  # one more: the bridge


def region_limits(topology: Topology) -> BrokerLimits:
    """Return the limits of the region's broker."""
    collectors = len(topology.region.roles.get("collector", ()))
    return _derived(topology, len(topology.sites) + _people(topology.region), queues=collectors + 1)


def parent_limits(topology: Topology, parent: ParentSection) -> BrokerLimits:
    """Return the limits of the broker above the region."""
    return _derived(topology, 1 + len(parent.regions) + _people(parent), queues=1)


def _people(place: RegionSection) -> int:
    return sum(len(names) for names in place.roles.values())


def _derived(topology: Topology, clients: int, queues: int) -> BrokerLimits:
    """Derive what the topology leaves open.

    Args:
        clients: connections if every client has one.
        queues: clients for which messages must wait while they are absent.
    """
    limits, memory = topology.limits, topology.machine.broker_memory_bytes
    # A link that is lost is replaced before the broker notices, and people use several tools.
    connections = limits.connections or 4 * clients + 64
    # Not all of it: snapshots, TLS and the memory allocator need some too.
    allowed = limits.memory_bytes or max(memory // 2, memory * 3 // 4 - connections * _CONNECTION_BYTES)
    # Half of the memory for queues of as many clients as may connect; three quarters if only those are absent that should wait.
    messages = min(_MOST_QUEUED, max(_LEAST_QUEUED, allowed // 2 // _QUEUED_BYTES // connections))
    size = min(_MOST_QUEUE_BYTES, max(_LEAST_QUEUE_BYTES, allowed * 3 // 4 // queues))
    least = 2 * connections + _OTHER_FILES  # two listeners
    files = least if limits.connections else max(least, memory // 4 // _CONNECTION_BYTES)
    return BrokerLimits(
        connections, files, clients, limits.queue_messages or messages, limits.queue_bytes or size, allowed
    )


def state_of(topology: Topology, name: str) -> Path:
    """Return the folder in which a broker stores what must survive a restart."""
    return topology.machine.state / name / "broker"


def _bridge(
    topology: Topology,
    user: str,
    above: RegionSection,
    words: str,
    authority: str,
    up: Iterable[str],
    down: Iterable[str],
) -> str:
    """Return the block of a bridge upwards; `user` is its user name there, certified by their `authority`."""
    return template(
        "bridge.conf",
        above=words,
        user=user,
        address=above.broker.removeprefix("mqtts://"),
        tls=certificate(topology, authority, user),
        packet_bytes=topology.limits.bridge_packet_bytes,
        packet_kib=topology.limits.bridge_packet_bytes // 1024,
        local_only="true" if above.external else "false",
        where=" here only, since not every broker lets clients write there" if above.external else " on both brokers",
        up="\n".join(up),
        down="\n".join(down),
    )
