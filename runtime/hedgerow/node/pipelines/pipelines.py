"""Builds, starts, reloads and drains the node's pipelines.

config ──▶ built pipelines (stages set up, models loaded) ──▶ runners (with their own links) ──▶ drained and closed
                  ▲ reload: built while the old ones run, swapped in, the old ones drained
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Final

import structlog

from hedgerow import tasks
from hedgerow.bus.identity.client_ids import client_id, client_token, former_client_id
from hedgerow.bus.identity.moving_client import FormerSession
from hedgerow.bus.set_aside import messages as set_aside
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
from hedgerow.topics import Channel

log = structlog.get_logger(__name__)

_NEW_STATE_EXPIRY_S: Final = 600
"""How long the broker keeps sessions after a crash as long as the state folder is new: a node that crashes again and again, and
loses its state each time, would leave a session with a queue at each start."""


class Pipelines:
    """Runs the configured pipelines. A pipeline that fails does not affect the others.

    Building can be cancelled; what it has built is then closed. Starting, replacing and removing runners cannot, as a runner
    that is stopped half-way neither runs nor ends: the caller is cancelled when that is done, after `drain_s` at most.

    Args:
        config: the initial configuration.
        builder: builds the pipelines.
        announcer: publishes their events.
        outbox: stores durable results.
    Attributes:
        config: the current configuration.
        runners: running pipelines by name.
        failures: errors of failed pipelines by name.
        waiting: reasons of pipelines that wait for the region to choose a model version, by name.
        reloading: lock held while replacements for running pipelines are built.
        committing: lock held while runners are added or removed.
        closing: the node is stopping, so nothing new may start.
        state_is_new: the state folder was empty at the start, and may not outlive this run.
    """

    def __init__(self, config: NodeConfig, builder: PipelineBuilder, announcer: Announcer, outbox: NodeOutbox) -> None:
        self.config = config
        self.runners: dict[str, PipelineRunner] = {}
        self.failures: dict[str, HedgerowError] = {}
        self.waiting: dict[str, HedgerowError] = {}
        self.reloading = asyncio.Lock()
        self.committing = asyncio.Lock()
        self.closing = False
        self.state_is_new = False
        self._builder = builder
        self._announcer = announcer
        self._outbox = outbox
        self._loop = asyncio.get_running_loop()
        self._pending_starts: set[asyncio.Task[None]] = set()

    def loading(self) -> dict[str, HedgerowError | None]:
        """Return pipelines that neither run nor have failed, with the reason if one waits for a model version."""
        names = sorted(self.config.pipelines.keys() - self.runners.keys() - self.failures.keys())
        return {name: self.waiting.get(name) for name in names}

    def states(self) -> dict[str, str]:
        """Return the state of every pipeline."""
        states = {name: str(runner.state) for name, runner in self.runners.items()}
        return states | dict.fromkeys(self.failures, "failed") | dict.fromkeys(self.loading(), "loading")

    async def start(self, config: NodeConfig) -> None:
        """Build and start all pipelines, and resume sending an earlier run's durable results."""
        self.config = config
        if self._outbox.exists:
            with suppress(HedgerowError):  # a pipeline that needs it reports the error
                await self._outbox.open()
        await self._build_and_start(config, config.pipelines)

    async def wait_connected(self, timeout_s: float) -> None:
        """Wait until the pipelines' links are up, at most this long."""
        waits = (runner.wait_connected(timeout_s) for runner in self.runners.values() if runner.state == "running")
        await asyncio.gather(*waits, return_exceptions=True)

    async def renew_links(self) -> None:
        """Reconnect all pipelines, one after the other, with the current certificate files."""
        for runner in list(self.runners.values()):
            await runner.renew_links()

    async def trust_state(self) -> None:
        """Let the broker keep sessions as long as configured after a crash too: the state folder lasts."""
        self.state_is_new = False
        for runner in list(self.runners.values()):
            await runner.keep_session_after_crash()

    async def drain(self) -> None:
        """Finish frames in flight, for at most `drain_s`; start nothing new."""
        self.closing = True
        async with self.committing:
            await self._stop_all(self.config.node.drain_s)

    async def close(self) -> None:
        """Cancel pending starts, and stop at once what still runs."""
        self.closing = True
        await tasks.cancel(*self._pending_starts)
        async with self.committing:
            await self._stop_all(0)

    async def _stop_all(self, drain_s: float) -> None:
        stops = (runner.stop(drain_s) for runner in self.runners.values())
        for name, outcome in zip(list(self.runners), await asyncio.gather(*stops, return_exceptions=True), strict=True):
            if isinstance(outcome, Exception):  # the others must end in order all the same
                log.error("pipeline-not-stopped", pipeline=name, exc_info=outcome)

    def model_assigned(self, model: str) -> None:
        """(any thread) Start the pipelines that wait for a version of this model."""
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._schedule_start)

    def _schedule_start(self) -> None:
        if self.waiting and not self.closing:
            task = tasks.start(self._start_waiting(), "start of waiting pipelines")
            self._pending_starts.add(task)
            task.add_done_callback(self._pending_starts.discard)

    async def _start_waiting(self) -> None:
        async with self.reloading:
            await self._build_and_start(self.config, [name for name in self.waiting if name in self.config.pipelines])

    async def _build_and_start(self, config: NodeConfig, names: Iterable[str]) -> None:
        built_pipelines: dict[str, BuiltPipeline] = {}
        try:
            await self._build(config, names, built_pipelines, self.failures)
            async with self.committing:
                for name in list(built_pipelines):
                    if not self.closing:
                        await tasks.run_to_end(self._start(built_pipelines.pop(name)), "start of a pipeline")
        finally:
            _retire(built_pipelines)

    async def reload(
        self, config: NodeConfig, committed: Callable[[], None] = lambda: None, stopped: Collection[str] = ()
    ) -> dict[str, list[str]]:
        """Apply a new configuration; if any part of it is invalid, nothing changes.

        Args:
            config: the new configuration.
            committed: called once it is the current one, even if the caller is cancelled meanwhile.
            stopped: pipelines that are only stopped if the configuration lacks them: what waits for them at the broker stays.
        Returns: names of pipelines `added`, `changed`, `removed` and `kept`.
        Raises: HedgerowError: it is invalid.
        """
        async with self.reloading:
            changed = [name for name in config.pipelines if self._is_changed(config, name)]
            failures: dict[str, HedgerowError] = {}
            built_pipelines: dict[str, BuiltPipeline] = {}
            try:
                await self._build(config, changed, built_pipelines, failures)
                if failures:
                    name, error = next(iter(failures.items()))
                    raise CommandError(
                        f"Pipeline {name}: {error}",
                        code=error.code,
                        remedy=f"{error.remedy} The node keeps its old configuration.",
                        outside=error.outside and f"Pipeline {name}: {error.outside}",
                    ) from error
                async with self.committing:
                    commit = self._commit(config, built_pipelines, committed, stopped)
                    return await tasks.run_to_end(commit, "change of pipelines")
            finally:
                _retire(built_pipelines)

    def _is_changed(self, config: NodeConfig, name: str) -> bool:
        runner = self.runners.get(name)
        if runner is None or runner.state == "stopping":  # it could not be stopped, or its replacement not started
            return True
        return pipeline_digest(config, name) != pipeline_digest(self.config, name)

    async def _commit(
        self,
        config: NodeConfig,
        built_pipelines: dict[str, BuiltPipeline],
        committed: Callable[[], None],
        stopped: Collection[str],
    ) -> dict[str, list[str]]:
        """Start built pipelines in place of the old ones, and take them out of `built_pipelines`.

        Raises: HedgerowError: nothing has changed.
        """
        if self.closing:  # what starts now would not be drained
            raise CommandError("The node is stopping", code="stopping", remedy="Restart it with the new configuration.")
        await self._subscribe_for(built_pipelines)
        outcome = {
            "added": [name for name in built_pipelines if name not in self.runners],
            "changed": [name for name in built_pipelines if name in self.runners],
            "removed": [name for name in self.runners if name not in config.pipelines],
            "kept": [name for name in config.pipelines if name not in built_pipelines],
        }
        self.config = config
        committed()
        self.failures.clear()
        self.waiting = {name: why for name, why in self.waiting.items() if name in config.pipelines}
        for name in outcome["removed"]:
            with self._failing_alone(name):
                await self.runners[name].stop(config.node.drain_s, forget_session=name not in stopped)
                del self.runners[name]
        for name in list(built_pipelines):
            with self._failing_alone(name):
                await self.replace(name, built_pipelines[name])
                del built_pipelines[name]
        return outcome

    @contextmanager
    def _failing_alone(self, name: str) -> Iterator[None]:
        """Report an unexpected error of one pipeline; the others must change all the same."""
        try:
            yield
        except Exception as error:
            log.exception("pipeline-failed", pipeline=name)
            self._failed(name, internal(error))

    async def _subscribe_for(self, built_pipelines: Mapping[str, BuiltPipeline]) -> None:
        """Add the subscriptions of all pipelines to be swapped, or none.

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
        """Replace the running pipeline, or start a new one. The caller holds `committing`, and lets it run to its end."""
        runner = self.runners.get(name)
        if runner is None:
            await self._start(built)
        elif runner.state != "stopping" and runner.can_swap(built):
            await runner.swap(built)
        else:  # it needs a new link; meanwhile its session at the broker queues messages
            paused = runner.state == "paused"
            await runner.stop(self.config.node.drain_s)
            await self._start(built, runner.tally, paused=paused)

    async def _build(
        self,
        config: NodeConfig,
        names: Iterable[str],
        built_pipelines: dict[str, BuiltPipeline],
        failures: dict[str, HedgerowError],
    ) -> None:
        """Build pipelines in a thread, so that frames and commands are not delayed."""
        for name in names:
            try:
                build = partial(self._builder.build, config, name)
                built_pipelines[name] = await tasks.in_thread(build, "build of a pipeline", BuiltPipeline.retire)
                self.waiting.pop(name, None)
            except ModelNotAssigned as error:
                self.waiting[name] = error
                log.info("pipeline-waits", pipeline=name, reason=str(error))
            except HedgerowError as error:
                failures[name] = error
                self._report_failure(name, error)
            except Exception as error:  # an unexpected error, e.g. in a library, must not affect the other pipelines
                log.exception("pipeline-failed", pipeline=name)
                failures[name] = internal(error)
                self._report_failure(name, failures[name])

    async def _start(self, built: BuiltPipeline, tally: Tally | None = None, *, paused: bool = False) -> None:
        address, state_dir = self._announcer.address, self.config.node.state_dir
        token = client_token(state_dir)
        source = link_options(
            self.config.broker,
            client_id(address, token, built.name),
            receive_maximum=built.config.receive_maximum,
            max_payload_bytes=built.config.max_payload_bytes,
            session_file=state_dir / "links" / built.name,
            refuse_lower_qos=built.config.if_qos_lowered == "fail",
        )
        if self.state_is_new:
            source = replace(source, crash_expiry_s=_NEW_STATE_EXPIRY_S)
        former = FormerSession(
            former_client_id(address, built.name),
            state_dir / "sessions" / built.name,
            address.topic(Channel.REPLY, f"move-{built.name}"),
        )
        sink = link_options(
            self.config.broker,
            client_id(address, token, built.name, "results"),
            set_aside_folder=state_dir / set_aside.FOLDER,
        )
        try:
            outbox = await self._outbox.open() if built.config.publish.durable else None
        except HedgerowError as error:
            built.retire()
            self._failed(built.name, error)
            return
        on_event = self._announcer.event_sink(built.name)
        runner = PipelineRunner(built, source, sink, on_event, outbox, tally, former=former)
        self.runners[built.name] = runner
        try:
            await runner.start(paused=paused)
        except Exception as error:
            await runner.stop(0)
            del self.runners[built.name]
            if not isinstance(error, HedgerowError):
                log.exception("pipeline-failed", pipeline=built.name)
            self._failed(built.name, error if isinstance(error, HedgerowError) else internal(error))

    def _failed(self, name: str, error: HedgerowError) -> None:
        self.failures[name] = error
        self._report_failure(name, error)

    def _report_failure(self, name: str, error: HedgerowError) -> None:
        log.error("pipeline-failed", pipeline=name, code=error.code, error=str(error), remedy=error.remedy)
        self._announcer.event("pipeline-failed", {"code": error.code, "error": error, "remedy": error.remedy}, name)


def _retire(built_pipelines: Mapping[str, BuiltPipeline]) -> None:
    """Close built pipelines that were not started."""
    for built in built_pipelines.values():
        built.retire()
