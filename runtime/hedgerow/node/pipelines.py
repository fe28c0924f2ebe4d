"""The pipelines of a node: built, started, replaced by a reload, drained.

config ──▶ plans (stages set up, models loaded) ──▶ runners (links of their own) ──▶ drained and closed
                  ▲ reload: built aside, swapped in, the old drained
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import MappingProxyType

import structlog

from hedgerow.config import ModelConfig, NodeConfig
from hedgerow.errors import BusError, CommandError, HedgerowError, internal
from hedgerow.models.conduct import Conduct
from hedgerow.models.pool import ModelAwaited, ModelPool
from hedgerow.models.served_model import ServedModel
from hedgerow.node.announce import Announcer
from hedgerow.node.link import link_options
from hedgerow.node.outbox import NodeOutbox
from hedgerow.node.swaps import Swaps
from hedgerow.pipeline.built_pipeline import BuiltPipeline, pipeline_digest
from hedgerow.pipeline.local_pipeline import LocalPipeline
from hedgerow.pipeline.runner import PipelineRunner
from hedgerow.pipeline.workers.worker_pipeline import WorkerPipeline
from hedgerow.telemetry.tally import Tally

log = structlog.get_logger(__name__)


class Pipelines:
    """Runs what a configuration's `pipelines:` say. A pipeline that cannot run leaves the others running.

    Args:
        config: the configuration to begin with.
        base_dir: folder that relative paths start at.
        cores: cores the node owns.
        announcer: where events go.
        outbox: where durable results go.
    Attributes:
        config: the configuration in force.
        runners: the pipelines that run, by name.
        failures: why others do not, by name.
        waiting: why others do not yet, by name: a model of theirs is to come from the region.
        swaps: takes models from version to version.
        closing: the node is stopping, so nothing new may start.
    """

    def __init__(
        self, config: NodeConfig, base_dir: Path, cores: int, announcer: Announcer, outbox: NodeOutbox
    ) -> None:
        self.config = config
        self.runners: dict[str, PipelineRunner] = {}
        self.failures: dict[str, HedgerowError] = {}
        self._base_dir = base_dir
        self._cores = cores
        self._announcer = announcer
        self._outbox = outbox
        self.waiting: dict[str, HedgerowError] = {}
        self._loop = asyncio.get_running_loop()
        self._pool = ModelPool(cores=cores, state_dir=config.node.state_dir)
        self._pool.on_assigned = self._assigned
        self._late: set[asyncio.Task[None]] = set()
        self._watched: str | None = None
        self._before: dict[str, Conduct] = {}
        state_dir = base_dir / config.node.state_dir
        self.swaps = Swaps(self._pool, state_dir, announcer.event, self, config.fleet.max_crashes)
        self._reloading = asyncio.Lock()
        self._committing = asyncio.Lock()  # held while runners come and go
        self.closing = False

    def loading(self) -> dict[str, HedgerowError | None]:
        """Pipelines that are configured and neither run nor have failed yet; and what they wait for, if for more than time."""
        names = sorted(self.config.pipelines.keys() - self.runners.keys() - self.failures.keys())
        return {name: self.waiting.get(name) for name in names}

    async def start(self) -> None:
        """Build and start all of them; and send what an earlier run could not."""
        if self._outbox.left_over:
            with suppress(HedgerowError):  # a pipeline that needs it says why not
                await self._outbox.open()
        plans = await self._build(self.config, self.config.pipelines, self.failures)
        async with self._committing:
            for plan in plans.values():
                await self._start(plan)

    async def wait_connected(self, timeout_s: float) -> None:
        """Wait until the pipelines' links are up, or the time is over."""
        waits = (runner.wait_connected(timeout_s) for runner in self.runners.values() if runner.state == "running")
        await asyncio.gather(*waits, return_exceptions=True)

    async def renew_links(self) -> None:
        """Make the links of all pipelines anew, one after the other, with certificate files as they are now."""
        for runner in list(self.runners.values()):
            await runner.renew_links()

    async def drain(self) -> None:
        """Finish what is in flight, within the configured limit, and start nothing any more."""
        self.closing = True
        async with self._committing:
            limit = self.config.node.drain_s
            await asyncio.gather(*(runner.stop(limit) for runner in self.runners.values()))

    def close(self) -> None:
        """Free the models."""
        for task in list(self._late):
            task.cancel()
        self._pool.close()

    # Pipelines with workers, as the swaps of models see them

    def infos(self) -> list[ServedModel]:
        """The models of pipelines with workers."""
        return [info for _, plan in self._with_workers() for info in plan.models()]

    def said_of(self, name: str) -> ModelConfig | None:
        """See `Elsewhere.said_of`."""
        return self.config.models[name] if any(self._with_workers(name)) else None

    def processes(self, name: str) -> int:
        """See `Elsewhere.processes`."""
        return sum(plan.lanes for _, plan in self._with_workers(name))

    def watch(self, name: str | None) -> None:
        """See `Elsewhere.watch`."""
        self._watched = name
        self._before.clear()
        for _, plan in self._with_workers():
            plan.watch(None)
        for _, plan in self._with_workers(name):
            plan.watch(name)

    def conducts(self) -> list[tuple[Conduct, Conduct]]:
        """See `Elsewhere.conducts`."""
        pairs = []
        for pipeline, plan in self._with_workers(self._watched):
            if (before := self._before.get(pipeline)) is not None:
                plan.watch(self._watched)  # a reload may have made it anew
                pairs.append((before, plan.conduct()))
        return pairs

    async def go_over(self, name: str) -> int:
        """See `Elsewhere.go_over`. They go over to new workers, which are started aside."""
        async with self._reloading:
            wanted = self._pool.assigned().get(name)
            others = {
                pipeline: plan for pipeline, plan in self._with_workers(name) if plan.versions.get(name) != wanted
            }
            fresh: dict[str, WorkerPipeline] = {}
            try:
                for pipeline, plan in others.items():
                    if not self.closing:
                        fresh[pipeline] = await self._workers_anew(pipeline, name, plan.conduct())
                async with self._committing:
                    if self.closing:
                        return 0
                    for pipeline in list(fresh):
                        plan = fresh.pop(pipeline)
                        self._before[pipeline] = others[pipeline].conduct()
                        plan.watch(self._watched)
                        await self._replace(pipeline, plan)
            finally:
                for plan in fresh.values():
                    plan.retire()
            return len(others)

    async def _workers_anew(self, pipeline: str, name: str, conduct: Conduct) -> WorkerPipeline:
        """Workers that run what is assigned, started in a thread; being cancelled leaves none behind.

        Args:
            name: the model that has another version.
            conduct: of the version before: batches of these sizes are tried out first.
        """
        start = partial(self._worker_plan, self.config, pipeline, {name: conduct.recent_s.keys()})
        starting = asyncio.ensure_future(asyncio.to_thread(start))
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            starting.add_done_callback(_retire)
            raise

    def _with_workers(self, model: str | None = None) -> Iterator[tuple[str, WorkerPipeline]]:
        """Pipelines with workers that run, by name; those that use a model, if one is named."""
        for pipeline, runner in self.runners.items():
            plan = runner.built
            if isinstance(plan, WorkerPipeline) and (model is None or model in {info.name for info in plan.models()}):
                yield pipeline, plan

    # Coming and going

    def _assigned(self, name: str) -> None:
        """(any thread) A model has got a version: let pipelines that wait for it start."""
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._start_late)

    def _start_late(self) -> None:
        if self.waiting and not self.closing:
            task = self._loop.create_task(self._start_waiting())
            self._late.add(task)
            task.add_done_callback(self._late.discard)

    async def _start_waiting(self) -> None:
        async with self._reloading:
            names = [name for name in self.waiting if name in self.config.pipelines]
            plans = await self._build(self.config, names, self.failures)
            async with self._committing:
                for plan in plans.values():
                    if self.closing:
                        plan.retire()
                    else:
                        await self._start(plan)

    async def reload(self, config: NodeConfig) -> dict[str, list[str]]:
        """Go over to a new configuration; if any part of it is bad, nothing changes.

        Returns: names of pipelines added, changed, removed and kept.
        Raises: HedgerowError: why it cannot be used; the old configuration runs on.
        """
        async with self._reloading:
            fresh = [name for name in config.pipelines if self._is_fresh(config, name)]
            failures: dict[str, HedgerowError] = {}
            plans = await self._build(config, fresh, failures)
            try:
                if failures:
                    name, error = next(iter(failures.items()))
                    raise CommandError(
                        f"Pipeline {name}: {error}",
                        code=error.code,
                        remedy=f"{error.remedy} The old configuration runs on.",
                    ) from error
                async with self._committing:
                    return await self._commit(config, plans)
            except HedgerowError:
                for plan in plans.values():
                    plan.retire()
                raise

    def _is_fresh(self, config: NodeConfig, name: str) -> bool:
        if name not in self.runners:
            return True
        return pipeline_digest(config, name) != pipeline_digest(self.config, name)

    async def _commit(self, config: NodeConfig, plans: Mapping[str, BuiltPipeline]) -> dict[str, list[str]]:
        """Put plans into force. Raises: HedgerowError: they cannot be; nothing has changed."""
        if self.closing:  # what is started now, nobody would drain
            raise CommandError("The node is stopping", code="stopping", remedy="Start it with the new file.")
        await self._subscribe_for(plans)
        outcome = {
            "added": [name for name in plans if name not in self.runners],
            "changed": [name for name in plans if name in self.runners],
            "removed": [name for name in self.runners if name not in config.pipelines],
            "kept": [name for name in config.pipelines if name not in plans],
        }
        self.config = config
        self.failures.clear()
        self.waiting = {name: why for name, why in self.waiting.items() if name in config.pipelines}
        for name in outcome["removed"]:
            await self.runners.pop(name).stop(config.node.drain_s, forget_session=True)
        for name, plan in plans.items():
            await self._replace(name, plan)
        return outcome

    async def _subscribe_for(self, plans: Mapping[str, BuiltPipeline]) -> None:
        """Make the subscriptions of all plans that are to be swapped in, or none.

        Raises: BusError: the broker refuses one.
        """
        swaps = {name: plan for name, plan in plans.items() if (r := self.runners.get(name)) and r.can_swap(plan)}
        try:
            for name, plan in swaps.items():
                await self.runners[name].subscribe_also(plan)
        except BusError:
            for name, plan in swaps.items():
                await self.runners[name].unsubscribe_others(plan)
            raise

    async def _replace(self, name: str, plan: BuiltPipeline) -> None:
        runner = self.runners.get(name)
        if runner is None:
            await self._start(plan)
        elif runner.can_swap(plan):
            await runner.swap(plan)
        else:  # the link is made anew; the session bridges the gap
            paused = runner.state == "paused"
            await runner.stop(self.config.node.drain_s)
            await self._start(plan, runner.tally, paused=paused)

    async def _build(
        self, config: NodeConfig, names: Iterable[str], failures: dict[str, HedgerowError]
    ) -> dict[str, BuiltPipeline]:
        """Build plans in a worker thread, so that frames, pings and commands go on meanwhile."""
        plans: dict[str, BuiltPipeline] = {}
        for name in names:
            try:
                plans[name] = await asyncio.to_thread(self._plan, config, name)
                self.waiting.pop(name, None)
            except ModelAwaited as error:
                self.waiting[name] = error
                log.info("pipeline-waits", pipeline=name, reason=str(error))
            except HedgerowError as error:
                failures[name] = error
                self._tell_failure(name, error)
            except Exception as error:  # a library did what it never should: that pipeline's misfortune alone
                log.exception("pipeline-failed", pipeline=name)
                failures[name] = internal(error)
                self._tell_failure(name, failures[name])
        return plans

    def _plan(self, config: NodeConfig, name: str) -> BuiltPipeline:
        if config.pipelines[name].workers:
            return self._worker_plan(config, name)
        events = self._announcer.events_of(name)
        return LocalPipeline(config, name, self._base_dir, self._pool, self._cores, events)

    def _worker_plan(
        self, config: NodeConfig, name: str, rehearsed: Mapping[str, Iterable[int]] = MappingProxyType({})
    ) -> WorkerPipeline:
        events, versions = self._announcer.events_of(name), self._pool.assigned()
        return WorkerPipeline(config, name, self._base_dir, self._cores, events, versions, rehearsed)

    async def _start(self, plan: BuiltPipeline, tally: Tally | None = None, *, paused: bool = False) -> None:
        client_id = f"hedgerow/{self._announcer.address}/{plan.name}"
        source = link_options(
            self.config.broker,
            client_id,
            receive_maximum=plan.config.receive_maximum,
            max_payload_bytes=plan.config.max_payload_bytes,
        )
        sink = link_options(self.config.broker, f"{client_id}/results")
        try:
            outbox = await self._outbox.open() if plan.config.publish.durable else None
        except HedgerowError as error:
            plan.retire()
            self._failed(plan.name, error)
            return
        runner = PipelineRunner(plan, source, sink, self._announcer.events_of(plan.name), outbox, tally)
        self.runners[plan.name] = runner
        try:
            await runner.start(paused=paused)
        except HedgerowError as error:
            await runner.stop(0)
            del self.runners[plan.name]
            self._failed(plan.name, error)

    def _failed(self, name: str, error: HedgerowError) -> None:
        self.failures[name] = error
        self._tell_failure(name, error)

    def _tell_failure(self, name: str, error: HedgerowError) -> None:
        detail = {"code": error.code, "error": str(error), "remedy": error.remedy}
        log.error("pipeline-failed", pipeline=name, **detail)
        self._announcer.event("pipeline-failed", detail, name)


def _retire(starting: asyncio.Future[WorkerPipeline]) -> None:
    """Nobody waits for these workers any more."""
    if not starting.cancelled() and starting.exception() is None:
        starting.result().retire()
