"""A site and its region as real processes: sensors, node, brokers, bridge, a WAN that fails, collector."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from tests.e2e.conftest import NodeProcess, Sensors, until
from tests.region.conftest import REGION, CollectorProcess

from hedgerow.testing import Mosquitto
from hedgerow.testing.faults import FaultProxy

TIMEOUT_S = 120.0


class Deployment:
    """A site and its region. The node's pipeline is durable; its results contain the number of the frame.

    Attributes:
        wan: the connection between the site's broker and the region's.
    """

    def __init__(self, folder: Path) -> None:
        for part in ("node", "region"):
            (folder / part).mkdir()
        self.region_broker = Mosquitto()
        self.region_broker.start()
        self.wan = FaultProxy("127.0.0.1", self.region_broker.port)
        self.wan.__enter__()
        address = f"hedgerow/v1/{REGION}/+/+"
        self.site_broker = Mosquitto(
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
        self.site_broker.start()
        self.collector = CollectorProcess(
            self.region_broker.url, str(folder / "region" / "region.db"), folder / "region"
        )
        self.collector.configure(ping={"every_s": 1})
        self.collector.start()
        self.node = NodeProcess(self.site_broker, folder / "node")
        self.configure()
        self.node.start()
        self.sensors = Sensors(self.site_broker.port, self.node.topic)

    def configure(self, **fields: Any) -> None:
        """Write the node's configuration, with additional fields of its pipeline."""
        queue = {"policy": "fifo", "max_frames_per_stream": 100_000, "max_frames": 100_000}
        self.node.configure(**{"publish": {"durable": True}, "queue": queue, **fields})

    def close(self) -> None:
        self.sensors.close()
        for process in (self.node, self.collector, self.site_broker, self.region_broker):
            process.close()  # type: ignore[attr-defined]
        self.wan.__exit__(None, None, None)

    # Store

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(f"file:{self.collector.store}?mode=ro", uri=True, timeout=30)) as database:
            return database.execute(sql).fetchall()

    def numbers(self) -> list[int]:
        """Return the numbers of frames whose results are stored, ordered by their number in the outbox."""
        rows = self.rows("SELECT payload FROM result WHERE ledger IS NOT NULL ORDER BY ledger, sequence")
        return [json.loads(payload)["result"]["n"] for (payload,) in rows]

    def stored(self) -> int:
        return int(self.rows("SELECT count(*) FROM result WHERE ledger IS NOT NULL")[0][0])

    def waiting(self) -> float:
        """Return the number of frames in flight and of outbox entries that the region has not acknowledged."""
        return self.node.metric("hedgerow_outbox_entries") + self.node.metric("hedgerow_frames_in_flight")

    # Assertions

    def assert_everything_stored_once(self) -> None:
        """Check that each frame accepted by the site's broker has one stored result, in the order of its stream."""
        self.sensors.settle()
        until(lambda: self.stored() >= self.sensors.count, self._progress, TIMEOUT_S)
        until(lambda: self.waiting() == 0, self._progress, TIMEOUT_S)
        numbers = self.numbers()
        assert {n: times for n, times in Counter(numbers).items() if times > 1} == {}
        assert set(numbers) == set(range(self.sensors.count))
        self.assert_no_number_missing()
        streams = defaultdict(list)
        for n in numbers:
            streams[n % 5].append(n)
        assert all(found == sorted(found) for found in streams.values())

    def assert_no_number_missing(self) -> None:
        """Check that the store has every outbox number exactly once."""
        assert self.rows("SELECT count(*) FROM gap") == [(0,)]
        for ledger, count, last in self.rows("SELECT ledger, count(*), max(sequence) FROM result GROUP BY ledger"):
            assert count == last, f"of ledger {ledger}"

    def _progress(self) -> str:
        return f"{self.stored()} of {self.sensors.count} stored, {self.waiting()} waiting\n{self.node.log[-1500:]}"


class Subscriber:
    """A subscriber at the site that reconnects to its broker.

    Attributes:
        seen: numbers of frames whose results it received.
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
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    running = Deployment(tmp_path)
    yield running
    running.close()
