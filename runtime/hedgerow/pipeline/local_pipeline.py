"""A pipeline whose stages run in this process."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import structlog

from hedgerow.columns.frame_batch import FrameBatch
from hedgerow.config import NodeConfig
from hedgerow.errors import FrameError, HedgerowError
from hedgerow.frame import Frame
from hedgerow.models.serving.engine import Engine
from hedgerow.models.serving.pool import ModelPool
from hedgerow.models.serving.served_model import ServedModel
from hedgerow.models.serving.slot import Pins
from hedgerow.pipeline.built_pipeline import BuiltPipeline, Completed, Snapshot, make_encoder
from hedgerow.pipeline.chain.build import PipelineContext, build_chain
from hedgerow.pipeline.chain.chain import ColumnRun, EventSink
from hedgerow.pipeline.chain.live import FrameOutcome, Live
from hedgerow.pipeline.chain.progress import StageCall, this_thread
from hedgerow.pipeline.chain.specs import RECEIVED, unused_setting
from hedgerow.pipeline.chain.stage_failure import log_failure
from hedgerow.pipeline.delivery import BatchSettlement, Delivery, Settlement
from hedgerow.pipeline.frame_maker import MadeFrames
from hedgerow.pipeline.result_encoder import Encoded, ResultEncoder

log = structlog.get_logger(__name__)

_ENCODERS: Final = 8
FEWEST_ROWS: Final = 4
"""Shorter lists run as frames: an array operation on one row takes longer than the same on its value."""
_FEWEST_ROWS_OF_ROUNDS: Final = 8
"""On average; a list with many frames of few streams takes less time at once, as frames."""


class LocalPipeline(BuiltPipeline):
    """A pipeline whose stages run in this process.

    Args:
        config: the node's configuration.
        name: name of the pipeline.
        base_dir: folder that relative paths start from.
        pool: holds the models.
        cores: number of cores the node may use.
        on_event: called with events for operators.
    Raises: HedgerowError: a stage or model is missing or broken.
    """

    def __init__(
        self, config: NodeConfig, name: str, base_dir: Path, pool: ModelPool, cores: int, on_event: EventSink
    ) -> None:
        lanes = config.pipelines[name].lanes
        super().__init__(config, name, cores if lanes is None else lanes)
        self._context = PipelineContext(name, config.models, base_dir, pool, self.config.folder)
        self._maker.on_event = on_event
        self._chain = build_chain(self.config.stages, self._context, on_event, partial(log_failure, name), RECEIVED)
        if (unused := unused_setting(self.config, self._chain.steps)) is not None:
            log.warning("unused-setting", pipeline=name, error=str(unused[1]), remedy=unused[1].remedy)
        limits = [step.stage.max_list for step in self._chain.steps]
        self.batch = min([self.batch, *(limit for limit in limits if limit is not None)])
        self._slots = tuple(dict.fromkeys(self._context.slots))
        if not self.lanes:
            for slot in self._slots:
                slot.never_waits = True
        self._make_encoder = partial(make_encoder, config, name)
        self.encoder = self._make_encoder(self.models())
        self._encoders: dict[tuple[Engine, ...], ResultEncoder] = {}

    def run(self, deliveries: Sequence[Delivery], lane: int) -> Completed:
        """See `BuiltPipeline.run`. The list pins the model versions that serve when it starts."""
        for slot in self._slots:
            if slot.on_trial is not None:
                return self._run_split(deliveries)
        with Pins(self._slots) as engines:
            return self._run_rounds(deliveries, engines)

    def _run_split(self, deliveries: Sequence[Delivery]) -> Completed:
        """Run a list in groups, one for each combination of model versions that its streams are assigned to."""
        splits = [slot.on_trial for slot in self._slots]  # read once: a split may end meanwhile
        groups: dict[tuple[bool, ...], list[Delivery]] = {}
        for delivery in deliveries:
            chosen = tuple([split is not None and split.takes(delivery.stream) for split in splits])
            groups.setdefault(chosen, []).append(delivery)
        parts: list[Completed] = []
        for chosen, group in groups.items():
            with Pins(self._slots, chosen) as engines:
                parts.append(self._run_rounds(group, engines))
        return Completed.all(parts)

    def _run_rounds(self, deliveries: Sequence[Delivery], engines: tuple[Engine, ...]) -> Completed:
        """Run a list; if it has several frames of streams, in rounds that can be columns, unless these would be short."""
        if self._chain.first_columnar is not None and len(deliveries) >= FEWEST_ROWS:
            rounds = _rounds(deliveries)
            if 1 < len(rounds) <= len(deliveries) / _FEWEST_ROWS_OF_ROUNDS:
                return Completed.all([self._run(each, engines) for each in rounds])
        return self._run(deliveries, engines)

    def _encoder_for(self, engines: tuple[Engine, ...]) -> ResultEncoder:
        """Return the encoder whose lineage names these versions."""
        encoder = self._encoders.get(engines)
        if encoder is None:
            if len(self._encoders) >= _ENCODERS:  # drop encoders of versions that no longer serve
                self._encoders.clear()
            encoder = self._encoders[engines] = self._make_encoder([engine.info() for engine in engines])
        return encoder

    def _run(self, deliveries: Sequence[Delivery], engines: tuple[Engine, ...]) -> Completed:
        maker, encoder = self._maker, self._encoder_for(engines)
        wall, monotonic = time.time(), time.monotonic()
        maker.clock.check(wall, monotonic)
        columns = self._chain.first_columnar is not None and len(deliveries) >= FEWEST_ROWS
        made = maker.frames(deliveries, wall - monotonic, columns=columns and self._chain.first_columnar == 0)
        run = self._run_chain(made, columns)
        lineage = encoder.lineage(run.timings)
        if maker.clock.doubtful:
            lineage["clock"] = "doubtful"
        if (progress := this_thread.progress) is not None:
            progress.enter(len(self.step_names) - 1, len(deliveries))  # a result may be any object, and take any time
        settling = _Settling(deliveries, made, self._dead_letter, encoder, lineage)
        settling.settle_frames(run.outcomes)
        if run.batch is not None:
            settling.settle_rows(run.batch, run.rows)
        if progress is not None:
            progress.leave()
        return settling.completed(run)

    def _run_chain(self, made: MadeFrames, columns: bool) -> ColumnRun:
        if columns:
            return self._chain.run_columns(Live(made.batch, made.rows, made.frames, made.owners))
        run = self._chain.run(made.frames)
        return ColumnRun(None, (), dict(zip(made.owners, run.outcomes, strict=True)), run.timings)

    @property
    def stateful(self) -> list[str]:
        """Names of the stages that keep state by stream."""
        return self._context.stateful

    def forget(self, stream: str) -> None:
        """See `BuiltPipeline.forget`."""
        self._context.forget(stream)

    def models(self) -> list[ServedModel]:
        """See `BuiltPipeline.models`."""
        return [slot.info() for slot in self._slots]

    def failing(self) -> list[str]:
        """See `BuiltPipeline.failing`."""
        return [step.name for step in self._chain.steps if step.circuit.is_open]

    def end_hung(self, lane: int, call: StageCall) -> None:
        """See `BuiltPipeline.end_hung`: a thread cannot be ended, so `/healthz` fails instead."""

    def end_stopped(self, lane: int) -> None:
        """See `BuiltPipeline.end_stopped`: a thread cannot be ended."""

    def supervise(self) -> None:
        """See `BuiltPipeline.supervise`: there are no workers."""

    def close(self) -> None:
        """See `BuiltPipeline.close`."""
        self._chain.close()
        self._context.release()


class _Settling:
    """Encodes the results of a list that has run.

    Args:
        deliveries: the list.
        made: its frames.
        dead_letter: makes the settlement of a frame with an error; see `BuiltPipeline._dead_letter`.
        encoder: encodes results, whose lineage is `lineage`.
    """

    def __init__(
        self,
        deliveries: Sequence[Delivery],
        made: MadeFrames,
        dead_letter: Callable[[Delivery, Frame, HedgerowError, str], Settlement],
        encoder: ResultEncoder,
        lineage: Mapping[str, Any],
    ) -> None:
        self._deliveries = deliveries
        self._made = made
        self._dead_letter = dead_letter
        self._encoder = encoder
        self._lineage = lineage
        self._at = time.time()
        self._single = [dead_letter(deliveries[at], frame, error, "") for at, frame, error in made.failed]
        self._batches: list[BatchSettlement] = []
        self._last = (-1, Encoded(b"", b"", ""))  # position and encoding of the last result

    def settle_frames(self, outcomes: Mapping[int, FrameOutcome]) -> None:
        """Settle frames by their outcomes, by position in the list."""
        for position in sorted(outcomes):
            delivery, outcome = self._deliveries[position], outcomes[position]
            if outcome.error is not None:
                self._bury(position, outcome.error, outcome.stage)
            elif outcome.results:
                try:
                    encoded = self._encoder.results(outcome.results, self._lineage, _waited_s(delivery), self._at)
                except FrameError as error:
                    self._bury(position, error, "publish")
                else:
                    self._single.append(Settlement(delivery, results=encoded))
                    self._last = (position, encoded[-1])
            else:
                self._single.append(Settlement(delivery, dropped=outcome.dropped))

    def settle_rows(self, batch: FrameBatch, rows: Sequence[int]) -> None:
        """Settle rows, by position in the list, that gave a result each."""
        deliveries = [self._deliveries[position] for position in rows]
        results = self._encoder.batch(batch, self._lineage, [*map(_waited_s, deliveries)], self._at)
        if set(map(type, results)) != {Encoded}:
            for position, result in zip(rows, results, strict=True):
                if isinstance(result, FrameError):
                    self._bury(position, result, "publish")
            good = [row for row, result in enumerate(results) if isinstance(result, Encoded)]
            rows, deliveries = [rows[row] for row in good], [deliveries[row] for row in good]
        encoded = [result for result in results if isinstance(result, Encoded)]
        if encoded:
            self._batches.append(BatchSettlement(deliveries, encoded))
            if rows[-1] > self._last[0]:
                self._last = (rows[-1], encoded[-1])

    def completed(self, run: ColumnRun) -> Completed:
        """Return the settlements of all, once all are settled."""
        position, result = self._last
        snapshot = Snapshot(self._made.frame(position), result) if position >= 0 else None
        return Completed([*self._batches, self._single], run.timings, snapshot, columns=run.columns)

    def _bury(self, position: int, error: HedgerowError, stage: str) -> None:
        self._single.append(self._dead_letter(self._deliveries[position], self._made.frame(position), error, stage))


def _rounds(deliveries: Sequence[Delivery]) -> list[list[Delivery]]:
    """Return deliveries in rounds: round r has the r-th of every stream."""
    rounds: list[list[Delivery]] = []
    seen: dict[str, int] = {}
    for delivery in deliveries:
        number = seen[delivery.stream] = seen.get(delivery.stream, -1) + 1
        if number == len(rounds):
            rounds.append([])
        rounds[number].append(delivery)
    return rounds


def _waited_s(delivery: Delivery) -> float:
    return delivery.dispatched_at - delivery.message.received_at
