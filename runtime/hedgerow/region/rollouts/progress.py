"""How rollouts are, read from the store for those who ask. Only reads."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

import orjson

from hedgerow.region.rollouts.planning.state import Task
from hedgerow.region.rollouts.store import FleetStore, StoredRollout
from hedgerow.region.store.database.database import Database
from hedgerow.region.store.queries import iso

_MAX_FAILED_SHOWN: Final = 20
"""Nodes that are named with what is wrong with them, unless all are asked for."""


def progress(database: Database, name: str | None = None, *, every_node: bool = False) -> dict[str, Any] | None:
    """How a rollout is.

    Args:
        name: None: the oldest one under way, else the last one there was.
        every_node: whether to list all nodes, not only those that something is wrong with.
    Returns: None if there is none.
    """
    store = FleetStore(database)
    if name is None:
        all_of_them = store.rollouts(tasks=False)
        under_way = [stored for stored in all_of_them if not stored.rollout.phase.ended]
        if not all_of_them:
            return None
        name = (under_way[-1] if under_way else all_of_them[0]).rollout.name
    found = store.rollouts(names=[name])
    if not found:
        return None
    (stored,) = found
    return _head(stored) | _nodes(stored, every_node)


def history(database: Database, newest: int) -> list[dict[str, Any]]:
    """All rollouts, the newest first."""
    return [_head(stored) for stored in FleetStore(database).rollouts(tasks=False)[:newest]]


def audit(
    database: Database, *, newest: int, rollout: str | None = None, node: str | None = None
) -> list[dict[str, Any]]:
    """The newest lines of the audit log, oldest first.

    Args:
        node: only lines about this one, REGION/SITE/NODE.
    """
    # Not LIKE: to it `_` is any character, and to SQLite's an A is an a.
    conditions = {"rollout = ?": rollout, "replace(detail, ?, '') <> detail": None if node is None else f'"{node}"'}
    given = {condition: value for condition, value in conditions.items() if value is not None}
    where = f" WHERE {' AND '.join(given)}" if given else ""
    rows = database.rows(
        f"SELECT at, who, why, action, rollout, detail FROM audit{where} ORDER BY ingest DESC LIMIT ?",  # noqa: S608
        (*given.values(), newest),
    )
    return [
        {"at": iso(at), "who": who, "why": why, "action": action, "rollout": name, "detail": orjson.loads(detail)}
        for at, who, why, action, name, detail in reversed(rows)
    ]


def _head(stored: StoredRollout) -> dict[str, Any]:
    rollout = stored.rollout
    return {
        "rollout": rollout.name,
        "phase": rollout.phase.value,
        "ended": rollout.phase.ended,
        "models": {name: ref.model_dump() for name, ref in rollout.models.items()},
        "target": rollout.plan.target,
        "started_at": iso(stored.started_at),
        "changed_at": iso(stored.changed_at),
        "ended_at": None if stored.ended_at is None else iso(stored.ended_at),
        "who": stored.by.who,
        "why": stored.by.why,
        "because": rollout.reason,
        "waits_for": "" if rollout.phase.ended else stored.waits,
    }


def _nodes(stored: StoredRollout, every_node: bool) -> dict[str, Any]:
    rollout = stored.rollout
    waves = []
    for number, title in enumerate(rollout.waves):
        tasks = [task for task in rollout.tasks.values() if task.wave == number]
        waves.append(
            {
                "wave": title,
                "begun": number <= rollout.wave,
                "nodes": len(tasks),
                "states": dict(Counter(task.state for task in tasks)),
                "late": sum(task.late for task in tasks),
                "back": dict(Counter(task.rollback for task in tasks if task.rollback != "no")),
            }
        )
    bad = {node: task for node, task in rollout.tasks.items() if task.code or task.failed}
    shown = rollout.tasks if every_node else dict(list(bad.items())[:_MAX_FAILED_SHOWN])
    return {
        "nodes": len(rollout.tasks),
        "states": dict(Counter(task.state for task in rollout.tasks.values())),
        "soaking_since": None if rollout.soaking_since is None else iso(rollout.soaking_since),
        "waves": waves,
        "tasks": [{"node": str(node), **_task(task)} for node, task in shown.items()],
        "tasks_left_out": len(rollout.tasks if every_node else bad) - len(shown),
    }


def _task(task: Task) -> dict[str, Any]:
    return {
        "wave": task.wave,
        "state": task.state,
        "late": task.late,
        "generation": task.generation,
        "back": task.rollback,
        "back_generation": task.rollback_generation,
        "code": task.code,
        "reason": task.reason,
        "before": {name: None if ref is None else ref.model_dump() for name, ref in task.before.items()},
    }
