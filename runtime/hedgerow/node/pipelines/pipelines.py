"""The pipelines of a node: built, started, replaced by a reload, drained.

config ──▶ built pipelines (stages set up, models loaded) ──▶ runners (links of their own) ──▶ drained and closed
                  ▲ reload: built beside the running ones, swapped in, the old ones drained
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import suppress

import structlog

from hedgerow.config import NodeConfig
from hedgerow.errors import BusError, CommandError, HedgerowError, internal
from hedgerow.models.serving.pool import ModelNotAssigned
from hedgerow.node.link.announcer import Announcer
from hedgerow.node.link.options import link_options
from hedgerow.node.link.outbox import NodeOutbox
from hedgerow.node.pipelines.builder import PipelineBuilder
from hedgerow.pipeline.built_pipeline import BuiltPipeline, pipeline_digest
from hedgerow.pipeline.runner import PipelineRunner
from hedgerow.telemetry.tally import Tally

log = structlog.get_logger(__name__)


class Pipelines:
    """Runs what a configuration's `pipelines:` say. A pipeline that cannot run leaves the others running.

    Args:
        config: the configuration to begin with.
        builder: builds the pipelines.
        announcer: publishes their events.
        outbox: takes durable results.
    Attributes:
        config: the configuration in force.
        runners: the pipelines that run, by name.
        failures: why others do not, by name.
        waiting: why others do not yet, by name: a model of theirs is to come from the region.
        reloading: held while pipelines are built that replace running ones.
        committing: held while runners come and go.
        closing: the node is stopping, so nothing new may start.
    """

    def __init__(self, config: NodeConfig, builder: PipelineBuilder, announcer: Announcer, outbox: NodeOutbox) -> None:
        self.config = config
        self.runners: dict[str, PipelineRunner] = {}
        self.failures: dict[str, HedgerowError] = {}
        self.waiting: dict[str, HedgerowError] = {}
        self.reloading = asyncio.Lock()
        self.committing = asyncio.Lock()
        self.closing = False
        self._builder = builder
        self._announcer = announcer
        self._outbox = outbox
        self._loop = asyncio.get_running_loop()
        self._late: set[asyncio.Task[None]] = set()

    def loading(self) -> dict[str, HedgerowError | None]:
        """Pipelines that neither run nor have failed yet; and the model that each waits for, if it waits for one."""
        names = sorted(self.config.pipelines.keys() - self.runners.keys() - self.failures.keys())
        return {name: self.waiting.get(name) for name in names}

    def states(self) -> dict[str, str]:
        """The state of every pipeline."""
        states = {name: str(runner.state) for name, runner in self.runners.items()}
        return states | dict.fromkeys(self.failures, "failed") | dict.fromkeys(self.loading(), "loading")

    async def start(self, config: NodeConfig) -> None:
        """Build and start all pipelines, and send what an earlier run could not."""
        self.config = config
        if self._outbox.left_over:
            with suppress(HedgerowError):  # a pipeline that needs it says why not
                await self._outbox.open()
        built_pipelines = await self._build(config, config.pipelines, self.failures)
        async with self.committing:
            for built in built_pipelines.values():
                await self._start(built)

    async def wait_connected(self, timeout_s: float) -> None:
        """Wait until the pipelines' links are up, or the time is over."""
        waits = (runner.wait_connected(timeout_s) for runner in self.runners.values() if runner.state == "running")
        await asyncio.gather(*waits, return_exceptions=True)

    async def renew_links(self) -> None:
        """Reconnect all pipelines, one after the other, with the certificate files as they are now."""
        for runner in list(self.runners.values()):
            await runner.renew_links()

    async def drain(self) -> None:
        """Finish what is in flight, within the configured limit; nothing is started any more."""
        self.closing = True
        async with self.committing:
            limit = self.config.node.drain_s
            await asyncio.gather(*(runner.stop(limit) for runner in self.runners.values()))

    def close(self) -> None:
        """Start nothing any more."""
        for task in list(self._late):
            task.cancel()

    def model_assigned(self, model: str) -> None:
        """(any thread) A model has been assigned a version: start the pipelines that wait for it."""
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._start_late)

    def _start_late(self) -> None:
        if self.waiting and not self.closing:
            task = self._loop.create_task(self._start_waiting())
            self._late.add(task)
            task.add_done_callback(self._late.discard)

    async def _start_waiting(self) -> None:
        async with self.reloading:
            names = [name for name in self.waiting if name in self.config.pipelines]
            built_pipelines = await self._build(self.config, names, self.failures)
            async with self.committing:
                for built in built_pipelines.values():
                    if self.closing:
                        built.retire()
                    else:
                        await self._start(built)

    async def reload(self, config: NodeConfig) -> dict[str, list[str]]:
        """Put a new configuration into force; if any part of it is bad, nothing changes.

        Returns: names of pipelines added, changed, removed and kept.
        Raises: HedgerowError: why it cannot be used; the old configuration stays in force.
        """
        async with self.reloading:
            fresh = [name for name in config.pipelines if self._is_fresh(config, name)]
            failures: dict[str, HedgerowError] = {}
            built_pipelines = await self._build(config, fresh, failures)
            try:
                if failures:
                    name, error = next(iter(failures.items()))
                    raise CommandError(
                        f"Pipeline {name}: {error}",
                        code=error.code,
                        remedy=f"{error.remedy} The old configuration runs on.",
                    ) from error
                async with self.committing:
                    return await self._commit(config, built_pipelines)
            except HedgerowError:
                for built in built_pipelines.values():
                    built.retire()
                raise

    def _is_fresh(self, config: NodeConfig, name: str) -> bool:
        if name not in self.runners:
            return True
        return pipeline_digest(config, name) != pipeline_digest(self.config, name)

    async def _commit(self, config: NodeConfig, built_pipelines: Mapping[str, BuiltPipeline]) -> dict[str, list[str]]:
        """Put built pipelines into force. Raises: HedgerowError: they cannot be; nothing has changed."""
        if self.closing:  # nobody would drain what is started now
            raise CommandError("The node is stopping", code="stopping", remedy="Start it with the new file.")
        await self._subscribe_for(built_pipelines)
        outcome = {
            "added": [name for name in built_pipelines if name not in self.runners],
            "changed": [name for name in built_pipelines if name in self.runners],
            "removed": [name for name in self.runners if name not in config.pipelines],
            "kept": [name for name in config.pipelines if name not in built_pipelines],
        }
        self.config = config
        self.failures.clear()
        self.waiting = {name: why for name, why in self.waiting.items() if name in config.pipelines}
        for name in outcome["removed"]:
            await self.runners.pop(name).stop(config.node.drain_s, forget_session=True)
        for name, built in built_pipelines.items():
            await self.replace(name, built)
        return outcome

    async def _subscribe_for(self, built_pipelines: Mapping[str, BuiltPipeline]) -> None:
        """Subscribe for all that are to be swapped in, or for none.

        Raises: BusError: the broker refuses one.
        """
        swaps = {
            name: built
            for name, built in built_pipelines.items()
            if (r := self.runners.get(name)) and r.can_swap(built)
        }
        try:
            for name, built in swaps.items():
                await self.runners[name].add_subscriptions(built)
        except BusError:
            for name, built in swaps.items():
                await self.runners[name].undo_subscriptions(built)
            raise

    async def replace(self, name: str, built: BuiltPipeline) -> None:
        """Let a built pipeline take the place of the running one, if there is one. To be called with `committing` held."""
        runner = self.runners.get(name)
        if runner is None:
            await self._start(built)
        elif runner.can_swap(built):
            await runner.swap(built)
        else:  # it needs another link; the session at the broker bridges the gap
            paused = runner.state == "paused"
            await runner.stop(self.config.node.drain_s)
            await self._start(built, runner.tally, paused=paused)

    async def _build(
        self, config: NodeConfig, names: Iterable[str], failures: dict[str, HedgerowError]
    ) -> dict[str, BuiltPipeline]:
        """Build pipelines in a worker thread, so that frames, pings and commands go on meanwhile."""
        built_pipelines: dict[str, BuiltPipeline] = {}
        for name in names:
            try:
                built_pipelines[name] = await asyncio.to_thread(self._builder.build, config, name)
                self.waiting.pop(name, None)
            except ModelNotAssigned as error:
                self.waiting[name] = error
                log.info("pipeline-waits", pipeline=name, reason=str(error))
            except HedgerowError as error:
                failures[name] = error
                self._report_failure(name, error)
            except Exception as error:  # a fault in a library must not take the other pipelines with it
                log.exception("pipeline-failed", pipeline=name)
                failures[name] = internal(error)
                self._report_failure(name, failures[name])
        return built_pipelines

    async def _start(self, built: BuiltPipeline, tally: Tally | None = None, *, paused: bool = False) -> None:
        client_id = f"hedgerow/{self._announcer.address}/{built.name}"
        source = link_options(
            self.config.broker,
            client_id,
            receive_maximum=built.config.receive_maximum,
            max_payload_bytes=built.config.max_payload_bytes,
        )
        sink = link_options(self.config.broker, f"{client_id}/results")
        try:
            outbox = await self._outbox.open() if built.config.publish.durable else None
        except HedgerowError as error:
            built.retire()
            self._failed(built.name, error)
            return
        runner = PipelineRunner(built, source, sink, self._announcer.event_sink(built.name), outbox, tally)
        self.runners[built.name] = runner
        try:
            await runner.start(paused=paused)
        except HedgerowError as error:
            await runner.stop(0)
            del self.runners[built.name]
            self._failed(built.name, error)

    def _failed(self, name: str, error: HedgerowError) -> None:
        self.failures[name] = error
        self._report_failure(name, error)

    def _report_failure(self, name: str, error: HedgerowError) -> None:
        detail = {"code": error.code, "error": str(error), "remedy": error.remedy}
        log.error("pipeline-failed", pipeline=name, **detail)
        self._announcer.event("pipeline-failed", detail, name)
