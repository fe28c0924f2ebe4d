"""Run a stage or a whole pipeline on frames, without a broker.

The stages run in the very chain the node runs them in, on real models: what passes here behaves the same there.
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
from hedgerow.config import ModelConfig, PipelineConfig, StageEntry
from hedgerow.errors import HedgerowError
from hedgerow.frame import Array, Buffer, Frame
from hedgerow.models.serving.pool import ModelPool
from hedgerow.pipeline.chain.build import PipelineContext, build_chain
from hedgerow.pipeline.chain.chain import Chain
from hedgerow.stage import Stage

ModelLike = str | Path | Mapping[str, Any] | ModelConfig
"""A model for a test: a path, or what would stand under `models:` in a configuration."""

StageLike = str | Mapping[str, Any] | type[Stage[Any]] | Stage[Any]
"""A stage for a test: as in a configuration (`"decode"`, `{"infer": {"model": "door"}}`), a class, or an object."""


@dataclass(slots=True)
class PipelineRun:
    """What came of a run.

    Attributes:
        out: every frame that reached the end, in order.
        dropped: how many frames were dropped, by reason.
        dead: how many frames died, by the error's code.
        errors: what they died of, in order.
    """

    out: list[Frame] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)
    dead: dict[str, int] = field(default_factory=dict)
    errors: list[HedgerowError] = field(default_factory=list)

    @property
    def results(self) -> list[Any]:
        """The result of every frame that reached the end, in order."""
        return [frame.result for frame in self.out]


def frame(data: Array | Buffer | str, *, stream: str = "test/stream", sequence: int = 0, **fields: Any) -> Frame:
    """One frame: from an array (as if decoded), bytes (as received) or a text.

    Args:
        fields: anything else a Frame takes: `content_type`, `meta`, `captured_at`…
    """
    fields.setdefault("id", f"{stream}-{sequence}")
    fields.setdefault("topic", stream)
    if isinstance(data, np.ndarray):
        return Frame(array=data, stream=stream, sequence=sequence, **fields)
    payload = data.encode() if isinstance(data, str) else data
    return Frame(payload, stream=stream, sequence=sequence, **fields)


def frames(data: Iterable[Array | Buffer | str], **fields: Any) -> list[Frame]:
    """One stream of frames, numbered from 0."""
    return [frame(item, sequence=number, **fields) for number, item in enumerate(data)]


def run_stage(
    stage: type[Stage[Any]] | str | Stage[Any],
    frames: Sequence[Frame],
    *,
    models: Mapping[str, ModelLike] | None = None,
    together: bool = True,
    **config: Any,
) -> PipelineRun:
    """Run one stage on frames.

    Args:
        stage: its class, or the name of an installed one.
        models: models it may ask for, by name.
        together: give it all frames as one list; False: one list a frame.
        config: its configuration.
    Raises: HedgerowError: it cannot be made or set up.
    """
    entry: StageLike = {stage: config} if isinstance(stage, str) else stage
    if isinstance(stage, type):
        entry = plugins.configure(stage, config, stage.__name__)
    return run_pipeline([entry], frames, models=models, together=together)


def run_pipeline(
    stages: Sequence[StageLike],
    frames: Sequence[Frame],
    *,
    models: Mapping[str, ModelLike] | None = None,
    together: bool = True,
) -> PipelineRun:
    """Run a chain of stages on frames.

    Args:
        stages: as in a configuration, or stage classes, or stages.
        models: models they may ask for, by name.
        together: give them all frames as one list; False: one list a frame.
    Raises: HedgerowError: a stage cannot be made or set up.
    """
    pool = ModelPool(cores=len(os.sched_getaffinity(0)))
    configs = {name: _model(model) for name, model in (models or {}).items()}
    context = PipelineContext("test", configs, Path.cwd(), pool)
    chain = build_chain([_stage(stage) for stage in stages], context)
    try:
        return _run(chain, [list(frames)] if together else [[one] for one in frames])
    finally:
        chain.close()
        context.release()
        pool.close()


def _run(chain: Chain, lists: Iterable[Sequence[Frame]]) -> PipelineRun:
    run = PipelineRun()
    dropped: Counter[str] = Counter()
    dead: Counter[str] = Counter()
    for batch in lists:
        if not batch:
            continue
        for outcome in chain.run(batch).outcomes:
            run.out.extend(outcome.results)
            if outcome.error is not None:
                run.errors.append(outcome.error)
                dead[outcome.error.code] += 1
            elif outcome.dropped is not None:
                dropped[outcome.dropped] += 1
    run.dropped, run.dead = dict(dropped), dict(dead)
    return run


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
