"""Builds a node's configuration from its base file, its overrides and its site. Pure: text in, text out."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from hedgerow.config import FieldsSection
from hedgerow.configfile import merge
from hedgerow.topology.model import Topology


def node_config(topology: Topology, site: str, node: str, base: str) -> str:
    """Return the text of a node's configuration; the base file's comments stay while their keys do.

    Args:
        base: the text of its base file; it is YAML with keys at the top.
    """
    override = topology.sites[site].nodes[node].override
    # A comment belongs to the key before it; if that key is removed, it would end up next to another one.
    if _removes_keys(override):
        document: Any = CommentedMap(YAML(typ="safe", pure=True).load(base) or {})
    else:
        document = YAML(typ="rt", pure=True).load(base) or CommentedMap()
    merge(document, override)
    for section, values in _placement(topology, site, node).items():
        there = _plain(document.get(section) or {})
        merge(there, values)
        document.ca.items.pop(section, None)
        if section in document:
            document[section] = there
        else:
            document.insert(0, section, there)
    for pipeline, fields in topology.up_of(site).items():
        written = document.get("pipelines", {}).get(pipeline)
        if isinstance(written, dict) and (publish := _publish(written.get("publish") or {}, fields)):
            merge(written, {"publish": publish})
    out = io.StringIO()
    writer = YAML(typ="rt", pure=True)
    writer.width = 4096
    writer.indent(mapping=2, sequence=4, offset=2)
    writer.dump(document, out)
    return out.getvalue()


def _publish(written: Mapping[str, Any], fields: FieldsSection) -> dict[str, Any]:
    """Make results that go up durable, unless the base file says otherwise, and restrict their fields."""
    added: dict[str, Any] = {}
    if not written.keys() & {"durable", "expiry_s"} and written.get("qos") != 0:
        added["durable"] = True
    if fields and not written.get("fields"):
        added["fields"] = fields.model_dump(mode="json", exclude_defaults=True)
    return added


def _removes_keys(changes: Mapping[str, Any]) -> bool:
    return any(value is None or (isinstance(value, Mapping) and _removes_keys(value)) for value in changes.values())


def _plain(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return a section without comments: the base file's describe another node's place."""
    return {key: _plain(value) if isinstance(value, Mapping) else value for key, value in section.items()}


def certificate(topology: Topology, authority: str, name: str) -> Path:
    """Return the folder of a certificate: tls.crt, tls.key, trust.crt (trusted authorities), trust.crl (revoked)."""
    return topology.machine.pki / authority / "issued" / name


def tls(topology: Topology, authority: str, name: str) -> dict[str, str]:
    """Return the `tls:` section for a certificate."""
    own = certificate(topology, authority, name)
    return {
        "ca_file": str(own / "trust.crt"),
        "cert_file": str(own / "tls.crt"),
        "key_file": str(own / "tls.key"),
    }


def _placement(topology: Topology, site: str, node: str) -> dict[str, Any]:
    return {
        "broker": {
            "url": topology.sites[site].broker,
            "username": None,
            "password": None,
            "password_file": None,
            "tls": tls(topology, site, node),
        },
        "node": {
            "region": topology.region.name,
            "site": site,
            "name": node,
            "state_dir": str(topology.machine.state / site / node),
        },
        "outbox": {"max_packet_bytes": min(topology.limits.packet_bytes, topology.limits.bridge_packet_bytes)},
    }
