"""Garbage on every channel: nothing crashes, every message is counted, valid ones are still processed."""

from __future__ import annotations

import json
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import paho.mqtt.client as mqtt
import psutil
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from tests.e2e.conftest import NodeProcess, until
from tests.region.conftest import REGION, CollectorProcess, result

from hedgerow.bus.outbox.records import Ack, Gap, key_of
from hedgerow.testing import Mosquitto

SMALL = pytest.param(1500, id="short", marks=pytest.mark.timeout(300))
LARGE = pytest.param(12_000, id="long", marks=[pytest.mark.slow, pytest.mark.timeout(1800)])
_MAX_GROWTH_BYTES = 200 << 20
_TYPES = ["application/json", "application/msgpack", "image/jpeg", "", "x" * 300, "application/vnd.hedgerow.frame"]

Mutation = Callable[[random.Random, bytes], bytes]


def _flipped(dice: random.Random, data: bytes) -> bytes:
    changed = bytearray(data or b"\0")
    for _ in range(dice.randint(1, 8)):
        changed[dice.randrange(len(changed))] = dice.randrange(256)
    return bytes(changed)


def _retyped(dice: random.Random, data: bytes) -> bytes:
    """Replace a value by one of another type."""
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        return dice.randbytes(50)
    if isinstance(body, dict) and body:
        odd = [None, True, -1, 1e308, 10**40, "", "x" * 5000, [], {}, [[]] * 50, {"a": {"b": [1]}}, "\ud800", "NaN"]
        body[dice.choice(list(body))] = dice.choice(odd)
    return json.dumps(body).encode()


_MUTATIONS: list[Mutation] = [
    _flipped,
    _flipped,
    _retyped,
    _retyped,
    lambda dice, data: data[: dice.randint(0, len(data))],
    lambda dice, data: data * dice.randint(2, 5),
    lambda dice, _: dice.randbytes(dice.randint(0, 2000)),
    lambda dice, _: b"[" * dice.choice([10, 1000, 100_000]),
    lambda *_: b'{"a":' * 3000 + b"1" + b"}" * 3000,
    lambda dice, data: data.replace(b"1", b"9" * dice.randint(10, 400)),
    lambda *_: b"",
]


class Sender:
    """Publishes at QoS 1, and waits until the broker has accepted everything."""

    def __init__(self, port: int) -> None:
        self.sent = 0
        self._acknowledged = 0
        self._client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, uuid.uuid4().hex, protocol=mqtt.MQTTv5)
        self._client.max_inflight_messages_set(100)
        up = threading.Event()
        self._client.on_connect = lambda *_: up.set()
        self._client.on_publish = self._published
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        assert up.wait(60)

    def _published(self, *_: Any) -> None:
        self._acknowledged += 1

    def send(self, topic: str, payload: bytes, user: list[tuple[str, str]], content_type: str = "") -> None:
        properties = Properties(PacketTypes.PUBLISH)
        properties.UserProperty = user
        if content_type:
            properties.ContentType = content_type
        if "command" in topic:
            properties.ResponseTopic, properties.CorrelationData = f"{topic.partition('/command/')[0]}/reply/fuzz", b"1"
        self._client.publish(topic, payload, qos=1, properties=properties)
        self.sent += 1

    def settle(self) -> None:
        until(lambda: self._acknowledged == self.sent, lambda: f"{self._acknowledged} of {self.sent}", 120)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture
def sender(mosquitto: Mosquitto) -> Iterator[Sender]:
    connected = Sender(mosquitto.port)
    yield connected
    connected.close()


def garbage(dice: random.Random, valid: bytes) -> bytes:
    """Return a message with 0 to 3 mutations."""
    for _ in range(dice.randint(0, 3)):
        valid = dice.choice(_MUTATIONS)(dice, valid)
    return valid[:300_000]


@pytest.mark.parametrize("messages", [SMALL, LARGE])
def test_a_region_counts_all_garbage_and_continues(
    mosquitto: Mosquitto, sender: Sender, tmp_path: Path, messages: int
) -> None:
    collector = CollectorProcess(mosquitto.url, str(tmp_path / "region.db"), tmp_path)
    collector.configure(ping={"every_s": 1})
    collector.start()
    try:
        process = psutil.Process(collector._process.pid)  # type: ignore[union-attr]
        before = process.memory_info().rss
        dice = random.Random(messages)
        gap = Gap(key_of(0, 5), key_of(0, 6), {"evicted": 2}).message("e1")
        status = b'{"schema":"hedgerow.status/1","state":"online","session":"s","node":"n","version":"0","at":1}'
        health = b'{"schema":"hedgerow.health/1","node":"n","session":"s","at":1,"uptime_s":1,"state":"ok","pipelines":{"p":{"state":"running","bytes_in":1}}}'
        valid = {
            "status": status,
            "health": health,
            "event/drift": b'{"schema":"hedgerow.event/1","kind":"drift","node":"n","session":"s","at":1,"detail":{}}',
            "event/gap": gap,
            "result/p": result("p", 1, 1e9),
            "result/p/late": result("p", 2, 1e9),
            "reported": b'{"node":"n","session":"s","at":1,"generation":1}',
            "reply/up/region/region-ping": b'{"schema":"hedgerow.reply/1","command":"ping","node":"n","ok":true,"value":{"at":1}}',
        }
        numbers = ["e1/0/1", "e1/9/281474976710655", "e1/0", "x" * 300, "e1/-1/2", "", "e 1/0/1", "e2/3/4"]
        clears = 0  # an empty message that clears a retained one says nothing
        for _ in range(messages):
            channel = dice.choice(list(valid))
            user = [("number", dice.choice(numbers))] * dice.randint(0, 2) + [("id", garbage(dice, b"f1").hex()[:3000])]
            node = f"{REGION}/s{dice.randrange(3)}/n{dice.randrange(3)}"
            payload = garbage(dice, valid[channel].replace(b'"node":"n"', f'"node":"{node}"'.encode()))
            clears += not payload and channel in ("status", "reported")
            sender.send(f"hedgerow/v1/{node}/{channel}", payload, user, dice.choice(_TYPES))
        sender.settle()
        sender.send(f"hedgerow/v1/{REGION}/s1/n1/result/last", result("last", 7), [("id", "last")], "application/json")

        def metric(name: str) -> float:
            from prometheus_client.parser import text_string_to_metric_families

            families = text_string_to_metric_families(collector.probe("metrics")[1])
            return sum(sample.value for family in families for sample in family.samples if sample.name == name)

        def counted() -> int:
            from contextlib import closing

            from hedgerow.region.store.database.open import open_database

            with closing(open_database(collector.store, write=False)) as database:
                ((count,),) = database.rows("SELECT coalesce(sum(messages_up), 0) FROM node")
                found = database.rows("SELECT count(*) FROM result WHERE pipeline = 'last'")
            return int(count) if found == [(1,)] else -1

        replies = "hedgerow_region_stray_replies_total"
        until(lambda: counted() >= 0, lambda: collector.log[-3000:], 120)
        until(
            lambda: (
                counted() + metric("hedgerow_region_dropped_health_total") + metric(replies) == sender.sent - clears
            ),
            lambda: (
                f"{counted()} + {metric('hedgerow_region_dropped_health_total')} + {metric(replies)} of {sender.sent} - {clears}\n{collector.probe('metrics')[1]}{collector.log[-2000:]}"
            ),
        )
        assert process.is_running()
        assert process.memory_info().rss < before + _MAX_GROWTH_BYTES
        assert collector.probe("readyz")[0] == 200
        assert "Traceback" not in collector.log
    finally:
        collector.close()


@pytest.mark.parametrize("messages", [SMALL, LARGE])
def test_a_node_counts_all_garbage_and_continues(
    mosquitto: Mosquitto, sender: Sender, tmp_path: Path, messages: int
) -> None:
    node = NodeProcess(mosquitto, tmp_path)
    queue = {"policy": "fifo", "max_frames_per_stream": 100_000, "max_frames": 100_000}
    node.configure({"trial": {}}, publish={"durable": True}, queue=queue)
    node.start()
    try:
        process = psutil.Process(node._process.pid)  # type: ignore[union-attr]
        before = process.memory_info().rss
        dice = random.Random(messages)
        base = f"hedgerow/v1/test/{node.site}/node"
        commands = ["ping", "health", "pause", "resume", "reload", "snapshot", "config", "nonsense"]
        frames = acks = 0
        for _ in range(messages):
            kind = dice.choice(["frame", "frame", "ack", "command"])
            if kind == "frame":
                frames += 1
                valid = dice.choice([b'{"n": 1}', msgpack.packb({"n": 2}), b'{"n": 3, "do": "drop"}'])
                user = [
                    (
                        dice.choice(["id", "time", "traceparent", "x"]),
                        garbage(dice, b"2026-01-01T00:00:00Z").hex()[:3000],
                    )
                ]
                sender.send(f"{node.topic}/{dice.randrange(5)}", garbage(dice, valid), user, dice.choice(_TYPES))
            elif kind == "ack":
                acks += 1
                sender.send(f"{base}/ack", garbage(dice, Ack("e", {0: 1}, {0: [(3, 4)]}).encode()), [])
            else:
                name = dice.choice(commands)
                body = garbage(dice, b'{"args": {"pipeline": "p", "config": "x"}, "expires_at": 4000000000.0}')
                sender.send(f"{base}/command/{name}", body, [])
        sender.settle()
        sender.send(f"{base}/command/resume", b"{}", [])  # a random command may have paused it
        sender.send(f"{node.topic}/last", b'{"n": 4}', [("id", "last")], "application/json")
        sender.settle()
        frames += 1

        def settled() -> float:
            outcomes = ("hedgerow_frames_out_total", "hedgerow_frames_dropped_total", "hedgerow_frames_dead_total")
            return sum(node.metric(name) for name in outcomes)

        def wait_settled() -> None:
            until(lambda: settled() == frames, lambda: f"{settled()} of {frames}\n{node.log[-2000:]}", 120)

        wait_settled()
        for _ in range(60):  # the bad frames may have opened the stage's circuit breaker, which closes again
            if node.metric("hedgerow_results_total") > 0:
                break
            time.sleep(1)  # the circuit breaker closes after a pause
            sender.send(f"{node.topic}/last", b'{"n": 4}', [("id", "last")], "application/json")
            frames += 1
            wait_settled()
        assert node.metric("hedgerow_frames_received_total") == frames
        assert node.metric("hedgerow_outbox_entries") == node.metric("hedgerow_results_total") > 0
        assert 0 < node.metric("hedgerow_outbox_bad_acks") <= acks
        assert process.is_running()
        assert process.memory_info().rss < before + _MAX_GROWTH_BYTES
        assert "task-failed" not in node.log
    finally:
        node.close()
