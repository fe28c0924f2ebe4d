"""The configuration of one node: its base file, what is different about it, and its place. Pure: text in, text out."""

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
    """The text of a node's configuration, with the base file's comments as long as they stand beside what they are about.

    Args:
        base: the text of its base file; it is YAML with keys at the top.
    """
    override = topology.sites[site].nodes[node].override
    # A comment belongs to the key before it; where keys are taken away, it would stand beside a strange one.
    if _takes_away(override):
        document: Any = CommentedMap(YAML(typ="safe", pure=True).load(base) or {})
    else:
        document = YAML(typ="rt", pure=True).load(base) or CommentedMap()
    merge(document, override)
    for section, values in _where_it_is(topology, site, node).items():
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
    """What goes up must arrive, unless the base file wants otherwise; and only what may go."""
    added: dict[str, Any] = {}
    if not written.keys() & {"durable", "expiry_s"} and written.get("qos") != 0:
        added["durable"] = True
    if fields and not written.get("fields"):
        added["fields"] = fields.model_dump(mode="json", exclude_defaults=True)
    return added


def _takes_away(changes: Mapping[str, Any]) -> bool:
    return any(value is None or (isinstance(value, Mapping) and _takes_away(value)) for value in changes.values())


def _plain(section: Mapping[str, Any]) -> dict[str, Any]:
    """A section without its comments: those of the base file are about a place this node is not in."""
    return {key: _plain(value) if isinstance(value, Mapping) else value for key, value in section.items()}


def certificate(topology: Topology, authority: str, name: str) -> Path:
    """The folder of a certificate: tls.crt, tls.key, trust.crt (whom to believe), trust.crl (who no longer counts)."""
    return topology.machine.pki / authority / "issued" / name


def tls(topology: Topology, authority: str, name: str) -> dict[str, str]:
    """How whoever has that certificate connects: `tls:` of a configuration."""
    own = certificate(topology, authority, name)
    return {
        "ca_file": str(own / "trust.crt"),
        "cert_file": str(own / "tls.crt"),
        "key_file": str(own / "tls.key"),
    }


def _where_it_is(topology: Topology, site: str, node: str) -> dict[str, Any]:
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
    }
