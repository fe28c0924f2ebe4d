"""What nodes get that enrol: their configurations and small files, for who approves them. Pure."""

from __future__ import annotations

import base64
from typing import Final

from hedgerow.enrolment.grant import MAX_FILES_BYTES
from hedgerow.enrolment.places import Place, Places, PlacesOfSite
from hedgerow.topology.brokers import enrolment_url
from hedgerow.topology.load import Described

FILE: Final = "service/places.json"
"""Its path below the region's folder."""


def places(described: Described) -> Places:
    """Return the places of all nodes that enrol."""
    topology = described.topology
    sites = {
        site: PlacesOfSite(
            broker=enrolment_url(place) or "",
            nodes={node: _place(described, site, node) for node in place.nodes if topology.enrols(site, node)},
        )
        for site, place in topology.sites.items()
    }
    return Places(region=topology.region.name, broker=enrolment_url(topology.region) or "", sites=sites)


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
