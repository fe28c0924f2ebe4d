"""A pipeline as configured and built: what runs a list of frames, and what a reload replaces as one."""

from __future__ import annotations

import hashlib
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from hedgerow.config import NodeConfig
from hedgerow.errors import FrameError, HedgerowError
from hedgerow.frame import Frame
from hedgerow.models.serving.engine import Engine, SlotInfo
from hedgerow.models.serving.pool import ModelPool
from hedgerow.models.serving.slot import Pins
from hedgerow.pipeline.build import PipelineContext, build_chain
from hedgerow.pipeline.chain import EventSink
from hedgerow.pipeline.delivery import Delivery, FrameMaker, Settlement
from hedgerow.pipeline.results import Encoded, ResultEncoder

_ENCODERS: Final = 8


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A frame that gave a result, and that result."""

    frame: Frame
    result: Encoded


@dataclass(frozen=True, slots=True)
class Completed:
    """A list that has run.

    Attributes:
        settlements: what is to be done about each delivery; those of one stream in order.
        timings: (stage, seconds for the whole list, frames it saw), in order.
        snapshot: the last frame that gave a result, if any did.
        left: deliveries at the list's end that did not run: it went badly, and another plan, which has taken this one's place,
            is to run them.
    """

    settlements: list[Settlement]
    timings: list[tuple[str, float, int]]
    snapshot: Snapshot | None = None
    left: Sequence[Delivery] = ()


class Plan(ABC):
    """A pipeline, ready to run.

    Attributes:
        name: of the pipeline.
        config: what it was built from.
        digest: of that configuration, for lineage.
        encoder: encodes its results and dead letters.
        lanes: lists that may run at the same time; 0: they run on the event loop.
        pinned: whether a stream must always go to the same lane.
        running: lists that run now.
        retired: whether another plan has taken its place.
    """

    encoder: ResultEncoder
    pinned = False

    def __init__(self, config: NodeConfig, name: str, lanes: int) -> None:
        self.name = name
        self.config = config.pipelines[name]
        self.digest = pipeline_digest(config, name)
        self.lanes = lanes
        self.running = 0
        self.retired = False
        self._closing: threading.Thread | None = None
        self._maker = FrameMaker(self.config)

    @abstractmethod
    def run(self, deliveries: Sequence[Delivery], lane: int) -> Completed:
        """Take a list through the stages and encode what comes out. For any thread; never raises."""

    @abstractmethod
    def forget(self, stream: str) -> None:
        """Forget what the stages keep about a stream."""

    @abstractmethod
    def models(self) -> list[SlotInfo]:
        """The models it runs, as they are now."""

    @abstractmethod
    def failing(self) -> list[str]:
        """Stages that keep failing and are not called for now."""

    @abstractmethod
    def close(self) -> None:
        """Let go of stages and models."""

    def bury(self, delivery: Delivery, error: HedgerowError) -> Settlement:
        """The dead letter of a delivery that never went through the stages, or came back from them."""
        return self._dead(delivery, self._bare(delivery), error, "")

    def retire(self) -> None:
        """Close it once no list runs through it any more: in a thread, since an author's `close` may take its time."""
        self.retired = True
        if self.running == 0 and self._closing is None:
            self._closing = threading.Thread(target=self.close, name=f"{self.name}-close", daemon=True)
            self._closing.start()

    def wait_closed(self, timeout_s: float) -> bool:
        """Wait until it is closed, after `retire`. Returns: whether it is."""
        if self._closing is not None:
            self._closing.join(timeout_s)
        return self._closing is not None and not self._closing.is_alive()

    def _bare(self, delivery: Delivery) -> Frame:
        return self._maker.bare(delivery, time.time() - time.monotonic())

    def _dead(self, delivery: Delivery, frame: Frame, error: HedgerowError, stage: str) -> Settlement:
        letter = self.encoder.dead(frame, error, stage, delivery.message.oversized)
        return Settlement(delivery, dead=letter, reason=error.code)


class LocalPlan(Plan):
    """A pipeline whose stages run in this process.

    Args:
        config: the whole configuration.
        name: which of its pipelines.
        base_dir: folder that relative paths start at.
        pool: where models are.
        cores: cores the node owns.
        on_event: takes what operators should know.
    Raises: HedgerowError: a stage or a model is missing or broken.
    """

    def __init__(
        self, config: NodeConfig, name: str, base_dir: Path, pool: ModelPool, cores: int, on_event: EventSink
    ) -> None:
        lanes = config.pipelines[name].lanes
        super().__init__(config, name, cores if lanes is None else lanes)
        self._context = PipelineContext(name, config.models, base_dir, pool)
        self._chain = build_chain(self.config.stages, self._context, on_event)
        self._slots = tuple(dict.fromkeys(self._context.slots))
        if not self.lanes:
            for slot in self._slots:
                slot.never_waits = True
        self._make_encoder = partial(make_encoder, config, name)
        self.encoder = self._make_encoder(self.models())
        self._encoders: dict[tuple[Engine, ...], ResultEncoder] = {}

    def run(self, deliveries: Sequence[Delivery], lane: int) -> Completed:
        """See `Plan.run`. The list pins the versions of its models that serve when it begins."""
        for slot in self._slots:
            if slot.on_trial is not None:
                return self._run_divided(deliveries)
        with Pins(self._slots) as engines:
            return self._run(deliveries, engines)

    def _run_divided(self, deliveries: Sequence[Delivery]) -> Completed:
        """Run a list as several: one for each choice of versions that serves some of its streams."""
        splits = [slot.on_trial for slot in self._slots]  # looked at once: one may end meanwhile
        groups: dict[tuple[bool, ...], list[Delivery]] = {}
        for delivery in deliveries:
            chosen = tuple([split is not None and split.takes(delivery.stream) for split in splits])
            groups.setdefault(chosen, []).append(delivery)
        settlements: list[Settlement] = []
        timings: list[tuple[str, float, int]] = []
        snapshot = None
        for chosen, group in groups.items():
            with Pins(self._slots, chosen) as engines:
                completed = self._run(group, engines)
            settlements += completed.settlements
            timings += completed.timings
            snapshot = completed.snapshot or snapshot
        return Completed(settlements, timings, snapshot)

    def _encoder_for(self, engines: tuple[Engine, ...]) -> ResultEncoder:
        """The encoder whose results name these versions."""
        encoder = self._encoders.get(engines)
        if encoder is None:
            if len(self._encoders) >= _ENCODERS:  # versions that served once are not worth their memory
                self._encoders.clear()
            encoder = self._encoders[engines] = self._make_encoder([engine.info() for engine in engines])
        return encoder

    def _run(self, deliveries: Sequence[Delivery], engines: tuple[Engine, ...]) -> Completed:
        maker, encoder = self._maker, self._encoder_for(engines)
        wall, monotonic = time.time(), time.monotonic()
        maker.clock.look(wall, monotonic)
        clock_offset_s = wall - monotonic
        settlements: list[Settlement] = []
        frames: list[Frame] = []
        owners: list[Delivery] = []
        for delivery in deliveries:
            frame = maker.bare(delivery, clock_offset_s)
            try:
                frames.append(maker.complete(frame, delivery.message))
                owners.append(delivery)
            except FrameError as error:
                settlements.append(self._dead(delivery, frame, error, ""))
        run = self._chain.run(frames)
        lineage = encoder.lineage(run.timings)
        if maker.clock.doubtful:
            lineage["clock"] = "doubtful"
        at = time.time()
        snapshot = None
        for delivery, frame, fate in zip(owners, frames, run.fates, strict=True):
            if fate.error is not None:
                settlements.append(self._dead(delivery, frame, fate.error, fate.stage))
            elif fate.results:
                waited_s = delivery.dispatched_at - delivery.message.received_at
                try:
                    encoded = encoder.results(fate.results, lineage, waited_s, at)
                except FrameError as error:
                    settlements.append(self._dead(delivery, frame, error, "publish"))
                else:
                    settlements.append(Settlement(delivery, results=encoded))
                    snapshot = (frame, encoded[-1])
            else:
                settlements.append(Settlement(delivery, dropped=fate.dropped))
        return Completed(settlements, run.timings, Snapshot(*snapshot) if snapshot is not None else None)

    def forget(self, stream: str) -> None:
        """See `Plan.forget`."""
        self._context.forget(stream)

    def models(self) -> list[SlotInfo]:
        """See `Plan.models`."""
        return [slot.info() for slot in self._slots]

    def failing(self) -> list[str]:
        """See `Plan.failing`."""
        return [step.name for step in self._chain.steps if step.circuit.is_open]

    def close(self) -> None:
        """See `Plan.close`."""
        self._chain.close()
        self._context.release()


def pipeline_digest(config: NodeConfig, name: str) -> str:
    """What identifies a pipeline's configuration: it and the models it may name, as 12 hex digits."""
    models = "".join(f"{key}={model.model_dump_json()}" for key, model in sorted(config.models.items()))
    text = config.pipelines[name].model_dump_json() + models
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def make_encoder(config: NodeConfig, name: str, models: Iterable[SlotInfo]) -> ResultEncoder:
    """The encoder of a pipeline's results, which name the models that made them."""
    lineage = []
    for info in models:
        said = {key: getattr(info, key) for key in ("name", "digest", "backend", "device")}
        lineage.append(said if info.version is None else {**said, "version": info.version})
    publish = config.pipelines[name].publish
    return ResultEncoder(config.node.address, name, publish, pipeline_digest(config, name), lineage)
