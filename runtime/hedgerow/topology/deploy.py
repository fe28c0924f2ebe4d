"""Compose file, Quadlet units, systemd units, and a README: what runs a site on its machines. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from hedgerow.config import NodeConfig
from hedgerow.topology.brokers import state_of, template
from hedgerow.topology.model import REGION_AUTHORITY, Topology
from hedgerow.topology.nodes import certificate


def broker_files(topology: Topology, name: str, certificates: list[Path]) -> dict[str, str]:
    """What runs a broker in a container: `compose.yaml` and a Quadlet unit.

    Args:
        name: of the site, region or what is above.
        certificates: the folders it reads.
    """
    machine = topology.machine
    common = {"where": name, "config": machine.config / name, "state": machine.state / name}
    compose = template(
        "compose.yaml",
        **common,
        and_nodes=" and nodes" if name in topology.sites else "",
        broker_image=machine.broker_image,
        certificates="\n".join(f"      - {path}:{path}:ro" for path in certificates),
    )
    unit = template(
        "broker.container",
        **common,
        image=machine.broker_image,
        unit="hedgerow-broker",
        certificates="\n".join(f"Volume={path}:{path}:ro" for path in certificates),
    )
    return {"compose.yaml": compose, "quadlet/hedgerow-broker.container": unit}


def site_files(topology: Topology, site: str, nodes: Mapping[str, NodeConfig]) -> dict[str, str]:
    """What runs a site: its broker, and each of its nodes in three ways."""
    machine = topology.machine
    files = broker_files(
        topology, site, [certificate(topology, site, "broker"), certificate(topology, REGION_AUTHORITY, site)]
    )
    for node, config in nodes.items():
        unit = f"hedgerow-{node}"
        values = {
            "site": site,
            "node": node,
            "unit": unit,
            "image": machine.node_image,
            "command": machine.command,
            "config": machine.config / site,
            "state": machine.state / site,
            "tls": certificate(topology, site, node),
            "stop_s": math.ceil(config.node.drain_s) + 20,
        }
        files["compose.yaml"] += template("compose-node.yaml", **values)
        files[f"quadlet/{unit}.container"] = template("node.container", **values)
        files[f"systemd/{unit}.service"] = template("node.service", **values)
    files["README.md"] = _site_readme(topology, site)
    return files


def region_files(topology: Topology, name: str, authority: str, bridge: Path | None) -> dict[str, str]:
    """What runs the broker of the region, or of what is above.

    Args:
        bridge: the folder of the certificate for the next one above, if there is one.
    """
    own = [certificate(topology, authority, "broker")]
    files = broker_files(topology, name, own if bridge is None else [*own, bridge])
    section = topology.region if name == topology.region.name or topology.parent is None else topology.parent
    people = [
        f"| {authority}/issued/{one} | `{one}@{authority}` | {role} |"
        for role, names in section.roles.items()
        for one in names
    ]
    files["README.md"] = "\n".join(
        [
            f"# {name}",
            "",
            f"Lay this folder at `{topology.machine.config / name}`, certificates below `{topology.machine.pki}`, and make",
            f"`{state_of(topology, name)}` for the broker to write to. Then `mosquitto -c {topology.machine.config / name}/mosquitto.conf`,",
            "or one of `compose.yaml` and `quadlet/`.",
            "",
            *_certificate_table([f"| {authority}/issued/broker | the broker's host name | broker |", *people]),
        ]
    )
    return files


def _site_readme(topology: Topology, site: str) -> str:
    place, machine = topology.sites[site], topology.machine
    rows = [f"| {site}/issued/broker | the broker's host name | broker |"]
    rows += [f"| region/issued/{site} | `{site}` | the broker's bridge, certified by the region |"]
    rows += [f"| {site}/issued/{node} | `{site}/{node}` | node |" for node in place.nodes]
    rows += [f"| {site}/issued/{sensor} | `{site}/{sensor}` | sensor |" for sensor in topology.sensors_of(site)]
    rows += [
        f"| {site}/issued/{one} | `{one}@{site}` | {role} |" for role, names in place.roles.items() for one in names
    ]
    config = machine.config / site
    return "\n".join(
        [
            f"# {site}",
            "",
            f"Everything finds its files at the same places, with containers and without: lay this folder at `{config}`",
            f"and certificates below `{machine.pki}`, and make a folder below `{machine.state / site}` for the broker",
            "(`broker`) and for each node (its name), for them to write to.",
            "",
            "| | in containers | without |",
            "|---|---|---|",
            f"| broker | `compose.yaml`, `quadlet/hedgerow-broker.container` | `mosquitto -c {config}/mosquitto.conf` |",
            *(
                f"| {node} | `compose.yaml`, `quadlet/hedgerow-{node}.container` | `systemd/hedgerow-{node}.service` |"
                for node in place.nodes
            ),
            "",
            "Models that come from files lie below `nodes/`. `hedgerow config check` says what is missing on the machine:",
            "",
            *(f"    hedgerow config check {config}/nodes/{node}.yaml" for node in place.nodes),
            "",
            *_certificate_table(rows),
        ]
    )


def _certificate_table(rows: list[str]) -> list[str]:
    return [
        "Each machine needs only the certificates of what runs on it:",
        "",
        "| folder | common name | whose |",
        "|---|---|---|",
        *rows,
        "",
    ]
