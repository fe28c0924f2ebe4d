"""A site and its region: sensors, a node, a broker, a bridge, a WAN that fails, a broker, a collector. All real processes."""

from __future__ import annotations

import json
import sqlite3
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from tests.e2e.conftest import NodeProcess, Sensors, until
from tests.region.conftest import REGION, CollectorProcess

from hedgerow.testing import Mosquitto
from hedgerow.testing.faults import FaultProxy

PATIENCE_S = 120.0


class Estate:
    """All of it. The node's pipeline is durable; its stage gives each frame's number back.

    Attributes:
        wan: between the site's broker and the region's.
    """

    def __init__(self, folder: Path) -> None:
        for part in ("node", "region"):
            (folder / part).mkdir()
        self.upper = Mosquitto()
        self.upper.start()
        self.wan = FaultProxy("127.0.0.1", self.upper.port)
        self.wan.__enter__()
        address = f"hedgerow/v1/{REGION}/+/+"
        self.lower = Mosquitto(
            config=[
                "connection region",
                f"address 127.0.0.1:{self.wan.port}",
                "bridge_protocol_version mqttv50",
                "cleansession false",
                "restart_timeout 1 5",
                "keepalive_interval 5",
                "remote_clientid hedgerow-bridge/site",
                *(f"topic {address}/{up} out 1" for up in ("status", "health", "event/#", "result/#", "reply/#")),
                *(f"topic {address}/{down} in 1" for down in ("ack", "command/#", "desired")),
            ]
        )
        self.lower.start()
        self.collector = CollectorProcess(self.upper.url, str(folder / "region" / "region.db"), folder / "region")
        self.collector.configure(ping={"every_s": 1})
        self.collector.start()
        self.node = NodeProcess(self.lower, folder / "node")
        self.configure()
        self.node.start()
        self.sensors = Sensors(self.lower.port, self.node.topic)

    def configure(self, **fields: Any) -> None:
        """Write the node's configuration, with more fields of its pipeline."""
        queue = {"policy": "fifo", "max_frames_per_stream": 100_000, "max_frames": 100_000}
        self.node.configure(**{"publish": {"durable": True}, "queue": queue, **fields})

    def close(self) -> None:
        self.sensors.close()
        for part in (self.node, self.collector, self.lower, self.upper):
            part.close()  # type: ignore[attr-defined]
        self.wan.__exit__(None, None, None)

    # The store

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(f"file:{self.collector.store}?mode=ro", uri=True, timeout=30)) as database:
            return database.execute(sql).fetchall()

    def numbers(self) -> list[int]:
        """The numbers of the frames whose durable results are stored, in the order of the outbox's numbers."""
        rows = self.rows("SELECT payload FROM result WHERE ledger IS NOT NULL ORDER BY ledger, sequence")
        return [json.loads(payload)["result"]["n"] for (payload,) in rows]

    def stored(self) -> int:
        return int(self.rows("SELECT count(*) FROM result WHERE ledger IS NOT NULL")[0][0])

    def waiting(self) -> float:
        """What the outbox has that the region has not acknowledged."""
        return self.node.metric("hedgerow_outbox_entries") + self.node.metric("hedgerow_frames_in_flight")

    # What must hold

    def everything_is_stored_once(self) -> None:
        """Each frame that the site's broker accepted has one result in the store, in its stream's order; none is lost."""
        self.sensors.settle()
        until(lambda: self.stored() >= self.sensors.count, self._how_far, PATIENCE_S)
        until(lambda: self.waiting() == 0, self._how_far, PATIENCE_S)
        numbers = self.numbers()
        assert {n: times for n, times in Counter(numbers).items() if times > 1} == {}
        assert set(numbers) == set(range(self.sensors.count))
        self.no_number_is_missing()
        streams = defaultdict(list)
        for n in numbers:
            streams[n % 5].append(n)
        assert all(found == sorted(found) for found in streams.values())

    def no_number_is_missing(self) -> None:
        """All numbers of the outbox have come, and none twice."""
        assert self.rows("SELECT count(*) FROM gap") == [(0,)]
        for ledger, count, last in self.rows("SELECT ledger, count(*), max(sequence) FROM result GROUP BY ledger"):
            assert count == last, f"of ledger {ledger}"

    def _how_far(self) -> str:
        return f"{self.stored()} of {self.sensors.count} stored, {self.waiting()} wait\n{self.node.log[-1500:]}"


class Witness:
    """Somebody at the site who looks on, and comes back when its broker does.

    Attributes:
        seen: numbers of the frames whose results he saw.
    """

    def __init__(self, port: int, topic: str) -> None:
        self.seen: set[int] = set()
        self._client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        self._client.reconnect_delay_set(0.05, 0.2)
        self._client.on_connect = lambda client, *_: client.subscribe(topic, 1)
        self._client.on_message = lambda _client, _data, message: self.seen.add(
            json.loads(message.payload)["result"]["n"]
        )
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture
def estate(tmp_path: Path) -> Iterator[Estate]:
    made = Estate(tmp_path)
    yield made
    made.close()


@pytest.fixture
def after() -> Callable[[float], None]:
    """Lets time pass, in which the load goes on: how much of it came through is looked at afterwards."""
    return time.sleep
