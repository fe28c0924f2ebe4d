"""Pipeline whose stages run in worker processes (`workers: N`), for pipelines bound by Python; restarts crashed workers.

Delivery stays in the node: links, queue, counters, acknowledgements, order. A worker receives lists of frames over a
pipe and returns encoded results. If a worker crashes, or is killed because a stage hangs or takes too much memory, it is
restarted and its list runs again one frame at a time; a frame that ends it again is dead-lettered.

    node: lane (a thread) ──list──▶ pipe ──▶ worker: LocalPipeline.run ──settlements──▶ pipe ──▶ lane

Rules:
- A stream always goes to the same worker, which keeps its state. A crash loses that state.
- A worker keeps the model versions it was started with, after a restart too; another version needs new workers. Models
  are observed in the worker, which reports with each list.
- The pipe carries MessagePack; nothing is pickled.
- A worker ends when its pipe closes, so none outlives its node.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import structlog

from hedgerow import tasks
from hedgerow.config import NodeConfig
from hedgerow.errors import HedgerowError
from hedgerow.models.bundle.version import ModelVersion
from hedgerow.models.monitor.observations import Observations
from hedgerow.models.serving.served_model import ServedModel
from hedgerow.pipeline.built_pipeline import REPLACED, BuiltPipeline, Completed, Snapshot, WorkersReport, make_encoder
from hedgerow.pipeline.chain.chain import EventSink
from hedgerow.pipeline.chain.progress import StageCall
from hedgerow.pipeline.delivery import Delivery, Settlement
from hedgerow.pipeline.result_encoder import Encoded
from hedgerow.pipeline.workers.errors import StageTimeout, WorkerDied, WorkerMemoryExceeded, WorkerNotStarted
from hedgerow.pipeline.workers.worker import (
    HUNG,
    NOT_STARTED,
    OVER_MEMORY,
    STOPPED,
    Worker,
    WorkerEnd,
    WorkerObservations,
)

log = structlog.get_logger(__name__)

_NOTHING: Final = Observations()
_RETRY_S: Final = 60.0
"""Shortest time between two replacements of a lane's worker: each costs a start, and its stages' state."""
_KILL_FACTOR: Final = 2
"""A worker that reaches this many times its `worker_max_bytes` is killed within a list."""


class WorkerPipeline(BuiltPipeline):
    """A pipeline whose stages run in `workers` processes; in one, if it is isolated although it has none configured.

    Args:
        config: the node's configuration.
        name: name of the pipeline.
        base_dir: folder that relative paths start from.
        cores: number of cores the node may use; the workers share them.
        on_event: called with events for operators.
        versions: model versions to use, by model name; other models are loaded from the configured files.
        warm_up: models to run before the first frame, with the batch sizes to expect.
    Attributes:
        versions: the model versions it was built with.
    Raises:
        ModelNotAssigned: the region has not assigned a version yet.
        HedgerowError: a stage or model is missing or broken.
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
        warm_up: Mapping[str, Iterable[int]] = MappingProxyType({}),
    ) -> None:
        super().__init__(config, name, config.pipelines[name].workers or 1)
        self.versions = versions
        self._on_event = on_event
        self._task = {
            "config": config.model_dump(),
            "name": name,
            "base_dir": str(base_dir.absolute()),
            "cores": max(1, cores // self.lanes),
            "versions": [version.as_dict() for version in versions.values()],
            "warm_up": {model: list(sizes) for model, sizes in warm_up.items()},
        }
        self._ended: Counter[str] = Counter()
        self._workers = [Worker(self._task) for _ in range(self.lanes)]
        self._successors: dict[int, Worker] = {}
        self._successor_from: dict[int, float] = {}
        try:
            for worker in self._workers:
                worker.start()
            for worker in self._workers:
                worker.wait_ready()
        except (EOFError, OSError) as error:
            reason = self._not_started(worker, error)
            self.close()
            raise reason from error
        except BaseException:
            self.close()
            raise
        self.batch = min(worker.batch for worker in self._workers)
        self.encoder = make_encoder(config, name, self.models())

    @property
    def stateful(self) -> list[str]:
        """Names of the stages that keep state by stream, which the end of a worker resets."""
        return self._workers[0].stateful

    def run(self, deliveries: Sequence[Delivery], lane: int) -> Completed:
        """See `BuiltPipeline.run`."""
        worker = self._current_worker(lane)
        try:
            return self._run(worker, deliveries)
        except (EOFError, OSError):
            end = worker.end()
        if len(deliveries) == 1 and end.reason in (HUNG, OVER_MEMORY) and end.call is not None:
            return Completed([[self._lost(worker, end, deliveries[0])]], [])
        self._restart(worker, end)
        return self._run_each(worker, deliveries)

    def _run_each(self, worker: Worker, deliveries: Sequence[Delivery]) -> Completed:
        """Run a list again after its worker has ended, one frame at a time, so that only the bad one is lost."""
        parts: list[Completed] = []
        for position, delivery in enumerate(deliveries):
            if self.retired:  # the replacement may not crash, and each crash takes time
                return Completed.all(parts, not_run=deliveries[position:])
            try:
                parts.append(self._run(worker, [delivery]))
            except (EOFError, OSError):
                parts.append(Completed([[self._lost(worker, worker.end(), delivery)]], []))
        return Completed.all(parts)

    def _lost(self, worker: Worker, end: WorkerEnd, delivery: Delivery) -> Settlement:
        """Restart a worker that one frame has ended, and return the frame's dead letter."""
        settlement = self.dead_letter(delivery, self._error(end), self._stage(end.call))
        self._restart(worker, end, Observations(frames=1, failures=1))
        return settlement

    def forget(self, stream: str) -> None:
        """See `BuiltPipeline.forget`."""
        for worker in self._workers:  # one of them has it
            worker.forgotten.append(stream)

    def models(self) -> list[ServedModel]:
        """See `BuiltPipeline.models`; counters are summed over the workers."""
        merged: dict[str, ServedModel] = {}
        for worker in self._workers:
            for info in worker.models:
                other = merged.get(info.name)
                merged[info.name] = info if other is None else info + other
        return list(merged.values())

    def observe(self, model: str | None) -> None:
        """Observe a model from the next lists on; None: observe none. Has no effect if it is observed already."""
        for worker in self._workers:
            if worker.observed.model != model:
                worker.observed = WorkerObservations(model)

    def observations(self) -> Observations:
        """Return the observations of the observed model, summed over the workers."""
        return sum((worker.observed.total for worker in self._workers), Observations())

    def failing(self) -> list[str]:
        """See `BuiltPipeline.failing`."""
        return sorted({stage for worker in self._workers for stage in worker.failing})

    def stage_call(self, lane: int) -> StageCall | None:
        """See `BuiltPipeline.stage_call`."""
        return self._workers[lane].call()

    def end_hung(self, lane: int, call: StageCall) -> None:
        """See `BuiltPipeline.end_hung`."""
        self._workers[lane].interrupt(call)

    def end_stopped(self, lane: int) -> None:
        """See `BuiltPipeline.end_stopped`."""
        self._workers[lane].kill(STOPPED)

    def supervise(self) -> None:
        """See `BuiltPipeline.supervise`."""
        limit_bytes = self.config.worker_max_bytes
        for worker in self._workers:
            if worker.running and worker.has_ended():
                worker.disconnect()  # a child of the process may still hold the pipe
            elif limit_bytes is not None and worker.measure() > _KILL_FACTOR * limit_bytes and worker.running:
                worker.kill(OVER_MEMORY)

    def workers(self) -> WorkersReport:
        """See `BuiltPipeline.workers`."""
        return WorkersReport([worker.measure() for worker in self._workers], self._ended.copy())

    def close(self) -> None:
        """See `BuiltPipeline.close`."""
        self.retired = True
        workers = [*self._workers, *self._successors.values()]
        for worker in workers:
            worker.disconnect()
        # They end by themselves, but must be waited for; not on the event loop, which that would block.
        tasks.start_thread(lambda: _end_all(workers), "end of workers")

    # Replacement of workers that leak

    def _current_worker(self, lane: int) -> Worker:
        """Return the worker of a lane; a successor that is ready takes its place, and one that is due gets a successor."""
        worker, successor = self._workers[lane], self._successors.get(lane)
        if successor is not None and successor.ready:
            self._workers[lane] = self._successors.pop(lane)
            successor.observed = worker.observed
            successor.observed.replaced()
            self._ended[REPLACED] += 1
            detail = {"pid": worker.pid, "frames": worker.frames, "memory_bytes": worker.memory_bytes}
            self._on_event("worker-replaced", {**detail, "state_reset": worker.stateful})
            self._successor_from[lane] = time.monotonic() + _RETRY_S
            tasks.start_thread(worker.end, "end of workers")
            return successor
        limit_bytes, most = self.config.worker_max_bytes, self.config.worker_max_frames
        due = (most is not None and worker.frames >= most) or (
            limit_bytes is not None and worker.memory_bytes > limit_bytes
        )
        if due and successor is None and time.monotonic() > self._successor_from.get(lane, 0.0):
            self._successors[lane] = successor = Worker(self._task)
            tasks.start_thread(partial(self._prepare, lane, successor), "start of workers")
        return worker

    def _prepare(self, lane: int, successor: Worker) -> None:
        try:
            successor.start()
            successor.wait_ready()
        except (HedgerowError, EOFError, OSError) as error:
            self._successor_from[lane] = time.monotonic() + _RETRY_S
            self._successors.pop(lane, None)
            reason = self._not_started(successor, error)
            if not self.retired:
                self._on_event("worker-not-restarted", {"error": reason})
        if self.retired:
            successor.end()

    def _run(self, worker: Worker, deliveries: Sequence[Delivery]) -> Completed:
        packed, timings, columns, last, events = worker.run(deliveries)
        for kind, detail in events:
            self._on_event(kind, detail)
        settlements = [_settlement(deliveries[position], *rest) for position, *rest in packed]
        snapshot = None
        if last is not None:
            settlement = next(each for each in settlements if each.delivery is deliveries[last])
            frame = self._maker.complete(self._bare(deliveries[last]), deliveries[last].message)
            snapshot = Snapshot(frame, (settlement.results or [])[-1])
        return Completed([settlements], [*map(tuple, timings)], snapshot, columns=[*map(tuple, columns)])

    def _restart(self, worker: Worker, end: WorkerEnd, lost: Observations = _NOTHING) -> None:
        if end.reason == STOPPED:
            return
        worker.observed.crashed(lost)
        self._ended[end.reason] += 1
        detail = {"pid": worker.pid, "code": end.returncode, "reason": end.reason, "error": f"it {end.how}"}
        self._on_event("worker-crashed", {**detail, "stage": self._stage(end.call), "state_reset": worker.stateful})
        if self.retired:
            return
        try:
            worker.start()
            worker.wait_ready()
        except (HedgerowError, EOFError, OSError) as error:
            reason = self._not_started(worker, error)
            if not self.retired:  # else it was ended with its pipeline
                self._on_event("worker-not-restarted", {"error": reason})

    def _not_started(self, worker: Worker, error: Exception) -> HedgerowError:
        """End a worker that does not start, and return why."""
        end = worker.end()
        if isinstance(error, HedgerowError):
            return error
        if isinstance(error, TimeoutError):
            end = replace(end, how=str(error))
        return WorkerNotStarted(self.name, end, self._stage(end.call))

    def _stage(self, call: StageCall | None) -> str:
        return "" if call is None else self.step_names[call.stage]

    def _error(self, end: WorkerEnd) -> HedgerowError:
        stage = self._stage(end.call)
        if end.reason == HUNG:
            return StageTimeout(stage or "unknown", self.timeouts_s[end.call.stage if end.call else -1])
        if end.reason == OVER_MEMORY:
            return WorkerMemoryExceeded(stage, _KILL_FACTOR * (self.config.worker_max_bytes or 0))
        if end.reason == NOT_STARTED:
            return WorkerNotStarted(self.name, end)
        return WorkerDied(self.name, end, stage)


def _settlement(delivery: Delivery, results: Any, dropped: str | None, dead: Any, reason: str) -> Settlement:
    return Settlement(
        delivery,
        results=None if results is None else [Encoded(*each) for each in results],
        dropped=dropped,
        dead=None if dead is None else Encoded(*dead),
        reason=reason,
    )


def _end_all(workers: Iterable[Worker]) -> None:
    for worker in workers:
        worker.end()
