"""All files that follow from a topology, as texts by their place. Pure: the same topology gives the same bytes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from hedgerow.topology import acl, brokers, deploy
from hedgerow.topology.load import Described
from hedgerow.topology.model import REGION_AUTHORITY
from hedgerow.topology.nodes import certificate


def render(described: Described) -> dict[PurePosixPath, str]:
    """Every text, by its path below the folder it is to be written to."""
    return {PurePosixPath(path): text for path, text in _files(described)}


def _files(described: Described) -> Iterator[tuple[str, str]]:
    topology = described.topology
    for site, place in topology.sites.items():
        nodes = {node: described.nodes[site, node] for node in place.nodes}
        yield f"{site}/mosquitto.conf", brokers.site_conf(topology, site)
        yield f"{site}/acl", acl.site_acl(topology, site, nodes)
        if place.loopback_port is not None:
            yield f"{site}/acl.loopback", acl.loopback_acl(topology, site)
        for node in place.nodes:
            yield f"{site}/nodes/{node}.yaml", described.texts[site, node]
        for path, text in deploy.site_files(topology, site, nodes).items():
            yield f"{site}/{path}", text
    region, parent = topology.region, topology.parent
    yield f"{region.name}/acl", acl.region_acl(topology)
    if not region.external:
        yield f"{region.name}/mosquitto.conf", brokers.region_conf(topology)
        bridge = certificate(topology, parent.name, region.name) if parent is not None else None
        for path, text in deploy.region_files(topology, region.name, REGION_AUTHORITY, bridge).items():
            yield f"{region.name}/{path}", text
    if parent is not None:
        yield f"{parent.name}/acl", acl.parent_acl(topology)
        if not parent.external:
            yield f"{parent.name}/mosquitto.conf", brokers.parent_conf(topology, parent)
            for path, text in deploy.region_files(topology, parent.name, parent.name, None).items():
                yield f"{parent.name}/{path}", text
