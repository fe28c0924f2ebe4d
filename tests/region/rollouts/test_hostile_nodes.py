"""One bad node, one bad rollout or one bad row never stops the others: rollouts, lists and the status go on."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests.region.world import World

from hedgerow.region.config import RegionConfig
from hedgerow.region.rollouts import controller, fleet
from hedgerow.region.rollouts.inventory import inventory
from hedgerow.region.rollouts.planning import planner
from hedgerow.region.rollouts.planning.state import Phase
from hedgerow.region.rollouts.progress import audit, history, progress
from hedgerow.region.store.database.open import open_database
from hedgerow.region.store.queries import status
from hedgerow.region.store.store import RegionStore
from hedgerow.wire.messages import encode_json
from hedgerow.wire.ranges import MAX_GENERATION


def ended(world: World, name: str, turns: int = 100) -> Phase:
    for _ in range(turns):
        world.turn()
        if world.known(name) and world.rollout(name).phase.ended:
            return world.rollout(name).phase
    raise AssertionError(f"{name}: {world.waits(name) if world.known(name) else 'not started'}")


@pytest.mark.parametrize("held", [MAX_GENERATION, MAX_GENERATION - 1, 5_000_000])
def test_a_node_at_an_absurd_generation_is_rolled_out_to_like_any_other(store_url: str, held: int) -> None:
    """It took a document from a stolen broker. Its region goes back from it, and every node has the version at the end."""
    with World(store_url, 4) as world:
        first = next(iter(world.nodes.values()))
        first._generation = held
        world.turn()

        assert ended(world, world.start("2.0.0", waves=[1])) is Phase.SUCCEEDED
        assert world.versions() == {"2.0.0"}
        assert first.generation < 100


def test_a_node_whose_reports_cannot_be_evaluated_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the reason; the others are evaluated, and it times out as any node that does not prove itself."""
    with World(str(tmp_path / "region.db"), 4) as world:
        bad = next(iter(world.nodes))
        evaluate = planner.evaluate

        def failing(assignment: Any, observed: Any, *rest: Any) -> Any:
            if observed.reported is not None and observed.reported.node == str(bad):
                raise OverflowError("int too large to convert to float")
            return evaluate(assignment, observed, *rest)

        monkeypatch.setattr(planner, "evaluate", failing)
        name = world.start("2.0.0", max_failed=1)

        assert ended(world, name) is Phase.SUCCEEDED
        rollout = world.rollout(name)
        assert {node: task.code for node, task in rollout.tasks.items() if task.failed} == {bad: "unreadable"}
        assert sum(task.state == "succeeded" for task in rollout.tasks.values()) == 3


def test_a_rollout_that_trips_a_bug_does_not_stop_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with World(str(tmp_path / "region.db"), 4) as world:
        for number, node in enumerate(world.nodes.values()):
            node.labels = {"half": "ab"[number % 2]}
        world.turn()
        next_step = controller.next_step

        def failing(rollout: Any, *rest: Any) -> Any:
            if rollout.name == "bad":
                raise ValueError("a bug")
            return next_step(rollout, *rest)

        monkeypatch.setattr(controller, "next_step", failing)
        world.start("2.0.0", rollout="bad", target="half=a")
        good = world.start("2.0.0", rollout="good", target="half=b")

        assert ended(world, good) is Phase.SUCCEEDED
        assert world.rollout("bad").phase is Phase.RUNNING
        assert "set aside after an error: ValueError: a bug" in world.waits("bad")

        monkeypatch.setattr(controller, "next_step", next_step)
        assert ended(world, "bad") is Phase.SUCCEEDED


POISON = {
    "report-of-text": "UPDATE said SET payload = 'x' WHERE channel = 'reported' AND node = 1",
    "report-received-at-text": "UPDATE said SET received_at = 'now' WHERE channel = 'reported' AND node = 1",
    "report-of-an-absurd-generation": (
        'UPDATE said SET payload = CAST(\'{"node":"n","session":"s","at":1,"generation":9223372036854775807}\' AS BLOB) '
        "WHERE channel = 'reported' AND node = 1"
    ),
    "health-reasons-of-text": "UPDATE node SET health_state = 'degraded', health_reasons = 'x' WHERE id = 1",
    "heard-at-text": "UPDATE node SET heard_at = 'now' WHERE id = 1",
    "results-text": "UPDATE node SET results = 'many' WHERE id = 1",
    "health-of-numbers-beyond": (
        'UPDATE health SET payload = CAST(\'{"at":1e999,"session":1,"state":2,"pipelines":{"p":{"received":1e999}}}\' AS BLOB) '
        "WHERE node = 1"
    ),
    "desired-of-text": "UPDATE desired SET document = 'x' WHERE node = 1",
    "desired-of-an-absurd-generation": (
        "UPDATE desired SET generation = 9223372036854775807, published = 9223372036854775807, "
        "document = replace(document, '\"generation\":1,', '\"generation\":9223372036854775807,') WHERE node = 1"
    ),
    "pins-of-text": "UPDATE desired SET pins = 'x' WHERE node = 1",
    "task-of-text": "UPDATE rollout_node SET prior = 'x', p99_ms = '[' WHERE node = 1",
    "an-older-rollout-of-text": "UPDATE rollout SET plan = 'x', models = '[]' WHERE name = 'older'",
    "a-request-of-text": (
        "INSERT INTO intent (at, expires_at, who, why, verb, args) VALUES (1, 1e12, 'x', 'x', 'rollout-start', '[')"
    ),
    "an-audit-entry-of-text": "UPDATE audit SET detail = 'x'",
    "a-ledger-of-text": "INSERT INTO ledger (node, epoch, state) VALUES (1, 'e1', '{\"x\":')",
    "gaps-that-overflow-a-sum": (
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 400) "
        "INSERT INTO gap (ledger, priority, first, last, lost, reasons, previous, received_at) "
        "SELECT (SELECT id FROM ledger), 0, i, 9223372036854775807, 4611686018427387904, '{}', '[]', 1 FROM n"
    ),
}


@pytest.mark.parametrize("poison", POISON)
def test_a_poisoned_row_is_skipped_and_the_rest_goes_on(tmp_path: Path, poison: str) -> None:
    """Rows that an earlier version stored, or a failing disk has changed: after a restart, with a rollout to all nodes."""
    url = str(tmp_path / "region.db")
    with World(url, 4) as world:
        assert ended(world, world.start("1.5.0", rollout="older")) is Phase.SUCCEEDED
        with closing(open_database(url, write=False, alongside=True)) as database:
            database.run("INSERT INTO ledger (node, epoch, state) VALUES (2, 'e0', '{}')")
            database.run("DELETE FROM ledger WHERE epoch = 'e0'" if "ledger" in poison else "SELECT 1")
            database.run(POISON[poison])
        world.restart(down_s=1, silent_turns=0)
        name = world.start("2.0.0", max_failed=1)

        assert ended(world, name) is Phase.SUCCEEDED
        served = sum(node.version == "2.0.0" for node in world.nodes.values())
        assert served >= 3, world.versions()
    with closing(open_database(url, write=False, alongside=True)) as database:
        if POISON[poison].startswith("UPDATE"):  # the service may have written the row since
            database.run(POISON[poison])
        for shown in (
            status(database, time.time()),
            inventory(database, time.time()),
            history(database, 10),
            progress(database, name, every_node=True),
            audit(database, newest=1000),
        ):
            encode_json(shown)
        assert len(status(database, time.time())["nodes"]) == len(inventory(database, time.time())) == 4
    config = RegionConfig.model_validate({"region": {"name": "test"}, "store": {"url": url}})
    store = RegionStore(open_database(url, write=True), config)
    assert len(store.statuses(time.time())) == 4
    store.acks()
    store.close()


def test_a_baseline_that_cannot_be_computed_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with World(str(tmp_path / "region.db"), 3) as world:
        monkeypatch.setattr(fleet, "baseline", lambda *_: 1 / 0)

        assert ended(world, world.start("2.0.0")) is Phase.SUCCEEDED
