"""Limits of a broker, derived from what connects to it, so that no client can use up its memory. Pure.

Mosquitto has no limits per user. What one client may take is therefore small enough that many of them leave room for the
others, and `memory_limit` stops the broker before the machine would kill it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from hedgerow.config import NodeConfig
from hedgerow.topology.model import RegionSection, Topology

CONNECTION_BYTES: Final = 28_000
"""Memory of an idle TLS connection, which `memory_limit` does not count. Measured, as all of these, with Mosquitto 2.0.11."""
QUEUED_BYTES: Final = 94
"""Memory of a QoS 1 message in the queue of one more client; the message itself is stored once for all."""

_LINKS_BESIDE_PIPELINES: Final = 3  # a node's own link, its outbox, model chunks
_OTHER_FILES: Final = 64
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


def of_site(topology: Topology, site: str, nodes: Mapping[str, NodeConfig]) -> BrokerLimits:
    """Return the limits of a site's broker.

    Args:
        nodes: configurations of its nodes.
    """
    pipelines = sum(len(config.pipelines) for config in nodes.values())
    clients = pipelines + _LINKS_BESIDE_PIPELINES * len(nodes) + len(topology.sensors_of(site))
    people = sum(len(names) for names in topology.sites[site].roles.values())
    return _limits(topology, clients + people, queues=pipelines + 1)  # one more: the bridge


def of_region(topology: Topology) -> BrokerLimits:
    """Return the limits of the region's broker."""
    collectors = len(topology.region.roles.get("collector", ()))
    return _limits(topology, len(topology.sites) + _people(topology.region), queues=collectors + 1)


def of_parent(topology: Topology, parent: RegionSection) -> BrokerLimits:
    """Return the limits of the broker above the region."""
    return _limits(topology, 1 + len(getattr(parent, "regions", ())) + _people(parent), queues=1)


def _people(place: RegionSection) -> int:
    return sum(len(names) for names in place.roles.values())


def _limits(topology: Topology, clients: int, queues: int) -> BrokerLimits:
    """Derive what the topology leaves open.

    Args:
        clients: connections if every client has one.
        queues: clients for which messages must wait while they are absent.
    """
    limits, memory = topology.limits, topology.machine.broker_memory_bytes
    # A link that is lost is replaced before the broker notices, and people use several tools.
    connections = limits.connections or 4 * clients + 64
    # Not all of it: snapshots, TLS and the memory allocator need some too.
    allowed = limits.memory_bytes or max(memory // 2, memory * 3 // 4 - connections * CONNECTION_BYTES)
    # Half of the memory for queues of as many clients as may connect; three quarters if only those are absent that should wait.
    messages = min(_MOST_QUEUED, max(_LEAST_QUEUED, allowed // 2 // QUEUED_BYTES // connections))
    size = min(_MOST_QUEUE_BYTES, max(_LEAST_QUEUE_BYTES, allowed * 3 // 4 // queues))
    least = 2 * connections + _OTHER_FILES  # two listeners
    files = least if limits.connections else max(least, memory // 4 // CONNECTION_BYTES)
    return BrokerLimits(
        connections, files, clients, limits.queue_messages or messages, limits.queue_bytes or size, allowed
    )
