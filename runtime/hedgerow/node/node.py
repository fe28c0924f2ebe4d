"""The node: its pipelines, its own link, commands, health and probes, from start to stop.

The node has one link of its own, for status, health, events and commands, so that frames never hold these up.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from hedgerow import configfile
from hedgerow.backends.cores import cores
from hedgerow.bus.client import Client
from hedgerow.bus.connect import ClientOptions
from hedgerow.bus.message import Message
from hedgerow.config import NodeConfig
from hedgerow.errors import BusError, CommandError, HedgerowError
from hedgerow.node.announce import Announcer
from hedgerow.node.answers import Answers
from hedgerow.node.commands import LARGEST_COMMAND, CommandDesk
from hedgerow.node.health import HealthReporter, gauges, unready
from hedgerow.node.link import link_options, on_loopback
from hedgerow.node.outbox import NodeOutbox
from hedgerow.node.pipelines import Pipelines
from hedgerow.node.swaps import Swaps
from hedgerow.pipeline.runner import PipelineRunner
from hedgerow.telemetry import systemd
from hedgerow.telemetry.clock import Clock
from hedgerow.telemetry.metrics import ProbeServer, TallyCollector
from hedgerow.telemetry.tally import Tally
from hedgerow.wire.messages import Health

if TYPE_CHECKING:
    from hedgerow.node.certificates import CertificateWatch
    from hedgerow.node.fleet import FleetMember

log = structlog.get_logger(__name__)

BEAT_EVERY_S = 1.0
LINKS_S = 2.0
"""How long a start waits for the links, one after the other: who reads "node-started" may send frames."""


class Node:
    """Runs the pipelines of a configuration until it is told to stop.

    Args:
        config: what to run.
        path: the file it came from; models are relative to it, and `reload` reads it again.
    """

    def __init__(self, config: NodeConfig, path: Path | None = None) -> None:
        self.address = config.node.address
        self.cores = config.node.threads or cores()
        self._path = path
        self._started_at = time.time()
        self._beat = time.monotonic()
        self._clock = Clock()
        self._stop = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loop = asyncio.get_running_loop()
        self._announcer = Announcer(self.address)
        options = link_options(
            config.broker,
            f"hedgerow/{self.address}",
            max_payload_bytes=LARGEST_COMMAND,
            keep_session=False,
            will=self._announcer.will(),
        )
        self._control = self._announcer.client = Client(options, self._take_commands, self._link_changed)
        base_dir = path.parent if path is not None else Path.cwd()
        self._outbox = NodeOutbox(config, self.address, base_dir / config.node.state_dir, self._warn)
        self._pipelines = Pipelines(config, base_dir, self.cores, self._announcer, self._outbox)
        self._desk = CommandDesk(self.address, self._control, Answers(self).handlers())
        self._health = HealthReporter(str(self.address), self.session)
        self._certificates = self._watch(options) if config.broker.url.startswith("mqtts:") else None
        self._probes: ProbeServer | None = None
        self._fleet: FleetMember | None = None
        if config.fleet.root_file is not None:
            self._fleet = self._join(config)

    @property
    def config(self) -> NodeConfig:
        """The configuration in force."""
        return self._pipelines.config

    @property
    def session(self) -> str:
        """Names this run of the node."""
        return self._announcer.session

    @property
    def runners(self) -> dict[str, PipelineRunner]:
        """The pipelines that run, by name."""
        return self._pipelines.runners

    @property
    def swaps(self) -> Swaps:
        """Takes its models from version to version."""
        return self._pipelines.swaps

    @property
    def failures(self) -> dict[str, HedgerowError]:
        """Why other pipelines do not run, by name."""
        return self._pipelines.failures

    @property
    def probe_port(self) -> int | None:
        """Port of the metrics and probes; None if they are off."""
        return self._probes.port if self._probes is not None else None

    async def run(self, started: Callable[[], None] = lambda: None) -> None:
        """Run until `stop` is called or a signal comes; then drain.

        Args:
            started: called once, when the pipelines have been started.
        Raises: ConfigError: the configuration as a whole cannot be used (a single bad pipeline only fails itself).
        """
        broker, metrics = self.config.broker, self.config.metrics
        if not on_loopback(broker.url) and broker.url.startswith("mqtt:"):
            log.warning("plain-text-broker", url=broker.url, remedy="Use mqtts:// with certificates.")
        if metrics.enabled:
            tallies = TallyCollector(
                self._books,
                lambda: (
                    *gauges(self.runners.copy(), self._control),
                    *self._outbox.gauges(),
                    *(self._fleet.gauges() if self._fleet is not None else ()),
                    *(self._certificates.gauges() if self._certificates is not None else ()),
                ),
            )
            self._probes = ProbeServer(metrics.host, metrics.port, tallies, self._why_dead, self._why_unready)
            log.info("probes", url=f"http://{metrics.host}:{self._probes.port}/metrics")
        beat = self._loop.create_task(self._keep_beat())
        if self._certificates is not None:
            self._spawn(self._certificates.run())
        try:
            async with self._control:
                await self._control.subscribe(self._desk.filters() | self._fleet_filter())
                if self._fleet is not None:
                    self._pipelines.config = await asyncio.to_thread(self._fleet.restore)
                await self._pipelines.start()
                if self._fleet is not None:
                    await self._fleet.open()
                with suppress(BusError):  # the broker is away, and nobody knows for how long
                    await self._control.wait_connected(LINKS_S)
                    await self._pipelines.wait_connected(LINKS_S)
                log.info(
                    "node-started",
                    node=str(self.address),
                    broker=broker.url,
                    pipelines=sorted(self.runners),
                    failed=sorted(self.failures),
                )
                started()
                systemd.ready()
                reporting = self._announcer.keep_reporting(self.health, self._begin_period)
                health = self._loop.create_task(reporting)
                await self._stop.wait()
                systemd.stopping()
                health.cancel()
                await self._drain()
        finally:
            beat.cancel()
            for task in list(self._tasks):
                task.cancel()
            if self._fleet is not None:
                await self._fleet.close()
            await self._outbox.close()
            self._pipelines.close()
            if self._probes is not None:
                self._probes.close()

    def stop(self) -> None:
        """Ask the node to drain and stop."""
        self._pipelines.closing = True
        self._stop.set()

    def handle_signals(self) -> None:
        """SIGTERM and Ctrl-C drain and stop; a second one stops at once. SIGHUP reloads the file."""

        def interrupt(number: signal.Signals) -> None:
            if self._stop.is_set():
                log.warning("stopping-at-once", signal=number.name)
                os._exit(128 + number)  # whatever holds up the draining must not hold up this
            log.info("stopping", signal=number.name, drain_s=self.config.node.drain_s)
            self.stop()

        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, interrupt, number)
        self._loop.add_signal_handler(signal.SIGHUP, lambda: self._spawn(self._reload_on_signal()))

    def health(self) -> Health:
        """A health report of now."""
        certificates = self._certificates.reasons() if self._certificates is not None else []
        loading, outbox = self._pipelines.loading(), self._outbox.health()
        return self._health.report(self.runners, self.failures, loading, outbox, self._clock, certificates)

    async def reload(self, text: str | None = None) -> dict[str, list[str]]:
        """Go over to a new configuration; if any part of it is bad, nothing changes.

        Args:
            text: the configuration; None reads the node's file again.
        Returns: names of pipelines added, changed, removed and kept.
        Raises: HedgerowError: why it cannot be used; the old configuration runs on.
        """
        config = await asyncio.to_thread(self._read, text)
        for section in ("node", "broker", "outbox", "fleet", "metrics", "log"):
            if getattr(config, section) != getattr(self.config, section):
                raise CommandError(
                    f"A reload cannot change `{section}:`",
                    code="restart-needed",
                    remedy="Restart the node for that; pipelines and models can be changed by a reload.",
                )
        in_force = config if self._fleet is None else self._fleet.overlaid(config)
        outcome = await self._pipelines.reload(in_force)
        if self._fleet is not None:
            self._fleet.adopt(config)
        log.info("reloaded", **outcome)
        self._announcer.event("reloaded", dict(outcome))
        return outcome

    async def release(self, digest: str) -> None:
        """Let a version of a model out of quarantine; if the region still wants it, it is tried again.

        Raises: CommandError: another is on trial just now.
        """
        await self.swaps.release(digest)
        log.info("model-released", digest=digest)
        self._announcer.event("model-released", {"digest": digest})
        if self._fleet is not None:
            self._fleet.agent.try_again()

    def _read(self, text: str | None) -> NodeConfig:
        if text is not None:
            return configfile.parse(text, self._path or Path("command"))
        if self._path is None:
            raise CommandError(
                "The node was not started from a file",
                code="no-config-file",
                remedy="Send the configuration as `config`.",
            )
        return configfile.load(self._path)

    async def _reload_on_signal(self) -> None:
        systemd.reloading()
        try:
            await self.reload()
        except HedgerowError as error:
            log.error("reload-refused", code=error.code, error=str(error), remedy=error.remedy)
            self._announcer.event("reload-refused", {"code": error.code, "error": str(error)})
        finally:
            systemd.ready()

    async def _drain(self) -> None:
        await self._pipelines.drain()
        await self._outbox.close()
        self._announcer.status("offline", reason="stopped")
        await self._control.close(timeout_s=2.0)  # if the broker is away, its will tells
        lost = {name: runner.tally.in_flight for name, runner in self.runners.items() if runner.tally.in_flight}
        log.info("node-stopped", unfinished=lost)

    def _take_commands(self, messages: list[Message]) -> None:
        for message in messages:
            if self._fleet is not None and message.topic == self._fleet.topic:
                self._fleet.agent.take(message)
            else:
                self._spawn(self._desk.answer(message))
            self._control.ack(message)

    def _fleet_filter(self) -> dict[str, int]:
        return {} if self._fleet is None else {self._fleet.topic: 1}

    def _join(self, config: NodeConfig) -> FleetMember:
        from hedgerow.node.fleet import FleetMember  # with libraries that a node of its own never needs

        return FleetMember(
            config,
            self.session,
            self.cores,
            self._control,
            self._pipelines.swaps,
            self._pipelines.reload,
            self._states,
            lambda: self._clock.doubtful,
            self._announcer.event,
        )

    def _states(self) -> dict[str, str]:
        states = {name: str(runner.state) for name, runner in self.runners.items()}
        return states | dict.fromkeys(self.failures, "failed") | dict.fromkeys(self._pipelines.loading(), "loading")

    def _begin_period(self) -> None:
        self._health.begin_period(self.runners, self._outbox.health())

    def _watch(self, options: ClientOptions) -> CertificateWatch:
        from hedgerow.node.certificates import CertificateWatch  # with a library that a node without TLS never needs

        async def renew_others() -> None:
            await self._pipelines.renew_links()
            await self._outbox.renew_link()
            if self._fleet is not None:
                await self._fleet.renew_link()

        return CertificateWatch(options, self._control, renew_others, self._warn)

    def _warn(self, kind: str, detail: dict[str, Any]) -> None:
        log.warning(kind, **detail)
        self._announcer.event(kind, detail)

    def _link_changed(self, connected: bool, reason: str) -> None:
        if connected:  # after a lost link too: the will has said otherwise meanwhile
            self._announcer.status("online")

    async def _keep_beat(self) -> None:
        while True:
            self._beat = time.monotonic()
            systemd.alive()
            jump_s = self._clock.look(time.time(), self._beat)
            if jump_s is not None:
                log.warning("clock-jumped", by_s=round(jump_s, 3))
                self._announcer.event("clock-jumped", {"by_s": round(jump_s, 3)})
            await asyncio.sleep(BEAT_EVERY_S)

    def _books(self) -> dict[str, Tally]:
        """The pipelines' tallies, for another thread: those of one moment, so that they balance.

        They are taken between two turns of the event loop; if it does not turn, nothing changes them either.
        """

        async def books() -> dict[str, Tally]:
            return {name: runner.tally.copy() for name, runner in self.runners.items()}

        taking = asyncio.run_coroutine_threadsafe(books(), self._loop)
        try:
            return taking.result(BEAT_EVERY_S)
        except (TimeoutError, CancelledError):
            taking.cancel()
            return {name: runner.tally for name, runner in self.runners.copy().items()}

    def _why_dead(self) -> list[str]:
        silent_s = time.monotonic() - self._beat
        return [f"the event loop has not turned for {silent_s:.0f} s"] if silent_s > 10 * BEAT_EVERY_S else []

    def _why_unready(self) -> list[str]:
        reasons = unready(
            self.runners.copy(),
            self.failures.copy(),
            control_connected=self._control.connected,
            flow_timeout_s=self.config.metrics.flow_timeout_s,
            started_at=self._started_at,
        )
        for name, awaited in self._pipelines.loading().items():
            reasons.append(
                f"pipeline {name} is loading its models" if awaited is None else f"pipeline {name}: {awaited}"
            )
        return reasons

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("task-failed", exc_info=error)
