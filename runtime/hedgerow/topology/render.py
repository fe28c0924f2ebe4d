"""Renders a topology to the texts of all its files. Pure: the same topology gives the same bytes."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Final

from hedgerow.enrolment.grant import MAX_FILES_BYTES
from hedgerow.enrolment.places import Place, Places, PlacesOfSite
from hedgerow.topology import acl, brokers, deploy, k3s, readme
from hedgerow.topology.load import Described
from hedgerow.topology.model import REGION_AUTHORITY, ParentSection, Topology
from hedgerow.topology.nodes import certificate

_GIB: Final = 2**30


def render(described: Described) -> dict[PurePosixPath, str]:
    """Return every text by its path below the output folder."""
    return {PurePosixPath(path): text for path, text in _files(described)}


def _files(described: Described) -> Iterator[tuple[str, str]]:
    topology = described.topology
    for site in topology.sites:
        yield from _below(site, _site(described, site))
    yield from _below(topology.region.name, _region(described))
    if topology.parent is not None:
        yield from _below(topology.parent.name, _parent(topology, topology.parent))


def _below(folder: str, files: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    return ((f"{folder}/{path}", text) for path, text in files.items())


def _site(described: Described, site: str) -> dict[str, str]:
    topology = described.topology
    place = topology.sites[site]
    nodes = {node: described.nodes[site, node] for node in place.nodes}
    services = [
        deploy.node_service(topology, site, node, config, described.files.get((site, node), ()))
        for node, config in nodes.items()
    ]
    broker = {"mosquitto.conf": brokers.site_conf(topology, site, nodes), "acl": acl.site_acl(topology, site, nodes)}
    broker |= brokers.start_files(topology, site, brokers.site_limits(topology, site, nodes))
    if place.loopback_port is not None:
        broker["acl.loopback"] = acl.loopback_acl(topology, site)
    if topology.asks(site):
        broker["acl.enrolment"] = acl.enrolment_acl(topology, [site])
    tls = {"broker": certificate(topology, site, "broker"), "bridge": certificate(topology, REGION_AUTHORITY, site)}
    manifests = k3s.head("The broker and nodes", site) + k3s.broker(topology, site, place, broker, tls, topology.region)
    for service, (node, config) in zip(services, nodes.items(), strict=True):
        manifests += k3s.service(
            topology,
            site,
            service,
            described.texts[site, node],
            stored_bytes=config.outbox.max_bytes + _GIB,  # and compiled models
            https=bool(config.fleet.origins),
        )
    return {
        **broker,
        **{f"nodes/{node}.yaml": described.texts[site, node] for node in nodes},
        **deploy.site_files(topology, site, services),
        "k3s.yaml": manifests,
        "README.md": readme.site(topology, site, services),
    }


def _region(described: Described) -> dict[str, str]:
    topology = described.topology
    region, parent, service = topology.region, topology.parent, deploy.region_service(topology)
    broker = {"acl": acl.region_acl(topology)}
    tls = {"broker": certificate(topology, REGION_AUTHORITY, "broker")}
    manifests = ""
    if not region.external:
        broker["mosquitto.conf"] = brokers.region_conf(topology)
        broker |= brokers.start_files(topology, region.name, brokers.region_limits(topology))
        if region.enrolment_port is not None:
            broker["acl.enrolment"] = acl.enrolment_acl(
                topology, [name for name, site in topology.sites.items() if not site.own_enrolment]
            )
        if parent is not None:
            tls["bridge"] = certificate(topology, parent.name, region.name)
        manifests += k3s.broker(topology, region.name, region, broker, tls, parent)
    if service is not None and any(map(topology.places, topology.sites)):
        broker["service/places.json"] = _places(described).encode()
    if service is not None:
        config = deploy.region_yaml(topology, service)
        places = {path.removeprefix("service/"): text for path, text in broker.items() if path == "service/places.json"}
        manifests += k3s.service(topology, region.name, service, config, stored_bytes=20 * _GIB, beside=places)
    if not manifests:
        return broker
    return {
        **broker,
        **deploy.region_files(topology, service, list(tls.values())),
        "k3s.yaml": k3s.head("What runs in region", region.name) + manifests,
        "README.md": readme.region(topology, service),
    }


def _parent(topology: Topology, parent: ParentSection) -> dict[str, str]:
    broker = {"acl": acl.parent_acl(topology)}
    if parent.external:
        return broker
    broker["mosquitto.conf"] = brokers.parent_conf(topology, parent)
    broker |= brokers.start_files(topology, parent.name, brokers.parent_limits(topology, parent))
    tls = {"broker": certificate(topology, parent.name, "broker")}
    return {
        **broker,
        **deploy.parent_files(topology, parent, list(tls.values())),
        "k3s.yaml": k3s.head("The broker", parent.name) + k3s.broker(topology, parent.name, parent, broker, tls),
        "README.md": readme.parent(topology, parent.name),
    }


def _places(described: Described) -> Places:
    """Return what nodes get that enrol, for who approves them."""
    topology = described.topology
    sites = {
        site: PlacesOfSite(
            broker=brokers.enrolment_url(topology.sites[site]) or "",
            nodes={node: _place(described, site, node) for node in topology.places(site)},
        )
        for site in topology.sites
    }
    broker = brokers.enrolment_url(topology.region) or ""
    return Places(region=topology.region.name, broker=broker, sites=sites)


def _place(described: Described, site: str, node: str) -> Place:
    files, missing, left = {}, [], MAX_FILES_BYTES
    small = described.small.get(site, {})
    for path in sorted(described.files.get((site, node), ())):
        content = small.get(path)
        if content is None or len(content) > left:
            missing.append(path.as_posix())
        else:
            left -= len(content)
            files[path.as_posix()] = base64.b64encode(content).decode()
    return Place(configuration=described.texts[site, node], files=files, missing=missing)
