"""The node: creates its parts, starts and drains them.

The node has its own link for status, health, events, commands and desired documents, so frames never delay these.

    link ─▶ announcer ─▶ outbox, pool ─▶ pipelines ─▶ live config, worker pipelines ─▶ swaps ─▶ fleet ─▶ health, probes
"""

from __future__ import annotations

import asyncio
import os
import signal
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import structlog

from hedgerow import tasks
from hedgerow.backends.cores import cores
from hedgerow.bus.client import Client
from hedgerow.bus.diagnosis import diagnose
from hedgerow.bus.identity.client_ids import client_id, client_token
from hedgerow.bus.message import Message
from hedgerow.bus.set_aside import messages as set_aside
from hedgerow.config import NodeConfig
from hedgerow.errors import BusError, HedgerowError
from hedgerow.models.monitor.quarantine import QuarantineLog
from hedgerow.models.serving.pool import ModelPool
from hedgerow.node import state_folder
from hedgerow.node.command_handlers import CommandHandlers
from hedgerow.node.commands import LARGEST_COMMAND, CommandServer
from hedgerow.node.health import HealthReporter
from hedgerow.node.heartbeat import Heartbeat
from hedgerow.node.link.announcer import Announcer, last_will
from hedgerow.node.link.instance import ThisInstance
from hedgerow.node.link.options import is_plain_text_on_network, link_options
from hedgerow.node.link.outbox import NodeOutbox
from hedgerow.node.pipelines.builder import PipelineBuilder
from hedgerow.node.pipelines.live_config import LiveConfig
from hedgerow.node.pipelines.pipelines import Pipelines
from hedgerow.node.pipelines.worker_pipelines import WorkerPipelines
from hedgerow.node.probes import Probes
from hedgerow.node.swap.swaps import Swaps
from hedgerow.pipeline.crash_journal import CrashJournal
from hedgerow.pipeline.runner import PipelineRunner
from hedgerow.telemetry import systemd
from hedgerow.topics import Channel
from hedgerow.wire.messages import Health

if TYPE_CHECKING:
    from hedgerow.node.fleet.member import FleetMember
    from hedgerow.node.link.certificates import CertificateWatch

log = structlog.get_logger(__name__)

_NEW_STATE_S: Final = 3600.0
"""How long a run with an empty state folder lasts before the folder counts as one that stays."""
CONNECT_TIMEOUT_S = 2.0
"""Longest wait for the node's link, and then for the pipelines', before "node-started": frames may be sent then."""


class Node:
    """Runs the pipelines of a configuration until stopped.

    Args:
        config: the configuration.
        path: its file: relative paths start at its folder, and `reload` rereads it.
    """

    def __init__(self, config: NodeConfig, path: Path | None = None) -> None:
        self.address = config.node.address
        self.session = uuid.uuid4().hex
        self.cores = config.node.threads or cores()
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._starting: asyncio.Timeout | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        base_dir = path.parent if path is not None else Path.cwd()
        state_dir = config.node.state_dir
        state_folder.prepare(state_dir, base_dir)
        state_folder.check_identity(state_dir, is_named="name" in config.node.model_fields_set)
        self._state_is_new = state_folder.is_new(state_dir)

        token, broker = client_token(state_dir), config.broker
        place = ThisInstance(token, broker.tls.cert_file if broker.url.startswith(("mqtts:", "wss:")) else None)
        options = link_options(
            config.broker,
            client_id(self.address, token),
            max_payload_bytes=LARGEST_COMMAND,
            keep_session=False,
            set_aside_folder=state_dir / set_aside.FOLDER,
            will=last_will(self.address, self.session, place.now),
        )
        self._link = Client(options, self._receive, self._link_changed, self._link_warns)
        self._announcer = Announcer(self.address, self.session, self._link, place)
        self._heartbeat = Heartbeat(self._announcer)
        self._outbox = NodeOutbox(config, state_dir, self._announcer.warn)
        self._pool = ModelPool(cores=self.cores, state_dir=state_dir)
        self._journal = CrashJournal(state_dir / "crashes")
        self._builder = builder = PipelineBuilder(base_dir, self.cores, self._pool, self._announcer, self._journal)
        self._pipelines = Pipelines(config, builder, self._announcer, self._outbox)
        self._pipelines.state_is_new = self._state_is_new
        self._pool.on_assigned = self._pipelines.model_assigned
        self._live_config = LiveConfig(config, path, self._pipelines, self._announcer, self._use_new_password)
        quarantine = QuarantineLog(state_dir / "trials", config.fleet.max_crashes)
        workers = WorkerPipelines(self._pipelines, builder)
        self.swaps = Swaps(self._pool, workers, quarantine, self._announcer.event)
        self._fleet = self._fleet_member(config)
        self._certificates = self._certificate_watch(config)
        self._health = HealthReporter(
            self._announcer, self._pipelines, self._outbox, self._heartbeat.clock, self._certificates, self._journal
        )
        self._commands = CommandServer(
            self.address,
            self._link,
            CommandHandlers(self).handlers(),
            lambda: self._live_config.file.remote,
            self._announcer.warn,
        )
        parts = (tasks, self._announcer, self._health, self._outbox, self._fleet, self._certificates, self._commands)
        gauges = [part.gauges for part in parts if part is not None]
        self._probes = Probes(self._pipelines, self._heartbeat, self._link, *gauges)

    @property
    def config(self) -> NodeConfig:
        """The current configuration."""
        return self._pipelines.config

    @property
    def stopping(self) -> bool:
        """Whether it was asked to stop."""
        return self._stop.is_set()

    @property
    def runners(self) -> dict[str, PipelineRunner]:
        """Running pipelines by name."""
        return self._pipelines.runners

    @property
    def failures(self) -> dict[str, HedgerowError]:
        """Errors of failed pipelines by name."""
        return self._pipelines.failures

    @property
    def probe_port(self) -> int | None:
        """Port of metrics and probes; None if they are off."""
        return self._probes.port

    async def run(self, started: Callable[[], None] = lambda: None) -> None:
        """Run until `stop` or a signal, then drain. A stop while it starts ends the start.

        Args:
            started: called once the pipelines have started.
        Raises: ConfigError: the configuration as a whole is invalid. A bad pipeline fails on its own.
        """
        with state_folder.held(self.config.node.state_dir):
            await self._run(started)

    async def _run(self, started: Callable[[], None]) -> None:
        broker = self.config.broker.url
        if is_plain_text_on_network(broker):
            log.warning("plain-text-broker", url=broker, remedy="Use mqtts:// (or wss://) with certificates.")
        for found in self._journal.found:
            self._announcer.warn("node-crashed", found)
        self._probes.serve()
        self._keep(tasks.supervise(self._heartbeat.run, "heartbeat"))
        if self._certificates is not None:
            self._keep(tasks.supervise(self._certificates.run, "certificates"))
        if self._state_is_new:
            self._keep(tasks.start(self._trust_state(), "longer sessions"))
        try:
            async with self._link:
                if await self._start_unless_stopped():
                    log.info(
                        "node-started",
                        node=str(self.address),
                        broker=broker,
                        pipelines=sorted(self.runners),
                        failed=sorted(self.failures),
                    )
                    started()
                    systemd.ready()
                    health = self._keep(tasks.supervise(self._health.run, "health"))
                    await self._stop.wait()
                    await tasks.cancel(health)
                systemd.stopping()
                await self._drain()
        finally:
            await tasks.run_to_end(self._close(), "end of the node")

    def stop(self) -> None:
        """Ask the node to drain and stop."""
        self._pipelines.closing = True
        self._stop.set()
        if self._starting is not None:
            self._starting.reschedule(self._loop.time())

    def handle_signals(self) -> None:
        """Drain and stop on SIGTERM and SIGINT, exit immediately on a second one; reload the file on SIGHUP."""

        def interrupt(number: signal.Signals) -> None:
            if self._stop.is_set():
                log.warning("stopping-at-once", signal=number.name)
                self._builder.abandon()
                for runner in self.runners.values():
                    runner.abandon()
                os._exit(128 + number)  # not `sys.exit`: what blocks draining would block it too
            self.stop()
            log.info("stopping", signal=number.name, drain_s=self.config.node.drain_s)

        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, interrupt, number)
        self._loop.add_signal_handler(
            signal.SIGHUP, lambda: self._keep(tasks.start(self._live_config.reload_on_signal(), "reload"))
        )

    def health(self) -> Health:
        """Return a current health report."""
        return self._health.report()

    async def reload(self) -> dict[str, list[str]]:
        """Read the node's file again; if any part of it is invalid, nothing changes.

        Returns: names of pipelines `added`, `changed`, `removed` and `kept`.
        Raises: HedgerowError: it is invalid.
        """
        return await self._live_config.reload()

    async def adjust(self, pipeline: str, changes: Mapping[str, Any]) -> dict[str, list[str]]:
        """Change settings of a pipeline until the node restarts or reloads. Raises: HedgerowError: see `adjustments`."""
        return await self._live_config.adjust(pipeline, changes)

    def require_may_stop(self, pipelines: Iterable[str]) -> None:
        """Raises: AdjustmentRefused: one of these pipelines has to keep running, says the node's file."""
        self._live_config.require_may_stop(pipelines)

    async def release(self, digest: str) -> None:
        """Release a model version from quarantine; if the region still desires it, retry it.

        Raises: CommandError: a swap is in progress.
        """
        await self.swaps.release(digest)
        log.info("model-released", digest=digest)
        self._announcer.event("model-released", {"digest": digest})
        if self._fleet is not None:
            self._fleet.agent.retry()

    async def _start_unless_stopped(self) -> bool:
        """Start. Returns: False if `stop` was called first: a stage whose setup hangs must not keep the node from stopping."""
        try:
            async with asyncio.timeout(0 if self._stop.is_set() else None) as self._starting:
                await self._start()
        except TimeoutError:
            if not self._stop.is_set():
                raise
            log.info("start-abandoned")
        finally:
            self._starting, self._heartbeat.starting = None, False
        return not self._stop.is_set()

    async def _start(self) -> None:
        filters = self._commands.filters()
        filters[self._status_topic] = 1
        if self._fleet is not None:
            filters[self._desired_topic] = 1
        await self._link.subscribe(filters)
        if self._fleet is not None:
            await self._fleet.agent.restore()
        await self._pipelines.start(self._live_config.effective())
        if self._fleet is not None:
            await self._fleet.open()
        with suppress(BusError):  # the broker is unreachable: start anyway
            await self._link.wait_connected(CONNECT_TIMEOUT_S)
            await self._pipelines.wait_connected(CONNECT_TIMEOUT_S)

    async def _drain(self) -> None:
        self._outbox.hurry()
        await self._pipelines.drain()
        await self._outbox.close()
        self._announcer.report_repeats(final=True)
        self._announcer.offline("stopped")
        await self._link.close(timeout_s=2.0)  # if the broker is unreachable, it publishes the will
        unfinished = {name: runner.tally.in_flight for name, runner in self.runners.items() if runner.tally.in_flight}
        log.info("node-stopped", unfinished=unfinished)

    async def _close(self) -> None:
        """End all parts, each whatever becomes of the others, last first."""
        async with AsyncExitStack() as parts:
            parts.callback(self._probes.close)
            parts.callback(self._pool.close)
            parts.callback(self._builder.abandon)
            parts.push_async_callback(self._outbox.close)
            parts.push_async_callback(self._pipelines.close)
            if self._fleet is not None:
                parts.push_async_callback(self._fleet.close)
            parts.push_async_callback(tasks.cancel, *self._tasks)

    # The node's own link

    @property
    def _desired_topic(self) -> str:
        return self.address.topic(Channel.DESIRED)

    @property
    def _status_topic(self) -> str:
        return self.address.topic(Channel.STATUS)

    @property
    def _ping_topic(self) -> str:
        return self.address.topic(Channel.COMMAND, "ping")

    async def _trust_state(self) -> None:
        await asyncio.sleep(_NEW_STATE_S)
        await self._pipelines.trust_state()

    async def _watch_name(self) -> None:
        if self._status_topic in self._link.refused:  # a broker that lets no node read its own status
            await self._link.unsubscribe([self._status_topic])

    def _receive(self, messages: list[Message]) -> None:
        for message in messages:
            if self._fleet is not None and message.topic == self._desired_topic:
                self._fleet.agent.receive(message)
            elif message.topic == self._status_topic:
                self._announcer.check_name(message, state_is_new=self._state_is_new)
            elif message.topic != self._ping_topic or not self._announcer.take_notice(message):
                self._keep(tasks.start(self._commands.answer(message), "command"))
            self._link.ack(message)

    def _link_changed(self, connected: bool, reason: str) -> None:
        if not connected:
            self._announcer.link_lost()
        else:  # also after a reconnect: the will has set the status to offline
            self._announcer.online()
            self._keep(tasks.start(self._watch_name(), "watch of the node's name"))

    def _link_warns(self, kind: str, detail: dict[str, Any]) -> None:
        self._announcer.warn(kind, detail)

    async def _use_new_password(self) -> None:
        """Reconnect if the password file has another password.

        Raises: HedgerowError: the broker refuses it, or the file cannot be read; the links stay as they are.
        """
        if not self._link.password_changed:
            return
        if (refusal := await diagnose(self._link.options)) is not None:
            raise refusal
        await self._link.renew()
        await self._renew_other_links()
        log.info("password-renewed")

    async def _renew_other_links(self) -> None:
        await self._pipelines.renew_links()
        await self._outbox.renew_link()
        if self._fleet is not None:
            await self._fleet.renew_link()

    # Optional parts

    def _fleet_member(self, config: NodeConfig) -> FleetMember | None:
        root_file = config.fleet.root_file
        if root_file is None:
            return None
        from hedgerow.node.fleet.agent_host import AgentHost
        from hedgerow.node.fleet.assembler import assemble  # imports libraries that only fleet nodes need

        clock = self._heartbeat.clock
        host = AgentHost(self._live_config, self._pipelines, self._announcer, clock, self.cores)
        return assemble(config, root_file, host, self.swaps)

    def _certificate_watch(self, config: NodeConfig) -> CertificateWatch | None:
        if not config.broker.url.startswith(("mqtts:", "wss:")):
            return None
        from hedgerow.node.link.certificates import CertificateWatch  # imports a library that only TLS needs

        return CertificateWatch(self._link, self._renew_other_links, self._announcer.warn)

    def _keep(self, task: asyncio.Task[None]) -> asyncio.Task[None]:
        """Cancel a task when the node ends."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
