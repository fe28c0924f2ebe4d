"""Pipeline whose stages run in worker processes (`workers: N`), for pipelines bound by Python; restarts crashed workers.

Delivery stays in the node: links, queue, counters, acknowledgements, order. A worker receives lists of frames over a
pipe and returns encoded results. If a worker crashes, it is restarted and its list runs again one frame at a time; a
frame that crashes it again is dead-lettered.

    node: lane (a thread) ──list──▶ pipe ──▶ worker: LocalPipeline.run ──settlements──▶ pipe ──▶ lane

Rules:
- A stream always goes to the same worker, which keeps its state. A crash loses that state.
- A worker keeps the model versions it was started with, after a restart too; another version needs new workers. Models
  are observed in the worker, which reports with each list.
- The pipe carries MessagePack; nothing is pickled.
- A worker ends when its pipe closes, so none outlives its node.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Mapping, Sequence
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
from hedgerow.pipeline.built_pipeline import BuiltPipeline, Completed, Snapshot, make_encoder
from hedgerow.pipeline.chain.chain import EventSink
from hedgerow.pipeline.delivery import Delivery, Settlement
from hedgerow.pipeline.result_encoder import Encoded
from hedgerow.pipeline.workers.worker import Worker, WorkerObservations

log = structlog.get_logger(__name__)

_NOTHING: Final = Observations()


class WorkerDied(HedgerowError):
    """A worker process crashed twice on the same frame."""

    code = "worker-crashed"

    def __init__(self, pipeline: str, returncode: int | None) -> None:
        super().__init__(
            f"A worker of pipeline {pipeline} crashed twice on this frame: it {_ended(returncode)}",
            remedy="Run the frame from the dead letter through the pipeline by hand to find the faulty stage.",
        )


class WorkerNotStarted(HedgerowError):
    """A worker process ended, or timed out, before it was ready."""

    code = "worker-not-started"

    def __init__(self, pipeline: str, returncode: int | None) -> None:
        super().__init__(
            f"A worker of pipeline {pipeline} {_ended(returncode)}{'' if returncode is None else ' before it was ready'}",
            remedy="See its output in the log above; `workers: 0` runs the stages in the node, where they are easier to debug.",
        )


def _ended(returncode: int | None) -> str:
    if returncode is None:
        return "could not be started"
    return f"was killed by {signal.Signals(-returncode).name}" if returncode < 0 else f"exited with status {returncode}"


class WorkerPipeline(BuiltPipeline):
    """A pipeline whose stages run in `workers` processes.

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
        super().__init__(config, name, config.pipelines[name].workers)
        self.versions = versions
        self._on_event = on_event
        task = {
            "config": config.model_dump(),
            "name": name,
            "base_dir": str(base_dir.absolute()),
            "cores": max(1, cores // self.lanes),
            "versions": [version.as_dict() for version in versions.values()],
            "warm_up": {model: list(sizes) for model, sizes in warm_up.items()},
        }
        self._workers = [Worker(task) for _ in range(self.lanes)]
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
        """See `BuiltPipeline.run`."""
        worker = self._workers[lane]
        try:
            return self._run(worker, deliveries)
        except (EOFError, OSError):
            self._restart(worker)
        settlements: list[Settlement] = []
        timings: list[tuple[str, float, int]] = []
        snapshot = None
        for position, delivery in enumerate(deliveries):
            if self.retired:  # the replacement may not crash, and each crash takes time
                return Completed(settlements, timings, snapshot, not_run=deliveries[position:])
            try:
                completed = self._run(worker, [delivery])
            except (EOFError, OSError):
                settlements.append(self.dead_letter(delivery, WorkerDied(self.name, worker.returncode)))
                self._restart(worker, Observations(frames=1, failures=1))
            else:
                settlements += completed.settlements
                timings += completed.timings
                snapshot = completed.snapshot or snapshot
        return Completed(settlements, timings, snapshot)

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

    def close(self) -> None:
        """See `BuiltPipeline.close`."""
        for worker in self._workers:
            worker.close_pipe()
        # They end by themselves, but must be waited for; not on the event loop, which that would block.
        tasks.start_thread(self._join, "end of workers")

    def _join(self) -> None:
        for worker in self._workers:
            worker.join()

    def _run(self, worker: Worker, deliveries: Sequence[Delivery]) -> Completed:
        packed, timings, last, events = worker.run(deliveries)
        for kind, detail in events:
            self._on_event(kind, detail)
        settlements = [_settlement(deliveries[position], *rest) for position, *rest in packed]
        snapshot = None
        if last is not None:
            settlement = next(each for each in settlements if each.delivery is deliveries[last])
            frame = self._maker.complete(self._bare(deliveries[last]), deliveries[last].message)
            snapshot = Snapshot(frame, (settlement.results or [])[-1])
        return Completed(settlements, [(name, seconds, count) for name, seconds, count in timings], snapshot)

    def _restart(self, worker: Worker, lost: Observations = _NOTHING) -> None:
        worker.join()
        worker.observed.crashed(lost)
        self._on_event("worker-crashed", {"pid": worker.pid, "code": worker.returncode})
        if self.retired:
            return
        try:
            worker.start()
            worker.wait_ready()
        except (HedgerowError, EOFError, OSError) as error:
            self._on_event("worker-not-restarted", {"error": str(error)})


def _settlement(delivery: Delivery, results: Any, dropped: str | None, dead: Any, reason: str) -> Settlement:
    return Settlement(
        delivery,
        results=None if results is None else [Encoded(*each) for each in results],
        dropped=dropped,
        dead=None if dead is None else Encoded(*dead),
        reason=reason,
    )
