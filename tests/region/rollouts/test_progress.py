"""Progress, history and audit log, read from a real store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from tests.region.examples import NEW, OLD, rollout

from hedgerow.errors import CommandError
from hedgerow.region.rollouts.planning.state import Phase, Task
from hedgerow.region.rollouts.progress import AuditFilter, audit, history, progress
from hedgerow.region.rollouts.store import FleetStore, StoredRollout
from hedgerow.region.store.audit import Actor
from hedgerow.region.store.database.database import Database
from hedgerow.region.store.database.open import open_database
from hedgerow.topics import Address

AT = 1_800_000_000.0
EVE = Actor("eve", "a test")


class RolloutStore:
    """A store with rollouts."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.fleet = FleetStore(database)
        self._nodes: dict[Address, int] = {}

    def add(self, name: str, nodes: Mapping[str, Task], phase: Phase = Phase.RUNNING, **more: Any) -> None:
        """Store a rollout; `stored` changes fields of its `StoredRollout`."""
        stored = more.pop("stored", {})
        one = rollout(name, nodes, phase, **more)
        for node in one.tasks:
            if node not in self._nodes:
                self._nodes[node] = self._node(node)
        self.fleet.add(StoredRollout(0, one, EVE, AT, AT + 1, **stored), self._nodes)

    def _node(self, node: Address) -> int:
        counts = ("messages_up", "bytes_up", "results", "durable", "repeats", "unanswered")
        ((row,),) = self.database.rows(
            f"INSERT INTO node (region, site, name, first_heard_at, {', '.join(counts)}) "
            "VALUES (?, ?, ?, 0, 0, 0, 0, 0, 0, 0) RETURNING id",
            node,
        )
        return int(row)


@pytest.fixture
def store(sqlite_url: str) -> Iterator[RolloutStore]:
    database = open_database(sqlite_url, write=True)
    yield RolloutStore(database)
    database.close()


@pytest.fixture
def any_store(store_url: str) -> Iterator[RolloutStore]:
    database = open_database(store_url, write=True)
    yield RolloutStore(database)
    database.close()


def progress_of(store: RolloutStore, name: str | None = None, **more: bool) -> dict[str, Any]:
    found = progress(store.database, name, **more)
    assert found is not None
    return found


def test_an_unknown_rollout_has_no_progress(store: RolloutStore) -> None:
    assert progress(store.database) is None
    assert progress(store.database, "faces") is None
    assert history(store.database, 9) == []
    store.add("one", {"a": Task(0)})
    assert progress(store.database, "two") is None


def test_all_fields_of_a_rollout_in_progress(store: RolloutStore) -> None:
    nodes = {
        "a": Task(0, "succeeded", generation=7, before={"faces": OLD, "cars": None}),
        "b": Task(0, "failed", late=True, generation=8, rollback="asked", rollback_generation=9, code="slow", reason="too slow"),
        "c": Task(1),
    }  # fmt: skip
    store.add(
        "one", nodes, target="ring=early", waves=("first", "second", "third"), wave=0, soaking_since=AT + 2, reason="so",
        stored={"waits": "soaking"},
    )  # fmt: skip

    assert progress_of(store, "one") == {
        "rollout": "one",
        "phase": "in-progress",
        "ended": False,
        "models": {"faces": NEW.model_dump()},
        "target": "ring=early",
        "started_at": "2027-01-15T08:00:00.000Z",
        "changed_at": "2027-01-15T08:00:01.000Z",
        "ended_at": None,
        "who": "eve",
        "claims": "",
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
    every = progress_of(store, "one", every_node=True)
    assert [task["node"] for task in every["tasks"]] == ["r/s/a", "r/s/b", "r/s/c"]
    assert every["tasks"][0]["before"] == {"faces": OLD.model_dump(), "cars": None}
    assert every["tasks_left_out"] == 0


def test_an_ended_rollout_waits_for_nothing(store: RolloutStore) -> None:
    store.add("one", {}, Phase.SUCCEEDED, stored={"waits": "for old", "ended_at": AT + 3})
    one = progress_of(store)

    assert (one["ended"], one["ended_at"], one["waits_for"]) == (True, "2027-01-15T08:00:03.000Z", "")
    assert (one["soaking_since"], one["waves"][0]["begun"]) == (None, False)


def test_the_default_is_the_oldest_rollout_in_progress_or_else_the_newest(store: RolloutStore) -> None:
    store.add("one", {}, Phase.FAILED)
    store.add("two", {}, Phase.SUCCEEDED)
    assert progress_of(store)["rollout"] == "two"
    store.add("three", {})
    store.add("four", {}, Phase.PAUSED)
    store.add("five", {}, Phase.CANCELED)
    store.add("six", {}, Phase.ROLLING_BACK)

    assert progress_of(store)["rollout"] == "three"
    assert progress_of(store, "five")["rollout"] == "five"
    assert [one["rollout"] for one in history(store.database, 2)] == ["six", "five"]
    assert [one["rollout"] for one in history(store.database, 99)] == ["six", "five", "four", "three", "two", "one"]


def test_the_first_twenty_failed_nodes_are_listed(store: RolloutStore) -> None:
    def nodes(bad: int) -> dict[str, Task]:
        good = {f"good{number}": Task(0, "succeeded") for number in range(3)}
        return {f"n{number:02}": Task(0, "failed") for number in range(bad)} | good

    store.add("twenty", nodes(20))
    store.add("more", nodes(22))

    assert (len(progress_of(store, "twenty")["tasks"]), progress_of(store, "twenty")["tasks_left_out"]) == (20, 0)
    assert (len(progress_of(store, "more")["tasks"]), progress_of(store, "more")["tasks_left_out"]) == (20, 2)
    assert (len(progress_of(store, "more", every_node=True)["tasks"])) == 25


def test_a_node_with_a_code_is_listed_even_if_it_has_not_failed(store: RolloutStore) -> None:
    store.add(
        "one", {"a": Task(0, "in-progress", code="unproved"), "b": Task(0, "removed", code="pinned"), "c": Task(0)}
    )

    assert [task["node"] for task in progress_of(store)["tasks"]] == ["r/s/a", "r/s/b"]


def actions(store: RolloutStore, newest: int = 99, **only: str) -> list[str]:
    return [line["action"] for line in audit(store.database, newest=newest, which=AuditFilter(**only))]


def test_the_newest_audit_entries_are_returned_oldest_first(store: RolloutStore) -> None:
    store.fleet.audit(EVE, "first", AT, rollout="one", given={"r/s/a": 1})
    store.fleet.audit(EVE, "second", AT + 1, rollout="two")
    store.fleet.audit(EVE, "third", AT + 2)

    assert actions(store) == ["first", "second", "third"]
    assert actions(store, 2) == ["second", "third"]
    assert actions(store, rollout="two") == ["second"]
    assert audit(store.database, newest=1, which=AuditFilter(rollout="one")) == [
        {
            "at": "2027-01-15T08:00:00.000Z",
            "who": "eve",
            "claims": "",
            "why": "a test",
            "action": "first",
            "rollout": "one",
            "detail": {"given": {"r/s/a": 1}},
        }
    ]


def test_the_audit_log_is_filtered_by_time_person_and_action(any_store: RolloutStore) -> None:
    for number, (who, action) in enumerate(
        (("eve", "node-pinned"), ("service", "soak-started"), ("bob", "node-pinned"))
    ):
        any_store.fleet.audit(Actor(who, "a test"), action, AT + number, rollout="one")

    def who(**only: Any) -> list[str]:
        return [line["who"] for line in audit(any_store.database, newest=99, which=AuditFilter(**only))]

    assert who(since=AT + 1) == ["service", "bob"]
    assert who(until=AT + 1) == ["eve"]
    assert who(since=AT + 1, until=AT + 2) == ["service"]
    assert who(action="node-pinned") == ["eve", "bob"]
    assert who(who="bob", action="node-pinned", rollout="one") == ["bob"]
    assert who(who="service", action="node-pinned") == []
    any_store.fleet.audit(Actor("mallory", "a test", claims="bob"), "node-pinned", AT + 9, rollout="one")
    assert who(who="bob") == ["bob", "mallory"], "also who only claims to be bob, shown as mallory"


@pytest.mark.parametrize(
    ("only", "message"),
    [
        ({"rollout": "onee"}, "There is no rollout onee"),
        ({"who": "evee"}, "The audit log has no entry with who 'evee'"),
        ({"action": "pinned"}, "The audit log has no entry with action 'pinned'"),
    ],
)
def test_a_name_that_the_audit_log_does_not_know_is_an_error(
    store: RolloutStore, only: dict[str, str], message: str
) -> None:
    """An empty answer would look like proof that nothing happened."""
    store.fleet.audit(EVE, "node-pinned", AT, rollout="one")

    with pytest.raises(CommandError, match=message):
        audit(store.database, newest=99, which=AuditFilter(**only))


def test_audit_entries_of_a_node_match_its_exact_address(any_store: RolloutStore) -> None:
    for action, node in (("this", "r/s/n_1"), ("dashed", "r/s/n-1"), ("large", "r/s/N_1"), ("longer", "r/s/n_12")):
        any_store.fleet.audit(EVE, action, AT, rollout="one", given={node: 1})
    any_store.fleet.audit(EVE, "other", AT, rollout="two", nodes=["r/s/n_1"])

    assert actions(any_store, node="r/s/n_1") == ["this", "other"]
    assert actions(any_store, node="r/s/n_1", rollout="one") == ["this"]
    assert actions(any_store, 1, node="r/s/n_1") == ["other"]
    assert actions(any_store, node="r/s/nobody") == []
