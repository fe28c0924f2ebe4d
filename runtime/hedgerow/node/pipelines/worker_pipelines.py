"""The pipelines of a node that run in worker processes, as seen by a swap of their model's version.

Workers run the versions that they were started with. So another version means other workers, which are started beside the
running ones and take their place between two lists of frames.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial

from hedgerow.config import ModelConfig
from hedgerow.models.monitor.observations import Observations
from hedgerow.models.serving.served_model import ServedModel
from hedgerow.node.pipelines.builder import PipelineBuilder
from hedgerow.node.pipelines.pipelines import Pipelines
from hedgerow.pipeline.workers.worker_pipeline import WorkerPipeline


class WorkerPipelines:
    """Observes models in workers, and replaces the workers of a model that has got another version.

    Args:
        pipelines: all pipelines of the node.
        builder: builds those that take the place of others.
    """

    def __init__(self, pipelines: Pipelines, builder: PipelineBuilder) -> None:
        self._pipelines = pipelines
        self._builder = builder
        self._observed: str | None = None
        self._before: dict[str, Observations] = {}

    def models(self) -> list[ServedModel]:
        """The models that run in workers."""
        return [info for _, built in self._using() for info in built.models()]

    def config_of(self, model: str) -> ModelConfig | None:
        """The configuration of a model that workers run; None: none does."""
        return self._pipelines.config.models[model] if any(self._using(model)) else None

    def processes(self, model: str) -> int:
        """How many worker processes have loaded a model."""
        return sum(built.lanes for _, built in self._using(model))

    def observe(self, model: str | None) -> None:
        """Observe a model from now on, until another one is observed; None: observe none."""
        self._observed = model
        self._before.clear()
        for _, built in self._using():
            built.observe(None)
        for _, built in self._using(model):
            built.observe(model)

    def observations(self) -> list[tuple[Observations, Observations]]:
        """What was seen of the observed model in each pipeline that has changed its version: before, and since."""
        pairs = []
        for pipeline, built in self._using(self._observed):
            if (before := self._before.get(pipeline)) is not None:
                built.observe(self._observed)  # a reload may have replaced it
                pairs.append((before, built.observations()))
        return pairs

    async def activate(self, model: str) -> int:
        """Run the version that a model is assigned now, in new workers; those that run it already stay.

        Cancelling it leaves none of the new workers behind, or all of them in place.

        Returns: how many pipelines have been given new workers.
        Raises: HedgerowError: new workers cannot be started; all go on as they were.
        """
        async with self._pipelines.reloading:
            wanted = self._builder.versions().get(model)
            old = {pipeline: built for pipeline, built in self._using(model) if built.versions.get(model) != wanted}
            fresh: dict[str, WorkerPipeline] = {}
            try:
                for pipeline, built in old.items():
                    if not self._pipelines.closing:
                        fresh[pipeline] = await self._start_workers(pipeline, model, built.observations())
                async with self._pipelines.committing:
                    if self._pipelines.closing:
                        return 0
                    for pipeline in list(fresh):
                        built = fresh.pop(pipeline)
                        self._before[pipeline] = old[pipeline].observations()
                        built.observe(self._observed)
                        await self._pipelines.replace(pipeline, built)
            finally:
                for built in fresh.values():
                    built.retire()
            return len(old)

    async def _start_workers(self, pipeline: str, model: str, before: Observations) -> WorkerPipeline:
        """Start workers in a thread; if this is cancelled, they are ended when they are ready.

        Args:
            model: the one that has another version.
            before: what was seen of the version before: the new one is warmed up with batches of the same sizes.
        """
        build = partial(self._builder.build_workers, self._pipelines.config, pipeline, {model: before.recent_s.keys()})
        starting = asyncio.ensure_future(asyncio.to_thread(build))
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            starting.add_done_callback(_retire)
            raise

    def _using(self, model: str | None = None) -> Iterator[tuple[str, WorkerPipeline]]:
        """Running pipelines with workers, by name; those that use a model, if one is named."""
        for pipeline, runner in self._pipelines.runners.items():
            built = runner.built
            if isinstance(built, WorkerPipeline) and (model is None or model in {info.name for info in built.models()}):
                yield pipeline, built


def _retire(starting: asyncio.Future[WorkerPipeline]) -> None:
    """End workers that nobody waits for any more."""
    if not starting.cancelled() and starting.exception() is None:
        starting.result().retire()
