"""What one stolen client at full speed costs the others: their results with it, beside the same time without it.

    python -m benchmarks.fleet.stolen --role node              # two minutes
    python -m benchmarks.fleet.stolen --role site --smoke      # a quarter of a minute; the numbers mean little

A fleet of real brokers and bridges with simulated nodes (`messages.py`) is offered half of what it was measured to store. Then the
thief, a process of its own, sends as fast as its connection takes it: a node under its own name at its site's broker, a sensor on its
own topic there, a site on the region's broker under its nodes' names, known and invented; a viewer opens sessions there that read
everything and never expire.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

import psutil  # type: ignore[import-untyped]

from benchmarks.fleet.messages import REGION, Fleet
from hedgerow.testing import processes

Role = Literal["node", "sensor", "viewer", "site"]
THIEF: Final = "thief"
SITE_PER_S: Final = 300.0
"""Quota of messages per second of a site: more than the honest nodes of one send on a slow machine, and little enough that the thief
meets it."""
_SETTLE_S: Final = 5.0
"""Time after each period in which results may still arrive, the same with the thief as without."""


@dataclass(frozen=True)
class Cost:
    """What a thief costs.

    Attributes:
        per_s: results offered per second by the others.
        without, with_thief: their results stored in the period.
        sent: messages that the thief has sent.
        rows: rows that the region has stored of it.
        grown_bytes: growth of the memory of the region's service.
        refused: messages refused, by site and reason.
    """

    per_s: float
    without: int
    with_thief: int
    sent: int
    rows: int
    grown_bytes: int
    refused: dict[str, int]

    @property
    def share(self) -> float:
        """Share of their results that the others keep."""
        return self.with_thief / self.without


async def measure(role: Role, *, sites: int, nodes: int, seconds: float, messages: int, folder: Path) -> Cost:
    """Measure one thief.

    Args:
        role: of the thief.
        sites, nodes: sites, and nodes of each.
        seconds: length of a period.
        messages: that the thief sends in it at most.
        folder: for the store.
    """
    async with Fleet(sites, nodes, folder, messages_per_s=SITE_PER_S) as fleet:
        per_s = await _capacity(fleet) / 2
        without = await _period(fleet, role, per_s, seconds)
        memory = psutil.Process(fleet.collector_pid).memory_info().rss
        port = fleet.region_port if role in ("viewer", "site") else fleet.site_ports[0]
        command = [
            sys.executable,
            "-m",
            "benchmarks.fleet.stolen",
            "--thief",
            role,
            str(port),
            str(messages),
            str(seconds),
        ]
        with processes.start(command, stdout=subprocess.PIPE, text=True) as thief:
            with_thief = await _period(fleet, role, per_s, seconds)
            thief.terminate() if thief.poll() is None else None
            said, _ = await asyncio.to_thread(thief.communicate)
        grown = psutil.Process(fleet.collector_pid).memory_info().rss - memory
        sent = int(said.strip().splitlines()[-1]) if said.strip() else 0
        return Cost(per_s, without, with_thief, sent, _rows(fleet), grown, _refused(fleet))


async def _capacity(fleet: Fleet) -> float:
    """Return how many results per second the fleet stores at most, by sending a burst."""
    count = 100 * len(fleet.nodes)
    began, before = time.monotonic(), fleet.sent
    await fleet.send(count, 1e9)
    return (fleet.sent - before) / (time.monotonic() - began)


async def _period(fleet: Fleet, role: Role, per_s: float, seconds: float) -> int:
    """Offer results for a while. Returns: how many of them were stored."""
    before = _others(fleet, role)
    sending = asyncio.ensure_future(fleet.keep_sending(per_s))  # awaited below
    await asyncio.wait([sending], timeout=seconds)
    sending.cancel()
    await asyncio.wait([sending])
    await asyncio.sleep(_SETTLE_S)  # the same grace for both periods, not a guess at when something is done
    return _others(fleet, role) - before


def _query(fleet: Fleet, sql: str) -> list[Any]:
    with closing(sqlite3.connect(f"file:{fleet.store}?mode=ro", uri=True, timeout=30)) as database:
        return database.execute(sql).fetchall()


def _others(fleet: Fleet, role: Role) -> int:
    """Return the results stored of honest nodes; a stolen site has none."""
    sites = "site <> 's0'" if role == "site" else "1 = 1"
    return int(_query(fleet, f"SELECT sum(results) FROM node WHERE name LIKE 'n%' AND {sites}")[0][0])


def _rows(fleet: Fleet) -> int:
    return sum(
        _query(fleet, f"SELECT count(*) FROM {table} t JOIN node n ON n.id = t.node WHERE n.name LIKE '{THIEF}%'")[0][0]
        for table in ("result", "event", "health")
    )


def _refused(fleet: Fleet) -> dict[str, int]:
    return {
        f"{site} {reason}": count for site, reason, count in _query(fleet, "SELECT site, reason, count FROM refusal")
    }


def steal(role: Role, port: int, messages: int, seconds: float) -> None:
    """Send as fast as possible, and print how many messages were sent."""
    import paho.mqtt.client as paho
    from paho.mqtt.enums import CallbackAPIVersion
    from paho.mqtt.packettypes import PacketTypes
    from paho.mqtt.properties import Properties

    def connected(name: str, **options: Any) -> paho.Client:
        client = paho.Client(CallbackAPIVersion.VERSION2, client_id=name, protocol=paho.MQTTv5)
        client.connect("127.0.0.1", port, **options)
        client.loop_start()
        return client

    deadline, sent = time.monotonic() + seconds, 0
    if role == "viewer":
        forever: Any = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        forever.SessionExpiryInterval = 0xFFFFFFFF
        while sent < min(messages, 600) and time.monotonic() < deadline:
            viewer = connected(f"{THIEF}-{sent}", clean_start=False, properties=forever)
            viewer.subscribe("hedgerow/v1/#", qos=1)
            sent += 1
            if sent > 20:  # it leaves, and its queue grows
                viewer.loop_stop()
                viewer.disconnect()
        print(sent, flush=True)
        return
    client = connected(THIEF)
    base = f"hedgerow/v1/{REGION}/s0/{THIEF}"
    at = json.dumps({"at": time.time(), "frame": {"captured_at": time.time()}, "result": "x" * 200})
    while sent < messages and time.monotonic() < deadline:
        if role == "sensor":
            client.publish("camera/thief", b"x" * 2000, qos=0)
        else:
            name = f"{base}-{sent}" if role == "site" else base
            client.publish(f"{name}/result/p" if sent % 2 else f"{name}/event/x", at, qos=1)
        sent += 1
        while client._out_messages and len(client._out_messages) > 1000 and time.monotonic() < deadline:
            time.sleep(0.001)
    while client._out_messages and time.monotonic() < deadline:
        time.sleep(0.001)
    print(sent, flush=True)
    client.disconnect()


def main() -> None:
    """Measure, or be the thief."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--role", choices=get_args(Role), default="node")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--thief", nargs=4, metavar=("ROLE", "PORT", "MESSAGES", "SECONDS"))
    options = parser.parse_args()
    if options.thief:
        role, port, messages, seconds = options.thief
        steal(role, int(port), int(messages), float(seconds))
        return
    size: dict[str, Any] = {"sites": 10, "nodes": 5, "seconds": 60.0, "messages": 100_000}
    if options.smoke:
        size = {"sites": 2, "nodes": 2, "seconds": 5.0, "messages": 2000}
    with tempfile.TemporaryDirectory() as folder:
        cost = asyncio.run(measure(options.role, folder=Path(folder), **size))
    print(json.dumps(asdict(cost) | {"share": cost.share}, indent=2))


if __name__ == "__main__":
    main()
