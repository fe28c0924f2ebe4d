"""Machines enrol over a rendered site's broker and become nodes."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from tests.enrolment.estate import PATIENCE_S, TOPOLOGY, EnrollingEstate, enrolling_estate, running, until
from tests.enrolment.machines import Machine
from tests.enrolment.makers import Manufacturer, write_device

from hedgerow.configfile import load
from hedgerow.enrolment.claim import read_claim
from hedgerow.enrolment.enrol import enrol
from hedgerow.enrolment.folder import EnrolmentFolder
from hedgerow.errors import CommandError
from hedgerow.node.node import Node
from hedgerow.pki.names import Identity, IdentityKind
from hedgerow.testing import processes
from hedgerow.topology.brokers import enrolment_url

MAKER = Manufacturer()


@pytest.fixture(scope="module")
def estate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EnrollingEstate]:
    with enrolling_estate(places="places.json", manufacturers=MAKER.write(tmp_path_factory.mktemp("maker"))) as made:
        yield made


def waiting(estate: EnrollingEstate) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = estate.operator("node", "pending", "--json").json
    return found


async def test_a_machine_enrols_is_approved_and_its_results_reach_the_region(
    estate: EnrollingEstate, tmp_path: Path
) -> None:
    token, state = tmp_path / "claim.txt", tmp_path / "node"
    made = await asyncio.to_thread(
        estate.operator, "claim", "create", "hall", "--place", "gate", "--label", "hardware=nuc", "--out", token
    )
    assert made.code == 0, made.err
    assert token.stat().st_mode & 0o777 == 0o600

    enrolling = asyncio.create_task(enrol(EnrolmentFolder(state), read_claim(token.read_text())))
    (machine,) = await asyncio.to_thread(until, lambda: waiting(estate))
    assert not (state / "node.yaml").exists()
    shown, folder = machine["fingerprint"][:16], estate.folder / "pki"
    approved = await asyncio.to_thread(
        estate.operator, "node", "approve", shown, "--folder", folder, "--why", "seen there"
    )
    assert approved.code == 0, approved.err
    grant = await enrolling
    assert grant.node == "north/hall/gate"
    assert {path.name for path in (state / "tls").iterdir()} == {
        "tls.key", "tls.crt", "trust.crt", "trust.crl", "root.crt",
    }  # fmt: skip
    assert (state / "tls/tls.key").stat().st_mode & 0o777 == 0o600
    config = load(state / "node.yaml")
    assert config.node.labels == {"hardware": "nuc"}
    assert not (estate.folder / "pki/hall/issued/gate/tls.key").exists()

    node = Node(config, state / "node.yaml")
    up = asyncio.Event()
    running = asyncio.create_task(node.run(up.set))
    try:
        await up.wait()
        async with estate.client("hall", "hall", "camera") as camera:
            for _ in range(int(PATIENCE_S)):
                await camera.publish("plant/1/door", b"[1, 2]", qos=1)
                found = await asyncio.to_thread(estate.operator, "results", "query", "--json")
                if "north/hall/gate" in found.out:
                    break
                await asyncio.sleep(0.5)  # between attempts
            else:
                raise AssertionError("no result reached the region")
    finally:
        node.stop()
        await running
    assert [line["action"] for line in map(json.loads, estate.operator("audit", "--json").out.splitlines())] == [
        "claim-created",
        "enrolment-asked",
        "enrolment-approved",
    ]


async def test_a_machine_enrols_over_the_regions_broker(estate: EnrollingEstate, tmp_path: Path) -> None:
    """Its site has no listener of its own."""
    claim = await asyncio.to_thread(estate.claim, "yard", "--broker", "region")
    assert claim.broker.endswith(f":{estate.described.topology.region.enrolment_port}")
    enrolling = asyncio.create_task(enrol(EnrolmentFolder(tmp_path), claim, machine={}))
    (machine,) = await asyncio.to_thread(until, lambda: waiting(estate))
    approved = await asyncio.to_thread(
        estate.operator, "node", "approve", machine["fingerprint"], "--folder", estate.folder / "pki"
    )
    assert approved.code == 0, approved.err

    assert (await enrolling).node == "north/yard/free"


async def test_a_machine_enrols_with_its_manufacturers_certificate(estate: EnrollingEstate, tmp_path: Path) -> None:
    """By command, on the machine; it goes on without naming the certificate again."""
    key, own = MAKER.certify("SN-1")
    certificate, key_file = write_device(tmp_path, key, own)
    where = ("--site", "hall", "--broker", enrolment_url(estate.described.topology.sites["hall"]))
    shown = ("--certificate", certificate, "--certificate-key", key_file, "--root", estate.folder / "pki/root.crt")
    state = ("--state", tmp_path / "node", "--once", "--json")
    asked = await asyncio.to_thread(estate.hedgerow, "enrol", *shown, *where, *state)
    assert (asked.code, "not approved: pending" in asked.err) == (1, True), asked.err
    (machine,) = waiting(estate)
    assert machine["claim"] == "maker:SN-1"
    approval = ("node", "approve", machine["fingerprint"], "--place", "belt", "--folder", estate.folder / "pki")
    assert (await asyncio.to_thread(estate.operator, *approval)).code == 0

    done = await asyncio.to_thread(estate.hedgerow, "enrol", *state)

    assert done.json["node"] == "north/hall/belt"


@pytest.mark.parametrize("left_out", ["--certificate-key", "--site", "--broker", "--root"])
def test_a_certificate_without_where_to_ask_is_refused(estate: EnrollingEstate, tmp_path: Path, left_out: str) -> None:
    given = {"--certificate-key": "k", "--site": "hall", "--broker": "mqtts://hall.lan", "--root": "root.crt"}
    options = [text for name, value in given.items() if name != left_out for text in (name, value)]
    refused = estate.hedgerow("enrol", "--certificate", "c", *options, "--state", tmp_path / "node")

    assert refused.code == 2
    assert "does not say where to ask" in refused.err
    assert not (tmp_path / "node").exists()


async def test_the_command_prints_its_json_and_nothing_of_its_connections(
    estate: EnrollingEstate, tmp_path: Path
) -> None:
    token = await asyncio.to_thread(estate.claim, "hall", "--place", "door")
    (tmp_path / "claim.txt").write_text(token.token())
    enrolling = await processes.start_async(
        [sys.executable, "-m", "hedgerow", "enrol", tmp_path / "claim.txt", "--state", tmp_path / "node", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        (machine,) = await asyncio.to_thread(until, lambda: waiting(estate))
        approved = await asyncio.to_thread(
            estate.operator, "node", "approve", machine["fingerprint"], "--folder", estate.folder / "pki"
        )
        assert approved.code == 0, approved.err
        out, err = await enrolling.communicate()
    finally:
        if enrolling.returncode is None:
            enrolling.kill()
            await enrolling.wait()

    assert (enrolling.returncode, err.decode()) == (0, "")
    assert json.loads(out)["node"] == "north/hall/door"


async def test_a_rejected_machine_is_told(estate: EnrollingEstate, tmp_path: Path) -> None:
    claim = await asyncio.to_thread(estate.claim)
    enrolling = asyncio.create_task(enrol(EnrolmentFolder(tmp_path), claim, machine={}))
    (machine,) = await asyncio.to_thread(until, lambda: waiting(estate))
    await asyncio.to_thread(estate.operator, "node", "reject", machine["fingerprint"], "--why", "nobody knows it")

    with pytest.raises(CommandError, match=r"rejected.*nobody knows it"):
        await enrolling
    assert not (tmp_path / "node.yaml").exists()


def test_pki_apply_leaves_nodes_that_enrol_to_themselves(estate: EnrollingEstate) -> None:
    done = estate.hedgerow("pki", "apply", estate.folder / "topology.yaml", "--folder", estate.folder / "pki")

    assert done.code == 0, done.err
    assert "to enrol" in done.out
    assert not (estate.folder / "pki/hall/issued/dock").exists()
    assert not (estate.folder / "pki/hall/issued/gate/tls.key").exists()
    assert (estate.folder / "pki/yard/issued/filed/tls.key").exists()


def test_a_node_that_keeps_its_key_is_renewed_for_it(estate: EnrollingEstate) -> None:
    csr = x509.load_pem_x509_csr(Machine().csr().encode())
    entry = estate.pki.certify(Identity(IdentityKind.NODE, "hall", "lamp"), csr, timedelta(days=30))
    before = (entry.folder / "tls.crt").read_bytes()
    done = estate.hedgerow("pki", "renew", "hall/lamp", "--folder", estate.folder / "pki")
    assert done.code == 0, done.err
    after = (entry.folder / "tls.crt").read_bytes()
    keys = [x509.load_pem_x509_certificates(one)[0].public_key() for one in (before, after)]

    assert before != after
    assert keys[0] == keys[1]
    refused = estate.hedgerow("pki", "renew", "hall/lamp", "--new-key", "--folder", estate.folder / "pki")
    assert refused.code == 1
    assert "keeps its own key" in refused.err


@pytest.mark.long
async def test_a_site_without_a_region_enrols_by_itself_and_the_region_knows_its_nodes_later(tmp_path: Path) -> None:
    """The region's service runs at the site too, against the site's broker, as the site's collector, with the key of its authority.

    The region comes later: it learns of the nodes by what they send, and of no request to enrol: it could only refuse it.
    """
    own = TOPOLOGY.replace("enrols: true\n    nodes", "enrols: true\n    own_enrolment: true\n    nodes")
    rules = [{"name": "all", "count": 9}]
    settings: dict[str, Any] = {"places": "places.json", "pki": "../../../pki", "rules": rules}
    with enrolling_estate(brokers=("hall",), at_site=True, topology=own, **settings) as estate:
        claim = await asyncio.to_thread(estate.claim)
        folder = EnrolmentFolder(tmp_path / "node")
        node = (await enrol(folder, claim, machine={})).node
        assert node == "north/hall/gate"
        async with running(folder.path):
            await asyncio.to_thread(until, lambda: estate.is_up(node))

            estate.start("north")
            collector, service = estate.folder / "pki/region/issued/collector", tmp_path / "region.yaml"
            tls = {
                "ca_file": collector / "trust.crt",
                "cert_file": collector / "tls.crt",
                "key_file": collector / "tls.key",
            }
            config = {
                "region": {"name": "north"},
                "broker": {
                    "url": estate.described.topology.region.broker,
                    "tls": {key: str(path) for key, path in tls.items()},
                },
                "store": {"url": str(tmp_path / "region.db")},
                "enrolment": {"places": str(estate.region_file.parent / "places.json")},
                "metrics": {"port": 0},
            }
            service.write_text(json.dumps(config))
            words = [sys.executable, "-m", "hedgerow", "region", "run", service]
            process = processes.start(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:

                def known() -> bool:
                    listed = estate.hedgerow("nodes", "--health", "ok", "--json", "--config", service)
                    return listed.code == 0 and node in listed.out

                await asyncio.to_thread(until, known)
                assert (await enrol(folder, None, machine={}, once=True)).node == node
                # Both ways are open now: a request that goes to the region would be there before this result.
                async with estate.client("hall", "hall", "camera") as camera:
                    await camera.publish("plant/1/door", b"[1, 2]", qos=1)

                def arrived() -> bool:
                    return node in estate.hedgerow("results", "query", "--json", "--config", service).out

                await asyncio.to_thread(until, arrived)
                status = estate.hedgerow("region", "status", "--json", "--config", service).json
                assert [one for one in status["refused"] if one["reason"].startswith("enrolment")] == []
            finally:
                await asyncio.to_thread(processes.end, process)
