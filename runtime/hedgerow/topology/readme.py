"""README of a rendered folder: where files go, who must own them, which certificates they need. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from hedgerow.pki.provide import CertificateRequest
from hedgerow.topology import identities
from hedgerow.topology.brokers import command
from hedgerow.topology.deploy import Service
from hedgerow.topology.identities import Needed
from hedgerow.topology.k3s import NAMESPACE, named
from hedgerow.topology.model import REGION_AUTHORITY, Topology


def site(topology: Topology, name: str, services: list[Service]) -> str:
    """Return the README of a site."""
    files = "Model files are below `nodes/`. `hedgerow config check` reports what is missing on the machine:"
    checks = [f"    hedgerow config check {service.words[-1]}" for service in services if service.tls is not None]
    secrets = [("broker", name, "broker"), ("bridge", REGION_AUTHORITY, name)]
    secrets += [(service.name, name, service.name) for service in services if service.tls is not None]
    certificates = identities.of_site(topology, name)
    return _text(topology, name, services, [files, "", *checks, ""], certificates, secrets, with_broker=True)


def region(topology: Topology, service: Service | None) -> str:
    """Return the README of the region: its broker, unless external, and its service."""
    section = topology.region
    secrets = (
        [("region", REGION_AUTHORITY, service.tls.name)] if service is not None and service.tls is not None else []
    )
    if not section.external:
        secrets.insert(0, ("broker", REGION_AUTHORITY, "broker"))
    if topology.parent is not None:
        secrets.append(("bridge", topology.parent.name, section.name))
    services = [service] if service is not None else []
    certificates = identities.of_region(topology)
    return _text(topology, section.name, services, [], certificates, secrets, with_broker=not section.external)


def parent(topology: Topology, name: str) -> str:
    """Return the README of the broker above the region."""
    secrets = [("broker", name, "broker")]
    return _text(topology, name, [], [], identities.of_parent(topology), secrets, with_broker=True)


def _text(
    topology: Topology,
    name: str,
    services: list[Service],
    checks: list[str],
    certificates: Iterable[Needed],
    secrets: list[tuple[str, str, str]],
    *,
    with_broker: bool,
) -> str:
    machine = topology.machine
    config = machine.config / name
    rows = []
    owners = []
    if with_broker:
        rows.append(
            f"| broker | `compose.yaml`, `quadlet/hedgerow-broker.container` | `{' '.join(command(topology, name))}` |"
        )
        owners.append((machine.broker_ids, machine.state / name / "broker"))
    for service in services:
        unit = service.unit
        rows.append(f"| {service.name} | `compose.yaml`, `quadlet/{unit}.container` | `systemd/{unit}.service` |")
        owners.append((machine.node_ids, service.state))
    made = " ".join(str(folder) for _, folder in owners)
    return "\n".join(
        [
            f"# {name}",
            "",
            f"Paths are the same with and without containers: copy this folder to `{config}`, certificates to",
            f"`{machine.pki}`, and create a folder for each process to write to:",
            "",
            f"    mkdir -p {made}",
            "",
            "| | in containers | without |",
            "|---|---|---|",
            *rows,
            "",
            "In containers, each process must be able to write its folder and to read its certificate (`tls.key` is private to its owner):",
            "",
            *(f"    chown -R {ids} {folder}" for ids, folder in owners),
            *(f"    chown -R {machine.node_ids} {service.tls}" for service in services if service.tls is not None),
            *(
                f"    chown -R {machine.broker_ids} {machine.pki / authority / 'issued' / one}"
                for secret, authority, one in secrets
                if secret in ("broker", "bridge")
            ),
            "",
            *checks,
            *_enrolling([service for service in services if service.tls is None]),
            "## On K3s",
            "",
            "`k3s.yaml` holds the same for Kubernetes, without certificates. Create each of them as a secret on the machine:",
            "",
            f"    kubectl create namespace {NAMESPACE}",
            *(
                f"    kubectl -n {NAMESPACE} create secret generic {named(name, secret)}-tls"
                f" --from-file={machine.pki / authority / 'issued' / one}"
                for secret, authority, one in secrets
            ),
            *(
                f"    kubectl -n {NAMESPACE} create secret generic {named(name, service.name)}-claim --from-file=claim=claim.txt"
                for service in services
                if service.tls is None
            ),
            "    kubectl apply -f k3s.yaml",
            "",
            "## Certificates",
            "",
            "Each machine needs only the certificates of the processes that run on it:",
            "",
            "| folder | common name | whose |",
            "|---|---|---|",
            *(
                f"| {one.who.authority}/issued/{one.who.name} | {_common_name(one)} | {whose} |"
                for one, whose in certificates
            ),
            "",
        ]
    )


def _enrolling(services: list[Service]) -> Iterator[str]:
    """Yield how nodes enrol, before they are started for the first time."""
    if not services:
        return
    yield "These nodes enrol: they make their keys themselves, in the folders that they write to. Before the first start of each, with the token"
    yield "of its claim, with or without containers:"
    yield ""
    for service in services:
        yield (
            f"    docker compose run --rm --volume ./claim.txt:/claim.txt:ro {service.name} enrol /claim.txt --state {service.state}"
        )
        yield f"    sudo -u hedgerow hedgerow enrol claim.txt --state {service.state}"
    yield ""


def _common_name(one: CertificateRequest) -> str:
    return "the broker's host name" if one.hosts else f"`{one.who.user}`"
