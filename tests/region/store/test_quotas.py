"""Quotas of sites, and rows that cannot be read: nothing is stored twice, and nothing is tried for ever."""

from __future__ import annotations

import asyncio
import os
import stat
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from tests.region.conftest import eventually
from tests.region.store.test_store import NODE, open_store, result_record, sequences

from hedgerow.region.config import QuotasSection, RegionConfig
from hedgerow.region.store import writer
from hedgerow.region.store.database.database import Database
from hedgerow.region.store.database.open import open_database
from hedgerow.region.store.queries import status
from hedgerow.region.store.quotas import Usage, find_over
from hedgerow.region.store.records import EventRecord, RejectedRecord
from hedgerow.region.store.store import RegionStore, apply_each
from hedgerow.region.store.writer import StoreWriter, WriteReport, WriteRequest


def refused(database: Database) -> dict[tuple[str, str], int]:
    return {(one["site"], one["reason"]): one["count"] for one in status(database, time.time())["refused"]}


def test_what_was_used_of_a_quota_survives_a_restart_and_ends_with_the_day(
    store_url: str, reading: Callable[[str], Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refused durable result is not acknowledged, so it comes again; here, on the next day."""
    day = time.time() // 86_400 * 86_400
    monkeypatch.setattr("hedgerow.region.store.store.time.time", lambda: day)
    quotas = {"quotas": {"rows_per_day": 6}}
    store = open_store(store_url, **quotas)
    store.apply([result_record(n) for n in (1, 2)])
    store.close()
    store = open_store(store_url, **quotas)
    outcome = store.apply([result_record(n) for n in (3, 4, 5)])
    (ack, *_), *_ = outcome.acks.values()

    assert (outcome.stored, ack.through) == (1, {0: 3}), "a node may use half of its site's quota"
    assert refused(reading(store_url)) == {("s1", "too-many-rows"): 2}

    monkeypatch.setattr("hedgerow.region.store.store.time.time", lambda: day + 86_400)
    assert store.apply([result_record(n) for n in (4, 5)]).stored == 2
    store.close()


def used(rows: int) -> Usage:
    return Usage(rows=rows)


def test_a_lone_node_may_use_the_whole_quota_of_its_site_by_the_end_of_the_day() -> None:
    limits, record = QuotasSection(rows_per_day=200), result_record(1)
    for rows in range(200):
        assert find_over(used(rows), used(rows), record, limits, 1 - rows / 200) is None
    assert find_over(used(200), used(200), record, limits, 0.0) is not None


@settings(max_examples=50, deadline=None, derandomize=True)
@given(some.lists(some.tuples(some.floats(0, 0.2), some.integers(0, 250)), max_size=15), some.integers(0, 15))
def test_whatever_a_node_stores_its_neighbours_have_half_of_the_rate_for_the_rest_of_the_day(
    steps: list[tuple[float, int]], begin: int
) -> None:
    """The neighbours begin at any time, and from then on store half of what the quota is in a day, evenly, but for two that are rounded."""
    limits, record = QuotasSection(rows_per_day=200), result_record(1)
    site, thief, others, passed, begun = used(0), used(0), used(0), 0.0, 0.0
    for number, (step, flood) in enumerate(steps):
        passed = min(1.0, passed + step)
        begun = passed if number <= begin else begun
        due = int(100 * (passed - begun))
        for _ in range(due - others.rows):
            if find_over(site, others, record, limits, 1 - passed) is None:
                site.rows, others.rows = site.rows + 1, others.rows + 1
        assert due - others.rows <= 2, "whole rows"
        for _ in range(flood):
            if find_over(site, thief, record, limits, 1 - passed) is None:
                site.rows, thief.rows = site.rows + 1, thief.rows + 1
        assert site.rows <= 200


def test_the_nodes_of_a_site_use_up_the_quota_of_that_site_alone(
    store_url: str, reading: Callable[[str], Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    day = time.time() // 86_400 * 86_400
    monkeypatch.setattr("hedgerow.region.store.store.time.time", lambda: day)
    store = open_store(store_url, quotas={"nodes": 3, "events_per_day": 8})

    def event(site: str, node: str) -> EventRecord:
        return EventRecord(NODE._replace(site=site, node=node), 2, time.time(), True, "x", None, 1.0, b"{}")

    store.apply([event("s1", f"n{n}") for n in range(9)] + [event("s2", "a") for _ in range(9)] + [event("s3", "n")])
    store.close()

    assert refused(reading(store_url)) == {("s1", "too-many-nodes"): 6, ("s2", "too-many-events"): 5}
    assert [one["node"] for one in status(reading(store_url), time.time())["nodes"]] == [
        *(f"test/s1/n{n}" for n in range(3)), "test/s2/a", "test/s3/n",
    ]  # fmt: skip


def test_invented_sites_are_counted_together_and_rejected_messages_kept_by_site(
    store_url: str, reading: Callable[[str], Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hedgerow.region.store.quotas.MAX_SITES", 3)
    store = open_store(store_url)
    for site in ("a", "b", "c", "d", "e"):
        store.apply([RejectedRecord(None, 1, 1.0, True, "t", "bad-topic", "", None, b"x", site)] * 300)
    store.close()

    assert set(refused(reading(store_url))) == {
        ("a", "bad-topic"),
        ("b", "bad-topic"),
        ("c", "bad-topic"),
        ("", "bad-topic"),
    }
    kept = dict(reading(store_url).rows("SELECT site, count(*) FROM rejected GROUP BY site"))
    assert kept == dict.fromkeys(("a", "b", "c", ""), 200)


def test_a_ledger_that_cannot_be_read_is_recovered_from_its_results(
    store_url: str, reading: Callable[[str], Database]
) -> None:
    store = open_store(store_url)
    store.apply([result_record(n) for n in (1, 2, 4)])
    store.close()
    with closing(open_database(store_url, write=False, alongside=True)) as database:
        database.run("UPDATE ledger SET state = 'x'")
    store = open_store(store_url)

    assert store.acks() == []
    outcome = store.apply([result_record(n) for n in (2, 3, 4)])
    (ack, *_), *_ = outcome.acks.values()
    store.close()

    assert (outcome.stored, outcome.duplicates, ack.through) == (1, 2, {0: 4})
    assert sorted(sequences(reading(store_url))) == [1, 2, 3, 4]


def test_a_record_whose_rejection_fails_too_is_set_aside(
    store_url: str, reading: Callable[[str], Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tried twice, then kept and counted; the rest of the batch is stored."""
    store = open_store(store_url)
    tries = []

    def failing(*_: Any) -> None:
        tries.append(1)
        raise RuntimeError("a bug")

    monkeypatch.setattr("hedgerow.region.store.numbered.NumberedIntake._outbox", failing)
    outcomes = apply_each(store, [result_record(None, sender_id="a"), result_record(1)])
    store.close()

    assert sum(outcome.rejected["unstorable"] for outcome in outcomes) == 1
    assert refused(reading(store_url)) == {("s1", "unstorable"): 1}
    ((reason, detail),) = reading(store_url).rows("SELECT reason, detail FROM rejected")
    assert (reason, detail) == ("unstorable", "RuntimeError: a bug")
    assert len(sequences(reading(store_url))) == 1
    assert len(tries) <= 4


async def test_a_bug_after_records_were_stored_does_not_store_them_again(
    sqlite_url: str, reading: Callable[[str], Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Results without an id would be doubled with every try; they were, when a row tripped the status of nodes."""
    monkeypatch.setattr(writer, "BEAT_EVERY_S", 0.0)
    monkeypatch.setattr(writer, "_RETRY_S", (0.01, 0.01))
    config = RegionConfig.model_validate({"region": {"name": "test"}, "store": {"url": sqlite_url}})
    reports: list[WriteReport] = []
    beats: list[int] = []

    def statuses(*_: Any) -> Any:
        beats.append(1)
        raise TypeError("a row that trips a bug")

    monkeypatch.setattr(RegionStore, "statuses", statuses)
    thread = StoreWriter(lambda: RegionStore(open_database(sqlite_url, write=True), config), reports.append)
    thread.start()
    try:
        for n in range(1, 4):
            thread.submit(WriteRequest([result_record(None), result_record(n)], []))
            await eventually(
                lambda n=n: sum(o.durable for r in reports for o in r.outcomes) == n and len(beats) > 2 * n
            )
            thread.submit(WriteRequest([], []))
    finally:
        thread.close()
        await asyncio.to_thread(thread.join)

    assert len(sequences(reading(sqlite_url))) == 6
    assert not [report for report in reports if report.failure is not None]


@pytest.mark.parametrize(("group", "mode"), [(False, 0o600), (True, 0o660)])
def test_a_store_is_closed_to_others_whatever_the_umask_and_existing_rights(
    tmp_path: Path, group: bool, mode: int
) -> None:
    path = tmp_path / "region.db"
    umask = os.umask(0)
    try:
        open_database(str(path), write=True).close()
        path.chmod(0o666)
        with closing(open_database(str(path), write=True, group=group)):
            modes = {one.name: stat.S_IMODE(one.stat().st_mode) for one in tmp_path.iterdir()}
    finally:
        os.umask(umask)

    assert modes == {"region.db": mode, "region.db-wal": mode, "region.db-shm": mode, "region.db.lock": 0o600}


def test_postgres_says_who_makes_a_request(postgres: Any) -> None:
    """The role of the connection, whatever the row says; what it says is a claim, and cannot be changed later."""
    url = postgres.database()
    open_store(url).close()
    with closing(open_database(url, write=False, alongside=True)) as database:
        for claims in ("", "ceo@corp"):
            database.run(
                "INSERT INTO intent (at, expires_at, who, claims, why, verb, args) VALUES (1, 2, 'service', ?, '', 'x', '{}')",
                (claims,),
            )
        database.run("UPDATE intent SET who = 'ceo'")
        assert database.rows("SELECT who, claims FROM intent ORDER BY id") == [
            ("hedgerow", "service"),
            ("hedgerow", "service as ceo@corp"),
        ]
