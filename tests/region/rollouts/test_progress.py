"""How rollouts are and what was done, as those read it who ask: from a real store, field for field."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from tests.region.examples import NEW, OLD, rollout

from hedgerow.region.rollouts.planning.state import Phase, Task
from hedgerow.region.rollouts.progress import audit, history, progress
from hedgerow.region.rollouts.store import Actor, FleetStore, StoredRollout
from hedgerow.region.store.database.database import Database
from hedgerow.region.store.database.open import open_database
from hedgerow.topics import Address

AT = 1_800_000_000.0
EVE = Actor("eve", "a test")


class Books:
    """A store, and rollouts in it."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.fleet = FleetStore(database)
        self._nodes: dict[Address, int] = {}

    def add(self, name: str, nodes: Mapping[str, Task], phase: Phase = Phase.RUNNING, **more: Any) -> None:
        """Keep a rollout; `kept` changes what is kept with it."""
        kept = more.pop("kept", {})
        one = rollout(name, nodes, phase, **more)
        for node in one.tasks:
            if node not in self._nodes:
                self._nodes[node] = self._node(node)
        self.fleet.add(StoredRollout(0, one, EVE, AT, AT + 1, **kept), self._nodes)

    def _node(self, node: Address) -> int:
        counts = ("messages_up", "bytes_up", "results", "durable", "repeats", "unanswered")
        ((row,),) = self.database.rows(
            f"INSERT INTO node (region, site, name, first_heard_at, {', '.join(counts)}) "
            "VALUES (?, ?, ?, 0, 0, 0, 0, 0, 0, 0) RETURNING id",
            node,
        )
        return int(row)


@pytest.fixture
def outboxes(sqlite_url: str) -> Iterator[Books]:
    database = open_database(sqlite_url, write=True)
    yield Books(database)
    database.close()


@pytest.fixture
def either_books(store_url: str) -> Iterator[Books]:
    database = open_database(store_url, write=True)
    yield Books(database)
    database.close()


def shown(outboxes: Books, name: str | None = None, **more: bool) -> dict[str, Any]:
    found = progress(outboxes.database, name, **more)
    assert found is not None
    return found


def test_where_there_is_no_rollout_there_is_no_progress(outboxes: Books) -> None:
    assert progress(outboxes.database) is None
    assert progress(outboxes.database, "faces") is None
    assert history(outboxes.database, 9) == []
    outboxes.add("one", {"a": Task(0)})
    assert progress(outboxes.database, "two") is None


def test_a_rollout_under_way_is_shown_field_by_field(outboxes: Books) -> None:
    nodes = {
        "a": Task(0, "succeeded", generation=7, before={"faces": OLD, "cars": None}),
        "b": Task(0, "failed", late=True, generation=8, rollback="asked", rollback_generation=9, code="slow", reason="too slow"),
        "c": Task(1),
    }  # fmt: skip
    outboxes.add(
        "one", nodes, target="ring=early", waves=("first", "second", "third"), wave=0, soaking_since=AT + 2, reason="so",
        kept={"waits": "soaking"},
    )  # fmt: skip

    assert shown(outboxes, "one") == {
        "rollout": "one",
        "phase": "in-progress",
        "ended": False,
        "models": {"faces": NEW.model_dump()},
        "target": "ring=early",
        "started_at": "2027-01-15T08:00:00.000Z",
        "changed_at": "2027-01-15T08:00:01.000Z",
        "ended_at": None,
        "who": "eve",
        "why": "a test",
        "because": "so",
        "waits_for": "soaking",
        "nodes": 3,
        "states": {"succeeded": 1, "failed": 1, "queued": 1},
        "soaking_since": "2027-01-15T08:00:02.000Z",
        "waves": [
            {
                "wave": "first",
                "begun": True,
                "nodes": 2,
                "states": {"succeeded": 1, "failed": 1},
                "late": 1,
                "back": {"asked": 1},
            },
            {"wave": "second", "begun": False, "nodes": 1, "states": {"queued": 1}, "late": 0, "back": {}},
            {"wave": "third", "begun": False, "nodes": 0, "states": {}, "late": 0, "back": {}},
        ],
        "tasks": [
            {
                "node": "r/s/b",
                "wave": 0,
                "state": "failed",
                "late": True,
                "generation": 8,
                "back": "asked",
                "back_generation": 9,
                "code": "slow",
                "reason": "too slow",
                "before": {},
            }
        ],
        "tasks_left_out": 0,
    }
    every = shown(outboxes, "one", every_node=True)
    assert [task["node"] for task in every["tasks"]] == ["r/s/a", "r/s/b", "r/s/c"]
    assert every["tasks"][0]["before"] == {"faces": OLD.model_dump(), "cars": None}
    assert every["tasks_left_out"] == 0


def test_a_rollout_that_has_ended_waits_for_nothing(outboxes: Books) -> None:
    outboxes.add("one", {}, Phase.SUCCEEDED, kept={"waits": "for old", "ended_at": AT + 3})
    one = shown(outboxes)

    assert (one["ended"], one["ended_at"], one["waits_for"]) == (True, "2027-01-15T08:00:03.000Z", "")
    assert (one["soaking_since"], one["waves"][0]["begun"]) == (None, False)


def test_unless_one_is_named_the_oldest_under_way_is_shown_or_else_the_last(outboxes: Books) -> None:
    outboxes.add("one", {}, Phase.FAILED)
    outboxes.add("two", {}, Phase.SUCCEEDED)
    assert shown(outboxes)["rollout"] == "two"
    outboxes.add("three", {})
    outboxes.add("four", {}, Phase.PAUSED)
    outboxes.add("five", {}, Phase.CANCELED)
    outboxes.add("six", {}, Phase.ROLLING_BACK)

    assert shown(outboxes)["rollout"] == "three"
    assert shown(outboxes, "five")["rollout"] == "five"
    assert [one["rollout"] for one in history(outboxes.database, 2)] == ["six", "five"]
    assert [one["rollout"] for one in history(outboxes.database, 99)] == ["six", "five", "four", "three", "two", "one"]


def test_what_is_wrong_with_the_first_twenty_nodes_is_shown(outboxes: Books) -> None:
    def nodes(bad: int) -> dict[str, Task]:
        good = {f"good{number}": Task(0, "succeeded") for number in range(3)}
        return {f"n{number:02}": Task(0, "failed") for number in range(bad)} | good

    outboxes.add("twenty", nodes(20))
    outboxes.add("more", nodes(22))

    assert (len(shown(outboxes, "twenty")["tasks"]), shown(outboxes, "twenty")["tasks_left_out"]) == (20, 0)
    assert (len(shown(outboxes, "more")["tasks"]), shown(outboxes, "more")["tasks_left_out"]) == (20, 2)
    assert (len(shown(outboxes, "more", every_node=True)["tasks"])) == 25


def test_a_node_that_something_was_said_of_is_shown_though_it_has_not_failed(outboxes: Books) -> None:
    outboxes.add(
        "one", {"a": Task(0, "in-progress", code="unproved"), "b": Task(0, "removed", code="pinned"), "c": Task(0)}
    )

    assert [task["node"] for task in shown(outboxes)["tasks"]] == ["r/s/a", "r/s/b"]


def said(outboxes: Books, newest: int = 99, **only: str) -> list[str]:
    return [line["action"] for line in audit(outboxes.database, newest=newest, **only)]


def test_the_audit_log_is_read_from_its_end_and_told_in_order(outboxes: Books) -> None:
    outboxes.fleet.audit(EVE, "first", AT, rollout="one", given={"r/s/a": 1})
    outboxes.fleet.audit(EVE, "second", AT + 1, rollout="two")
    outboxes.fleet.audit(EVE, "third", AT + 2)

    assert said(outboxes) == ["first", "second", "third"]
    assert said(outboxes, 2) == ["second", "third"]
    assert said(outboxes, rollout="two") == ["second"]
    assert audit(outboxes.database, newest=1, rollout="one") == [
        {
            "at": "2027-01-15T08:00:00.000Z",
            "who": "eve",
            "why": "a test",
            "action": "first",
            "rollout": "one",
            "detail": {"given": {"r/s/a": 1}},
        }
    ]


def test_lines_about_a_node_are_those_that_name_it_and_no_other(either_books: Books) -> None:
    for action, node in (("this", "r/s/n_1"), ("dashed", "r/s/n-1"), ("large", "r/s/N_1"), ("longer", "r/s/n_12")):
        either_books.fleet.audit(EVE, action, AT, rollout="one", given={node: 1})
    either_books.fleet.audit(EVE, "other", AT, rollout="two", nodes=["r/s/n_1"])

    assert said(either_books, node="r/s/n_1") == ["this", "other"]
    assert said(either_books, node="r/s/n_1", rollout="one") == ["this"]
    assert said(either_books, 1, node="r/s/n_1") == ["other"]
    assert said(either_books, node="r/s/nobody") == []
