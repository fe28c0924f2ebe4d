"""Compose files, Quadlet and systemd units of brokers, nodes and the region's service. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from hedgerow.config import MetricsSection, NodeConfig
from hedgerow.topology.brokers import command, scalar, template
from hedgerow.topology.model import REGION_AUTHORITY, RegionSection, SiteSection, Topology
from hedgerow.topology.nodes import certificate

# Defaults of the region's service, written out because the units rely on them.
_STOP_S: Final = 10
_PLACES: Final = "enrolment:\n  # What nodes get that enrol.\n  places: places.json\n"
_PORT: Final = 9465

_ANYWHERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 # the address to probe instead


@dataclass(frozen=True)
class Service:
    """A Hedgerow process on a machine: a node, or the region's service.

    Attributes:
        name: of its units, and of its service in the compose file.
        what: description for people.
        words: its command line after `hedgerow`.
        image: of its container.
        reads: what it reads besides its certificate: its configuration first, and files of models and stages; or a folder. Empty for a
            node that enrols: all that it has is in its state.
        state: the only folder it writes to.
        tls: folder of its certificate; None for a node that enrols.
        metrics: where its probes are.
        memory_mib: its memory limit.
        stop_s: seconds it may take to stop.
        drain: the setting that bounds this time, for a comment.
        reloads: whether it rereads its file on SIGHUP.
    """

    name: str
    what: str
    words: tuple[str, ...]
    image: str
    reads: tuple[Path, ...]
    state: Path
    tls: Path | None
    metrics: MetricsSection
    memory_mib: int
    stop_s: int
    drain: str
    reloads: bool

    @property
    def unit(self) -> str:
        """Its systemd unit."""
        return f"hedgerow-{self.name}"

    @property
    def probe(self) -> str | None:
        """URL of its health check; None if it is not known in advance."""
        if not self.metrics.enabled or not self.metrics.port:
            return None
        host = _ANYWHERE.get(self.metrics.host, self.metrics.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.metrics.port}/healthz"


def node_service(topology: Topology, site: str, node: str, config: NodeConfig, files: Iterable[Path] = ()) -> Service:
    """Return the service of a node.

    Args:
        files: of models and stages that it reads, below the site's folder `nodes/`.
    """
    machine, folder = topology.machine, topology.machine.config / site / "nodes"
    state, enrols = machine.state / site / node, topology.enrols(site, node)
    return Service(
        name=node,
        what=f"node {site}/{node}",
        words=("node", "run", f"{state}/node.yaml" if enrols else f"{folder}/{node}.yaml"),
        image=machine.node_image,
        reads=() if enrols else (folder / f"{node}.yaml", *(folder / path for path in files)),
        state=state,
        tls=None if enrols else certificate(topology, site, node),
        metrics=config.metrics,
        memory_mib=machine.node_memory_bytes >> 20,
        stop_s=math.ceil(config.node.drain_s) + 20,
        drain="the node's `drain_s`: it finishes what is in flight",
        reloads=True,
    )


def region_service(topology: Topology) -> Service | None:
    """Return the region's service, if a collector is named: the first one, since only one may write to a store."""
    machine, name = topology.machine, topology.region.name
    collectors = topology.region.roles.get("collector", ())
    if not collectors:
        return None
    return Service(
        name="region",
        what=f"service of region {name}",
        words=("region", "run", f"{machine.config / name}/service/region.yaml"),
        image=machine.region_image,
        reads=(machine.config / name / "service",),
        state=machine.state / name / "region",
        tls=certificate(topology, REGION_AUTHORITY, collectors[0]),
        metrics=MetricsSection(port=_PORT),
        memory_mib=machine.region_memory_bytes >> 20,
        stop_s=_STOP_S + 20,
        drain="the service's `stop_s`: it stores what it holds",
        reloads=False,
    )


def region_yaml(topology: Topology, service: Service) -> str:
    """Return the configuration of the region's service."""
    return template(
        "region.yaml",
        region=scalar(topology.region.name),
        broker=topology.region.broker,
        tls=service.tls,
        state=service.state,
        # Room for a node beside each, such as its replacement, and for a site that grows before it is rendered again.
        nodes=2 * max(len(site.nodes) for site in topology.sites.values()) + 8,
        enrolment=_PLACES if any(map(topology.places, topology.sites)) else "",
        models=f"models:\n  repository: {service.state}/models\n" if topology.models else "",
        stop_s=_STOP_S,
        port=_PORT,
    )


def broker_files(
    topology: Topology, name: str, place: SiteSection | RegionSection, tls: Sequence[Path]
) -> dict[str, str]:
    """Return a broker's part of `compose.yaml` and its Quadlet unit.

    Args:
        name: of the site, region or parent.
        tls: folders of the certificates it reads.
    """
    machine = topology.machine
    user, _, group = machine.broker_ids.partition(":")
    values = {
        "where": name,
        "words": ", ".join(f'"{word}"' for word in command(topology, name)),
        "spoken": " ".join(command(topology, name)),
        "config": machine.config / name,
        "state": machine.state / name,
        "image": machine.broker_image,
        "ids": machine.broker_ids,
        "user": user,
        "group": group,
        "port": urlsplit(place.broker).port,
        "memory_mib": machine.broker_memory_bytes >> 20,
        "unit": "hedgerow-broker",
    }
    compose = template(
        "compose-broker.yaml", **values, certificates="\n".join(f"      - {one}:{one}:ro" for one in tls)
    )
    unit = template("broker.container", **values, certificates="\n".join(f"Volume={one}:{one}:ro" for one in tls))
    return {"compose.yaml": compose, "quadlet/hedgerow-broker.container": unit}


def service_files(topology: Topology, service: Service) -> dict[str, str]:
    """Return a service's part of `compose.yaml`, its Quadlet unit, and its systemd unit without containers."""
    machine = topology.machine
    user, _, group = machine.node_ids.partition(":")
    values = {
        "service": scalar(service.name),
        "what": service.what,
        "unit": service.unit,
        "image": service.image,
        "command": machine.command,
        "state": service.state,
        "ids": machine.node_ids,
        "user": user,
        "group": group,
        "memory_mib": service.memory_mib,
        "stop_s": service.stop_s,
        "unit_stop_s": service.stop_s + 15,
        "drain": service.drain,
    }
    listed = ", ".join(f'"{word}"' for word in service.words)
    spoken = " ".join(service.words)
    mounts = [f"{path}:{path}:ro" for path in (*service.reads, service.tls) if path] + [
        f"{service.state}:{service.state}"
    ]
    reload = "ExecReload=/bin/kill -HUP $MAINPID\n" if service.reloads else ""
    return {
        "compose.yaml": template(
            "compose-node.yaml",
            **values,
            words=listed,
            health=_compose_health(service.probe),
            mounts="\n".join(f"      - {mount}" for mount in mounts),
        ),
        f"quadlet/{service.unit}.container": template(
            "node.container",
            **values,
            words=spoken,
            health=_quadlet_health(service.probe),
            mounts="\n".join(f"Volume={mount}" for mount in mounts),
        ),
        f"systemd/{service.unit}.service": template("node.service", **values, words=spoken, reload=reload),
    }


def site_files(topology: Topology, site: str, services: Sequence[Service]) -> dict[str, str]:
    """Return the files that run a site: its broker, and each node in three ways."""
    tls = [certificate(topology, site, "broker"), certificate(topology, REGION_AUTHORITY, site)]
    parts = [broker_files(topology, site, topology.sites[site], tls)]
    parts += [service_files(topology, service) for service in services]
    return _together(parts, "The broker and nodes", site)


def region_files(topology: Topology, service: Service | None, tls: Sequence[Path]) -> dict[str, str]:
    """Return the files that run the region: its broker, unless external, and its service.

    Args:
        tls: folders of the certificates that the broker reads.
    """
    region, parts = topology.region, []
    if not region.external:
        parts.append(broker_files(topology, region.name, region, tls))
    if service is not None:
        parts.append(service_files(topology, service) | {"service/region.yaml": region_yaml(topology, service)})
    what = "The broker and service" if len(parts) > 1 else "The service" if region.external else "The broker"
    return _together(parts, what, region.name)


def parent_files(topology: Topology, parent: RegionSection, tls: Sequence[Path]) -> dict[str, str]:
    """Return the files that run the broker above the region."""
    return _together([broker_files(topology, parent.name, parent, tls)], "The broker", parent.name)


def _together(parts: list[dict[str, str]], what: str, where: str) -> dict[str, str]:
    """Combine files, and their parts of `compose.yaml` into one."""
    files = {path: text for part in parts for path, text in part.items()}
    head = template("compose.yaml", what=what, where=where)
    return files | {"compose.yaml": head + "".join(part["compose.yaml"] for part in parts)}


_UNKNOWN_PORT: Final = "`metrics:` is off or has no fixed port, so the address is not known in advance."


def _compose_health(probe: str | None) -> str:
    if probe is None:
        return f"      # {_UNKNOWN_PORT}\n      disable: true"
    return (
        f'      test: ["CMD", "probe", "{probe}"]\n'
        "      interval: 30s\n      timeout: 5s\n      retries: 3\n      start_period: 300s"
    )


def _quadlet_health(probe: str | None) -> str:
    if probe is None:
        return f"# {_UNKNOWN_PORT}\nHealthCmd=none"
    return f"HealthCmd=probe {probe}\nHealthInterval=30s\nHealthTimeout=5s\nHealthRetries=3\nHealthStartPeriod=300s"
