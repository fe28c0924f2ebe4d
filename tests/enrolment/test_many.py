"""Many machines enrol at once, with real keys and certificates, over a real broker: each becomes one node, none without approval."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path

import pytest
from tests.enrolment.estate import enrolling_estate
from tests.enrolment.machines import Machine

from hedgerow.enrolment.asking import ask_until_decided
from hedgerow.enrolment.claim import Claim
from hedgerow.enrolment.folder import Enrolment
from hedgerow.enrolment.grant import verify_grant
from hedgerow.enrolment.places import Places, PlacesOfSite, read_places

STRANGERS = 5
"""Machines whose claim no rule knows."""


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "count", [pytest.param(60, marks=pytest.mark.long), pytest.param(1000, marks=pytest.mark.slow)]
)
async def test_many_machines_enrol_at_once(count: int) -> None:
    rules = [{"name": "batch", "labels": "batch=7", "count": count}]
    with enrolling_estate("[n0]", places="many.json", pki="../../../pki", rules=rules, requests_per_s=200) as estate:
        _many_places(estate.region_file.parent, count)
        known = estate.add_claim(uses=count, batch="7")
        unknown = estate.add_claim(uses=STRANGERS)
        root, root_file = estate.pki.root.certificate(), estate.folder / "pki/root.crt"
        began, worked = time.monotonic(), time.process_time()

        async def enrols(claim: Claim) -> str:
            machine = Machine()
            enrolment = Enrolment(
                schema="hedgerow.enrolment/1", region="north", site="hall", broker=claim.broker, client=machine.client
            )
            async for answer in ask_until_decided(enrolment, root_file, machine.request(claim)):
                if answer.state == "approved":
                    return verify_grant(answer.grant, answer.signature, root, machine.key.public_key(), "hall").node
                assert answer.state == "pending" or answer.code == "too-many-requests", answer
            raise AssertionError("no answer")

        strangers = [asyncio.create_task(enrols(unknown)) for _ in range(STRANGERS)]
        nodes = await asyncio.gather(*(enrols(known) for _ in range(count)))
        took_s, worked_s = time.monotonic() - began, time.process_time() - worked
        for task in strangers:
            task.cancel()
        await asyncio.gather(*strangers, return_exceptions=True)

        assert len(set(nodes)) == count
        assert {one.node for one in estate.machines("approved").values()} == {f"n{number}" for number in range(count)}
        assert len(estate.machines("approved")) == count
        assert len(estate.machines("pending")) <= STRANGERS
        assert all(not task.done() or task.cancelled() for task in strangers)
        print(f"{count} machines enrolled in {took_s:.1f} s, {worked_s:.1f} s of processor time, the broker's apart")


def _many_places(folder: Path, count: int) -> None:
    """Copy the only place under many names; the broker's access list does not matter here."""
    read = read_places(folder / "places.json")
    (place,) = read.sites["hall"].nodes.values()
    nodes = {
        name: place.model_copy(update={"configuration": re.sub(r"name: n0\b", f"name: {name}", place.configuration)})
        for name in (f"n{number}" for number in range(count))
    }
    sites = {**read.sites, "hall": PlacesOfSite(broker=read.sites["hall"].broker, nodes=nodes)}
    (folder / "many.json").write_text(Places(region=read.region, broker=read.broker, sites=sites).encode())
