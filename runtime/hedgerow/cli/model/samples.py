"""Samples for a model out of real frames: the stages of a node's configuration run, and what they ask of the model is noted."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hedgerow.errors import ConfigError

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
    most: int,
    progress: Progress | None = None,
) -> list[Mapping[str, Array]]:
    """What the stages of a pipeline ask of a model, on frames that are read as `hedgerow publish` reads them.

    Args:
        config: the node's configuration.
        base_dir: the folder its paths count from.
        name: the model's name in it.
        pipeline: which pipeline; None: the first that uses the model.
        sources: files and folders of frames.
        path, model: the model's file, and how it is to be run.
        most: requests to note.
    Raises: ConfigError: no pipeline uses the model, or a source cannot be read; HedgerowError: a stage cannot be set up.
    """
    from hedgerow.backends.cores import cores
    from hedgerow.models.serving.pool import ModelPool
    from hedgerow.pipeline.chain.build import PipelineContext, build_chain

    which, stages = _stages(config, name, pipeline)
    noted: list[Mapping[str, Array]] = []

    class Context(PipelineContext):
        """Hands out the model to be built in place of the configured one, and notes what is asked of it."""

        def model(self, asked: str) -> Any:
            handle = super().model(asked)
            return _Noting(handle, noted) if asked == name else handle

    models = {**config.models, name: model.model_copy(update={"path": str(path)})}
    pool = ModelPool(cores=cores())
    context = Context(which, models, base_dir, pool)
    chain = build_chain(stages, context)
    try:
        died = None
        for number, frame in enumerate(_frames(sources, config.pipelines[which].content_type or "")):
            for outcome in chain.run([frame]).outcomes:
                died = outcome.error or died
            if progress is not None:
                progress(f"Running the stages on frames: {number + 1:,}", len(noted) / most)
            if len(noted) >= most:
                break
        if not noted and died is not None:
            raise died
    finally:
        chain.close()
        context.release()
        pool.close()
    return noted[:most]


class _Noting:
    """A model's handle that notes what is asked."""

    def __init__(self, handle: Any, noted: list[Mapping[str, Array]]) -> None:
        self._handle = handle
        self._noted = noted

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._handle, attribute)

    def infer(self, requests: Sequence[Mapping[str, Array]]) -> Any:
        self._note(requests)
        return self._handle.infer(requests)

    def infer_each(self, requests: Sequence[Mapping[str, Array]]) -> Any:
        self._note(requests)
        return self._handle.infer_each(requests)

    def _note(self, requests: Sequence[Mapping[str, Array]]) -> None:
        # Copied: a stage may use its buffers again, and hidden state is written over.
        self._noted += [{key: array.copy() for key, array in request.items()} for request in requests]


def _stages(config: NodeConfig, name: str, pipeline: str | None) -> tuple[str, list[StageEntry]]:
    """The pipeline that uses the model, and its stages up to the last one that does."""
    for which, each in config.pipelines.items():
        users = [number for number, stage in enumerate(each.stages) if stage.config.get("model") == name]
        if users and pipeline in (None, which):
            return which, list(each.stages[: users[-1] + 1])
    there = ", ".join(sorted(config.pipelines)) or "none"
    raise ConfigError(
        f"No stage of {f'pipeline {pipeline}' if pipeline else 'any pipeline'} has `model: {name}` (there are: {there})",
        remedy="Give the name that the model has in that configuration with `--name`, or another configuration.",
    )


def _frames(sources: Sequence[Path], content_type: str) -> Any:
    from hedgerow.cli.frames.sources import SplitOptions, expand_sources, read_frames
    from hedgerow.frame import Frame
    from hedgerow.wire.codec import mime, mime_parameters

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
            meta=mime_parameters(kind),
        )
        yield frame
