"""The store, in SQLite and in PostgreSQL: once each, over failures; pruning; what it does not take."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hedgerow.bus.outbox.ledger import Ledger
from hedgerow.bus.outbox.records import Gap, Number, PreviousEpoch, key_of
from hedgerow.region.config import RegionConfig
from hedgerow.region.store.batch import MOST_REJECTED
from hedgerow.region.store.database.database import Database, RegionStoreError, StoreTrouble
from hedgerow.region.store.database.open import open_database
from hedgerow.region.store.queries import ResultQuery, results, status
from hedgerow.region.store.records import (
    BirthRecord,
    EventRecord,
    MissingRecord,
    RejectedRecord,
    ResultRecord,
    StoreRecord,
)
from hedgerow.region.store.store import RegionStore, apply_each
from hedgerow.topics import Address

NODE = Address("test", "s1", "n1")


def item(
    sequence: int | None, *, at: float | None = None, received_at: float | None = None, **more: Any
) -> ResultRecord:
    now = time.time()
    number = None if sequence is None else Number("e1", 0, sequence)
    payload = more.pop("payload", b'{"result": {"n": %d}}' % (sequence or 0))
    came = now if received_at is None else received_at
    captured_at = came if at is None else at
    said_id = more.pop("said_id", None)
    return ResultRecord(
        NODE, len(payload), came, True, "p", number, said_id, captured_at, "application/json", None, payload
    )  # fmt: skip


def opened(url: str, **sections: Any) -> RegionStore:
    config = RegionConfig.model_validate({"region": {"name": "test"}, "store": {"url": url}, **sections})
    return RegionStore(open_database(url, write=True), config)


@pytest.fixture
def store(store_url: str) -> Any:
    store = opened(store_url)
    yield store
    store.close()


def sequences(database: Database) -> list[int]:
    return [int((stored.number or "0").rpartition("/")[2]) for stored in results(database, ResultQuery())]


def test_whatever_comes_in_any_order_and_often_is_stored_once(
    store: RegionStore, store_url: str, reading: Callable[[str], Database]
) -> None:
    """In batches of any size; the acknowledgement says what the store holds."""
    sent = [item(n, at=1e9 + n) for n in range(1, 201)] * 3
    random.Random(7).shuffle(sent)
    while sent:
        size = random.randrange(1, 40)
        outcome = store.apply(sent[:size])
        del sent[:size]

    assert sequences(reading(store_url)) == list(range(1, 201))
    (ack, *_), *_ = outcome.acks.values()
    assert (ack.through, ack.also) == ({0: 200}, {})


def test_a_store_that_is_opened_again_knows_what_it_has(store_url: str, reading: Callable[[str], Database]) -> None:
    first = opened(store_url)
    first.apply([item(1), item(2), item(5)])
    first.close()
    second = opened(store_url)
    outcome = second.apply([item(2), item(5), item(3)])
    (ack, *_), *_ = outcome.acks.values()
    acks = second.acks()
    second.close()

    assert (outcome.stored, outcome.repeats) == (1, 2)
    assert (ack.through, ack.also) == ({0: 3}, {0: [(5, 5)]})
    assert acks == [((NODE, "e1"), ack)]
    assert sorted(sequences(reading(store_url))) == [1, 2, 3, 5]


def test_only_one_may_write(store: RegionStore, store_url: str) -> None:
    with pytest.raises(RegionStoreError, match="Another collector"):
        opened(store_url)


def test_a_gap_that_grew_is_counted_once(
    store: RegionStore, store_url: str, reading: Callable[[str], Database]
) -> None:
    def gap(first: int, last: int, count: int) -> MissingRecord:
        return MissingRecord(
            NODE, 10, time.time(), True, "e1", Gap(key_of(0, first), key_of(0, last), {"evicted": count})
        )

    store.apply([gap(2, 3, 2)])
    store.apply([gap(2, 6, 5), gap(2, 6, 5), item(1)])
    store.apply([item(7)])

    (node,) = status(reading(store_url), time.time())["nodes"]
    assert (node["gaps"], node["lost"], node["awaited"], node["repeats"]) == (1, 5, 0, 1)


def test_an_epoch_that_ended_with_its_store_leaves_a_gap_of_what_had_not_come(
    store: RegionStore, store_url: str, reading: Callable[[str], Database]
) -> None:
    store.apply([item(1), item(2), item(5)])
    ended = Gap(key_of(0, 1), key_of(0, 1), {}, (PreviousEpoch("e1", (9, 3)), PreviousEpoch(None, None)))
    store.apply([MissingRecord(NODE, 10, time.time(), True, "e2", ended)])

    (node,) = status(reading(store_url), time.time())["nodes"]
    assert node["lost"] == 2 + 3 + 2, "3 and 4, 6 to 8, and 1 and 2 of the other priority"
    assert node["awaited"] == 0


def test_what_the_store_does_not_take_is_rejected_and_the_rest_is_stored(
    store: RegionStore, store_url: str, reading: Callable[[str], Database]
) -> None:
    """A value that no database holds stands for whatever nobody has thought of; its number is acknowledged."""
    bad = item(3)
    object.__setattr__(bad, "said_id", object())
    outcomes = apply_each(store, [item(1), item(2), bad, item(4)])

    acks = [ack for outcome in outcomes for ack, *_ in outcome.acks.values()]
    assert acks[-1].through == {0: 4}
    assert sorted(sequences(reading(store_url))) == [1, 2, 4]
    assert status(reading(store_url), time.time())["rejected"] == {"unstorable": 1}


def test_rejected_messages_are_all_counted_and_the_newest_kept(
    store: RegionStore, store_url: str, reading: Callable[[str], Database]
) -> None:
    for _ in range(3):
        store.apply([RejectedRecord(None, 1, time.time(), True, "t", "bad-topic", "", None, b"x") for _ in range(700)])

    assert status(reading(store_url), time.time())["rejected"] == {"bad-topic": 2100}
    assert reading(store_url).rows("SELECT count(*) FROM rejected") == [(MOST_REJECTED,)]


def test_what_is_too_old_goes_a_little_at_a_time(store_url: str, reading: Callable[[str], Database]) -> None:
    store = opened(store_url, retention={"days": 1})
    now = time.time()
    store.apply([item(n, received_at=now - 90_000) for n in range(1, 1201)] + [item(n) for n in range(1201, 1301)])
    store.apply([EventRecord(NODE, 2, now - 90_000, True, "reloaded", None, now, b"{}")])
    steps = 1
    while store.prune(now):
        steps += 1
    left = store.stored_bytes
    outcome = store.apply([item(5)])
    store.close()

    assert steps > 2
    assert sorted(sequences(reading(store_url))) == list(range(1201, 1301))
    assert reading(store_url).rows("SELECT count(*) FROM event") == [(0,)]
    assert reading(store_url).rows("SELECT stored_bytes FROM collector") == [(left,)]
    assert outcome.repeats == 1, "what was pruned is still known to have come"


def test_results_take_no_more_than_they_may(store_url: str, reading: Callable[[str], Database]) -> None:
    store = opened(store_url, retention={"days": None, "max_bytes": 1 << 20})
    store.apply([item(n, payload=bytes(20_000)) for n in range(1, 101)])
    while store.prune(time.time()):
        pass
    kept, bytes_kept = sequences(reading(store_url)), store.stored_bytes
    store.close()

    assert bytes_kept <= 1 << 20
    assert sorted(kept) == list(range(101 - len(kept), 101))
    assert len(kept) > 45


def test_what_is_not_durable_is_counted_to_the_byte(store: RegionStore, store_url: str) -> None:
    """Repeats within a batch among them, since the limit in bytes rests on it."""
    store.apply([item(None, said_id="a"), item(None, said_id="a"), item(None, said_id="b"), item(None)])
    before = store.stored_bytes
    store.apply([item(None, said_id="b"), item(None, said_id="c")])
    database = open_database(store_url, write=False)
    ((rows, size),) = database.rows("SELECT count(*), sum(size) FROM result")
    database.close()

    assert rows == 4
    assert before < store.stored_bytes == size + 200 * rows


def test_a_status_of_an_earlier_session_is_ignored(
    store: RegionStore, store_url: str, reading: Callable[[str], Database]
) -> None:
    def birth(online: bool, session: str) -> StoreRecord:
        return BirthRecord(NODE, 2, time.time(), True, online, session, b"{}")

    store.apply([birth(True, "one"), birth(True, "two"), birth(False, "one")])
    assert reading(store_url).rows("SELECT online, session FROM node") == [(1, "two")]
    store.apply([birth(False, "two")])
    assert reading(store_url).rows("SELECT online FROM node") == [(0,)]


def test_a_store_by_a_newer_version_is_refused(sqlite_url: str) -> None:
    store = opened(sqlite_url)
    store._database.run("INSERT INTO migration VALUES (999, 'later')")
    store.close()

    with pytest.raises(RegionStoreError, match="newer version"):
        opened(sqlite_url)


def test_a_file_that_is_no_store_is_named(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8" + bytes(5000))

    with pytest.raises(RegionStoreError, match="no store"):
        open_database(str(tmp_path / "photo.jpg"), write=False)
    with pytest.raises(RegionStoreError, match="There is no store"):
        open_database(str(tmp_path / "nothing.db"), write=False)


def test_a_server_that_is_not_there_is_said_without_its_password() -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(StoreTrouble) as caught:
        open_database("postgresql://me:secret@127.0.0.1:1/db", write=False)
    assert "secret" not in caught.value.explain()


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 60)), max_size=80), st.integers(1, 70))
def test_a_ledger_is_what_its_state_says(taken: list[tuple[int, int]], last: int) -> None:
    ledger = Ledger("e")
    for priority, sequence in taken:
        ledger.add(Number("e", priority, sequence))
    again = Ledger("e", ledger.state())

    assert (again.state(), again.ack()) == (ledger.state(), ledger.ack())
    for priority in range(10):
        came = {sequence for one, sequence in taken if one == priority}
        missing = {n for low, high in ledger.ranges(priority).missing(last) for n in range(low, high + 1)}
        assert missing == set(range(1, last + 1)) - came
