"""Manifests for K3s or any Kubernetes: the same brokers, nodes and service as in `deploy.py`. Pure.

Configurations are ConfigMaps, certificates are secrets referenced by name, and each StatefulSet has a volume for its state.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from hedgerow.topology.brokers import command, template
from hedgerow.topology.deploy import Service
from hedgerow.topology.model import RegionSection, SiteSection, Topology

NAMESPACE: Final = "hedgerow"
_LONGEST: Final = 48  # a pod's name and labels append to this, and are limited to 63
_DATE: Final = re.compile(r"\d{4}-\d\d?-\d\d?")
_PORT: Final = 9464
_GIB: Final = 2**30
_MOST_CONFIG_BYTES: Final = 900_000
"""Of a ConfigMap, which may have 1 MiB. What is larger is read from the machine's folder."""


def named(where: str, what: str) -> str:
    """Return the name of an object: lower-case letters, digits and `-`; a changed name gets a digest to stay unique."""
    plain = f"{where}-{what}"
    name = re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")
    if name == plain and len(name) <= _LONGEST and not _DATE.fullmatch(name):
        return name
    digest = hashlib.sha256(f"{where}/{what}".encode()).hexdigest()[:6]
    return f"{name[: _LONGEST - 7].rstrip('-')}-{digest}"


def head(what: str, where: str) -> str:
    """Return the beginning of a manifest file."""
    return template("k3s.yaml", what=what, where=where, label=named(where, "broker"), namespace=NAMESPACE)


def broker(
    topology: Topology,
    where: str,
    place: SiteSection | RegionSection,
    files: Mapping[str, str],
    tls: Mapping[str, Path],
    above: RegionSection | None = None,
) -> str:
    """Return the manifests of a broker.

    Args:
        files: its configuration by name: `mosquitto.conf`, `acl`, …
        tls: folder of each certificate it reads, by purpose: `broker`, `bridge`.
        above: whose broker its bridge connects to.
    """
    machine = topology.machine
    user, _, group = machine.broker_ids.partition(":")
    name = named(where, "broker")
    return template(
        "k3s-broker.yaml",
        name=name,
        label=name,
        namespace=NAMESPACE,
        files=_data(files),
        digest=_digest(files),
        image=machine.broker_image,
        words=", ".join(command(topology, where)),
        user=user,
        group=group,
        config=machine.config / where,
        state=machine.state / where / "broker",
        port=_port(place),
        enrolment="" if place.enrolment_port is None else f", {{port: {place.enrolment_port}, protocol: TCP}}",
        # Without a rule it may connect nowhere; a rule with an empty list would allow all ports.
        above=f"    - ports: [{{port: {_port(above)}, protocol: TCP}}]\n" if above is not None else "",
        memory_mib=machine.broker_memory_bytes >> 20,
        # A snapshot is written while the previous one still exists.
        storage_gib=math.ceil(2 * machine.broker_memory_bytes / _GIB),
        mounts=_lines(
            12, (f"{{name: tls-{what}, mountPath: {folder}, readOnly: true}}" for what, folder in tls.items())
        ),
        volumes=_lines(8, (f"{{name: tls-{what}, {_secret(named(where, what))}" for what in tls)),
    )


def service(
    topology: Topology,
    where: str,
    what: Service,
    config: str,
    *,
    stored_bytes: int,
    https: bool = False,
    beside: Mapping[str, str] | None = None,
) -> str:
    """Return the manifests of a node or of the region's service.

    Args:
        where: its site or region.
        config: text of its configuration.
        stored_bytes: bytes it may write.
        https: whether it fetches models from web servers.
        beside: further files that it reads, beside its configuration, by name.
    """
    machine = topology.machine
    user, _, group = machine.node_ids.partition(":")
    file, is_node = Path(what.words[2]), what.words[0] == "node"
    place = topology.sites[where] if is_node else topology.region
    # The machine's files are mounted one by one, and the configuration beside them.
    name, enrols, mounts, volumes = named(where, what.name), what.tls is None, [], []
    files = {} if enrols else {file.name: config, **(beside or {})}
    if sum(len(text.encode()) for text in files.values()) > _MOST_CONFIG_BYTES:
        files = {file.name: config}
        mounts += [
            f"{{name: beside, mountPath: {file.parent / path}, subPath: {path}, readOnly: true}}"
            for path in beside or ()
        ]
        volumes.append(f"{{name: beside, hostPath: {{path: {file.parent}, type: Directory}}}}")
    mounts += [f"{{name: config, mountPath: {file.parent / path}, subPath: {path}, readOnly: true}}" for path in files]
    if files:
        volumes.append(f"{{name: config, configMap: {{name: {name}}}}}")
    for number, path in enumerate(what.reads[1:]):
        mounts.append(f"{{name: file-{number}, mountPath: {path}, readOnly: true}}")
        volumes.append(f"{{name: file-{number}, hostPath: {{path: {path}, type: File}}}}")
    if enrols:
        volumes.append(
            f"{{name: claim, secret: {{secretName: {name}-claim, defaultMode: 288, optional: true}}}} # 0440"
        )
    else:
        mounts.append(f"{{name: tls, mountPath: {what.tls}, readOnly: true}}")
        volumes.append(f"{{name: tls, {_secret(name)}")
    ports = (
        _port(place),
        *((443,) if https else ()),
        *((place.enrolment_port, topology.region.enrolment_port) if enrols else ()),
    )
    return template(
        "k3s-service.yaml",
        name=name,
        component="node" if is_node else "region",
        namespace=NAMESPACE,
        config=template("k3s-config.yaml", name=name, namespace=NAMESPACE, files=_data(files)) if files else "",
        enrol=template("k3s-enrol.yaml", image=what.image, state=what.state) if enrols else "",
        digest=_digest(files),
        image=what.image,
        words=", ".join(what.words if is_node else (*what.words, "--metrics-host", "$(POD_IP)")),
        env=_PROBES if is_node else "",
        port=_PORT if is_node else what.metrics.port,
        user=user,
        group=group,
        state=what.state,
        memory_mib=what.memory_mib,
        storage_gib=math.ceil(stored_bytes / _GIB),
        stop_s=what.stop_s,
        drain=what.drain,
        mounts=_lines(12, mounts),
        volumes=_lines(8, volumes),
        egress=", ".join(f"{{port: {port}, protocol: TCP}}" for port in dict.fromkeys(ports) if port is not None),
    )


def _port(place: SiteSection | RegionSection) -> int | None:
    return urlsplit(place.broker).port


# A pod has an address of its own: its probes can use a fixed port there, and need no other address.
_PROBES: Final = f"""\
            - {{name: HEDGEROW_METRICS__ENABLED, value: "true"}}
            - {{name: HEDGEROW_METRICS__HOST, value: $(POD_IP)}}
            - {{name: HEDGEROW_METRICS__PORT, value: "{_PORT}"}}
"""


def _secret(name: str) -> str:
    return f"secret: {{secretName: {name}-tls, defaultMode: 288}}}} # 0440"


def _data(files: Mapping[str, str]) -> str:
    r"""Embed texts as block scalars; the 2 fixes their indentation whatever their first line.

    A text with other line breaks than "\n", for example in a comment, is quoted: after one of them, some readers of YAML
    would take the rest for a manifest.
    """
    parts = []
    for name, text in files.items():
        if any(len(line.splitlines()) > 1 for line in text.split("\n")):
            parts.append(f"  {name}: {json.dumps(text)}")
            continue
        parts.append(f"  {name}: |2")
        parts += [f"    {line}" if line else "" for line in text.rstrip("\n").split("\n")]
    return "\n".join(parts)


def _digest(files: Mapping[str, str]) -> str:
    return hashlib.sha256("\0".join(f"{name}\0{text}" for name, text in files.items()).encode()).hexdigest()[:16]


def _lines(indent: int, items: Iterable[str]) -> str:
    return "\n".join(f"{' ' * indent}- {item}" for item in items)
