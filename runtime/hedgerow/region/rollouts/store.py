"""The fleet's tables in the region's store: desired documents, rollouts and the audit log.

Rules:
- Related changes are written in one transaction with their audit log entry, so an action is in the log if and only if it
  was executed.
- A desired document is written first, then published. `published` is the generation that the broker has; a document not
  recorded as published is published again, which its generation makes harmless.
- Only the thread of the rollout service writes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import orjson
import structlog

from hedgerow.region.rollouts.planning.health_samples import NodeBaseline
from hedgerow.region.rollouts.planning.membership import relevant
from hedgerow.region.rollouts.planning.spec import stored_plan
from hedgerow.region.rollouts.planning.state import Phase, Rollout, Task
from hedgerow.region.store.audit import Actor, save_audit
from hedgerow.region.store.database.database import Database
from hedgerow.topics import Address
from hedgerow.wire.fleet import Desired, ModelRef
from hedgerow.wire.ranges import MAX_COUNT, MAX_GENERATION

log = structlog.get_logger(__name__)

_TASK_COLUMNS: Final = (
    "wave", "state", "late", "generation", "given_at", "prior", "p99_ms", "back", "back_generation", "code", "reason",
    "memory_bytes", "dead_share",
)  # fmt: skip
_ROLLOUT_COLUMNS: Final = (
    "id", "name", "plan", "models", "waves", "who", "claims", "why", "started_at", "changed_at", "ended_at", "phase", "wave",
    "soaking_since", "forgiven", "turned_at", "ending", "because", "waits",
)  # fmt: skip
_ROLLOUTS: Final = f"SELECT {', '.join(_ROLLOUT_COLUMNS)} FROM rollout"  # noqa: S608 - constant names
_NEW_ROLLOUT: Final = (
    f"INSERT INTO rollout ({', '.join(_ROLLOUT_COLUMNS[1:])}) "  # noqa: S608
    f"VALUES ({', '.join('?' * len(_ROLLOUT_COLUMNS[1:]))}) RETURNING id"
)
_SAVE_ROLLOUT: Final = (
    "UPDATE rollout SET changed_at = ?, ended_at = ?, phase = ?, wave = ?, soaking_since = ?, forgiven = ?, turned_at = ?, "
    "ending = ?, because = ?, waits = ? WHERE id = ?"
)
_SAVE_TASK: Final = (
    f"INSERT INTO rollout_node (rollout, node, {', '.join(_TASK_COLUMNS)}) "  # noqa: S608
    f"VALUES (?, ?, {', '.join('?' * len(_TASK_COLUMNS))}) ON CONFLICT (rollout, node) DO UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in _TASK_COLUMNS)
)
_SAVE_DESIRED: Final = (
    "INSERT INTO desired (node, generation, published, document, pins) VALUES (?, ?, ?, ?, ?) ON CONFLICT (node) DO UPDATE "
    "SET generation = excluded.generation, document = excluded.document, pins = excluded.pins"
)
_PUBLISHED: Final = "UPDATE desired SET published = ? WHERE node = ? AND published <> ?"


@dataclass(frozen=True, slots=True)
class StoredRollout:
    """A rollout and its metadata.

    Attributes:
        id: of its row; ascending.
        by: who started it, and why.
        waits: what it waits for, for humans.
    """

    id: int
    rollout: Rollout
    by: Actor
    started_at: float
    changed_at: float
    ended_at: float | None = None
    waits: str = ""


@dataclass(frozen=True, slots=True)
class StoredDesired:
    """A node's desired document and its metadata.

    Attributes:
        document: the newest one.
        published: generation that the broker has.
        pins: models that rollouts leave alone: who pinned them, why and when.
    """

    document: Desired
    published: int = 0
    pins: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


class FleetStore:
    """Reads and writes the fleet's tables.

    Args:
        database: opened with `alongside`, or to read.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    def rollouts(self, *, names: Iterable[str] | None = None, tasks: bool = True) -> list[StoredRollout]:
        """Return rollouts, newest first.

        Args:
            names: only these; None: all.
            tasks: whether to read the nodes' tasks too.
        """
        values = [] if names is None else list(names)
        where = "" if names is None else f" WHERE name IN ({', '.join('?' * len(values))})"
        rows = self.database.rows(f"{_ROLLOUTS}{where} ORDER BY id DESC", values)
        found = []
        for row in rows:
            try:
                found.append(self._stored(row, self._tasks(row[0]) if tasks else {}))
            except (ValueError, TypeError, KeyError, AttributeError):
                log.exception("rollout-unreadable", rollout=row[1])
        return found

    def relevant(self) -> list[StoredRollout]:
        """Return the rollouts that still matter, newest first."""
        stored = {one.rollout.name: one for one in self.rollouts(tasks=False)}
        matter = [stored[rollout.name] for rollout in relevant(one.rollout for one in stored.values())]
        return [replace(one, rollout=replace(one.rollout, tasks=self._tasks(one.id))) for one in matter]

    def add(self, stored: StoredRollout, nodes: Mapping[Address, int]) -> StoredRollout:
        """Insert a new rollout. Returns: the rollout with its id."""
        rollout = stored.rollout
        models = {
            name: {"ref": ref and ref.model_dump(), "files": sorted(rollout.files.get(name, ()))}
            for name, ref in rollout.models.items()
        }
        plan = rollout.plan.model_dump_json(exclude_unset=True)
        head = (
            rollout.name,
            plan,
            _json(models),
            _json(rollout.waves),
            stored.by.who,
            stored.by.claims,
            stored.by.why,
            stored.started_at,
        )
        ((row,),) = self.database.rows(_NEW_ROLLOUT, (*head, *_changing(stored)))
        stored = replace(stored, id=row)
        self._save_tasks(stored, {}, nodes)
        return stored

    def save(self, stored: StoredRollout, old: StoredRollout, nodes: Mapping[Address, int]) -> None:
        """Update a rollout and the tasks that differ from `old`."""
        self.database.run(_SAVE_ROLLOUT, (*_changing(stored), stored.id))
        self._save_tasks(stored, old.rollout.tasks, nodes)

    def desired(self) -> dict[Address, StoredDesired]:
        """Return the desired documents of all nodes."""
        rows = self.database.rows(
            "SELECT n.region, n.site, n.name, d.document, d.published, d.pins FROM desired d JOIN node n ON n.id = d.node "
            "WHERE n.forgotten_at IS NULL"
        )
        found = {}
        for region, site, name, document, published, pins in rows:
            try:
                found[Address(region, site, name)] = _stored_desired(document, published, pins)
            except (ValueError, TypeError, KeyError, AttributeError):
                log.exception("desired-unreadable", node=f"{region}/{site}/{name}")
        return found

    def save_desired(self, desired: Mapping[Address, StoredDesired], nodes: Mapping[Address, int]) -> None:
        """Write desired documents."""
        self.database.many(
            _SAVE_DESIRED,
            [
                (nodes[node], one.document.generation, one.published, one.document.encode().decode(), _json(one.pins))
                for node, one in desired.items()
            ],
        )

    def generation_floor(self) -> int:
        """Return the generation above which new ones are given, since the store was restored; 0: it was not."""
        ((floor,),) = self.database.rows("SELECT coalesce(max(generation_floor), 0) FROM restoration")
        return int(floor)

    def published(self, generations: Mapping[int, int]) -> None:
        """Record the generations that the broker has, by the node's row id."""
        self.database.many(_PUBLISHED, [(one, node, one) for node, one in generations.items()])

    def note(self, rollout: str, waits: str) -> None:
        """Store what a rollout waits for, and nothing else."""
        self.database.run("UPDATE rollout SET waits = ? WHERE name = ?", (waits, rollout))

    def audit(self, by: Actor, action: str, now: float, *, rollout: str | None = None, **detail: Any) -> None:
        """Add an entry to the audit log."""
        save_audit(self.database, by, action, now, rollout=rollout, **detail)

    def _stored(self, row: tuple[Any, ...], tasks: Mapping[Address, Task]) -> StoredRollout:
        one = dict(zip(_ROLLOUT_COLUMNS, row, strict=True))
        models = orjson.loads(one["models"])
        rollout = Rollout(
            one["name"],
            stored_plan(orjson.loads(one["plan"])),
            {name: model["ref"] and ModelRef.model_validate(model["ref"]) for name, model in models.items()},
            tuple(orjson.loads(one["waves"])),
            tasks,
            {name: frozenset(model["files"]) for name, model in models.items()},
            Phase(one["phase"]),
            one["wave"],
            one["soaking_since"],
            one["forgiven"],
            one["turned_at"],
            None if one["ending"] is None else Phase(one["ending"]),
            one["because"],
        )
        by = Actor(one["who"], one["why"], one["claims"])
        return StoredRollout(
            one["id"], rollout, by, one["started_at"], one["changed_at"], one["ended_at"], one["waits"]
        )

    def _tasks(self, rollout: int) -> dict[Address, Task]:
        rows = self.database.rows(
            f"SELECT n.region, n.site, n.name, {', '.join(f't.{name}' for name in _TASK_COLUMNS)} "  # noqa: S608
            "FROM rollout_node t JOIN node n ON n.id = t.node WHERE t.rollout = ? ORDER BY n.region, n.site, n.name",
            (rollout,),
        )
        found = {}
        for row in rows:
            try:
                found[Address(*row[:3])] = _task(row[3:])
            except (ValueError, TypeError, KeyError, AttributeError):
                log.exception("task-unreadable", node="/".join(row[:3]))
        return found

    def _save_tasks(self, stored: StoredRollout, old: Mapping[Address, Task], nodes: Mapping[Address, int]) -> None:
        rows = [
            (stored.id, nodes[node], *_task_row(task))
            for node, task in stored.rollout.tasks.items()
            if old.get(node) is not task
        ]
        if rows:
            self.database.many(_SAVE_TASK, rows)


def _stored_desired(text: str, published: int, pins: str) -> StoredDesired:
    """Decode a desired document. One with an absurd generation, as an earlier version took over from a node, begins anew."""
    body = orjson.loads(text)
    if body["generation"] > MAX_GENERATION:
        beyond = body["generation"]
        body |= {"generation": 1, "supersedes": beyond if beyond <= MAX_COUNT else None}
    document = Desired.model_validate(body)
    return StoredDesired(
        document, published if published <= document.generation else 0, orjson.loads(pins) if pins != "{}" else {}
    )


def _changing(stored: StoredRollout) -> tuple[Any, ...]:
    rollout = stored.rollout
    return (
        stored.changed_at, stored.ended_at, rollout.phase.value, rollout.wave, rollout.soaking_since, rollout.forgiven,
        rollout.rolling_back_since, None if rollout.ending is None else rollout.ending.value, rollout.reason, stored.waits,
    )  # fmt: skip


def _task_row(task: Task) -> tuple[Any, ...]:
    before = {name: None if ref is None else ref.model_dump() for name, ref in task.before.items()}
    return (
        task.wave, task.state, int(task.late), task.generation, task.assigned_at, _json(before), _json(task.baseline.p99_ms),
        task.rollback, task.rollback_generation, task.code, task.reason,
        task.baseline.memory_bytes, task.baseline.dead_share,
    )  # fmt: skip


def _task(row: tuple[Any, ...]) -> Task:
    (
        wave,
        state,
        late,
        generation,
        assigned_at,
        before,
        p99_ms,
        rollback,
        rollback_generation,
        code,
        reason,
        memory,
        dead,
    ) = row
    refs = {name: None if ref is None else ModelRef.model_validate(ref) for name, ref in orjson.loads(before).items()}
    baseline = NodeBaseline(orjson.loads(p99_ms), memory, dead)
    return Task(
        wave, state, bool(late), generation, assigned_at, refs, baseline, rollback, rollback_generation, code, reason
    )


def _json(value: Any) -> str:
    return orjson.dumps(value).decode()
