"""Runs a stage or a whole pipeline on frames, without a broker.

The stages run in the same chain as in the node, with real models, so they behave the same.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hedgerow import plugins
from hedgerow.columns.frame_batch import FrameBatch
from hedgerow.config import ModelConfig, PipelineConfig, StageEntry
from hedgerow.errors import HedgerowError, is_interrupt
from hedgerow.frame import Array, Buffer, Frame
from hedgerow.models.serving.pool import ModelPool
from hedgerow.pipeline.chain.build import PipelineContext, build_chain
from hedgerow.pipeline.chain.chain import Chain
from hedgerow.pipeline.chain.live import FrameOutcome, Live
from hedgerow.stage import Stage
from hedgerow.wire.messages import reason_of

ModelLike = str | Path | Mapping[str, Any] | ModelConfig
"""A model: a path, or an entry of `models:` in a configuration."""

StageLike = str | Mapping[str, Any] | type[Stage[Any]] | Stage[Any]
"""A stage: as in a configuration (`"decode"`, `{"infer": {"model": "door"}}`), a class, or an instance."""


@dataclass(slots=True)
class PipelineRun:
    """Outcome of a run.

    Attributes:
        out: frames that reached the end, in order.
        dropped: number of dropped frames, by reason.
        dead: number of frames that failed, by error code.
        errors: their errors, in order.
        columns: number of frames that each stage processed as columns (`process_batch`), by its name; without stages that
            processed none.
    """

    out: list[Frame] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)
    dead: dict[str, int] = field(default_factory=dict)
    errors: list[HedgerowError] = field(default_factory=list)
    columns: dict[str, int] = field(default_factory=dict)

    @property
    def results(self) -> list[Any]:
        """Results of the frames that reached the end, in order."""
        return [frame.result for frame in self.out]


def frame(data: Array | Buffer | str, *, stream: str = "test/stream", sequence: int = 0, **fields: Any) -> Frame:
    """Return a frame with an array (as if decoded), or a payload from bytes or a string.

    Args:
        data: the array or payload.
        stream: name of the stream.
        sequence: number in the stream.
        fields: other arguments of `Frame`: `content_type`, `meta`, `captured_at`…
    """
    fields.setdefault("id", f"{stream}-{sequence}")
    fields.setdefault("topic", stream)
    if isinstance(data, np.ndarray):
        return Frame(array=data, stream=stream, sequence=sequence, **fields)
    payload = data.encode() if isinstance(data, str) else data
    return Frame(payload, stream=stream, sequence=sequence, **fields)


def frames(data: Iterable[Array | Buffer | str], **fields: Any) -> list[Frame]:
    """Return the frames of one stream, numbered from 0."""
    return [frame(item, sequence=number, **fields) for number, item in enumerate(data)]


def run_stage(
    stage: type[Stage[Any]] | str | Stage[Any],
    frames: Sequence[Frame],
    *,
    models: Mapping[str, ModelLike] | None = None,
    together: bool = True,
    columns: bool = False,
    **config: Any,
) -> PipelineRun:
    """Run one stage on frames.

    Args:
        stage: class, instance, or name of an installed stage.
        frames: the frames.
        models: models that it may request, by name.
        together: pass all frames as one list; False: one list per frame.
        columns: pass them as columns where a stage takes them, in lists in which no stream comes twice.
        config: configuration of the stage.
    Raises: HedgerowError: the stage cannot be created or set up.
    """
    entry: StageLike = {stage: config} if isinstance(stage, str) else stage
    if isinstance(stage, type):
        entry = plugins.configure(stage, config, stage.__name__)
    return run_pipeline([entry], frames, models=models, together=together, columns=columns)


def run_pipeline(
    stages: Sequence[StageLike],
    frames: Sequence[Frame],
    *,
    models: Mapping[str, ModelLike] | None = None,
    together: bool = True,
    columns: bool = False,
) -> PipelineRun:
    """Run a chain of stages on frames.

    Args:
        stages: entries as in a configuration, classes or instances.
        frames: the frames.
        models: models that they may request, by name.
        together: pass all frames as one list; False: one list per frame.
        columns: pass them as columns where a stage takes them, in lists in which no stream comes twice.
    Raises: HedgerowError: a stage cannot be created or set up.
    """
    pool = ModelPool(cores=len(os.sched_getaffinity(0)))
    configs = {name: _model(model) for name, model in (models or {}).items()}
    context = PipelineContext("test", configs, Path.cwd(), pool)
    chain = build_chain([_stage(stage) for stage in stages], context)
    try:
        lists = [[one] for one in frames] if not together else rounds(frames) if columns else [list(frames)]
        return _run(chain, lists, columns)
    finally:
        chain.close()
        context.release()
        pool.close()


def rounds(frames: Iterable[Frame]) -> list[list[Frame]]:
    """Divide frames into lists in which no stream comes twice, in order."""
    lists: list[list[Frame]] = []
    seen: set[str] = set()
    for each in frames:
        if not lists or each.stream in seen:
            lists.append([])
            seen.clear()
        lists[-1].append(each)
        seen.add(each.stream)
    return lists


def _run(chain: Chain, lists: Iterable[Sequence[Frame]], columns: bool) -> PipelineRun:
    run = PipelineRun()
    dropped: Counter[str] = Counter()
    dead: Counter[str] = Counter()
    for batch in lists:
        if not batch:
            continue
        outcomes = column_outcomes_of(chain, batch, run.columns) if columns else outcomes_of(chain, batch)
        for outcome in outcomes:
            run.out.extend(outcome.results)
            if outcome.error is not None:
                run.errors.append(outcome.error)
                dead[reason_of(outcome.error)] += 1
            elif outcome.dropped is not None:
                dropped[outcome.dropped] += 1
    run.dropped, run.dead = dict(dropped), dict(dead)
    return run


def outcomes_of(chain: Chain, frames: Sequence[Frame]) -> list[FrameOutcome]:
    """Run a list of frames through a chain.

    Raises: KeyboardInterrupt: Ctrl-C, which a chain takes for an error of the stage that it interrupts.
    """
    return _uninterrupted(chain.run(frames).outcomes)


def column_outcomes_of(chain: Chain, frames: Sequence[Frame], columns: dict[str, int]) -> list[FrameOutcome]:
    """Run a list of frames through a chain as columns, as far as its stages take them.

    Args:
        columns: gets the number of frames that each stage processed as columns added.
    Raises: KeyboardInterrupt: as `outcomes_of`.
    """
    every, batch = range(len(frames)), FrameBatch.of(frames)
    run = chain.run_columns(Live(None, (), frames, every) if batch is None else Live(batch, every, (), ()))
    for stage, count in run.columns:
        columns[stage] = columns.get(stage, 0) + count
    outcomes = dict(run.outcomes)
    for row, position in enumerate(run.rows):
        assert run.batch is not None  # noqa: S101 - it has rows
        outcomes[position] = FrameOutcome([run.batch.frame(row)])
    return _uninterrupted([outcomes[position] for position in range(len(frames))])


def _uninterrupted(outcomes: list[FrameOutcome]) -> list[FrameOutcome]:
    for outcome in outcomes:
        if outcome.error is not None and is_interrupt(outcome.error.__cause__):
            raise KeyboardInterrupt from outcome.error
    return outcomes


def _model(model: ModelLike) -> ModelConfig:
    if isinstance(model, ModelConfig):
        return model
    if isinstance(model, Mapping):
        return ModelConfig.model_validate(dict(model))
    return ModelConfig(path=str(model))


def _stage(stage: StageLike) -> StageEntry | tuple[str, Stage[Any]]:
    if isinstance(stage, Stage):
        return type(stage).__name__, stage
    if isinstance(stage, type):
        return stage.__name__, plugins.configure(stage, {}, stage.__name__)
    return PipelineConfig.model_validate({"subscribe": "test", "stages": [stage]}).stages[0]
