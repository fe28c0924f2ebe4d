"""Watches the health reports of all nodes for names, keys and state folders that two processes use."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from hedgerow.region.store.database.database import Database
from hedgerow.region.store.nodes import KnownNode
from hedgerow.region.store.records import HealthRecord
from hedgerow.region.store.twins.contest import Contest
from hedgerow.region.store.twins.rows import (
    SeenRun,
    Twin,
    TwinKind,
    describe,
    load_runs,
    load_twins,
    save_runs,
    save_twins,
)
from hedgerow.topics import Address

_MAX_RUNS: Final = 8
_FORGOTTEN_S: Final = 3600.0
"""What two processes use is forgotten when nothing was heard of the node for this long."""
_TURNS_S: Final = 86_400.0
"""Two installations take turns if the first comes back within a day; that long it is shown."""
_SHARED: Final[tuple[Literal["state", "key"], ...]] = ("state", "key")


class TwinChange(NamedTuple):
    """That two processes began or ceased to use something, for the log and the events."""

    node: int
    kind: TwinKind
    began: bool
    text: str
    remedy: str


@dataclass(slots=True)
class _Shared:
    """Nodes that say that they have the same key or state folder.

    Attributes:
        is_on: whether two of them were alive at once.
        compared: the first few of them: if these are alive at once, all count as such.
    """

    nodes: set[int]
    contest: Contest
    is_on: bool = False
    compared: set[int] = field(default_factory=set)


class TwinWatch:
    """What is known of the runs of all nodes.

    Args:
        database: with what was known before.
        names: of the nodes, by row.
    Raises: RegionStoreError: it cannot be read.
    """

    def __init__(self, database: Database, names: Mapping[int, Address]) -> None:
        self._names = names
        self._runs = load_runs(database)
        self._contests: dict[int, Contest] = {}
        self._has: dict[tuple[int, str], str] = {}  # node, kind → hash
        self._shared: dict[tuple[str, str], _Shared] = {}  # kind, hash
        self.twins: dict[tuple[int, TwinKind], Twin] = {}
        self._changed: set[tuple[int, str]] = set()
        self._forgotten: list[tuple[int, str]] = []
        self._changed_twins: set[tuple[int, TwinKind]] = set()
        for twin in load_twins(database):
            self.twins[twin.node, twin.kind] = twin
            if twin.kind == "name":
                self._contests[twin.node] = Contest(twin.sessions)
            elif twin.kind != "turns" and twin.other is not None:
                self._resume_shared(twin, twin.kind)

    def _resume_shared(self, twin: Twin, kind: Literal["state", "key"]) -> None:
        run = next((run for run in self._runs.get(twin.node, {}).values() if run.session in twin.sessions), None)
        run = run or next(iter(self._runs.get(twin.node, {}).values()), None)
        if run is None or twin.other is None or not (value := getattr(run.instance, kind)):
            return
        shared = self._shared.setdefault((kind, value), _Shared(set(), Contest((str(twin.node), str(twin.other)))))
        shared.nodes |= {twin.node, twin.other}
        shared.compared |= {twin.node, twin.other}
        shared.is_on = True
        for node in (twin.node, twin.other):
            self._has[node, kind] = value

    def is_known(self, node: KnownNode, session: str) -> bool:
        """Whether a run of a node has reported before."""
        return session in self._runs.get(node.id, {})

    def report(self, node: KnownNode, record: HealthRecord, at: float) -> list[TwinChange]:
        """Take a health report.

        Args:
            node: whose it is; as it was before it.
            record: the report.
            at: when it was read, in seconds of a monotonic clock.
        """
        changes: list[TwinChange] = []
        self._see(node, record, changes)
        contest = self._contests.get(node.id)
        if contest is None:
            contest = self._contests[node.id] = Contest()
        before = contest.rivals
        contest.report(record.session, record.uptime_s, at)
        if contest.rivals is not None:
            self._changed.add((node.id, record.session))
        if contest.rivals != before:
            self._set(node.id, "name", None, contest.rivals, record.received_at, changes)
        for kind in _SHARED:
            self._compare(node, kind, record, at, changes)
        return changes

    def _see(self, node: KnownNode, record: HealthRecord, changes: list[TwinChange]) -> None:
        """Keep where this run takes place, and notice that an installation is back after another one."""
        runs = self._runs.setdefault(node.id, {})
        run = runs.get(record.session)
        if run is not None:
            run.last_at = record.received_at
            if run.instance != record.instance:
                run.instance = record.instance
                self._changed.add((node.id, run.session))
            return
        if (last := runs.get(node.health_session or "")) is not None:
            last.last_at = max(last.last_at, node.health_at or 0.0)
            self._changed.add((node.id, last.session))
        if len(runs) >= _MAX_RUNS:
            oldest = min(runs.values(), key=lambda one: one.last_at)
            del runs[oldest.session]
            self._changed.discard((node.id, oldest.session))
            self._forgotten.append((node.id, oldest.session))
        now = record.received_at
        run = SeenRun(record.session, now, now, record.instance)
        other = None if (node.id, "name") in self.twins else _back_after(run, list(runs.values()))
        if other is not None:
            self._set(node.id, "turns", None, (run.session, other.session), now, changes, runs=[run, other])
        runs[run.session] = run
        self._changed.add((node.id, run.session))

    def _compare(
        self, node: KnownNode, kind: Literal["state", "key"], record: HealthRecord, at: float, changes: list[TwinChange]
    ) -> None:
        """Notice that another node that is alive has the same key or state folder."""
        value, before = getattr(record.instance, kind), self._has.get((node.id, kind), "")
        if value != before:
            self._leave(node.id, kind, before, record.received_at, changes)
            self._has[node.id, kind] = value
            if value:
                self._shared.setdefault((kind, value), _Shared(set(), Contest())).nodes.add(node.id)
        shared = self._shared.get((kind, value))
        if shared is None or len(shared.nodes) < 2:
            return
        if len(shared.compared) < _MAX_RUNS or node.id in shared.compared:
            shared.compared.add(node.id)
            shared.contest.report(str(node.id), record.uptime_s, at)
        rivals = shared.contest.rivals
        if rivals is None:
            self._end_shared(shared, kind, record.received_at, changes)
        elif rivals[0] != rivals[1] and (node.id, kind) not in self.twins:
            shared.is_on = True
            other = next(int(one) for one in rivals if one != str(node.id))
            self._set(node.id, kind, other, self._last_sessions(other), record.received_at, changes)

    def _end_shared(self, shared: _Shared, kind: TwinKind, now: float, changes: list[TwinChange]) -> None:
        if shared.is_on:
            shared.is_on = False
            for one in shared.nodes:
                self._set(one, kind, None, None, now, changes)

    def _leave(
        self, node: int, kind: Literal["state", "key"], value: str, now: float, changes: list[TwinChange]
    ) -> None:
        shared = self._shared.get((kind, value))
        if shared is None:
            return
        self._set(node, kind, None, None, now, changes)
        shared.nodes.discard(node)
        shared.compared.discard(node)
        if len(shared.nodes) < 2:
            self._end_shared(shared, kind, now, changes)
            shared.contest = Contest()
        if not shared.nodes:
            del self._shared[kind, value]

    def _last_sessions(self, node: int) -> tuple[str, str]:
        last = max(self._runs.get(node, {}).values(), key=lambda run: run.last_at, default=None)
        return ("", "") if last is None else (last.session, last.session)

    def _set(
        self,
        node: int,
        kind: TwinKind,
        other: int | None,
        sessions: tuple[str, str] | None,
        now: float,
        changes: list[TwinChange],
        *,
        runs: Sequence[SeenRun] | None = None,
    ) -> None:
        """Note what two processes use; `sessions` is None if they no longer do."""
        known = self.twins.get((node, kind))
        if sessions is None:
            if known is not None:
                del self.twins[node, kind]
                self._changed_twins.add((node, kind))
                changes.append(TwinChange(node, kind, False, self._text(known, now), known.remedy))
            return
        twin = Twin(node, kind, other, now if known is None else known.since, now, sessions)
        self.twins[node, kind] = twin
        self._changed_twins.add((node, kind))
        if known is None:
            changes.append(TwinChange(node, kind, True, self._text(twin, now, runs), twin.remedy))

    def _runs_of(self, twin: Twin) -> list[SeenRun]:
        of_node = self._runs.get(twin.node if twin.other is None else twin.other, {})
        return [of_node[session] for session in dict.fromkeys(twin.sessions) if session in of_node]

    def _text(self, twin: Twin, now: float, runs: Sequence[SeenRun] | None = None) -> str:
        if runs is None:
            runs = self._runs_of(twin)
        other = "" if twin.other is None else str(self._names.get(twin.other, "another node"))
        return describe(twin, runs, other, now)

    def sharing_name(self, node: int) -> list[SeenRun]:
        """Return the last two runs that use a node's name at once, or the one whose process was copied; empty if nobody does."""
        twin = self.twins.get((node, "name"))
        return [] if twin is None else self._runs_of(twin)

    def tidy(self, heard: dict[int, float], now: float) -> list[TwinChange]:
        """Forget what two processes used that are long gone.

        Args:
            heard: when nodes were last heard of, by row; Unix seconds.
            now: Unix seconds.
        """
        changes: list[TwinChange] = []
        for twin in list(self.twins.values()):
            limit_s, since = (
                (_TURNS_S, twin.last_at) if twin.kind == "turns" else (_FORGOTTEN_S, heard.get(twin.node, 0.0))
            )
            if now - since > limit_s:
                self._set(twin.node, twin.kind, None, None, now, changes)
                if twin.kind == "name":
                    self._contests.pop(twin.node, None)
        return changes

    def save(self, database: Database) -> None:
        """Write what has changed, within the caller's transaction."""
        if self._changed or self._forgotten:
            save_runs(database, self._changed_runs(), self._forgotten)
            self._changed.clear()
            self._forgotten = []
        if self._changed_twins:
            there = [self.twins[key] for key in self._changed_twins if key in self.twins]
            save_twins(database, there, [key for key in self._changed_twins if key not in self.twins])
            self._changed_twins.clear()

    def _changed_runs(self) -> Iterator[tuple[int, SeenRun]]:
        for node, session in self._changed:
            if (run := self._runs.get(node, {}).get(session)) is not None:
                yield node, run

    def kinds(self) -> dict[int, tuple[TwinKind, ...]]:
        """Return what two processes use, by row of the node."""
        found: defaultdict[int, tuple[TwinKind, ...]] = defaultdict(tuple)
        for node, kind in self.twins:
            found[node] += (kind,)
        return found


def _back_after(run: SeenRun, earlier: Sequence[SeenRun]) -> SeenRun | None:
    """Return the run of another installation that came between this new run and an earlier one of its installation."""
    mine = run.instance.state
    same = [one for one in earlier if mine and one.instance.state == mine]
    if not same:
        return None
    last = max(same, key=lambda one: one.first_at)
    between = [one for one in earlier if one.instance.state not in ("", mine) and one.first_at > last.first_at]
    return None if not between or run.first_at - last.last_at > _TURNS_S else max(between, key=lambda one: one.first_at)
