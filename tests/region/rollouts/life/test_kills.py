"""Renamed, replaced, forgotten and admitted nodes while the region's service is killed with SIGKILL, at any time."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
from tests.region.conftest import PATIENCE_S, REGION, CollectorProcess, Gateway, eventually

from hedgerow.errors import CommandError
from hedgerow.region.rollouts.requests import send_request
from hedgerow.region.store.database.database import RegionStoreError
from hedgerow.region.store.database.open import open_database
from hedgerow.topics import Address

A, B = Address(REGION, "s1", "a"), Address(REGION, "s1", "b")
STEPS: list[tuple[str, dict[str, Any]]] = [
    ("node-rename", {"node": "s1/a", "name": "b"}),
    ("node-rename", {"node": "s1/b", "name": "a"}),
    ("node-replace", {"node": "s1/a"}),
    ("node-forget", {"node": "s1/a"}),
    ("node-admit", {"node": "test/s1/a"}),
]


def rows(store: str, sql: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(store)) as database:
        return database.execute(sql).fetchall()


def ask(store: str, verb: str, args: dict[str, Any], wait_s: float = PATIENCE_S) -> Any:
    with closing(open_database(store, write=False, alongside=True)) as database:
        return send_request(database, verb, args, who="eve", why="a test", wait_s=wait_s)


@pytest.mark.parametrize("kills", [pytest.param(5, marks=pytest.mark.long), pytest.param(100, marks=pytest.mark.slow)])
async def test_a_service_that_is_killed_at_any_time_leaves_one_of_two_states_and_loses_nothing(
    collector: CollectorProcess, gateway: Callable[..., Gateway], kills: int
) -> None:
    await asyncio.to_thread(collector.start)
    async with gateway("a") as node:
        node.status()
        node.send(5)
        await eventually(lambda: node.entries == 0)
    for number in range(kills):
        verb, args = STEPS[number % len(STEPS)]
        asking = asyncio.create_task(asyncio.to_thread(ask, collector.store, verb, args, 10.0))
        await asyncio.sleep(random.uniform(0.0, 1.0))  # any moment: before, while and after the request is handled
        await asyncio.to_thread(collector.kill)
        names = rows(collector.store, "SELECT name FROM node")
        assert names in ([("a",)], [("b",)])
        await asyncio.to_thread(collector.start)
        try:
            done = await asking
        except (CommandError, RegionStoreError):  # it expired, or nobody was there
            done = None
        if done is None:  # the next call finishes it
            await asyncio.to_thread(ask, collector.store, verb, args)
        await eventually(lambda: not rows(collector.store, "SELECT topic FROM clearing"))
    async with gateway("a", file="s1-a") as node:
        if rows(collector.store, "SELECT 1 FROM node WHERE forgotten_at IS NOT NULL"):
            await asyncio.to_thread(ask, collector.store, "node-admit", {"node": "test/s1/a"})
        node.status(session="s2")
        node.send(5)
        await eventually(lambda: node.entries == 0)
    assert rows(collector.store, "SELECT count(*), count(DISTINCT epoch || '/' || sequence) FROM results") == [(10, 10)]
    assert len(rows(collector.store, "SELECT 1 FROM node")) == 1
