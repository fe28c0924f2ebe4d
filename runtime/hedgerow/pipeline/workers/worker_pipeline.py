"""Stages in processes of their own, for pipelines that are bound by Python: `workers: N`.

The node keeps what makes delivery safe: links, queue, counts, acknowledgements, order. A worker gets lists of frames and
gives back what is to be published, over a pipe. So a worker may crash: it is started anew, and the list it had is run
again, a frame at a time; the frame that brings it down again is dead-lettered.

    node: lane (a thread) ──list──▶ pipe ──▶ worker: LocalPipeline.run ──settlements──▶ pipe ──▶ lane

Rules:
- A stream always goes to the same worker, which has its state. What a crashed worker knew of its streams is lost.
- Workers run the versions of models that they were started with, also one that is started anew; for another version
  there are other workers. What a model does is watched where it runs, and told with each list.
- What crosses the pipe is MessagePack; nothing is pickled.
- A worker ends when its pipe does, so none outlives its node.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import structlog

from hedgerow.config import NodeConfig
from hedgerow.errors import HedgerowError
from hedgerow.models.bundle.version import ModelVersion
from hedgerow.models.monitor.observations import Observations
from hedgerow.models.serving.served_model import ServedModel
from hedgerow.pipeline.built_pipeline import BuiltPipeline, Completed, Snapshot, make_encoder
from hedgerow.pipeline.chain.chain import EventSink
from hedgerow.pipeline.delivery import Delivery, Settlement
from hedgerow.pipeline.result_encoder import Encoded
from hedgerow.pipeline.workers.worker import WatchedModel, Worker

log = structlog.get_logger(__name__)

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


class WorkerPipeline(BuiltPipeline):
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
        """See `BuiltPipeline.forget`."""
        for worker in self._workers:  # one of them knows it
            worker.forgotten.append(stream)

    def models(self) -> list[ServedModel]:
        """See `BuiltPipeline.models`; counts are those of all workers."""
        merged: dict[str, ServedModel] = {}
        for worker in self._workers:
            for info in worker.models:
                other = merged.get(info.name)
                merged[info.name] = info if other is None else info + other
        return list(merged.values())

    def observe(self, model: str | None) -> None:
        """Have a model watched, from the next lists on; None: none. One that is watched already goes on being."""
        for worker in self._workers:
            if worker.watched.model != model:
                worker.watched = WatchedModel(model)

    def observations(self) -> Observations:
        """That of the model that is watched, in all workers."""
        return sum((worker.watched.conduct for worker in self._workers), Observations())

    def failing(self) -> list[str]:
        """See `BuiltPipeline.failing`."""
        return sorted({stage for worker in self._workers for stage in worker.failing})

    def close(self) -> None:
        """See `BuiltPipeline.close`."""
        for worker in self._workers:
            worker.hang_up()
        # They end by themselves; somebody must see them off, but not the event loop.
        threading.Thread(target=self._see_off, daemon=True).start()

    def _see_off(self) -> None:
        for worker in self._workers:
            worker.join()

    def _run(self, worker: Worker, deliveries: Sequence[Delivery]) -> Completed:
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

    def _revive(self, worker: Worker, lost: Observations = _NOTHING) -> None:
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


def _settlement(delivery: Delivery, results: Any, dropped: str | None, dead: Any, reason: str) -> Settlement:
    return Settlement(
        delivery,
        results=None if results is None else [Encoded(*each) for each in results],
        dropped=dropped,
        dead=None if dead is None else Encoded(*dead),
        reason=reason,
    )
