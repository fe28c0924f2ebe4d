"""Swaps model versions of pipelines that run in worker processes.

Workers only run the versions they were started with. So a swap starts new workers while the old ones run, and replaces
them between two lists of frames.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

from hedgerow import tasks
from hedgerow.config import ModelConfig
from hedgerow.models.monitor.observations import Observations
from hedgerow.models.serving.served_model import ServedModel
from hedgerow.node.pipelines.builder import PipelineBuilder
from hedgerow.node.pipelines.pipelines import Pipelines
from hedgerow.pipeline.workers.worker_pipeline import WorkerPipeline


class WorkerPipelines:
    """Observes models in workers, and replaces the workers of a model whose version changes.

    Args:
        pipelines: all pipelines of the node.
        builder: builds the replacements.
    """

    def __init__(self, pipelines: Pipelines, builder: PipelineBuilder) -> None:
        self._pipelines = pipelines
        self._builder = builder
        self._observed: str | None = None
        self._previous: dict[str, Observations] = {}

    def models(self) -> list[ServedModel]:
        """Return the models that run in workers."""
        return [info for _, built in self._using() for info in built.models()]

    def users(self) -> dict[str, set[str]]:
        """Return the running pipelines, with workers or without, by the model that they need."""
        users: dict[str, set[str]] = {}
        for pipeline, runner in self._pipelines.runners.items():
            for info in runner.built.models():
                users.setdefault(info.name, set()).add(pipeline)
        return users

    def config_of(self, model: str) -> ModelConfig | None:
        """Return a model's configuration; None if no worker runs it."""
        return self._pipelines.config.models[model] if any(self._using(model)) else None

    def processes(self, model: str) -> int:
        """Return how many worker processes run a model."""
        return sum(built.lanes for _, built in self._using(model))

    def observe(self, model: str | None) -> None:
        """Observe a model, instead of the one observed before; None: observe none."""
        self._observed = model
        self._previous.clear()
        for _, built in self._using():
            built.observe(None)
        for _, built in self._using(model):
            built.observe(model)

    def observations(self) -> list[tuple[Observations, Observations]]:
        """Return (previous version's, new version's) observations of each pipeline that changed to the new version."""
        pairs = []
        for pipeline, built in self._using(self._observed):
            if (before := self._previous.get(pipeline)) is not None:
                built.observe(self._observed)  # a reload may have replaced the pipeline
                pairs.append((before, built.observations()))
        return pairs

    async def activate(self, model: str) -> int:
        """Start new workers for the model's assigned version; workers that already run it stay.

        If cancelled, either all new workers are in place, or none are left behind.

        Returns: number of pipelines with new workers.
        Raises: HedgerowError: new workers cannot be started; the old ones keep running.
        """
        async with self._pipelines.reloading:
            assigned = self._builder.versions().get(model)
            old = {pipeline: built for pipeline, built in self._using(model) if built.versions.get(model) != assigned}
            if not old:
                return 0
            fresh: dict[str, WorkerPipeline] = {}
            try:
                for pipeline, built in old.items():
                    if not self._pipelines.closing:
                        fresh[pipeline] = await self._start_workers(pipeline, model, built.observations())
                async with self._pipelines.committing:
                    if self._pipelines.closing:
                        return 0
                    await tasks.run_to_end(self._replace(old, fresh), "change of workers")
            finally:
                for built in fresh.values():
                    built.retire()
            return len(old)

    async def _start_workers(self, pipeline: str, model: str, before: Observations) -> WorkerPipeline:
        """Start workers in a thread; if cancelled, stop them once they have started.

        Args:
            model: the model whose version changes.
            before: observations of the previous version: the new one is warmed up with the same batch sizes.
        """
        build = partial(self._builder.build_workers, self._pipelines.config, pipeline, {model: before.recent_s.keys()})
        return await tasks.in_thread(build, "start of workers", WorkerPipeline.retire)

    async def _replace(self, old: Mapping[str, WorkerPipeline], fresh: dict[str, WorkerPipeline]) -> None:
        """Replace pipelines by fresh ones, and take these out of `fresh`."""
        for pipeline in list(fresh):
            built = fresh.pop(pipeline)
            self._previous[pipeline] = old[pipeline].observations()
            built.observe(self._observed)
            await self._pipelines.replace(pipeline, built)

    def _using(self, model: str | None = None) -> Iterator[tuple[str, WorkerPipeline]]:
        """Yield running pipelines with workers, by name; only those that use the model, if given."""
        for pipeline, runner in self._pipelines.runners.items():
            built = runner.built
            if isinstance(built, WorkerPipeline) and (model is None or model in {info.name for info in built.models()}):
                yield pipeline, built
