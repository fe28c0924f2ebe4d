"""Identities in a topology, and the authorities that certify them. Pure.

Brokers are certified for the host in their URL. An `external` broker needs a certificate too, because its clients trust
only the region's root.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import urlsplit

from hedgerow.pki.names import Identity, IdentityKind
from hedgerow.pki.provide import CertificateRequest
from hedgerow.topology.model import REGION_AUTHORITY, RegionSection, Roles, SiteSection, Topology


class Needed(NamedTuple):
    """A certificate that a machine needs.

    Attributes:
        whose: for people to read.
    """

    wanted: CertificateRequest
    whose: str


def of_site(topology: Topology, name: str) -> Iterator[Needed]:
    """Yield the certificates of a site, its broker's first."""
    place = topology.sites[name]
    yield _broker(name, place)
    yield _bridge(REGION_AUTHORITY, name, "the broker's bridge, certified by the region")
    for node in place.nodes:
        enrols = topology.enrols(name, node)
        request = CertificateRequest(Identity(IdentityKind.NODE, name, node), "node", enrols=enrols)
        yield Needed(request, "node: it enrols" if enrols else "node")
    for sensor in topology.sensors_of(name):
        yield Needed(CertificateRequest(Identity(IdentityKind.NODE, name, sensor), "sensor"), "sensor")
    yield from _people(name, place.roles)


def of_region(topology: Topology) -> Iterator[Needed]:
    """Yield the certificates of the region's machines and people, its broker's first."""
    region, parent = topology.region, topology.parent
    yield _broker(REGION_AUTHORITY, region)
    if parent is not None:
        yield _bridge(parent.name, region.name, f"the broker's bridge to {parent.name}")
    yield from _people(REGION_AUTHORITY, region.roles)


def of_parent(topology: Topology) -> Iterator[Needed]:
    """Yield the certificates of the parent, if there is one: its broker, its people, and other regions' bridges."""
    if (parent := topology.parent) is None:
        return
    yield _broker(parent.name, parent)
    for region in parent.regions:
        if region != topology.region.name:
            yield _bridge(parent.name, region, f"the bridge of region {region}: copy it there")
    yield from _people(parent.name, parent.roles)


def needed(topology: Topology) -> list[Needed]:
    """Return all certificates, from the sites upwards."""
    sites = [one for site in topology.sites for one in of_site(topology, site)]
    return [*sites, *of_region(topology), *of_parent(topology)]


def authorities(topology: Topology) -> dict[str, tuple[str, ...]]:
    """Return the authorities of sites and of the parent, each with the hosts it may certify."""
    found = {name: _hosts(place) for name, place in topology.sites.items()}
    if topology.parent is not None:
        found[topology.parent.name] = _hosts(topology.parent)
    return found


def _broker(authority: str, place: SiteSection | RegionSection) -> Needed:
    external = isinstance(place, RegionSection) and place.external
    whose = "broker: for its operator" if external else "broker"
    return Needed(
        CertificateRequest(Identity(IdentityKind.BROKER, authority, str(IdentityKind.BROKER)), "broker", _hosts(place)),
        whose,
    )


def _bridge(authority: str, name: str, whose: str) -> Needed:
    return Needed(CertificateRequest(Identity(IdentityKind.BRIDGE, authority, name), "bridge"), whose)


def _people(authority: str, roles: Roles) -> Iterator[Needed]:
    for role, names in roles.items():
        for name in names:
            yield Needed(CertificateRequest(Identity(IdentityKind.SERVICE, authority, name), role), role)


def _hosts(place: SiteSection | RegionSection) -> tuple[str, ...]:
    host = urlsplit(place.broker).hostname
    assert host is not None  # noqa: S101 - checked in `model.py`
    return (host,)
