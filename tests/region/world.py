"""Simulated fleet: a real controller on a real store, with simulated nodes and a simulated clock.

Nodes run nothing: they accept desired documents and report what a real node would. So a rollout of days takes a moment, any
fault can occur at any instant, and the true state of each node is known.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

from tests.region.responders import digest, ref

from hedgerow.bus.outbox.records import Ack
from hedgerow.region.config import RegionConfig
from hedgerow.region.rollouts.controller import PendingDocument, RolloutController
from hedgerow.region.rollouts.planning.gate import Listening
from hedgerow.region.rollouts.planning.state import Rollout
from hedgerow.region.rollouts.requests import open_requests
from hedgerow.region.rollouts.store import FleetStore
from hedgerow.region.store.batch import BatchOutcome
from hedgerow.region.store.database.database import Database, Row
from hedgerow.region.store.database.open import open_database
from hedgerow.region.store.liveness import NodeStatus
from hedgerow.region.store.outboxes.ledgers import LedgerKey
from hedgerow.region.store.records import HealthRecord, ReportedRecord, StatusRecord, StoreRecord
from hedgerow.region.store.store import RegionStore
from hedgerow.topics import Address, Channel, parse
from hedgerow.wire import fleet as wire
from hedgerow.wire.messages import ErrorBody, Health, ModelHealth, PipelineHealth

TURN_S = 10.0
"""Simulated seconds per turn; each node sends a health report."""
SILENT_AFTER_S = 25.0
PLAN: dict[str, Any] = {
    "soak_s": 30,
    "gate": {"min_frames": 20, "max_silence_s": 60, "timeout_s": 120, "slow_reports": 2},
}


class Killed(BaseException):
    """The region's process was killed here."""


class KillableDatabase:
    """A database whose process is killed after a number of statements."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.statements_left: int | None = None

    def _count_statement(self) -> None:
        if self.statements_left is not None:
            self.statements_left -= 1
            if self.statements_left < 0:
                raise Killed

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[Row]:
        self._count_statement()
        return self._database.rows(sql, values)

    def run(self, sql: str, values: Sequence[Any] = ()) -> int:
        self._count_statement()
        return self._database.run(sql, values)

    def many(self, sql: str, rows: Any) -> int:
        self._count_statement()
        return self._database.many(sql, rows)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        with self._database.transaction():
            yield
            self._count_statement()

    def close(self) -> None:
        self._database.close()


class Node:
    """A simulated node.

    Attributes:
        does: effect of a version on it: `good` by default, `refuses` (golden cases fail), `returns` (it rolls back by
            itself), `errors` (visible in health only), `slow`, `leaks`, `drifts`, `restarts`, `hangs` (the swap never
            finishes), `dies` (it sends nothing any more).
        online: whether it is connected.
        seen: generations received, in order.
        configured: models that its file names, as reported; None: not reported.
        reported_version, reported_at: the version it last reported, and when.
    """

    def __init__(self, address: Address, version: str | None) -> None:
        self.address = address
        self.does: dict[str, str] = {}
        self.online = True
        self.seen: list[int] = []
        self.reported_version: str | None = None
        self.reported_at = 0.0
        self.labels: dict[str, str] = {}
        self.configured: dict[str, str] | None = None
        self.runs = 1
        self._desired: wire.Desired | None = None
        self._generation = 0
        self._version = version
        self._since = 0.0
        self._state: wire.JobState = "succeeded"
        self._error: ErrorBody | None = None
        self._returned = False
        self._models_hidden = False
        self._received = self._dead = self._frames = 0
        self._memory = 100 << 20

    @property
    def version(self) -> str | None:
        """The version it serves."""
        return self._version

    @property
    def generation(self) -> int:
        """Generation of its desired document."""
        return self._generation

    def take(self, document: bytes, now: float) -> None:
        """Receive a desired document."""
        desired = wire.Desired.model_validate_json(document)
        assert desired.node == str(self.address)
        self.seen.append(desired.generation)
        if desired.generation <= self._generation and desired.supersedes != self._generation:
            return
        self._generation, self._desired = desired.generation, desired
        self._state, self._error, self._returned = "succeeded", None, False
        if "faces" in desired.withdrawn and self._version is not None:
            if self.does.get("none") == "needs":
                self._fail("model-needed")
            else:
                self._version = None
            return
        desired_model = desired.models.get("faces")
        if desired_model is None or desired_model.version == self._version:
            return
        does = self.does.get(desired_model.version, "good")
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
            self._version, self._since, self._frames = desired_model.version, now, 0

    def restart(self, *, hidden: bool = False) -> None:
        """Restart its process.

        Args:
            hidden: whether it does not report its models yet.
        """
        self.runs += 1
        self._received = self._dead = self._frames = 0
        self._models_hidden = hidden

    def messages(self, now: float) -> list[StoreRecord]:
        """Return what it sends in one turn, if it is connected."""
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
        self.reported_version, self.reported_at = self._version, now
        session = f"run-{self.runs}"
        models = {}
        model_health = {}
        if self._version is not None and not self._models_hidden:
            file = digest(f"file{self._version}")
            models["faces"] = wire.ReportedModel(
                model=ref(self._version), file_digest=file, backend="onnxruntime", device="CPU", since=self._since,
                results=self._frames,
            )  # fmt: skip
            model_health["faces"] = ModelHealth(
                digest=file, backend="onnxruntime", device="CPU", device_asked="CPU", frames=self._frames,
                drift=0.9 if does == "drifts" else 0.1,
            )  # fmt: skip
        reported = wire.Reported(
            node=str(self.address), session=session, at=now, generation=self._generation, state=self._state,
            error=self._error, rolled_back=["faces"] if self._returned else [], models=models,
            labels=self.labels,
            configured=self.configured,
        ).encode()  # fmt: skip
        pipeline = PipelineHealth(
            state="running", received=self._received, dead={"bad": self._dead}, out=self._received - self._dead,
            latency_p99_ms=15.0 if does == "slow" else 5.0, models=["faces"],
        )  # fmt: skip
        health = Health(
            node=str(self.address), session=session, at=now, uptime_s=1, state="ok", pipelines={"doors": pipeline},
            models=model_health, memory_bytes=self._memory,
        ).encode()  # fmt: skip
        return [
            StatusRecord(self.address, 1, now, True, True, False, session, b"{}"),
            ReportedRecord(self.address, len(reported), now, True, reported),
            HealthRecord(self.address, len(health), now, True, now, session, 0, "ok", "[]", health),
        ]

    def _fail(self, code: str) -> None:
        self._state = "failed"
        self._error = ErrorBody(code=code, message="its outputs are wrong", remedy="Fix the model.")


class World:
    """A simulated region with its nodes and clock.

    Args:
        url: of the store.
        count: number of nodes, at two sites.
        version: that they serve at first.
        began: initial time in Unix seconds.
    """

    def __init__(self, url: str, count: int, version: str | None = "1.0.0", began: float = 1_800_000_000.0) -> None:
        self.url = url
        self.config = RegionConfig.model_validate(
            {"region": {"name": "test", "silent_after_s": SILENT_AFTER_S}, "store": {"url": self.url}}
        )
        self.now = began
        self.nodes: dict[Address, Node] = {}
        self.disconnected = False
        self.kills = 0
        self.cleared: list[str] = []
        self._version = version
        self._since: float | None = None
        self._retained: dict[Address, bytes] = {}
        self._store = RegionStore(self._leading(open_database(self.url, write=True)), self.config)
        self._controller: RolloutController | None = None
        self._database: KillableDatabase | None = None
        self._operator_database = open_database(self.url, write=False, alongside=True)
        for _ in range(count):
            self.add()

    def __enter__(self) -> Self:
        self.turn()
        return self

    def __exit__(self, *error: object) -> None:
        self._kill()
        self._operator_database.close()
        self._store.close()

    def add(self) -> Node:
        """Add a node."""
        number = len(self.nodes)
        node = Node(Address("test", f"s{number % 2}", f"n{number:03}"), self._version)
        self.nodes[node.address] = node
        return node

    def turn(self, *, killed_at: int | None = None, silent: bool = False, deliver: bool = True) -> None:
        """Take a turn: nodes report, the controller runs, documents are published.

        Args:
            killed_at: statement at which the region's process is killed; it restarts in the next turn.
            silent: whether nodes send nothing in this turn.
            deliver: whether the broker delivers the documents.
        """
        self.now += TURN_S
        if self.disconnected:
            self._since = None
        else:
            sent = [item for node in self.nodes.values() for item in node.messages(self.now)]
            self._store.apply([] if silent else sent)
            self._since = self._since if self._since is not None else self.now
        try:
            controller = self._running_controller(killed_at)
            listening = Listening(self._since, SILENT_AFTER_S)
            controller.turn(self.now, listening)
            if self.disconnected:
                return
            pending = controller.unpublished(self.now, listening)
            self._deliver(pending if deliver else [])
            controller.published({document.node: document.generation for document in pending})
            clears = [one.topic for one in controller.uncleared(self.now)]
            self.cleared += clears
            controller.cleared(clears)
            for topic in clears:
                parsed = parse(topic)
                assert parsed is not None
                if parsed.channel is Channel.DESIRED:
                    self._retained.pop(parsed.address, None)
        except Killed:
            self.kills += 1
            self._kill()

    def restart(self, *, down_s: float, silent_turns: int) -> None:
        """Restart the region's process after `down_s` seconds; nodes send nothing for `silent_turns` turns."""
        self._kill()
        self.now += down_s
        self._since = None
        for _ in range(silent_turns):
            self.turn(silent=True)

    def turns(self, count: int) -> None:
        """Take several turns."""
        for _ in range(count):
            self.turn()

    def ask(self, verb: str, **args: Any) -> None:
        """Send a request to the service; it is handled in the next turn."""
        self._operator_database.run(
            "INSERT INTO intent (at, expires_at, who, why, verb, args) VALUES (?, ?, 'eve', 'a test', ?, ?)",
            (self.now, self.now + 1000, verb, json.dumps(args)),
        )

    def start(self, version: str = "2.0.0", **plan: Any) -> str:
        """Request a rollout; return its name."""
        name = str(plan.pop("rollout", f"faces-{version}"))
        models = {"faces": {"version": version, "digest": ref(version).digest}}
        gate = {**PLAN["gate"], **plan.pop("gate", {})}
        self.ask("rollout-start", rollout=name, plan={**PLAN, "rollout": name, "models": models, "gate": gate, **plan})
        return name

    def request_open(self) -> bool:
        """Whether a request is open."""
        return bool(open_requests(self._operator_database))

    def answers(self) -> list[tuple[bool, Any]]:
        """Return the answers to all requests: whether each was accepted, and what was answered."""
        rows = self._operator_database.rows(
            "SELECT accepted, answer FROM intent WHERE answered_at IS NOT NULL ORDER BY id"
        )
        return [(bool(accepted), json.loads(answer)) for accepted, answer in rows]

    def do(self, verb: str, **args: Any) -> Any:
        """Send a request, have it handled, and return the answer. Raises: AssertionError: it is refused."""
        self.ask(verb, **args)
        self.turn()
        accepted, answer = self.answers()[-1]
        assert accepted, answer
        return answer

    def refused(self, verb: str, **args: Any) -> str:
        """Send a request that is refused, and return its code."""
        self.ask(verb, **args)
        self.turn()
        accepted, answer = self.answers()[-1]
        assert not accepted, answer
        assert answer["remedy"]
        return str(answer["code"])

    @property
    def database(self) -> Database:
        """The store, as an operator's command opens it."""
        return self._operator_database

    def acks(self) -> list[tuple[LedgerKey, Ack]]:
        """Return the acknowledgements that the collector repeats when it starts."""
        return self._store.acks()

    def statuses(self) -> dict[Address, NodeStatus]:
        """Return the status of every node, as the collector has it for its metrics."""
        return self._store.statuses(self.now)

    def beat(self) -> None:
        """Show that the service runs, to commands that look at the real clock."""
        self._store.beat(connected=True)

    def age_aliases(self, seconds: float) -> None:
        """Let former addresses be older than they are, and restart."""
        self._operator_database.run("UPDATE alias SET since = since - ?, seen_at = seen_at - ?", (seconds, seconds))
        self.reopen()

    def reopen(self) -> None:
        """Restart the collector and the rollout service."""
        self._kill()
        self._store.close()
        self._store = RegionStore(self._leading(open_database(self.url, write=True)), self.config)

    def store(self, *records: StoreRecord) -> BatchOutcome:
        """Store records, as the collector does."""
        return self._store.apply(records)

    def rollout(self, name: str = "faces-2.0.0") -> Rollout:
        """Return a stored rollout."""
        (stored,) = FleetStore(self._operator_database).rollouts(names=[name])
        return stored.rollout

    def known(self, name: str) -> bool:
        """Whether a rollout exists."""
        return bool(FleetStore(self._operator_database).rollouts(names=[name], tasks=False))

    def busy(self) -> bool:
        """Whether any rollout is active."""
        return bool(self._running_controller(None).fleet.active())

    def waits(self, name: str = "faces-2.0.0") -> str:
        """Return what a rollout waits for."""
        (stored,) = FleetStore(self._operator_database).rollouts(names=[name])
        return stored.waits

    def versions(self) -> set[str | None]:
        return {node.version for node in self.nodes.values()}

    def audit(self) -> list[tuple[float, str, str, str | None, Any]]:
        """Return the audit log: time, who, action, rollout, detail."""
        rows = self._operator_database.rows("SELECT at, who, action, rollout, detail FROM audit ORDER BY ingest")
        return [(at, who, action, rollout, json.loads(detail)) for at, who, action, rollout, detail in rows]

    def no_step_is_lost_or_repeated(self) -> None:
        """Check that each node's generations are consecutive, each in one audit entry, and the last is that of its document."""
        given: dict[str, list[int]] = {}
        for *_, detail in self.audit():
            for node, generation in detail.get("given", {}).items():
                given.setdefault(node, []).append(generation)
        assert all(numbers == list(range(1, len(numbers) + 1)) for numbers in given.values()), given
        desired_model = {
            str(node): one.document.generation for node, one in self._running_controller(None).fleet.desired.items()
        }
        assert desired_model == {node: numbers[-1] for node, numbers in given.items()}
        for node in self.nodes.values():
            assert node.seen == sorted(node.seen), node.seen

    def _running_controller(self, killed_at: int | None) -> RolloutController:
        if self._controller is None or self._database is None:
            leading = self._leading(open_database(self.url, write=False, alongside=True))
            self._database = KillableDatabase(leading)
            self._controller = RolloutController(self._database, self.config)
        self._database.statements_left = killed_at
        return self._controller

    def _leading(self, database: Database) -> Database:
        """Let a connection write as the service's do: only in transactions, which check its term."""
        database.lead(database.rows("SELECT fence FROM lease")[0][0])
        return database

    def _kill(self) -> None:
        if self._database is not None:
            self._database.close()
        self._controller = self._database = None

    def _deliver(self, pending: Sequence[PendingDocument]) -> None:
        """Deliver retained documents to online nodes, as a broker does."""
        self._retained |= {document.node: document.payload for document in pending}
        delivered = {document.node for document in pending}
        for address, document in self._retained.items():
            node = self.nodes.get(address)
            if (
                node is not None
                and node.online
                and (address in delivered or node.generation < wire.Desired.model_validate_json(document).generation)
            ):
                node.take(document, self.now)
