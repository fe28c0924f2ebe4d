"""Decoding of messages: any message becomes a record that the store accepts."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import msgpack
import pytest
from tests.region.conftest import result
from tests.wire import unchecked

from hedgerow.bus.message import Message
from hedgerow.bus.outbox.records import ACK_NOW, Gap, Number, key_of
from hedgerow.bus.properties import Property, encode_properties
from hedgerow.region.collector.decode import clears, decode_message
from hedgerow.region.config import RegionConfig
from hedgerow.region.store.database.open import open_database
from hedgerow.region.store.records import (
    EventRecord,
    GapRecord,
    HealthRecord,
    RejectedRecord,
    ResultRecord,
    StoreRecord,
)
from hedgerow.region.store.store import RegionStore, apply_each
from hedgerow.topics import Address

BASE = "hedgerow/v1/test/s1/n1"


def message(topic: str, payload: bytes, *user: tuple[str, str], content_type: str = "application/json") -> Message:
    pairs: list[tuple[Property, Any]] = [(Property.CONTENT_TYPE, content_type)]
    pairs += [(Property.USER, pair) for pair in user]
    return Message(topic, payload, 2, 1, 0.0, encode_properties(pairs))


def test_a_result_has_its_number_and_capture_time() -> None:
    record = decode_message(
        message(f"{BASE}/result/p", result("p", 1, 1e9), ("id", "f1"), ("number", "e1/3/7")), "test", 5.0
    )

    assert isinstance(record, ResultRecord)
    assert (record.number, record.sender_id, record.captured_at, record.received_at) == (
        Number("e1", 3, 7),
        "f1",
        1e9,
        5.0,
    )


def test_results_and_gaps_may_request_an_acknowledgement() -> None:
    number, gap = ("number", "e1/3/7"), Gap(key_of(3, 7), key_of(3, 7), {"expired": 1})
    wants_ack = [
        decode_message(message(f"{BASE}/{tail}", payload, number, *more), "test", 5.0).wants_ack
        for tail, payload in (("result/p", result("p", 1, 1e9)), ("event/gap", gap.message("e1")))
        for more in ((), (ACK_NOW,))
    ]

    assert wants_ack == [False, True, False, True]


def test_messagepack_and_pictures_are_decoded_as_results() -> None:
    body = msgpack.packb({"at": 2e9, "frame": {"captured_at": None}})
    packed = decode_message(message(f"{BASE}/result/p", body, content_type="application/msgpack"), "test", 5.0)
    time_property = ("time", "2026-01-01T00:00:00Z")
    picture = decode_message(
        message(f"{BASE}/result/p", b"\xff\xd8", time_property, content_type="image/jpeg"), "test", 5.0
    )

    assert isinstance(packed, ResultRecord)
    assert packed.captured_at == 2e9
    assert isinstance(picture, ResultRecord)
    assert picture.captured_at == 1767225600
    assert json.loads(picture.properties or "") == [["time", "2026-01-01T00:00:00Z"]]


def test_a_gap_is_decoded() -> None:
    gap = Gap(key_of(2, 5), key_of(2, 9), {"evicted": 5})
    record = decode_message(message(f"{BASE}/event/gap", gap.message("e1"), ("number", "e1/2/5")), "test", 5.0)

    assert isinstance(record, GapRecord)
    assert (record.epoch, record.gap) == ("e1", gap)


@pytest.mark.parametrize(
    ("topic", "payload", "user", "reason"),
    [
        ("result/p", b"{", (), "unreadable-payload"),
        ("result/p", b"[" * 100_000, (), "unreadable-payload"),
        ("result/p", b"{}", (("number", "e1/3"),), "bad-number"),
        ("result/p", b"{}", (("number", "e1/10/1"),), "bad-number"),
        ("result/p", b"{}", (("number", "e1/1/0"),), "bad-number"),
        ("result/p", b"{}", (("number", "e1/1/-1"),), "bad-number"),
        ("result/p", b"{}", (("number", "e1/1/281474976710656"),), "bad-number"),
        ("result/p", b"{}", (("number", "e 1/1/1"),), "bad-number"),
        ("result/p", b"{}", (("number", "e1/1/1"), ("number", "e1/1/2")), "bad-number"),
        ("result/a/b", b"{}", (), "bad-topic"),
        ("event/gap", b"{}", (), "bad-gap"),
        ("event/gap", b'{"epoch":"e","priority":99,"first":1,"last":2,"reasons":{},"previous":[]}', (), "bad-gap"),
        ("event/gap", b'{"epoch":"e","priority":0,"first":3,"last":2,"reasons":{},"previous":[]}', (), "bad-gap"),
        (
            "event/gap",
            b'{"epoch":"e","priority":0,"first":1,"last":2,"reasons":{"x":1e9},"previous":[]}',
            (),
            "bad-gap",
        ),
        ("event/x", b"\xff", (), "unreadable-payload"),
        ("health", b"{}", (), "unreadable-payload"),
        ("status", b'{"state":"odd"}', (), "unreadable-payload"),
        ("command/ping", b"", (), "bad-topic"),
    ],
)
def test_an_invalid_message_is_rejected_with_a_reason(
    topic: str, payload: bytes, user: tuple[tuple[str, str], ...], reason: str
) -> None:
    record = decode_message(message(f"{BASE}/{topic}", payload, *user), "test", 5.0)

    assert isinstance(record, RejectedRecord)
    assert record.reason == reason
    assert record.number is None


def test_an_unreadable_durable_result_is_rejected_with_its_number() -> None:
    """Sending it again would not help, and its outbox waits for an acknowledgement."""
    record = decode_message(message(f"{BASE}/result/p", b"{", ("number", "e1/0/1")), "test", 5.0)
    large = message(f"{BASE}/result/p", b"", ("number", "e1/0/2"))
    large.oversized = 10**9

    assert isinstance(record, RejectedRecord)
    assert record.number == Number("e1", 0, 1)
    skipped = decode_message(large, "test", 5.0)
    assert isinstance(skipped, RejectedRecord)
    assert (skipped.reason, skipped.number, skipped.size) == ("too-large", Number("e1", 0, 2), 10**9)


@pytest.mark.parametrize(
    ("topic", "body", "user"),
    [
        ("result/p", {"schema": "hedgerow.result/1", "node": "test/s2/n1"}, ()),
        ("result/p", {"schema": "hedgerow.result/1", "node": "n1"}, ()),
        ("result/p", {"schema": "hedgerow.result/1", "node": ["test/s1/n1"]}, ()),
        ("result/p", {}, (("source", "/hedgerow/test/s2/n1/p"),)),
        ("result/p", {}, (("source", "/hedgerow/test/s1/n11/p"),)),
        ("event/reloaded", {"node": "test/s1/n2", "at": 1e9}, ()),
        ("event/reloaded", {"at": 1e9}, (("source", "/hedgerow/test/s1/n2"),)),
        ("health", {"node": "test/s1/n2", "session": "s", "at": 1e9, "uptime_s": 1, "state": "ok"}, ()),
        ("status", {"node": "test/s1/n2", "session": "s", "state": "online", "version": "0"}, ()),
        ("reported", {"node": "test/s2/n1", "session": "s", "at": 1e9, "labels": {"site": "s2"}}, ()),
    ],
)
def test_a_message_that_names_another_node_is_rejected(
    topic: str, body: dict[str, Any], user: tuple[tuple[str, str], ...], tmp_path: Path
) -> None:
    """Its topic says who sent it: access lists confine topics, and nothing confines a body."""
    record = decode_message(message(f"{BASE}/{topic}", json.dumps(body).encode(), *user), "test", 5.0)

    assert record.address == Address("test", "s1", "n1")
    if not isinstance(record, ResultRecord):  # of results the store decides: it knows the former names of nodes
        assert isinstance(record, RejectedRecord)
        assert record.reason == "another-node"
    config = RegionConfig.model_validate({"region": {"name": "test"}, "store": {"url": str(tmp_path / "region.db")}})
    store = RegionStore(open_database(config.store.url, write=True), config)
    outcome = store.apply([record])
    store.close()
    assert (outcome.stored, dict(outcome.rejected)) == (0, {"another-node": 1})


def test_a_result_that_a_stage_has_encoded_itself_may_have_a_field_named_node() -> None:
    """A durable one would be acknowledged and lost."""
    payload = b'{"node": "pump-3", "bar": 2.5}'
    record = decode_message(message(f"{BASE}/result/p", payload, ("number", "e1/0/1")), "test", 5.0)

    assert isinstance(record, ResultRecord)
    assert (record.payload, record.number) == (payload, Number("e1", 0, 1))


@pytest.mark.parametrize("labels", [[], 5, {"site": 1}, {"": "x"}])
def test_a_report_that_is_none_is_rejected(labels: Any) -> None:
    """Otherwise listing the nodes would fail for all of them."""
    body = {"node": "test/s1/n1", "session": "s", "at": 1e9, "labels": labels}
    record = decode_message(message(f"{BASE}/reported", json.dumps(body).encode()), "test", 5.0)

    assert isinstance(record, RejectedRecord)
    assert record.reason == "unreadable-payload"


def test_a_message_of_another_region_is_rejected() -> None:
    record = decode_message(message("hedgerow/v1/other/s1/n1/result/p", b"{}"), "test", 5.0)

    assert isinstance(record, RejectedRecord)
    assert (record.reason, record.address) == ("bad-topic", None)


_GAP = Gap(key_of(1, 5), key_of(1, 9), {"evicted": 5}).message("e1")
_VALID = [
    ("result/p", result("p", 1)),
    ("event/gap", _GAP),
    ("event/reloaded", b'{"at": 1e9}'),
    ("health", b'{"node":"test/s1/n1","session":"s","at":1e9,"uptime_s":1,"state":"ok","reasons":["a"]}'),
    ("status", b'{"state":"online","session":"s","node":"test/s1/n1","version":"0"}'),
    ("reported", b'{"node":"test/s1/n1","session":"s","at":1e9}'),
    ("result/p", msgpack.packb({"at": 1e9, "frame": {"captured_at": 1}})),
]
_NUMBERS = ["e1/0/1", "e1/9/281474976710655", "e1/1/2", "e\x01/1/1", "e1/1/99999999999999999999", "//", "", "e1/1/²"]
_FRAGMENTS = [b"\x00", b"\\u0000", b"\xff", b"1e999", b"-", b"[[[[", b"{}", b"\\ud800"]


def _mutated(chance: random.Random) -> Message:
    """A valid message, corrupted at random."""
    tail, payload = chance.choice(_VALID)
    types = ["application/json", "application/json", "application/msgpack", "image/jpeg"]
    pairs: list[tuple[Property, Any]] = [(Property.CONTENT_TYPE, chance.choice(types))]
    users = [
        ("number", chance.choice(_NUMBERS)),
        ("id", chance.choice(["x", "i" * 3000, "\x7f"])),
        ("time", "2026-13-45"),
    ]
    pairs += [(Property.USER, pair) for pair in chance.sample(users, chance.randrange(3))]
    properties, data = bytearray(unchecked.properties(pairs)), bytearray(payload)
    for _ in range(chance.choice([0, 0, 1, 3, 10])):
        target = chance.choice([data, data, properties])
        if target:
            at = chance.randrange(len(target))
            kind = chance.randrange(3)
            if kind == 0:
                target[at] = chance.randrange(256)
            elif kind == 1:
                del target[at : at + chance.randrange(1, 5)]
            else:
                target[at:at] = chance.choice(_FRAGMENTS)
    node = chance.choice(["n1", "n2", "~", "n\u00e9", ""])
    corrupted = Message(f"hedgerow/v1/test/s1/{node}/{tail}", bytes(data), 2, 1, 0.0, bytes(properties))
    if chance.random() < 0.02:
        corrupted.oversized, corrupted.payload = 10**8, b""
    if chance.random() < 0.02:
        corrupted.malformed = "its topic is not UTF-8"
    return corrupted


@pytest.mark.parametrize("count", [2000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_no_message_can_stop_the_store(store_url: str, count: int) -> None:
    """Each message is stored, a duplicate, or rejected and counted. Nothing raises, with either database."""
    chance = random.Random(count)
    config = RegionConfig.model_validate({"region": {"name": "test"}, "store": {"url": store_url}})
    store = RegionStore(open_database(store_url, write=True), config)
    rejected = stored = 0
    kinds: set[type[StoreRecord]] = set()
    try:
        for _ in range(count // 50):
            records = [decode_message(_mutated(chance), "test", time.time()) for _ in range(50)]
            kinds |= {type(record) for record in records}
            for outcome in apply_each(store, records):
                rejected += outcome.rejected.total()
                stored += outcome.stored
                assert outcome.rejected["unstorable"] == 0, "the decoder passes on only records that the store accepts"
    finally:
        store.close()
    assert {ResultRecord, GapRecord, EventRecord, HealthRecord, RejectedRecord} <= kinds
    assert rejected > count / 10
    assert stored > 10
    assert {Address("test", "s1", "n1"), Address("test", "s1", "n2")} == set(store.nodes)


def test_an_empty_status_or_report_only_clears_the_retained_one() -> None:
    """The region sends them itself, and hears them."""
    topics = ("status", "reported", "health", "result/p", "event/x")
    assert [topic for topic in topics if clears(message(f"{BASE}/{topic}", b""))] == ["status", "reported"]
    assert not clears(message(f"{BASE}/status", b"{}"))
