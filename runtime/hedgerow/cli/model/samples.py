"""Records samples for a model: runs a pipeline's stages on real frames and keeps their requests to the model."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hedgerow.errors import ConfigError
from hedgerow.models.session.batching import parts

if TYPE_CHECKING:
    from hedgerow.config import ModelConfig, NodeConfig, StageEntry
    from hedgerow.frame import Array, Frame
    from hedgerow.models.build.evidence import Progress


def record(
    config: NodeConfig,
    base_dir: Path,
    name: str,
    pipeline: str | None,
    sources: Sequence[Path],
    path: Path,
    model: ModelConfig,
    limit: int,
    progress: Progress | None = None,
) -> list[Mapping[str, Array]]:
    """Return the requests that a pipeline's stages send to a model for frames read as by `hedgerow publish`.

    Args:
        config: the node's configuration.
        base_dir: the folder its paths are relative to.
        name: the model's name in it.
        pipeline: the pipeline's name; None: the first that uses the model.
        sources: files and folders of frames.
        path, model: the model's file, and how to run it.
        limit: the most requests to return.
    Raises:
        ConfigError: no pipeline uses the model, or a source cannot be read.
        HedgerowError: a stage cannot be set up.
    """
    from hedgerow.backends.cores import cores
    from hedgerow.models.serving.pool import ModelPool
    from hedgerow.pipeline.chain.build import PipelineContext, build_chain

    pipeline_name, stages = _stages(config, name, pipeline)
    recorded: list[Mapping[str, Array]] = []

    class Context(PipelineContext):
        """Provides the model to build instead of the configured one, and records its requests."""

        def model(self, requested: str) -> Any:
            handle = super().model(requested)
            return _Recorder(handle, recorded) if requested == name else handle

    models = {**config.models, name: model.model_copy(update={"path": str(path)})}
    pool = ModelPool(cores=cores())
    context = Context(pipeline_name, models, base_dir, pool)
    chain = build_chain(stages, context)
    try:
        error = None
        for number, frame in enumerate(_frames(sources, config.pipelines[pipeline_name].content_type or "")):
            for outcome in chain.run([frame]).outcomes:
                error = outcome.error or error
            if progress is not None:
                progress(f"Running the stages on frames: {number + 1:,}", len(recorded) / limit)
            if len(recorded) >= limit:
                break
        if not recorded and error is not None:
            raise error
    finally:
        chain.close()
        context.release()
        pool.close()
    return recorded[:limit]


class _Recorder:
    """A model's handle that records the requests."""

    def __init__(self, handle: Any, recorded: list[Mapping[str, Array]]) -> None:
        self._handle = handle
        self._recorded = recorded

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._handle, attribute)

    def infer(self, requests: Sequence[Mapping[str, Array]]) -> Any:
        self._record(requests)
        return self._handle.infer(requests)

    def infer_each(self, requests: Sequence[Mapping[str, Array]]) -> Any:
        self._record(requests)
        return self._handle.infer_each(requests)

    def infer_batch(self, inputs: Mapping[str, Array]) -> Any:
        axes = {name: self._handle.batch_axis.get(name, 0) if array.ndim else None for name, array in inputs.items()}
        self._record(parts(inputs, axes, 1))
        return self._handle.infer_batch(inputs)

    def _record(self, requests: Sequence[Mapping[str, Array]]) -> None:
        # Copied, since a stage may reuse its buffers, and hidden state is overwritten.
        self._recorded += [{key: array.copy() for key, array in request.items()} for request in requests]


def _stages(config: NodeConfig, name: str, pipeline: str | None) -> tuple[str, list[StageEntry]]:
    """Return the pipeline that uses the model, and its stages up to the last one that does."""
    for pipeline_name, each in config.pipelines.items():
        users = [number for number, stage in enumerate(each.stages) if stage.config.get("model") == name]
        if users and pipeline in (None, pipeline_name):
            return pipeline_name, list(each.stages[: users[-1] + 1])
    known = ", ".join(sorted(config.pipelines)) or "none"
    raise ConfigError(
        f"No stage of {f'pipeline {pipeline}' if pipeline else 'any pipeline'} has `model: {name}` (pipelines: {known})",
        remedy="Set --name to the model's name in that configuration, or use another configuration.",
    )


def _frames(sources: Sequence[Path], content_type: str) -> Any:
    from hedgerow.cli.frames.sources import SplitOptions, expand_sources, read_frames
    from hedgerow.frame import Frame
    from hedgerow.wire.codec import mime, stated_meta

    files = expand_sources([str(source) for source in sources])
    for number, (path, piece) in enumerate(
        itertools.chain.from_iterable(((path, piece) for piece in read_frames(path, SplitOptions())) for path in files)
    ):
        kind = piece.content_type
        frame: Frame = Frame(
            piece.payload,
            id=f"sample-{number}",
            stream=path.name,
            topic="sample",
            sequence=number,
            captured_at=piece.due_s or float(number),
            content_type=mime(content_type or kind),
            meta=stated_meta(kind),
        )
        yield frame
