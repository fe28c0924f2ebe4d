"""Base of built pipelines: a pipeline with its stages set up and its models loaded; a reload replaces it as a whole."""

from __future__ import annotations

import hashlib
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from hedgerow import tasks
from hedgerow.config import NodeConfig
from hedgerow.errors import HedgerowError
from hedgerow.frame import Frame
from hedgerow.models.serving.served_model import ServedModel
from hedgerow.pipeline.chain.progress import StageCall
from hedgerow.pipeline.crash_journal import MOST_FRAMES, CrashJournal
from hedgerow.pipeline.delivery import BatchSettlement, Delivery, Settlement
from hedgerow.pipeline.frame_maker import FrameMaker
from hedgerow.pipeline.result_encoder import Encoded, ResultEncoder
from hedgerow.wire.messages import reason_of

REPLACED: Final = "replaced"
"""A worker ended as planned: it had run its number of frames, or had more memory than it may."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A frame and the last of its results."""

    frame: Frame
    result: Encoded


@dataclass(frozen=True, slots=True)
class Completed:
    """Outcome of running a list.

    Attributes:
        groups: how its deliveries end, one list or batch after the other; those of one stream are in order.
        timings: (stage, seconds for the whole list, number of frames), in order.
        snapshot: the last frame that gave a result, if any.
        not_run: deliveries at the end of the list that did not run, because a worker crashed and this pipeline has been
            replaced; the replacement must run them.
        columns: (stage, number of frames that it processed as columns).
    """

    groups: Sequence[Sequence[Settlement] | BatchSettlement]
    timings: list[tuple[str, float, int]]
    snapshot: Snapshot | None = None
    not_run: Sequence[Delivery] = ()
    columns: Sequence[tuple[str, int]] = ()

    @property
    def settlements(self) -> list[Settlement]:
        """One settlement per delivery that ran; those of one stream are in order."""
        return [
            each for group in self.groups for each in (group.each() if isinstance(group, BatchSettlement) else group)
        ]

    @classmethod
    def all(cls, parts: Sequence[Completed], not_run: Sequence[Delivery] = ()) -> Completed:
        """Return the outcome of a list that ran in parts, one after the other."""
        return cls(
            [group for part in parts for group in part.groups],
            [timing for part in parts for timing in part.timings],
            next((part.snapshot for part in reversed(parts) if part.snapshot is not None), None),
            not_run,
            [columns for part in parts for columns in part.columns],
        )


@dataclass(frozen=True, slots=True)
class WorkersReport:
    """How the worker processes of a pipeline are.

    Attributes:
        memory_bytes: resident memory of each.
        ended: how many had to be replaced, by reason.
    """

    memory_bytes: Sequence[int] = ()
    ended: Counter[str] = field(default_factory=Counter)


class BuiltPipeline(ABC):
    """A pipeline that is ready to run.

    Attributes:
        name: name of the pipeline.
        config: the configuration it was built from.
        digest: digest of that configuration, for lineage.
        encoder: encodes its results and dead letters.
        lanes: number of lists that may run at the same time; 0: lists run on the event loop.
        first_lanes: number of lanes to begin with, before others are tried; None: all.
        pinned: whether each stream must stay in one lane.
        running: number of lists running now.
        retired: whether another built pipeline has replaced it.
        journal: remembers which frames were in a lane when the process died.
        isolated: why it runs in a worker although it is not configured to; empty: it does not.
        batch: most frames in one list.
        step_names: names of its stages, and "publish", where results are encoded.
        timeouts_s: how long each of these may take for one frame.
    """

    encoder: ResultEncoder
    first_lanes: int | None = None
    pinned = False

    def __init__(self, config: NodeConfig, name: str, lanes: int) -> None:
        self.name = name
        self.config = config.pipelines[name]
        self.digest = pipeline_digest(config, name)
        self.lanes = lanes
        self.running = 0
        self.retired = False
        self.journal = CrashJournal()
        self.isolated = ""
        self.batch = min(self.config.batch, MOST_FRAMES)
        self.step_names = (*(stage.name for stage in self.config.stages), "publish")
        default_s = self.config.stage_timeout_s
        self.timeouts_s = (*(stage.timeout_s or default_s for stage in self.config.stages), default_s)
        self._closing: threading.Thread | None = None
        self._maker = FrameMaker(self.config)

    @abstractmethod
    def run(self, deliveries: Sequence[Delivery], lane: int) -> Completed:
        """Run a list through the stages and encode the results. For any thread; never raises."""

    @abstractmethod
    def forget(self, stream: str) -> None:
        """Discard the state that the stages keep for a stream."""

    @abstractmethod
    def models(self) -> list[ServedModel]:
        """Return the models it runs, with their current counters."""

    @abstractmethod
    def failing(self) -> list[str]:
        """Return the stages whose circuit breaker is open."""

    @abstractmethod
    def close(self) -> None:
        """Close the stages and release the models."""

    def dead_letter(self, delivery: Delivery, error: HedgerowError, stage: str = "") -> Settlement:
        """Return a dead-letter settlement for a delivery whose frame does not exist in this process.

        Args:
            stage: the stage it failed in; "" if outside the stages.
        """
        return self._dead_letter(delivery, self._bare(delivery), error, stage)

    def stage_call(self, lane: int) -> StageCall | None:
        """Return the call in progress in another process that runs the list of a lane; None: the lane runs it itself."""
        return None

    @abstractmethod
    def end_hung(self, lane: int, call: StageCall) -> None:
        """End the list of a lane whose stage hangs in this call, if that is possible; called until it has ended."""

    @abstractmethod
    def end_stopped(self, lane: int) -> None:
        """End the list of a lane that is still running although its pipeline has stopped, if that is possible."""

    @abstractmethod
    def supervise(self) -> None:
        """Look after the worker processes, twice a second."""

    def workers(self) -> WorkersReport:
        """Return how the worker processes are."""
        return WorkersReport()

    def retire(self) -> None:
        """Close it once no list is running; in a thread, since a plugin's `close` may be slow."""
        self.retired = True
        if self.running == 0 and self._closing is None:
            self._closing = tasks.start_thread(self.close, "close of a pipeline")

    def wait_closed(self, timeout_s: float) -> bool:
        """Wait until it is closed, after `retire`; return whether it is."""
        if self._closing is not None:
            self._closing.join(timeout_s)
        return self._closing is not None and not self._closing.is_alive()

    def _bare(self, delivery: Delivery) -> Frame:
        return self._maker.bare(delivery, time.time() - time.monotonic())

    def _dead_letter(self, delivery: Delivery, frame: Frame, error: HedgerowError, stage: str) -> Settlement:
        oversized = delivery.message.oversized
        try:
            # A stage may have changed its frame.
            told = frame if frame.stream == delivery.stream else self._bare(delivery)
            letter = self.encoder.dead(told, error, stage, oversized)
        except BaseException:  # noqa: BLE001 - likewise: any object may be in it
            letter = self.encoder.dead(self._bare(delivery), error, stage, oversized)
        return Settlement(delivery, dead=letter, reason=reason_of(error))


def pipeline_digest(config: NodeConfig, name: str) -> str:
    """Return a digest of a pipeline's configuration and of all configured models, as 12 hex digits."""
    models = "".join(f"{key}={model.model_dump_json()}" for key, model in sorted(config.models.items()))
    text = config.pipelines[name].model_dump_json() + models
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def make_encoder(config: NodeConfig, name: str, models: Iterable[ServedModel]) -> ResultEncoder:
    """Return an encoder for a pipeline's results, which name these models as their lineage."""
    lineage = [model.as_lineage() for model in models]
    pipeline = config.pipelines[name]
    return ResultEncoder(
        config.node.address,
        name,
        pipeline.publish,
        pipeline_digest(config, name),
        lineage,
        dead_payload=pipeline.dead_letters_have_payload,
    )
