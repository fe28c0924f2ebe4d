"""Machines enrol over a rendered site's broker and become nodes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.enrolment.estate import PATIENCE_S, EnrollingEstate, enrolling_estate, until

from hedgerow.configfile import load
from hedgerow.enrolment.claim import read_claim
from hedgerow.enrolment.enrol import enrol
from hedgerow.enrolment.folder import EnrolmentFolder
from hedgerow.node.node import Node


@pytest.fixture(scope="module")
def estate() -> Iterator[EnrollingEstate]:
    with enrolling_estate() as made:
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
