"""ACL files of the brokers of sites, regions and parents. Pure.

Each user has a section of its own. Mosquitto would accept `pattern … %u` with a name like `shop-12/gateway` too, but a
pattern applies to every user: a sensor could then impersonate a node of the same name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final, Literal, NamedTuple

from hedgerow.config import NodeConfig
from hedgerow.topics import ENROLMENT, Address, Channel, upward
from hedgerow.topics import UP as UPWARD
from hedgerow.topology.check import subscriptions
from hedgerow.topology.model import Roles, Topology

UP: Final = (
    Channel.STATUS, Channel.HEALTH, Channel.EVENT, Channel.RESULT, Channel.REPORTED, Channel.REPLY, Channel.BLOB,
    Channel.ENROL,
)  # fmt: skip
"""Channels a site may publish on to the region."""
DOWN: Final = (Channel.DESIRED, Channel.COMMAND, Channel.ACK, Channel.BLOB, Channel.ENROLLED)
"""Channels the region may publish on to a site."""
_OWN: Final = (Channel.HEALTH, Channel.EVENT, Channel.RESULT, Channel.REPORTED, Channel.DEAD)
_SEEN: Final = (Channel.STATUS, Channel.HEALTH, Channel.EVENT, Channel.RESULT, Channel.REPORTED)


class Grant(NamedTuple):
    """What a role may do with the topics of some nodes.

    Attributes:
        on: whose topics: of the node itself; of every node of its site at once (`~`); of any node of the site, on the site's
            broker; of any node of the place, which is the site on its broker and the region on the region's; of `~` with the
            client's own id as tail (`client`).
    """

    on: Literal["itself", "everyone", "site", "place", "client"]
    read: tuple[Channel, ...] = ()
    write: tuple[Channel, ...] = ()


RIGHTS: Final[Mapping[str, tuple[Grant, ...]]] = {
    "node": (
        Grant(
            "itself",
            read=(Channel.STATUS, Channel.DESIRED, Channel.COMMAND, Channel.ACK, Channel.REPLY, Channel.BLOB),
            write=(Channel.STATUS, *_OWN, Channel.REPLY, Channel.BLOB),
        ),
        Grant("everyone", read=(Channel.DESIRED, Channel.COMMAND), write=(Channel.REPLY,)),
        Grant("site", read=(Channel.BLOB,)),
    ),
    "sensor": (),
    "program": (Grant("site", read=_SEEN),),
    "bridge": (Grant("place", read=DOWN, write=UP),),
    "viewer": (Grant("place", read=_SEEN),),
    "operator": (
        Grant("place", read=(*_SEEN, Channel.DESIRED, Channel.REPLY), write=(Channel.COMMAND,)),
        Grant("site", read=(Channel.DEAD,)),
    ),
    "collector": (
        Grant(
            "place",
            read=(*_SEEN, Channel.DESIRED, Channel.REPLY, Channel.BLOB, Channel.SERVICE, Channel.ENROL),
            # Status and report only to clear them, when a node was forgotten or renamed.
            write=(
                Channel.COMMAND,
                Channel.DESIRED,
                Channel.ACK,
                Channel.BLOB,
                Channel.SERVICE,
                Channel.ENROLLED,
                Channel.STATUS,
                Channel.REPORTED,
            ),
        ),
    ),
    "claimant": (Grant("client", read=(Channel.ENROLLED,), write=(Channel.ENROL,)),),
}
"""Who may read and write which of the nodes' topics. The documentation's table is made from it, and `tests/topology/test_matrix.py`
tries each of its entries, and everything else, on real brokers. Of replies, a bridge writes only those to requests from above:
`rising`. Not in it are sensors' topics, which the topology names, and the connection state of bridges. `program` is one on the broker's machine, without a certificate (`loopback_port`);
`claimant` one that enrols, without a certificate too (`enrolment_port`). Where no machine enrols, nobody has the rights to do so."""


def pattern(address: Address, channel: Channel) -> str:
    """Return the filter of all topics of a channel; parts of the address may be `+`."""
    try:
        return address.topic(channel)
    except ValueError:
        return address.topic(channel, "#")


def rising(address: Address, channel: Channel, parent: str | None = None) -> str:
    """Return the filter of what a bridge carries up of a channel: of replies, only those to requests from above.

    Args:
        parent: the broker above the region, where that is the one above.
    """
    if channel is not Channel.REPLY:
        return pattern(address, channel)
    return address.topic(channel, f"{UPWARD}/#" if parent is None else upward(parent, "#"))


def site_acl(topology: Topology, site: str, nodes: Mapping[str, NodeConfig]) -> str:
    """Return the ACL of a site's broker.

    Args:
        nodes: configurations of its nodes.
    """
    region, place = topology.region.name, topology.sites[site]
    lines = [
        f"# Publish (write) and subscribe (read) permissions on the broker of {site}. A user is the common name of a",
        "# certificate. Anything not allowed here is refused. The bridge to the region is the broker itself and not subject",
        "# to these rules; mosquitto.conf lists what it carries.",
    ]
    for name, config in nodes.items():
        own, every = Address(region, site, name), Address(region, site, name).everyone()
        lines += ["", f"# Node {name}: reads what its pipelines subscribe to, and publishes only under its own name."]
        lines += [f"user {site}/{name}"]
        lines += [f"topic read {one}" for one in subscriptions(config)]
        grant = _grant("node", "itself")
        lines += _topics("write", own, [one for one in grant.write if one not in grant.read])
        lines += _topics("readwrite", own, [one for one in grant.write if one in grant.read])
        lines += _topics("read", own, [one for one in grant.read if one not in grant.write])
        lines += ["# Messages for every node of the site."]
        lines += _topics("read", every, _grant("node", "everyone").read)
        lines += _topics("write", every, _grant("node", "everyone").write)
        lines += ["# Model chunks, from the region and from other nodes."]
        lines += _topics("read", own._replace(node="+"), _grant("node", "site").read)
    for sensor, filters in topology.sensors_of(site).items():
        lines += ["", f"# Sensor {sensor}: publishes, and reads nothing.", f"user {site}/{sensor}"]
        lines += [f"topic write {one}" for one in filters]
    lines += _people(place.roles, site, Address(region, site, "+"), dead=True, enrols=topology.asks(site))
    return _text(lines)


def enrolment_acl(topology: Topology, sites: Iterable[str]) -> str:
    """Return the ACL of a broker's listener for machines that enrol.

    Args:
        sites: at which they may ask: the broker's own, or at the region's broker all.
    """
    lines = [
        "# Machines that enrol: they have no certificate yet. Each may ask on the topic that ends with its client id, and read",
        "# the answers to it. Mosquitto refuses everything to a client whose id has a wildcard.",
    ]
    (grant,) = RIGHTS["claimant"]
    for site in sites:
        everyone = Address(topology.region.name, site, "").everyone()
        lines += [f"pattern write {everyone.topic(one, '%c')}" for one in grant.write]
        lines += [f"pattern read {everyone.topic(one, '%c')}" for one in grant.read]
    return _text(lines)


def loopback_acl(topology: Topology, site: str) -> str:
    """Return the ACL of a site's listener for unnamed programs on the broker's own machine."""
    address = Address(topology.region.name, site, "+")
    lines = [f"# Programs on the machine of {site}'s broker: they may publish as sensors do, and read results."]
    lines += [f"topic write {one}" for filters in topology.sensors_of(site).values() for one in filters]
    lines += _topics("read", address, _grant("program", "site").read)
    return _text(lines)


def region_acl(topology: Topology) -> str:
    """Return the ACL of the region's broker."""
    region = topology.region.name
    lines = [
        f"# Publish (write) and subscribe (read) permissions on the broker of region {region}. A user is the common name of",
        "# a certificate. Anything not allowed here is refused.",
    ]
    for site in topology.sites:
        lines += _bridge(site, f"Site {site}", Address(region, site, "+"), enrols=topology.asks_region(site))
    everyone = Address(region, "+", "+")
    lines += _people(topology.region.roles, "region", everyone, bridges=True, enrols=topology.has_enrolment)
    return _text(lines)


def parent_acl(topology: Topology) -> str:
    """Return the ACL of the broker above the region."""
    parent = topology.parent
    assert parent is not None  # noqa: S101 - the caller has checked
    lines = [f"# Publish (write) and subscribe (read) permissions on the broker {parent.name}, above the regions."]
    for region in dict.fromkeys([topology.region.name, *parent.regions]):
        lines += _bridge(region, f"Region {region}", Address(region, "+", "+"), parent.name)
    lines += _people(parent.roles, parent.name, Address("+", "+", "+"), bridges=True)
    return _text(lines)


def _bridge(user: str, who: str, address: Address, parent: str | None = None, *, enrols: bool = False) -> Iterator[str]:
    yield from (
        "",
        f"# {who}: its bridge publishes for its own nodes and receives what is addressed to them.",
        f"user {user}",
    )
    grant = _grant("bridge", "place", enrols=enrols)
    yield from (f"topic write {rising(address, one, parent)}" for one in grant.write if one not in grant.read)
    yield from _topics("readwrite", address, [one for one in grant.write if one in grant.read])
    yield from _topics("read", address, [one for one in grant.read if one not in grant.write])
    yield "# Connection state of the bridge: 1 or 0, retained."
    yield f"topic write $SYS/broker/connection/{user}/state"


def _people(
    roles: Roles, suffix: str, address: Address, *, dead: bool = False, bridges: bool = False, enrols: bool = False
) -> Iterator[str]:
    for role, names in roles.items():
        for name in names:
            yield from ("", f"# {role.capitalize()} {name}.", f"user {name}@{suffix}")
            if role == "operator" and dead:
                yield "# Dead letters carry the frame that could not be processed; they do not leave the site."
                yield from _topics("read", address, _grant(role, "site").read)
            grant = _grant(role, "place", enrols=enrols)
            yield from _topics("read", address, grant.read)
            yield from _topics("write", address, grant.write)
            if bridges:
                yield "topic read $SYS/broker/connection/+/state"


def _grant(role: str, on: str, *, enrols: bool = False) -> Grant:
    """Return what a role may do; without what only enrolment needs, unless machines enrol there."""
    (grant,) = (one for one in RIGHTS[role] if one.on == on)
    read, write = ([one for one in both if enrols or one not in ENROLMENT] for both in (grant.read, grant.write))
    return Grant(grant.on, tuple(read), tuple(write))


def _topics(right: str, address: Address, channels: Iterable[Channel]) -> list[str]:
    return [f"topic {right} {pattern(address, channel)}" for channel in channels]


def _text(lines: Iterable[str]) -> str:
    return "\n".join([*lines, ""])
