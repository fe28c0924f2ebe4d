"""Cross-checks of a valid topology: clashing names, rules without effect. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from hedgerow.config import NodeConfig
from hedgerow.topics import overlap, without_group
from hedgerow.topology.model import REGION_AUTHORITY, RegionSection, Roles, SiteSection, Topology

Nodes = Mapping[tuple[str, str], NodeConfig]
"""Configuration of every node, by site and name."""


class TopologyIssue(NamedTuple):
    """A mistake in a topology.

    Attributes:
        keys: its path in the file.
    """

    keys: tuple[int | str, ...]
    message: str
    remedy: str


def clashes(topology: Topology) -> Iterator[TopologyIssue]:
    """Yield names that would share a folder, a topic or a certificate."""
    above = [topology.region.name, REGION_AUTHORITY, *([topology.parent.name] if topology.parent else [])]
    if topology.parent is not None and topology.parent.name in above[:2]:
        yield TopologyIssue(
            ("parent", "name"),
            f"{topology.parent.name} is also the name of the region or its authority",
            "Choose another name.",
        )
    yield from _roles(("region",), topology.region.roles, {"broker", *topology.sites})
    if topology.parent is not None:
        yield from _roles(
            ("parent",), topology.parent.roles, {"broker", topology.region.name, *topology.parent.regions}
        )
    for name, site in topology.sites.items():
        here = ("sites", name)
        sensors = topology.sensors_of(name).keys()
        if name in above:
            yield TopologyIssue(here, f"{name} is also a name above the site", "Choose another name for the site.")
        if name == "broker":
            yield TopologyIssue(
                here, "`broker` is reserved for the broker's own certificate", "Choose another name for the site."
            )
        for both in sorted(site.nodes.keys() & sensors):
            yield TopologyIssue(
                (*here, "nodes"),
                f"{both} is both a node and a sensor; they would share a certificate",
                "Rename one.",
            )
        if "broker" in site.nodes.keys() | sensors:
            yield TopologyIssue(
                (*here, "nodes"), "`broker` is reserved for the broker's own certificate", "Choose another name."
            )
        yield from _roles(here, site.roles, {"broker", *site.nodes, *sensors})


def enrolment(topology: Topology) -> Iterator[TopologyIssue]:
    """Yield listeners for machines that enrol where there can be none."""
    taken = "is taken by another listener of this broker"
    places: list[tuple[tuple[str, ...], SiteSection | RegionSection, int | None]] = [
        (("sites", name), site, site.loopback_port) for name, site in topology.sites.items()
    ]
    places.append((("region",), topology.region, None))
    for keys, place, loopback in places:
        port = place.enrolment_port
        if port is not None and port in (loopback, int(place.broker.rpartition(":")[2])):
            yield TopologyIssue((*keys, "enrolment_port"), f"port {port} {taken}", "Choose another port.")
    for key, above in (("region", topology.region), ("parent", topology.parent)):
        if above is not None and above.enrolment_port is not None and (key == "parent" or above.external):
            yield TopologyIssue(
                (key, "enrolment_port"),
                "machines cannot enrol there: "
                + ("it is above the region" if key == "parent" else "its broker is not rendered"),
                "Set it at the sites, or at the region's own broker.",
            )


def _roles(here: tuple[str, ...], roles: Roles, taken: set[str]) -> Iterator[TopologyIssue]:
    seen: set[str] = set()
    for role, names in roles.items():
        for name in names:
            if name in taken:
                yield TopologyIssue(
                    (*here, "roles", role), f"{name} is also the name of a machine; their certificates would share a folder",
                    "Choose another name for the person or service.",
                )  # fmt: skip
            if name in seen:
                yield TopologyIssue(
                    (*here, "roles", role), f"{name} has two roles", "Keep the higher one: it includes the lower."
                )
            seen.add(name)


def paths(topology: Topology) -> Iterator[TopologyIssue]:
    """Yield folders whose name would have another meaning in a unit, a manifest, a script or `mosquitto.conf`.

    Args:
        topology: with absolute paths.
    """
    for name in ("pki", "config", "state", "command"):
        yield from _odd(
            ("machine", name), getattr(topology.machine, name), "A relative path starts at the topology's own folder."
        )


def odd_files(keys: tuple[str, ...], files: Iterable[Path]) -> Iterator[TopologyIssue]:
    """Yield files of models and stages with such a name: containers mount each by its path."""
    for path in files:
        yield from _odd(keys, path, "Rename the file.")


def _odd(keys: tuple[str, ...], path: Path, remedy: str) -> Iterator[TopologyIssue]:
    if (
        odd := next((letter for letter in str(path) if not (letter.isalnum() or letter in "/._-+@~")), None)
    ) is not None:
        yield TopologyIssue(
            keys,
            f"{str(path)!a} has the character {odd!a}; units, manifests and scripts that name it would read it differently",
            f"Use letters, digits and `/._-+@~` only. {remedy}",
        )


def loose_images(topology: Topology) -> list[str]:
    """Return the settings of images that are named by tag."""
    machine = topology.machine
    images = {
        "broker_image": machine.broker_image,
        "node_image": machine.node_image,
        "region_image": machine.region_image,
    }
    return [f"machine.{name}" for name, image in images.items() if "@sha256:" not in image]


def padded(keys: tuple[str, ...], base: Path, config: NodeConfig) -> Iterator[TopologyIssue]:
    """Yield subscriptions that an access list cannot express."""
    for one in subscriptions(config):
        if one != one.strip():
            yield TopologyIssue(
                keys, f"{base}: {one!r} begins or ends with a space, which an access list cannot express",
                "Remove the space, and rename the topic at the sensor.",
            )  # fmt: skip


def shared(topology: Topology, keys: tuple[str, ...], base: Path, config: NodeConfig) -> Iterator[TopologyIssue]:
    """Yield shared subscriptions: Mosquitto's access lists do not say who may join a group."""
    if topology.shared_subscriptions:
        return
    for name, pipeline in config.pipelines.items():
        for one in pipeline.subscribe:
            if one.startswith("$share/"):
                yield TopologyIssue(
                    keys,
                    f"{base}: pipelines.{name}.subscribe: {one!r} is a shared subscription; any client of the site could join the "
                    "group, and the broker would give it frames instead of the node",
                    "Subscribe to the filter without `$share/GROUP/`, and give each node its own streams; or accept the risk with "
                    "`shared_subscriptions: true`.",
                )


def mismatches(topology: Topology, nodes: Nodes) -> Iterator[TopologyIssue]:
    """Yield rules for pipelines that no node runs, and fields that are selected twice."""
    for site, place in topology.sites.items():
        configs = [nodes[site, node] for node in place.nodes if (site, node) in nodes]
        known = {pipeline for config in configs for pipeline in config.pipelines}
        for pipeline, fields in topology.up_of(site).items():
            keys = ("sites", site, "up", pipeline) if place.up is not None else ("up", pipeline)
            if pipeline not in known and place.up is not None:
                yield TopologyIssue(
                    keys,
                    f"no node of {site} runs a pipeline {pipeline!r}",
                    f"It runs: {', '.join(sorted(known)) or 'none'}.",
                )
            for config in configs:
                if fields and pipeline in config.pipelines and config.pipelines[pipeline].publish.fields != fields:
                    yield TopologyIssue(
                        keys,
                        "fields are selected both here and in the base file's `publish:`",
                        "Remove one of the two.",
                    )
                    break
    if nodes:
        everywhere = {pipeline for config in nodes.values() for pipeline in config.pipelines}
        for pipeline in sorted(topology.up.keys() - everywhere):
            yield TopologyIssue(
                ("up", pipeline),
                f"no node runs a pipeline {pipeline!r}",
                f"There are: {', '.join(sorted(everywhere))}.",
            )


def remarks(topology: Topology, nodes: Nodes) -> Iterator[str]:
    """Yield what is valid but probably unintended."""
    for (site, node), config in nodes.items():
        if config.broker.session_expiry_s > topology.limits.session_hours * 3600:
            yield (
                f"{site}/{node} asks the broker to keep its session for {config.broker.session_expiry_s} s, but "
                f"`limits.session_hours` ends it after {topology.limits.session_hours} h"
            )
    for site in topology.sites:
        if topology.places(site) and not topology.asks(site) and topology.region.enrolment_port is None:
            yield f"{site}: its nodes are to enrol, but there is no listener for them: set `enrolment_port` of the site or the region"
    for site, place in topology.sites.items():
        read = [one for node in place.nodes for one in subscriptions(nodes[site, node])]
        for sensor, filters in topology.sensors_of(site).items():
            if not any(overlap(one, other) for one in filters for other in read):
                yield f"{site}: no pipeline subscribes to what sensor {sensor} sends ({', '.join(filters)})"
            yield from _inventions(site, sensor, filters, [nodes[site, node] for node in place.nodes])
        sent = [one for filters in topology.sensors_of(site).values() for one in filters]
        for node in place.nodes:
            for name, pipeline in nodes[site, node].pipelines.items():
                own = [one for one in pipeline.subscribe if not one.startswith("hedgerow/")]
                if own and not any(overlap(one, other) for one in own for other in sent):
                    yield f"{site}: no sensor may send what pipeline {name} of {node} subscribes to ({', '.join(own)})"


def _inventions(site: str, sensor: str, filters: Iterable[str], configs: Iterable[NodeConfig]) -> Iterator[str]:
    """Yield filters with which a sensor can invent streams, or write into those of others."""
    pipelines = {name: pipeline for config in configs for name, pipeline in config.pipelines.items()}
    for filter_ in filters:
        open_to = []
        for name, pipeline in pipelines.items():
            fixed = (pipeline.stream.level or 0) + 1 if pipeline.stream.by == "level" else 0
            free = [_first_free_level(filter_, without_group(one)) for one in pipeline.subscribe]
            if any(level is not None and (not fixed or level < fixed) for level in free):
                open_to.append(name)
        if open_to:
            yield (
                f"{site}: sensor {sensor} may invent topics below {filter_!r}, and with each a stream of {', '.join(sorted(open_to))}; "
                "where others send below it too, it can write into theirs. List its topics instead; or let it fix the first "
                "levels, and tell streams apart by the last of these: `stream: {by: level, level: …}`"
            )


def _first_free_level(one: str, other: str) -> int | None:
    """Return the first level at which both filters match anything; None: they have at most one topic in common."""
    if not overlap(one, other):
        return None
    left, right = one.split("/"), other.split("/")
    for position in range(max(len(left), len(right))):
        levels = [each[position] if position < len(each) else each[-1].strip("+") for each in (left, right)]
        if all(level in ("+", "#") for level in levels):
            return position
    return None


def subscriptions(config: NodeConfig) -> list[str]:
    """Return the topic filters of a node's pipelines for an ACL: without duplicates, and without the group of shared ones."""
    filters = [one for pipeline in config.pipelines.values() for one in pipeline.subscribe]
    return list(dict.fromkeys(one.split("/", 2)[2] if one.startswith("$share/") else one for one in filters))
