"""Builds a node's pipelines from its configuration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from hedgerow.config import NodeConfig
from hedgerow.models.bundle.version import ModelVersion
from hedgerow.models.serving.pool import ModelPool
from hedgerow.node.link.announcer import Announcer
from hedgerow.pipeline.built_pipeline import BuiltPipeline
from hedgerow.pipeline.local_pipeline import LocalPipeline
from hedgerow.pipeline.workers.worker_pipeline import WorkerPipeline
from hedgerow.topics import check_feedback


class PipelineBuilder:
    """Sets up stages and loads models. Its methods block: call them in a thread.

    Args:
        base_dir: folder for relative paths.
        cores: number of cores the node owns.
        pool: the node's models.
        announcer: publishes the pipelines' events.
    """

    def __init__(self, base_dir: Path, cores: int, pool: ModelPool, announcer: Announcer) -> None:
        self._base_dir = base_dir
        self._cores = cores
        self._pool = pool
        self._announcer = announcer

    def build(self, config: NodeConfig, name: str) -> BuiltPipeline:
        """Build a pipeline.

        Raises:
            ModelNotAssigned: the region has not yet chosen the version of one of its models.
            HedgerowError: a stage or a model is missing or broken, or the pipeline subscribes to what the node publishes.
        """
        check_feedback(config.node.address, name, config.subscriptions)
        if config.pipelines[name].workers:
            return self.build_workers(config, name)
        return LocalPipeline(config, name, self._base_dir, self._pool, self._cores, self._announcer.event_sink(name))

    def build_workers(
        self, config: NodeConfig, name: str, warm_up: Mapping[str, Iterable[int]] = MappingProxyType({})
    ) -> WorkerPipeline:
        """Build a pipeline with workers, which run the currently assigned model versions.

        Args:
            warm_up: batch sizes to run before the first frame, by model.
        Raises: as `build`.
        """
        events = self._announcer.event_sink(name)
        return WorkerPipeline(config, name, self._base_dir, self._cores, events, self.versions(), warm_up)

    def versions(self) -> dict[str, ModelVersion]:
        """Return the assigned versions by model."""
        return self._pool.assigned()
