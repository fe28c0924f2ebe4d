"""A node says what its broker may have lost: sessions, and QoS 1."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from structlog.testing import capture_logs
from trial_site import Site, until

from hedgerow import configfile
from hedgerow.node.node import Node
from hedgerow.node.probes import gauges
from hedgerow.testing import Mosquitto
from hedgerow.testing.faults import FaultProxy


async def test_a_broker_that_forgot_the_session_is_reported(own_site: Site, mosquitto: Mosquitto) -> None:
    async with own_site.node() as node:
        with capture_logs() as logs:
            mosquitto.kill()
            mosquitto.start()
            await until(lambda: node.runners["p"].sessions_lost == 1)
        health = node.health()
        metrics = {name: value for name, _, _, value in gauges(node.runners, node._link)}

    assert health.state == "degraded"
    assert any("forgot the session" in reason for reason in health.reasons)
    assert metrics["hedgerow_sessions_lost"] == 1
    (event,) = (entry for entry in logs if entry["event"] == "session-lost")
    assert (event["pipeline"], event["filters"]) == ("p", [f"{own_site.name}/in/+"])


async def test_health_that_falls_into_an_outage_is_published_when_it_ends(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The link of a node whose disk was copied is up for moments, between those of the copy; none may be that of its report."""
    monkeypatch.setattr("hedgerow.node.health.HEALTH_EVERY_S", 3600.0)
    with FaultProxy("127.0.0.1", site.port) as proxy:
        site.port = proxy.port
        async with site.node() as node:
            proxy.cut()
            await until(lambda: not node._link.connected)
            monkeypatch.setattr("hedgerow.node.health.FIRST_HEALTH_S", 0.0)
            reporting = asyncio.create_task(node._health.run())
            await until(lambda: node._health._state == "degraded")
            assert not site.published("health")

            proxy.restore()
            await until(lambda: site.published("health"))
            reporting.cancel()

    (report,) = site.published("health")
    assert report.body["session"] == node._announcer.session


_GRANTED = re.compile(rb"\x90\x04(..)\x00\x01", re.DOTALL)
"""A SUBACK for one topic filter."""


@asynccontextmanager
async def lowering_proxy(port: int) -> AsyncIterator[int]:
    """A proxy that makes QoS 0 of every QoS 1 that the broker grants. Yields: its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", port)

        async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter, *, lower: bool) -> None:
            with suppress(ConnectionError):
                while data := await source.read(65536):
                    target.write(_GRANTED.sub(b"\x90\x04\\1\x00\x00", data) if lower else data)
            target.close()

        await asyncio.gather(copy(reader, upstream_writer, lower=False), copy(upstream_reader, writer, lower=True))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.parametrize(("setting", "state"), [("degrade", "degraded"), ("fail", "failing")])
async def test_a_lower_qos_than_requested_is_reported_or_refused(site: Site, setting: str, state: str) -> None:
    async with lowering_proxy(site.port) as port:
        site.port = port
        path = site.folder / "node.yaml"
        path.write_text(site.yaml({"p": site.pipeline(if_qos_lowered=setting)}))
        node = Node(configfile.load(path), path)
        running = asyncio.create_task(node.run())
        await until(lambda: any("QoS" in reason for reason in node.health().reasons))
        health = node.health()
        if setting == "degrade":
            await site.wait_event("qos-lowered")
            await site.frame(1)
            await site.wait_results(1)
        node.stop()
        await running

    (reason,) = (reason for reason in health.reasons if "QoS" in reason)
    assert health.state == state
    assert reason.startswith("pipeline p: ")
    assert f"{site.name}/in/+" in reason
