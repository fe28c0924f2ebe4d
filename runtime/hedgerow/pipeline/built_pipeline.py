"""A pipeline as configured and built: what runs a list of frames, and what a reload replaces as one."""

from __future__ import annotations

import hashlib
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hedgerow.config import NodeConfig
from hedgerow.errors import HedgerowError
from hedgerow.frame import Frame
from hedgerow.models.serving.served_model import ServedModel
from hedgerow.pipeline.delivery import Delivery, Settlement
from hedgerow.pipeline.frame_maker import FrameMaker
from hedgerow.pipeline.result_encoder import Encoded, ResultEncoder


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
        left: deliveries at the list's end that did not run: it went badly, and another pipeline, which has replaced this one,
            is to run them.
    """

    settlements: list[Settlement]
    timings: list[tuple[str, float, int]]
    snapshot: Snapshot | None = None
    left: Sequence[Delivery] = ()


class BuiltPipeline(ABC):
    """A pipeline, ready to run.

    Attributes:
        name: of the pipeline.
        config: what it was built from.
        digest: of that configuration, for lineage.
        encoder: encodes its results and dead letters.
        lanes: lists that may run at the same time; 0: they run on the event loop.
        pinned: whether a stream must always go to the same lane.
        running: lists that run now.
        retired: whether another built pipeline has taken its place.
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
    def models(self) -> list[ServedModel]:
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


def pipeline_digest(config: NodeConfig, name: str) -> str:
    """What identifies a pipeline's configuration: it and the models it may name, as 12 hex digits."""
    models = "".join(f"{key}={model.model_dump_json()}" for key, model in sorted(config.models.items()))
    text = config.pipelines[name].model_dump_json() + models
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def make_encoder(config: NodeConfig, name: str, models: Iterable[ServedModel]) -> ResultEncoder:
    """The encoder of a pipeline's results, which name the models that made them."""
    lineage = [model.as_lineage() for model in models]
    publish = config.pipelines[name].publish
    return ResultEncoder(config.node.address, name, publish, pipeline_digest(config, name), lineage)
