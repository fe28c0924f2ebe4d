"""Read-only queries: progress and history of rollouts, and the audit log."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Final

import orjson

from hedgerow.errors import CommandError
from hedgerow.region.rollouts.planning.state import Task
from hedgerow.region.rollouts.store import FleetStore, StoredRollout
from hedgerow.region.store.database.database import Database
from hedgerow.region.store.queries import iso

_MAX_NAMES_SHOWN: Final = 20
_MAX_FAILED_SHOWN: Final = 20
"""Most failed nodes to list unless every node is requested."""


def progress(database: Database, name: str | None = None, *, every_node: bool = False) -> dict[str, Any] | None:
    """Return the progress of a rollout.

    Args:
        database: opened to read.
        name: None: the oldest one in progress, or the newest one if none is.
        every_node: whether to list all nodes, not only failed ones.
    Returns: None if there is no such rollout.
    """
    store = FleetStore(database)
    if name is None:
        all_of_them = store.rollouts(tasks=False)
        in_progress = [stored for stored in all_of_them if not stored.rollout.phase.ended]
        if not all_of_them:
            return None
        name = (in_progress[-1] if in_progress else all_of_them[0]).rollout.name
    found = store.rollouts(names=[name])
    if not found:
        return None
    (stored,) = found
    return _head(stored) | _nodes(stored, every_node)


def history(database: Database, newest: int) -> list[dict[str, Any]]:
    """Return the newest rollouts, newest first."""
    return [_head(stored) for stored in FleetStore(database).rollouts(tasks=False)[:newest]]


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Filter for entries of the audit log; None: any.

    Attributes:
        rollout: the rollout they are about.
        node: the node they are about, REGION/SITE/NODE.
        who, action: exactly; `who` also finds those who only claim to be it.
        since, until: Unix seconds; `until` is exclusive.
        former: addresses that the node had before, each with the Unix seconds until when.
    """

    rollout: str | None = None
    node: str | None = None
    who: str | None = None
    action: str | None = None
    since: float | None = None
    until: float | None = None
    former: tuple[tuple[str, float], ...] = ()


def audit(database: Database, *, newest: int, which: AuditFilter | None = None) -> list[dict[str, Any]]:
    """Return the newest entries of the audit log, oldest first.

    Args:
        database: opened to read.
        newest: how many.
        which: None: all.
    Raises: CommandError: there is no such rollout, or nobody has ever done such an action.
    """
    which = which or AuditFilter()
    _require_known(database, which)
    # Not LIKE: it treats `_` as a wildcard, and SQLite's ignores case.
    about = "replace(detail, ?, '') <> detail"
    of_node = ""
    values: tuple[str | float, ...] = ()
    if which.node is not None:
        of_node = " OR ".join([about, *(f"({about} AND at < ?)" for _ in which.former)])
        values = (f'"{which.node}"', *(part for name, until in which.former for part in (f'"{name}"', until)))
    conditions = {
        "rollout = ?": which.rollout,
        "? IN (who, claims)": which.who,
        "action = ?": which.action,
        "at >= ?": which.since,
        "at < ?": which.until,
    }
    used = {condition: value for condition, value in conditions.items() if value is not None}
    parts = [*used, *([f"({of_node})"] if of_node else [])]
    where = f" WHERE {' AND '.join(parts)}" if parts else ""
    rows = database.rows(
        f"SELECT at, who, claims, why, action, rollout, detail FROM audit{where} ORDER BY ingest DESC LIMIT ?",  # noqa: S608
        (*used.values(), *values, newest),
    )
    return [
        {
            "at": iso(at),
            "who": who,
            "claims": claims,
            "why": why,
            "action": action,
            "rollout": name,
            "detail": _detail(detail),
        }
        for at, who, claims, why, action, name, detail in reversed(rows)
    ]


def _detail(text: str) -> dict[str, Any]:
    try:
        detail: dict[str, Any] = orjson.loads(text)
    except (ValueError, TypeError):
        return {"reason": "the detail of this entry cannot be read"}
    return detail


def _require_known(database: Database, which: AuditFilter) -> None:
    """Refuse names that occur nowhere: an empty answer would look like proof that nothing happened."""
    if which.rollout is not None and not database.rows(
        "SELECT 1 FROM audit WHERE rollout = ? LIMIT 1",
        (which.rollout,),  # one that was refused is there too
    ):
        raise unknown_rollout(which.rollout)
    for column, value in (("who", which.who), ("action", which.action)):
        if value is None:
            continue
        also = " UNION SELECT claims FROM audit WHERE claims <> ''" if column == "who" else ""
        known = sorted(found for (found,) in database.rows(f"SELECT DISTINCT {column} FROM audit{also}"))  # noqa: S608
        if value not in known:
            shown = ", ".join(known[:_MAX_NAMES_SHOWN]) + (" …" if len(known) > _MAX_NAMES_SHOWN else "")
            raise CommandError(
                f"The audit log has no entry with {column} {value!r}",
                code="no-such-entry",
                remedy=f"It has {shown or 'none'}.",
            )


def unknown_rollout(name: str) -> CommandError:
    """Return the error for a rollout that does not exist."""
    return CommandError(
        f"There is no rollout {name}", code="unknown-rollout", remedy="List them with `hedgerow rollout history`."
    )


def _head(stored: StoredRollout) -> dict[str, Any]:
    rollout = stored.rollout
    return {
        "rollout": rollout.name,
        "phase": rollout.phase.value,
        "ended": rollout.phase.ended,
        "models": {name: ref and ref.model_dump() for name, ref in rollout.models.items()},
        "target": rollout.plan.target,
        "started_at": iso(stored.started_at),
        "changed_at": iso(stored.changed_at),
        "ended_at": None if stored.ended_at is None else iso(stored.ended_at),
        "who": stored.by.who,
        "claims": stored.by.claims,
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
