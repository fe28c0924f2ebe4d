"""Stages in processes of their own, for pipelines that are bound by Python: `workers: N`.

The node keeps what makes delivery safe: links, queue, counts, acknowledgements, order. A worker gets lists of frames and
gives back what is to be published, over a pipe. So a worker may crash: it is started anew, and the list it had is run
again, a frame at a time; the frame that brings it down again is dead-lettered.

    node: lane (a thread) ──list──▶ pipe ──▶ worker: LocalPlan.run ──settlements──▶ pipe ──▶ lane

Rules:
- A stream always goes to the same worker, which has its state. What a crashed worker knew of its streams is lost.
- Workers run the versions of models that they were started with, also one that is started anew; for another version
  there are other workers. What a model does is watched where it runs, and told with each list.
- What crosses the pipe is MessagePack; nothing is pickled.
- A worker ends when its pipe does, so none outlives its node.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import structlog

from hedgerow.config import NodeConfig
from hedgerow.errors import HedgerowError
from hedgerow.models.bundle.version import ModelVersion
from hedgerow.models.monitor.observations import Observations
from hedgerow.models.serving.engine import SlotInfo
from hedgerow.models.serving.pool import ModelNotAssigned
from hedgerow.pipeline.chain import EventSink
from hedgerow.pipeline.delivery import Delivery, Settlement
from hedgerow.pipeline.plan import Completed, Plan, Snapshot, make_encoder
from hedgerow.pipeline.results import Encoded
from hedgerow.pipeline.worker import pack, unpack

log = structlog.get_logger(__name__)

_START_S: Final = 300.0
_STOP_S: Final = 5.0
_NOTHING: Final = Observations()


class WorkerDied(HedgerowError):
    """A worker process ended while it had work."""

    code = "worker-crashed"

    def __init__(self, pipeline: str, returncode: int | None) -> None:
        super().__init__(
            f"A worker of pipeline {pipeline} crashed on this frame, twice; it {_ended(returncode)}",
            remedy="The dead letter carries the frame: run it through the pipeline by hand to find the stage at fault.",
        )


class WorkerNotStarted(HedgerowError):
    """A worker process ended, or hung, before it was ready."""

    code = "worker-not-started"

    def __init__(self, pipeline: str, returncode: int | None) -> None:
        super().__init__(
            f"A worker of pipeline {pipeline} {_ended(returncode)} before it was ready",
            remedy="The log before this has what it said; with `workers: 0` its stages run in the node, easier to look into.",
        )


def _ended(returncode: int | None) -> str:
    if returncode is None:
        return "could not be started"
    return f"ended by {signal.Signals(-returncode).name}" if returncode < 0 else f"ended with code {returncode}"


class WorkerPlan(Plan):
    """A pipeline whose stages run in `workers` processes.

    Args:
        config: the whole configuration.
        name: which of its pipelines.
        base_dir: folder that relative paths start at.
        cores: cores the node owns; the workers share them.
        on_event: takes what operators should know.
        versions: those that models are to be, by name; the others are the files that the configuration names.
        rehearsed: models to be tried out before the first frame, and batch sizes that they will meet.
    Attributes:
        versions: as given.
    Raises:
        ModelAwaited: a version is the region's to choose, which has not happened yet.
        HedgerowError: a stage or a model is missing or broken.
    """

    pinned = True

    def __init__(
        self,
        config: NodeConfig,
        name: str,
        base_dir: Path,
        cores: int,
        on_event: EventSink,
        versions: Mapping[str, ModelVersion] = MappingProxyType({}),
        rehearsed: Mapping[str, Iterable[int]] = MappingProxyType({}),
    ) -> None:
        super().__init__(config, name, config.pipelines[name].workers)
        self.versions = versions
        self._on_event = on_event
        each = max(1, cores // self.lanes)
        task = {
            "config": config.model_dump(),
            "name": name,
            "base_dir": str(base_dir.absolute()),
            "cores": each,
            "versions": [each.as_dict() for each in versions.values()],
            "rehearsed": {model: list(sizes) for model, sizes in rehearsed.items()},
        }
        self._workers = [_Worker(task) for _ in range(self.lanes)]
        try:
            for worker in self._workers:
                worker.start()
            for worker in self._workers:
                worker.wait_ready()
        except (EOFError, OSError) as error:
            self.close()
            worker.join()
            raise WorkerNotStarted(name, worker.returncode) from error
        except BaseException:
            self.close()
            raise
        self.encoder = make_encoder(config, name, self.models())

    def run(self, deliveries: Sequence[Delivery], lane: int) -> Completed:
        """See `Plan.run`."""
        worker = self._workers[lane]
        try:
            return self._run(worker, deliveries)
        except (EOFError, OSError):
            self._revive(worker)
        settlements: list[Settlement] = []
        timings: list[tuple[str, float, int]] = []
        snapshot = None
        for position, delivery in enumerate(deliveries):
            if self.retired:  # whatever took this one's place may do better, and each crash takes its time
                return Completed(settlements, timings, snapshot, left=deliveries[position:])
            try:
                completed = self._run(worker, [delivery])
            except (EOFError, OSError):
                settlements.append(self.bury(delivery, WorkerDied(self.name, worker.returncode)))
                self._revive(worker, Observations(frames=1, failures=1))
            else:
                settlements += completed.settlements
                timings += completed.timings
                snapshot = completed.snapshot or snapshot
        return Completed(settlements, timings, snapshot)

    def forget(self, stream: str) -> None:
        """See `Plan.forget`."""
        for worker in self._workers:  # one of them knows it
            worker.forgotten.append(stream)

    def models(self) -> list[SlotInfo]:
        """See `Plan.models`; counts are those of all workers."""
        merged: dict[str, SlotInfo] = {}
        for worker in self._workers:
            for info in worker.models:
                other = merged.get(info.name)
                merged[info.name] = info if other is None else _sum(info, other)
        return list(merged.values())

    def watch(self, model: str | None) -> None:
        """Have a model watched, from the next lists on; None: none. One that is watched already goes on being."""
        for worker in self._workers:
            if worker.watched.model != model:
                worker.watched = _Watched(model)

    def conduct(self) -> Observations:
        """That of the model that is watched, in all workers."""
        return sum((worker.watched.conduct for worker in self._workers), Observations())

    def failing(self) -> list[str]:
        """See `Plan.failing`."""
        return sorted({stage for worker in self._workers for stage in worker.failing})

    def close(self) -> None:
        """See `Plan.close`."""
        for worker in self._workers:
            worker.hang_up()
        # They end by themselves; somebody must see them off, but not the event loop.
        threading.Thread(target=self._see_off, daemon=True).start()

    def _see_off(self) -> None:
        for worker in self._workers:
            worker.join()

    def _run(self, worker: _Worker, deliveries: Sequence[Delivery]) -> Completed:
        packed, timings, last, events = worker.ask(deliveries)
        for kind, detail in events:
            self._on_event(kind, detail)
        settlements = [_settlement(deliveries[position], *rest) for position, *rest in packed]
        snapshot = None
        if last is not None:
            given = next(each for each in settlements if each.delivery is deliveries[last])
            frame = self._maker.complete(self._bare(deliveries[last]), deliveries[last].message)
            snapshot = Snapshot(frame, (given.results or [])[-1])
        return Completed(settlements, [(name, seconds, count) for name, seconds, count in timings], snapshot)

    def _revive(self, worker: _Worker, lost: Observations = _NOTHING) -> None:
        worker.join()
        worker.watched.crashed(lost)
        self._on_event("worker-crashed", {"pid": worker.pid, "code": worker.returncode})
        if self.retired:
            return
        try:
            worker.start()
            worker.wait_ready()
        except (HedgerowError, EOFError, OSError) as error:
            self._on_event("worker-not-restarted", {"error": str(error)})


@dataclass(slots=True)
class _Watched:
    """A model that a worker is to watch, and what came of it; another one for another model, since lists are under way.

    Attributes:
        model: its name; None: none.
        told: what the process has told since it was started.
        ended: what those before it had told, and that they crashed.
    """

    model: str | None = None
    told: Observations = field(default_factory=Observations)
    ended: Observations = field(default_factory=Observations)

    @property
    def conduct(self) -> Observations:
        return self.ended + self.told

    def crashed(self, lost: Observations) -> None:
        told, self.told = self.told, Observations()
        self.ended += told + lost + Observations(crashes=1)


class _Worker:
    """One process, seen from the node."""

    def __init__(self, task: dict[str, Any]) -> None:
        self.models: list[SlotInfo] = []
        self.failing: list[str] = []
        self.forgotten: list[str] = []
        self.watched = _Watched()
        self.pid = 0
        self.returncode: int | None = None
        self._task = task
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None

    def start(self) -> None:
        ours, theirs = socket.socketpair()
        # What HEDGEROW_* say is in the configuration that the node sends, but for secrets, which are not for stages.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HEDGEROW_")}
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [sys.executable, "-m", "hedgerow.pipeline.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=environment,
                start_new_session=True,  # Ctrl-C is for the node, which then hangs up
            )
        self.pid = self._process.pid
        self._pipe = Connection(ours.detach())
        self._pipe.send_bytes(pack(self._task))

    def wait_ready(self) -> None:
        """Raises: ModelAwaited, HedgerowError: the pipeline cannot be built there."""
        pipe = self._open_pipe()
        if not pipe.poll(_START_S):
            raise TimeoutError(f"a worker did not get ready within {_START_S:.0f} s")
        answer = unpack(pipe.recv_bytes())
        if "awaited" in answer:
            raise ModelNotAssigned(*answer["awaited"])
        if "error" in answer:
            code, message, remedy = answer["error"]
            error = HedgerowError(message, remedy=remedy)
            error.code = code
            raise error
        self.models = [_info(fields) for fields in answer["models"]]

    def ask(self, deliveries: Sequence[Delivery]) -> tuple[Any, Any, Any, Any]:
        """Have a list run. Raises: EOFError, OSError: the process ended."""
        pipe = self._open_pipe()
        forgotten, self.forgotten = self.forgotten, []
        watched = self.watched
        frames = [
            (
                delivery.message.topic,
                delivery.message.payload,
                delivery.message.qos << 1,
                delivery.message.packet_id,
                delivery.message.received_at,
                delivery.message.raw_properties,
                delivery.stream,
                delivery.sequence,
                delivery.dispatched_at,
            )
            for delivery in deliveries
        ]
        pipe.send_bytes(pack((frames, forgotten, watched.model)))
        settlements, timings, last, events, failing, models, conduct = unpack(pipe.recv_bytes())
        self.failing = failing
        if conduct is not None:
            watched.told = Observations(**conduct)
        if models:
            self.models = [_info(fields) for fields in models]
        return settlements, timings, last, events

    def hang_up(self) -> None:
        if self._pipe is not None:
            self._pipe.close()

    def join(self) -> None:
        """Wait until the process has ended; end it if it does not."""
        self.hang_up()
        if self._process is None:
            return
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.returncode = self._process.returncode

    def _open_pipe(self) -> Connection:
        if self._pipe is None or self._pipe.closed:
            raise EOFError("the worker is not running")
        return self._pipe


def _sum(one: SlotInfo, other: SlotInfo) -> SlotInfo:
    added = ("inferences", "frames", "failures", "busy_s", "looked_at", "not_finite")
    counts = {key: getattr(one, key) + getattr(other, key) for key in added}
    return dataclasses.replace(
        one,
        **counts,
        drift=_larger(one.drift, other.drift),
        input_drift=_larger(one.input_drift, other.input_drift),
    )


def _larger(one: float | None, other: float | None) -> float | None:
    return max((each for each in (one, other) if each is not None), default=None)


def _settlement(delivery: Delivery, results: Any, dropped: str | None, dead: Any, reason: str) -> Settlement:
    return Settlement(
        delivery,
        results=None if results is None else [Encoded(*each) for each in results],
        dropped=dropped,
        dead=None if dead is None else Encoded(*dead),
        reason=reason,
    )


def _info(fields: dict[str, Any]) -> SlotInfo:
    return SlotInfo(**{**fields, "inputs": tuple(fields["inputs"]), "outputs": tuple(fields["outputs"])})
