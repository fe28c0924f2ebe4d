"""Builds a chain of stages from a pipeline's configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from hedgerow import plugins
from hedgerow.columns.stream_table import StreamTable
from hedgerow.config import ModelConfig, StageEntry
from hedgerow.errors import ConfigError, HedgerowError
from hedgerow.models.serving.pool import ModelPool
from hedgerow.models.serving.slot import Slot
from hedgerow.pipeline.chain.chain import Chain, ChainStep, EventSink, FailureSink
from hedgerow.pipeline.chain.progress import this_thread
from hedgerow.pipeline.chain.specs import UNKNOWN, output_spec
from hedgerow.stage import FrameSpec, PerStream, Stage

S = TypeVar("S")


class PipelineContext:
    """The `StageContext` of one pipeline's stages.

    Attributes:
        pipeline: name of the pipeline.
        slots: models requested by its stages.
        states: per-stream state of its stages.
        stateful: names of the stages that keep such state.
    """

    def __init__(
        self,
        pipeline: str,
        models: Mapping[str, ModelConfig],
        base_dir: Path,
        pool: ModelPool,
        folder: Path | None = None,
    ) -> None:
        self.pipeline = pipeline
        self.slots: list[Slot] = []
        self.states: list[PerStream[Any] | StreamTable] = []
        self.stateful: list[str] = []
        self._models = models
        self._base_dir = base_dir
        self._pool = pool
        self._folder = folder

    def model(self, name: str) -> Slot:
        """Return the model configured under this name, loaded and ready.

        Raises:
            ConfigError: the model is not configured.
            ModelError: the model cannot be loaded.
        """
        config = self._models.get(name)
        if config is None:
            known = ", ".join(sorted(self._models)) or "none"
            raise ConfigError(
                f"Model {name!r} is not configured; configured models: {known}",
                remedy=f"Add `models: {{{name}: {{path: …}}}}`.",
            )
        slot = self._pool.acquire(name, config, self._base_dir)
        self.slots.append(slot)
        return slot

    @property
    def models(self) -> Sequence[Slot]:
        """Models that the stages have requested so far, in order."""
        return self.slots

    def per_stream(self, factory: Callable[[], S]) -> PerStream[S]:
        """Return per-stream state; when there are too many streams, the node discards the one silent for longest."""
        state = PerStream(factory)
        self.states.append(state)
        return state

    def stream_table(self, **columns: tuple[Any, ...]) -> StreamTable:
        """Return per-stream state as arrays with a row per stream; discarded likewise."""
        table = StreamTable(**columns)
        self.states.append(table)
        return table

    def path(self, path: Path) -> Path:
        """Resolve a path from a stage's configuration, relative to the folder of the configuration file.

        Raises: ConfigError: the pipeline has a folder of its own, and this is not a file in it.
        """
        if self._folder is None:
            return self._base_dir / path
        folder = self._folder.resolve()
        inside = (folder / path).resolve()
        if path.is_absolute() or not inside.is_relative_to(folder) or not inside.is_file():
            raise ConfigError(
                f"{str(path)[:200]!r} is not a file of pipeline {self.pipeline}",
                remedy="Stages of this pipeline read only the files in its folder, or those signed with it.",
            )
        return inside

    def forget(self, stream: str) -> None:
        """Discard the state of a stream in all stages."""
        for state in self.states:
            state.pop(stream, None)

    def release(self) -> None:
        """Release the models."""
        while self.slots:
            self._pool.release(self.slots.pop())


def _ignore(name: str, detail: Any) -> None:
    pass


def build_chain(
    stages: Sequence[StageEntry | tuple[str, Stage[Any]]],
    context: PipelineContext,
    on_event: EventSink = _ignore,
    on_failure: FailureSink = _ignore,
    incoming: FrameSpec = UNKNOWN,
) -> Chain:
    """Create the stages in order, set each up, and check that it takes what the stages before it give.

    Args:
        stages: configuration entries; or a name and a stage that exists already.
        context: what the stages see of the node.
        on_event: called with events for operators.
        on_failure: called with failures of stages.
        incoming: what is known of the frames for the first stage.
    Raises:
        StageMismatch: a stage cannot use what it would get.
        HedgerowError: a stage is missing, broken or misconfigured, or a model cannot be loaded.
        Stages that were set up before are closed.
    """
    steps: list[ChainStep] = []
    try:
        for position, entry in enumerate(stages):
            steps.append(set_up(entry, context, on_event, on_failure, position))
            incoming = output_spec(steps[-1], incoming)
    except BaseException:
        Chain(steps).close()
        context.release()
        raise
    return Chain(steps)


def set_up(
    entry: StageEntry | tuple[str, Stage[Any]],
    context: PipelineContext,
    on_event: EventSink = _ignore,
    on_failure: FailureSink = _ignore,
    position: int = 0,
) -> ChainStep:
    """Create a stage and set it up.

    Args:
        position: of the stage in its chain, from 0.
        entry, context, on_event, on_failure: see `build_chain`.
    Raises: HedgerowError: it is missing, broken or misconfigured, or a model cannot be loaded.
    """
    if this_thread.progress is not None:
        this_thread.progress.enter(position, 1)
    name, stage = (entry.name, plugins.make(entry.name, entry.config)) if isinstance(entry, StageEntry) else entry
    states = len(context.states)
    remedy = f"Fix its setup(); `hedgerow plugin show {name}` names the package."
    with plugins.as_plugin_error(f"Stage {name} cannot be set up", remedy=remedy, keep=HedgerowError):
        stage.setup(context)
    if len(context.states) > states:
        context.stateful.append(name)
    return ChainStep(name, stage, on_event, on_failure, position)
