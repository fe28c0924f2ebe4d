"""A fleet in a box: a real conductor on a real store, simulated nodes, and a clock of its own.

Nodes here run nothing: they take desired documents and say what a node would. So a rollout of days takes a moment, every
fault can come at every instant, and what is true of each node is known.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

from tests.region.responders import digest, ref

from hedgerow.region.config import RegionConfig
from hedgerow.region.rollouts.controller import PendingDocument, RolloutController
from hedgerow.region.rollouts.planning.gate import Listening
from hedgerow.region.rollouts.planning.state import Rollout
from hedgerow.region.rollouts.requests import open_requests
from hedgerow.region.rollouts.store import FleetStore
from hedgerow.region.store.database.database import Database, Row
from hedgerow.region.store.database.open import open_database
from hedgerow.region.store.records import HealthRecord, ReportedRecord, StatusRecord, StoreRecord
from hedgerow.region.store.store import RegionStore
from hedgerow.topics import Address
from hedgerow.wire import fleet as wire
from hedgerow.wire.messages import ErrorBody, Health, ModelHealth, PipelineHealth

TURN_S = 10.0
"""Seconds that one turn of the world takes: a health report of each node."""
SILENT_AFTER_S = 25.0
PLAN: dict[str, Any] = {
    "soak_s": 30,
    "gate": {"min_frames": 20, "max_silence_s": 60, "timeout_s": 120, "slow_reports": 2},
}


class Killed(BaseException):
    """The region's process has ended here."""


class Mortal:
    """A database whose process is killed when it comes to its last statement."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.statements_left: int | None = None

    def _live(self) -> None:
        if self.statements_left is not None:
            self.statements_left -= 1
            if self.statements_left < 0:
                raise Killed

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[Row]:
        self._live()
        return self._database.rows(sql, values)

    def run(self, sql: str, values: Sequence[Any] = ()) -> int:
        self._live()
        return self._database.run(sql, values)

    def many(self, sql: str, rows: Any) -> int:
        self._live()
        return self._database.many(sql, rows)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        with self._database.transaction():
            yield
            self._live()

    def close(self) -> None:
        self._database.close()


class Node:
    """A node. What it runs is what it says.

    Attributes:
        does: what a version does to it, by version: `good` unless said otherwise, `refuses` (golden inputs show it),
            `returns` (it comes back by itself), `errors` (only health shows it), `slow`, `leaks`, `drifts`, `restarts`, `hangs` (it never
            ends with it), `dies` (nothing is heard any more).
        online: whether it has a link.
        seen: generations that came to it, in order.
        told, told_at: the version that it last said it serves, and when.
    """

    def __init__(self, address: Address, version: str | None) -> None:
        self.address = address
        self.does: dict[str, str] = {}
        self.online = True
        self.seen: list[int] = []
        self.told: str | None = None
        self.told_at = 0.0
        self.labels: dict[str, str] = {}
        self.runs = 1
        self._desired: wire.Desired | None = None
        self._generation = 0
        self._version = version
        self._since = 0.0
        self._state: wire.JobState = "succeeded"
        self._error: ErrorBody | None = None
        self._returned = False
        self._hidden = False
        self._received = self._dead = self._frames = 0
        self._memory = 100 << 20

    @property
    def version(self) -> str | None:
        """What it serves."""
        return self._version

    @property
    def generation(self) -> int:
        """Of the document that it has."""
        return self._generation

    def take(self, document: bytes, now: float) -> None:
        """A document came."""
        desired = wire.Desired.model_validate_json(document)
        assert desired.node == str(self.address)
        self.seen.append(desired.generation)
        if desired.generation <= self._generation:
            return
        self._generation, self._desired = desired.generation, desired
        self._state, self._error, self._returned = "succeeded", None, False
        wanted = desired.models.get("faces")
        if wanted is None or wanted.version == self._version:
            return
        does = self.does.get(wanted.version, "good")
        if does == "refuses":
            self._fail("golden-failed")
        elif does == "returns":
            self._returned = True
            self._fail("not-finite")
        elif does == "hangs":
            self._state = "in-progress"
        elif does == "dies":
            self.online = False
        else:
            self._version, self._since, self._frames = wanted.version, now, 0

    def restart(self, *, hidden: bool = False) -> None:
        """Its process starts anew.

        Args:
            hidden: whether it has not come to say what it runs yet.
        """
        self.runs += 1
        self._received = self._dead = self._frames = 0
        self._hidden = hidden

    def says(self, now: float) -> list[StoreRecord]:
        """What it sends in one turn, if it has a link."""
        does = self.does.get(self._version or "", "good")
        if does == "restarts":
            self.runs += 1
            self._received = self._dead = self._frames = 0
            self._since = now
        self._received += 100
        self._frames += 100
        self._dead += 50 if does == "errors" else 0
        self._memory += (200 << 20) if does == "leaks" else 0
        if not self.online:
            return []
        self.told, self.told_at = self._version, now
        session = f"run-{self.runs}"
        models = {}
        shown = {}
        if self._version is not None and not self._hidden:
            file = digest(f"file{self._version}")
            models["faces"] = wire.ReportedModel(
                model=ref(self._version), file_digest=file, backend="onnxruntime", device="CPU", since=self._since,
                results=self._frames,
            )  # fmt: skip
            shown["faces"] = ModelHealth(
                digest=file, backend="onnxruntime", device="CPU", device_asked="CPU", frames=self._frames,
                drift=0.9 if does == "drifts" else 0.1,
            )  # fmt: skip
        reported = wire.Reported(
            node=str(self.address), session=session, at=now, generation=self._generation, state=self._state,
            error=self._error, rolled_back=["faces"] if self._returned else [], models=models,
            labels=self.labels | (self._desired.labels if self._desired else {}),
        ).encode()  # fmt: skip
        pipeline = PipelineHealth(
            state="running", received=self._received, dead={"bad": self._dead}, out=self._received - self._dead,
            latency_p99_ms=15.0 if does == "slow" else 5.0, models=["faces"],
        )  # fmt: skip
        health = Health(
            node=str(self.address), session=session, at=now, uptime_s=1, state="ok", pipelines={"doors": pipeline},
            models=shown, memory_bytes=self._memory,
        ).encode()  # fmt: skip
        return [
            StatusRecord(self.address, 1, now, True, True, session, b"{}"),
            ReportedRecord(self.address, len(reported), now, True, reported),
            HealthRecord(self.address, len(health), now, True, now, session, 0, "ok", "[]", health),
        ]

    def _fail(self, code: str) -> None:
        self._state = "failed"
        self._error = ErrorBody(code=code, message="its numbers are wrong", remedy="Mend the model.")


class World:
    """A region, its nodes and time.

    Args:
        url: of the store.
        count: nodes, over two sites.
        version: what they serve at first.
        began: Unix seconds at which its time begins.
    """

    def __init__(self, url: str, count: int, version: str | None = "1.0.0", began: float = 1_800_000_000.0) -> None:
        self.url = url
        self.config = RegionConfig.model_validate(
            {"region": {"name": "test", "silent_after_s": SILENT_AFTER_S}, "store": {"url": self.url}}
        )
        self.now = began
        self.nodes: dict[Address, Node] = {}
        self.deaf = False
        self.kills = 0
        self._version = version
        self._since: float | None = None
        self._retained: dict[Address, bytes] = {}
        self._store = RegionStore(open_database(self.url, write=True), self.config)
        self._controller: RolloutController | None = None
        self._database: Mortal | None = None
        self._asker = open_database(self.url, write=False, alongside=True)
        for _ in range(count):
            self.add()

    def __enter__(self) -> Self:
        self.turn()
        return self

    def __exit__(self, *error: object) -> None:
        self._die()
        self._asker.close()
        self._store.close()

    def add(self) -> Node:
        """One more node."""
        number = len(self.nodes)
        node = Node(Address("test", f"s{number % 2}", f"n{number:03}"), self._version)
        self.nodes[node.address] = node
        return node

    def turn(self, *, killed_at: int | None = None, silent: bool = False, deliver: bool = True) -> None:
        """Let time pass: nodes speak, the conductor decides, documents go out.

        Args:
            killed_at: the statement of its store at which the region's process ends; it is started again in the next turn.
            silent: whether nodes happen to say nothing in this turn.
            deliver: whether the broker keeps what it is given.
        """
        self.now += TURN_S
        if self.deaf:
            self._since = None
        else:
            said = [item for node in self.nodes.values() for item in node.says(self.now)]
            self._store.apply([] if silent else said)
            self._since = self._since if self._since is not None else self.now
        try:
            controller = self._alive(killed_at)
            listening = Listening(self._since, SILENT_AFTER_S)
            controller.turn(self.now, listening)
            if self.deaf:
                return
            pending = controller.unpublished(self.now, listening)
            self._deliver(pending if deliver else [])
            controller.published({document.node: document.generation for document in pending})
        except Killed:
            self.kills += 1
            self._die()

    def restart(self, *, away_s: float, silent_turns: int) -> None:
        """The region's process ends, is away, and starts; it takes some turns until nodes happen to say something."""
        self._die()
        self.now += away_s
        self._since = None
        for _ in range(silent_turns):
            self.turn(silent=True)

    def turns(self, count: int) -> None:
        """Let more time pass."""
        for _ in range(count):
            self.turn()

    def ask(self, verb: str, **args: Any) -> None:
        """Ask the service for something; it is answered in the next turn."""
        self._asker.run(
            "INSERT INTO intent (at, expires_at, who, why, verb, args) VALUES (?, ?, 'eve', 'a test', ?, ?)",
            (self.now, self.now + 1000, verb, json.dumps(args)),
        )

    def start(self, version: str = "2.0.0", **plan: Any) -> str:
        """Ask for a rollout."""
        name = str(plan.pop("rollout", f"faces-{version}"))
        models = {"faces": {"version": version, "digest": ref(version).digest}}
        gate = {**PLAN["gate"], **plan.pop("gate", {})}
        self.ask("rollout-start", rollout=name, plan={**PLAN, "rollout": name, "models": models, "gate": gate, **plan})
        return name

    def asked(self) -> bool:
        """Whether somebody waits for an answer."""
        return bool(open_requests(self._asker))

    def rollout(self, name: str = "faces-2.0.0") -> Rollout:
        """A rollout as it is kept."""
        (stored,) = FleetStore(self._asker).rollouts(names=[name])
        return stored.rollout

    def known(self, name: str) -> bool:
        """Whether there is such a rollout."""
        return bool(FleetStore(self._asker).rollouts(names=[name], tasks=False))

    def busy(self) -> bool:
        """Whether anything of a rollout is under way."""
        return bool(self._alive(None).fleet.active())

    def waits(self, name: str = "faces-2.0.0") -> str:
        """What a rollout waits for."""
        (stored,) = FleetStore(self._asker).rollouts(names=[name])
        return stored.waits

    def versions(self) -> set[str | None]:
        return {node.version for node in self.nodes.values()}

    def audit(self) -> list[tuple[float, str, str, str | None, Any]]:
        """The audit log: time, who, action, rollout, detail."""
        rows = self._asker.rows("SELECT at, who, action, rollout, detail FROM audit ORDER BY ingest")
        return [(at, who, action, rollout, json.loads(detail)) for at, who, action, rollout, detail in rows]

    def no_step_is_lost_or_repeated(self) -> None:
        """Each node's generations count up by one, each in exactly one line of the log; the last one is its document's."""
        given: dict[str, list[int]] = {}
        for *_, detail in self.audit():
            for node, generation in detail.get("given", {}).items():
                given.setdefault(node, []).append(generation)
        assert all(numbers == list(range(1, len(numbers) + 1)) for numbers in given.values()), given
        wanted = {str(node): one.document.generation for node, one in self._alive(None).fleet.desired.items()}
        assert wanted == {node: numbers[-1] for node, numbers in given.items()}
        for node in self.nodes.values():
            assert node.seen == sorted(node.seen), node.seen

    def _alive(self, killed_at: int | None) -> RolloutController:
        if self._controller is None or self._database is None:
            self._database = Mortal(open_database(self.url, write=False, alongside=True))
            self._controller = RolloutController(self._database, self.config)
        self._database.statements_left = killed_at
        return self._controller

    def _die(self) -> None:
        if self._database is not None:
            self._database.close()
        self._controller = self._database = None

    def _deliver(self, pending: Sequence[PendingDocument]) -> None:
        """As a broker does: what is retained comes to a node when it is there."""
        self._retained |= {document.node: document.payload for document in pending}
        came = {document.node for document in pending}
        for address, document in self._retained.items():
            node = self.nodes[address]
            if node.online and (
                address in came or node.generation < wire.Desired.model_validate_json(document).generation
            ):
                node.take(document, self.now)
