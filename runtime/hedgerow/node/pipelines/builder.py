"""Builds a node's pipelines from its configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import MappingProxyType
from typing import Final

from hedgerow import tasks
from hedgerow.config import NodeConfig
from hedgerow.errors import PluginError
from hedgerow.models.bundle.version import ModelVersion
from hedgerow.models.serving.pool import ModelPool
from hedgerow.node.link.announcer import Announcer
from hedgerow.pipeline.built_pipeline import BuiltPipeline, pipeline_digest
from hedgerow.pipeline.chain.progress import StageProgress, this_thread
from hedgerow.pipeline.crash_journal import CrashJournal, LaneRecord
from hedgerow.pipeline.local_pipeline import LocalPipeline
from hedgerow.pipeline.workers.worker_pipeline import WorkerPipeline
from hedgerow.topics import check_feedback

SETUP_S: Final = 600.0
"""Longest time to set up the stages of a pipeline and load its models."""


class PipelineBuilder:
    """Sets up stages and loads models. Its methods block: call them in a thread.

    Args:
        base_dir: folder for relative paths.
        cores: number of cores the node owns.
        pool: the node's models.
        announcer: publishes the pipelines' events.
        journal: knows the pipelines that must not run in this process, because they have ended it.
    """

    def __init__(
        self,
        base_dir: Path,
        cores: int,
        pool: ModelPool,
        announcer: Announcer,
        journal: CrashJournal | None = None,
    ) -> None:
        self._base_dir = base_dir
        self._cores = cores
        self._pool = pool
        self._announcer = announcer
        self._journal = journal or CrashJournal()
        self._records: set[LaneRecord] = set()

    def build(self, config: NodeConfig, name: str) -> BuiltPipeline:
        """Build a pipeline.

        Raises:
            ModelNotAssigned: the region has not yet chosen the version of one of its models.
            HedgerowError: a stage or a model is missing or broken, or the pipeline subscribes to what the node publishes.
        """
        check_feedback(config.node.address, name, config.subscriptions)
        if config.pipelines[name].workers or self._journal.isolated(name, pipeline_digest(config, name)):
            return self.build_workers(config, name)
        record = self._journal.open_lane(name)
        self._records.add(record)
        stages = [stage.name for stage in config.pipelines[name].stages]
        record.begin(name, pipeline_digest(config, name), stages, 1, [])
        events = self._announcer.event_sink(name)
        try:
            built = _within_limit(
                stages,
                record.progress,
                lambda: LocalPipeline(config, name, self._base_dir, self._pool, self._cores, events),
            )
        finally:
            self._records.discard(record)
            record.end()
            record.remove()
        built.journal = self._journal
        return built

    def abandon(self) -> None:
        """(any thread) Clear the builds in progress from the crash journal, because the process ends on request."""
        for record in self._records.copy():
            record.end()
            record.remove()

    def build_workers(
        self, config: NodeConfig, name: str, warm_up: Mapping[str, Iterable[int]] = MappingProxyType({})
    ) -> WorkerPipeline:
        """Build a pipeline with workers, which run the currently assigned model versions.

        Args:
            warm_up: batch sizes to run before the first frame, by model.
        Raises: as `build`.
        """
        events = self._announcer.event_sink(name)
        built = WorkerPipeline(config, name, self._base_dir, self._cores, events, self.versions(), warm_up)
        built.journal = self._journal
        crashed = self._journal.isolated(name, built.digest)
        if crashed is not None and not config.pipelines[name].workers:
            built.isolated = crashed.why_isolated()
            events("pipeline-isolated", {"reason": built.isolated, "state_reset": built.stateful})
        return built

    def versions(self) -> dict[str, ModelVersion]:
        """Return the assigned versions by model."""
        return self._pool.assigned()


def _within_limit(stages: Sequence[str], progress: StageProgress, build: Callable[[], LocalPipeline]) -> LocalPipeline:
    """Build in a thread of its own, so that a stage that hangs in `setup` costs only its pipeline.

    Raises: HedgerowError: as `build`; or it took too long.
    """
    done: Future[LocalPipeline] = Future()

    def work() -> None:
        this_thread.progress = progress
        try:
            done.set_result(build())
        except BaseException as error:  # noqa: BLE001 - passed on to the caller
            done.set_exception(error)

    tasks.start_thread(work, "build of a pipeline")
    try:
        return done.result(SETUP_S)
    except TimeoutError:
        if done.done():  # the stage raised it
            raise
    call = progress.now()
    stage = stages[call.stage] if call is not None else "unknown"
    done.add_done_callback(lambda late: late.result().close() if late.exception() is None else None)
    raise PluginError(
        f"Stage {stage} was not set up within {SETUP_S:.0f} s",
        remedy="Give whatever its setup() waits for a timeout. The node runs its other pipelines.",
    )
