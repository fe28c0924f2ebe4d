"""Mosquitto configurations of sites, regions and parents. Pure: a topology in, texts out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from string import Template
from typing import Final
from urllib.parse import urlsplit

from hedgerow.config import NodeConfig
from hedgerow.topics import Address, Channel, is_name
from hedgerow.topology import limits
from hedgerow.topology.acl import pattern, rising
from hedgerow.topology.limits import BrokerLimits
from hedgerow.topology.model import REGION_AUTHORITY, RegionSection, SiteSection, Topology
from hedgerow.topology.nodes import certificate

_LOOPBACK: Final = ("localhost", "127.0.0.1", "[::1]")


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
    allowed = limits.of_site(topology, site, nodes)
    text += _listener(topology, site, site, place, allowed)
    if place.loopback_port is not None:
        text += template(
            "loopback.conf",
            port=place.loopback_port,
            acl=topology.machine.config / site / "acl.loopback",
            connections=allowed.connections,
        )
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
    allowed = limits.of_region(topology)
    text += _listener(topology, region.name, REGION_AUTHORITY, region, allowed)
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


def parent_conf(topology: Topology, parent: RegionSection) -> str:
    """Return the configuration of the broker above the region."""
    text = f"# The broker {parent.name}, above the regions, for Mosquitto 2.0.11 or later.\n\n"
    allowed = limits.of_parent(topology, parent)
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
    yield "# Frames and dead letters, which carry frames, have no line here and do not leave."


def _down(topology: Topology, region: str, site: str) -> Iterator[str]:
    address = Address(region, site, "+")
    yield _topic(address, Channel.DESIRED, "in")
    yield _topic(address, Channel.ACK, "in")
    for command in topology.commands:
        yield f"topic {address.topic(Channel.COMMAND, command)} in 1"
    if "snapshot" not in topology.commands:
        yield "# `snapshot` is not among the commands: its reply would carry a raw frame, which nodes refuse to send up anyway."


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
