"""From a pipeline's configuration to a chain of stages that are set up and ready."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from hedgerow import plugins
from hedgerow.config import ModelConfig, StageEntry
from hedgerow.errors import ConfigError, HedgerowError, PluginError
from hedgerow.models.serving.pool import ModelPool
from hedgerow.models.serving.slot import Slot
from hedgerow.pipeline.chain.chain import Chain, ChainStep, EventSink
from hedgerow.stage import PerStream, Stage

S = TypeVar("S")


class PipelineContext:
    """What the stages of one pipeline get to see of the node while they are set up.

    Attributes:
        pipeline: the pipeline's name.
        slots: the models its stages asked for.
        states: state by stream that its stages keep.
    """

    def __init__(self, pipeline: str, models: Mapping[str, ModelConfig], base_dir: Path, pool: ModelPool) -> None:
        self.pipeline = pipeline
        self.slots: list[Slot] = []
        self.states: list[PerStream[Any]] = []
        self._models = models
        self._base_dir = base_dir
        self._pool = pool

    def model(self, name: str) -> Slot:
        """The model of that name in the configuration, loaded and ready.

        Raises: ConfigError: it is not configured; ModelError: it cannot be loaded.
        """
        config = self._models.get(name)
        if config is None:
            known = ", ".join(sorted(self._models)) or "none"
            raise ConfigError(
                f"No model {name!r} in the configuration (there are: {known})",
                remedy=f"Add `models: {{{name}: {{path: …}}}}`.",
            )
        slot = self._pool.acquire(name, config, self._base_dir)
        self.slots.append(slot)
        return slot

    def per_stream(self, factory: Callable[[], S]) -> PerStream[S]:
        """State by stream, forgotten by the node when a stream falls silent."""
        state = PerStream(factory)
        self.states.append(state)
        return state

    def path(self, path: Path) -> Path:
        """A path from a stage's configuration; a relative one starts at the folder of the configuration's file."""
        return self._base_dir / path

    def forget(self, stream: str) -> None:
        """Forget what every stage keeps about a stream."""
        for state in self.states:
            state.pop(stream, None)

    def release(self) -> None:
        """Give the models back."""
        while self.slots:
            self._pool.release(self.slots.pop())


def _ignore(kind: str, detail: dict[str, Any]) -> None:
    pass


def build_chain(
    stages: Sequence[StageEntry | tuple[str, Stage[Any]]], context: PipelineContext, on_event: EventSink = _ignore
) -> Chain:
    """Make the stages, in order, and set each up.

    Args:
        stages: entries of the configuration; or name and stage, for stages that are made already.
    Raises: HedgerowError: a stage is missing, broken or wrongly configured, or a model cannot be loaded. What had been
        set up is closed again.
    """
    steps: list[ChainStep] = []
    try:
        for entry in stages:
            name, stage = (
                (entry.name, plugins.make(entry.name, entry.config)) if isinstance(entry, StageEntry) else entry
            )
            try:
                stage.setup(context)
            except HedgerowError:
                raise
            except (Exception, SystemExit) as error:
                raise PluginError(
                    f"Stage {name} cannot be set up: {type(error).__name__}: {error}",
                    remedy=f"Mend its setup(); `hedgerow plugin show {name}` says who ships it.",
                ) from error
            steps.append(ChainStep(name, stage, on_event))
    except BaseException:
        Chain(steps).close()
        context.release()
        raise
    return Chain(steps)
