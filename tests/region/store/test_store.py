"""The store in SQLite and PostgreSQL: duplicates, reopening, retention, and refused values."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hedgerow.bus.outbox.ledger import Ledger
from hedgerow.bus.outbox.records import Gap, Number, PreviousEpoch, key_of
from hedgerow.region.config import RegionConfig
from hedgerow.region.store.batch import MAX_REJECTED
from hedgerow.region.store.database.database import Database, RegionStoreError, StoreTrouble
from hedgerow.region.store.database.open import open_database
from hedgerow.region.store.queries import ResultQuery, results, status
from hedgerow.region.store.records import (
    EventRecord,
    GapRecord,
    RejectedRecord,
    ResultRecord,
    StatusRecord,
    StoreRecord,
)
from hedgerow.region.store.store import RegionStore, apply_each
from hedgerow.topics import Address

NODE = Address("test", "s1", "n1")


def result_record(
    sequence: int | None, *, at: float | None = None, received_at: float | None = None, **more: Any
) -> ResultRecord:
    now = time.time()
    number = None if sequence is None else Number("e1", 0, sequence)
    payload = more.pop("payload", b'{"result": {"n": %d}}' % (sequence or 0))
    received = now if received_at is None else received_at
    captured_at = received if at is None else at
    sender_id = more.pop("sender_id", None)
    return ResultRecord(
        NODE, len(payload), received, True, "p", number, sender_id, captured_at, "application/json", None, payload
    )  # fmt: skip


def open_store(url: str, **sections: Any) -> RegionStore:
    config = RegionConfig.model_validate({"region": {"name": "test"}, "store": {"url": url}, **sections})
    return RegionStore(open_database(url, write=True), config)


@pytest.fixture
def store(store_url: str) -> Any:
    store = open_store(store_url)
    yield store
    store.close()


def sequences(database: Database) -> list[int]:
    return [int((stored.number or "0").rpartition("/")[2]) for stored in results(database, ResultQuery())]


def test_results_in_any_order_and_repeated_are_stored_once(
    store: RegionStore, store_url: str, reading: Callable[[str], Database]
) -> None:
    """In batches of any size. The acknowledgement covers what the store has."""
    sent = [result_record(n, at=1e9 + n) for n in range(1, 201)] * 3
    random.Random(7).shuffle(sent)
    while sent:
        size = random.randrange(1, 40)
        outcome = store.apply(sent[:size])
        del sent[:size]

    assert sequences(reading(store_url)) == list(range(1, 201))
    (ack, *_), *_ = outcome.acks.values()
    assert (ack.through, ack.also) == ({0: 200}, {})


def test_a_reopened_store_knows_what_it_has(store_url: str, reading: Callable[[str], Database]) -> None:
    first = open_store(store_url)
    first.apply([result_record(1), result_record(2), result_record(5)])
    first.close()
    second = open_store(store_url)
    outcome = second.apply([result_record(2), result_record(5), result_record(3)])
    (ack, *_), *_ = outcome.acks.values()
    acks = second.acks()
    second.close()

    assert (outcome.stored, outcome.duplicates) == (1, 2)
    assert (ack.through, ack.also) == ({0: 3}, {0: [(5, 5)]})
    assert [(key, newest.ranges()) for key, newest in acks] == [((NODE, "e1"), ack.ranges())]
    assert acks[0][1].held is not None
    assert [sequence for sequence, _ in acks[0][1].held[0]] == [1, 2, 3, 5]
    assert sorted(sequences(reading(store_url))) == [1, 2, 3, 5]


def test_a_store_that_is_opened_again_keeps_the_locks_of_this_process(sqlite_url: str) -> None:
    """Without them, a second service takes itself for the last user when it closes the store, and deletes its log."""

    def locks() -> int:
        held = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
        file = f":{Path(sqlite_url).stat().st_ino}"
        return sum(line[1] == "POSIX" and line[4] == str(os.getpid()) and line[5].endswith(file) for line in held)

    with closing(open_database(sqlite_url, write=True)):
        assert locks() == 1
        open_database(sqlite_url, write=True).close()
        assert locks() == 1


def test_a_gap_that_grew_is_counted_once(
    store: RegionStore, store_url: str, reading: Callable[[str], Database]
) -> None:
    def gap(first: int, last: int, count: int) -> GapRecord:
        return GapRecord(NODE, 10, time.time(), True, "e1", Gap(key_of(0, first), key_of(0, last), {"evicted": count}))

    store.apply([gap(2, 3, 2)])
    store.apply([gap(2, 6, 5), gap(2, 6, 5), result_record(1)])
    store.apply([result_record(7)])

    (node,) = status(reading(store_url), time.time())["nodes"]
    assert (node["gaps"], node["lost"], node["awaited"], node["repeats"]) == (1, 5, 0, 1)


def test_an_epoch_whose_outbox_was_lost_leaves_a_gap_of_the_missing_numbers(
    store: RegionStore, store_url: str, reading: Callable[[str], Database]
) -> None:
    store.apply([result_record(1), result_record(2), result_record(5)])
    ended = Gap(key_of(0, 1), key_of(0, 1), {}, (PreviousEpoch("e1", (9, 3)), PreviousEpoch(None, None)))
    store.apply([GapRecord(NODE, 10, time.time(), True, "e2", ended)])

    (node,) = status(reading(store_url), time.time())["nodes"]
    assert node["lost"] == 2 + 3 + 2, "3 and 4, 6 to 8, and 1 and 2 of the other priority"
    assert node["awaited"] == 0


def test_a_record_that_the_store_refuses_is_rejected_and_the_rest_is_stored(
    store: RegionStore, store_url: str, reading: Callable[[str], Database]
) -> None:
    """A value of an unsupported type stands for any unexpected failure. Its number is acknowledged."""
    bad = result_record(3)
    object.__setattr__(bad, "sender_id", object())
    outcomes = apply_each(store, [result_record(1), result_record(2), bad, result_record(4)])

    acks = [ack for outcome in outcomes for ack, *_ in outcome.acks.values()]
    assert acks[-1].through == {0: 4}
    assert sorted(sequences(reading(store_url))) == [1, 2, 4]
    assert status(reading(store_url), time.time())["rejected"] == {"unstorable": 1}


def test_rejected_messages_are_all_counted_and_the_newest_are_kept(
    store: RegionStore, store_url: str, reading: Callable[[str], Database]
) -> None:
    for _ in range(3):
        store.apply([RejectedRecord(None, 1, time.time(), True, "t", "bad-topic", "", None, b"x") for _ in range(700)])

    assert status(reading(store_url), time.time())["rejected"] == {"bad-topic": 2100}
    assert reading(store_url).rows("SELECT count(*) FROM rejected") == [(MAX_REJECTED,)]


def test_old_rows_are_deleted_a_little_at_a_time(store_url: str, reading: Callable[[str], Database]) -> None:
    store = open_store(store_url, retention={"days": 1})
    now = time.time()
    store.apply(
        [result_record(n, received_at=now - 90_000) for n in range(1, 1201)]
        + [result_record(n) for n in range(1201, 1301)]
    )
    store.apply([EventRecord(NODE, 2, now - 90_000, True, "reloaded", None, now, b"{}")])
    steps = 1
    while store.prune(now):
        steps += 1
    left = store.stored_bytes
    kept = sequences(reading(store_url))
    ((counted,),) = reading(store_url).rows("SELECT stored_bytes FROM collector")
    outcome = store.apply([result_record(5)])
    store.close()

    assert steps > 2
    assert sorted(kept) == list(range(1201, 1301))
    assert reading(store_url).rows("SELECT count(*) FROM event") == [(0,)]
    assert counted == left
    assert outcome.stored == 1, "one that was deleted cannot be compared with a repeat, so that is kept"


def test_results_stay_within_the_byte_limit(store_url: str, reading: Callable[[str], Database]) -> None:
    store = open_store(store_url, retention={"days": None, "max_bytes": 1 << 20})
    store.apply([result_record(n, payload=bytes(20_000)) for n in range(1, 101)])
    while store.prune(time.time()):
        pass
    remaining, remaining_bytes = sequences(reading(store_url)), store.stored_bytes
    store.close()

    assert remaining_bytes <= 1 << 20
    assert sorted(remaining) == list(range(101 - len(remaining), 101))
    assert len(remaining) > 45


def test_bytes_of_results_without_a_number_are_counted_exactly(store: RegionStore, store_url: str) -> None:
    """Even with duplicates within a batch; the byte limit depends on it."""
    store.apply(
        [
            result_record(None, sender_id="a"),
            result_record(None, sender_id="a"),
            result_record(None, sender_id="b"),
            result_record(None),
        ]
    )
    before = store.stored_bytes
    store.apply([result_record(None, sender_id="b"), result_record(None, sender_id="c")])
    database = open_database(store_url, write=False)
    ((rows, size),) = database.rows("SELECT count(*), sum(size) FROM result")
    database.close()

    assert rows == 4
    assert before < store.stored_bytes == size + 200 * rows


def test_a_status_of_an_earlier_session_is_ignored(
    store: RegionStore, store_url: str, reading: Callable[[str], Database]
) -> None:
    def birth(online: bool, session: str) -> StoreRecord:
        return StatusRecord(NODE, 2, time.time(), True, online, False, session, b"{}")

    store.apply([birth(True, "one"), birth(True, "two"), birth(False, "one")])
    assert reading(store_url).rows("SELECT online, session FROM node") == [(1, "two")]
    store.apply([birth(False, "two")])
    assert reading(store_url).rows("SELECT online FROM node") == [(0,)]


def test_a_new_session_counts_as_a_crash_unless_the_one_before_said_that_it_stops(
    store: RegionStore, store_url: str, reading: Callable[[str], Database]
) -> None:
    def status(session: str, online: bool = True, *, stopped: bool = False, fresh: bool = True) -> StoreRecord:
        return StatusRecord(NODE, 2, time.time(), fresh, online, stopped, session, b"{}")

    def crashes() -> int:
        ((count,),) = reading(store_url).rows("SELECT crashes FROM node")
        return int(count)

    store.apply([status("one"), status("one", online=False), status("one")])  # its network failed
    assert crashes() == 0
    store.apply([status("one", online=False), status("two")])
    assert crashes() == 1
    store.apply([status("three")])  # its will was late, and is ignored
    assert crashes() == 2
    store.apply([status("three", online=False, stopped=True), status("four")])
    assert crashes() == 2
    store.apply([status("five", fresh=False)])  # retained: what came before it is not known
    assert crashes() == 2


def test_a_store_written_by_a_newer_version_is_refused(sqlite_url: str) -> None:
    store = open_store(sqlite_url)
    store._database.run("INSERT INTO migration VALUES (999, 'later')")
    store.close()

    with pytest.raises(RegionStoreError, match="newer version"):
        open_store(sqlite_url)


def test_a_file_that_is_not_a_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8" + bytes(5000))

    with pytest.raises(RegionStoreError, match="is not a region's store"):
        open_database(str(tmp_path / "photo.jpg"), write=False)
    with pytest.raises(RegionStoreError, match="There is no store"):
        open_database(str(tmp_path / "nothing.db"), write=False)


def test_an_unreachable_server_is_named_without_its_password() -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(StoreTrouble) as caught:
        open_database("postgresql://me:secret@127.0.0.1:1/db", write=False)
    assert "secret" not in caught.value.explain()


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 60)), max_size=80), st.integers(1, 70))
def test_a_ledger_round_trips_through_its_state(numbers: list[tuple[int, int]], last: int) -> None:
    ledger = Ledger("e")
    for priority, sequence in numbers:
        ledger.add(Number("e", priority, sequence))
    again = Ledger("e", ledger.state())

    assert (again.state(), again.ack()) == (ledger.state(), ledger.ack())
    for priority in range(10):
        received = {sequence for one, sequence in numbers if one == priority}
        missing = {n for low, high in ledger.ranges(priority).missing(last) for n in range(low, high + 1)}
        assert missing == set(range(1, last + 1)) - received
