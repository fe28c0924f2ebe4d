"""The node's metrics and health probes: /metrics, /healthz, /readyz."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING

import structlog

from hedgerow.errors import published
from hedgerow.node.health import hanging_stage, refused_subscriptions, running_models
from hedgerow.node.heartbeat import BEAT_EVERY_S
from hedgerow.telemetry.metrics import ProbeServer, TallyCollector

if TYPE_CHECKING:
    from hedgerow.bus.client import Client
    from hedgerow.node.heartbeat import Heartbeat
    from hedgerow.node.pipelines.pipelines import Pipelines
    from hedgerow.pipeline.runner import PipelineRunner
    from hedgerow.telemetry.tally import Tally

log = structlog.get_logger(__name__)


class Probes:
    """Serves metrics and probes from a thread, so it responds even if the event loop hangs.

    Args:
        pipelines: the node's pipelines.
        heartbeat: tells whether the event loop hangs.
        client: the node's own link.
        gauges: further metrics; each yields name, help, labels and value.
    Attributes:
        port: the port; None: not serving.
    """

    def __init__(
        self,
        pipelines: Pipelines,
        heartbeat: Heartbeat,
        client: Client,
        *gauges: Callable[[], Iterable[tuple[str, str, dict[str, str], float]]],
    ) -> None:
        self.port: int | None = None
        self._pipelines = pipelines
        self._heartbeat = heartbeat
        self._client = client
        self._gauges = gauges
        self._started_at = time.time()
        self._loop = asyncio.get_running_loop()
        self._server: ProbeServer | None = None
        heartbeat.hung_stages = self.hung_stages

    def serve(self) -> None:
        """Start serving, if enabled. Raises: ConfigError: the address cannot be bound."""
        metrics = self._pipelines.config.metrics
        if metrics.enabled:
            tallies = TallyCollector(self.tallies, self._all_gauges)
            self._server = ProbeServer(metrics.host, metrics.port, tallies, self.why_dead, self.why_unready)
            self.port = self._server.port
            log.info("probes", url=f"{self._server.url}/metrics")

    def close(self) -> None:
        """Stop serving."""
        if self._server is not None:
            self._server.close()

    def tallies(self) -> dict[str, Tally]:
        """(another thread) Return a consistent snapshot of the pipelines' tallies.

        The event loop copies them; if it hangs, nothing changes them, and they are read directly.
        """

        async def copy() -> dict[str, Tally]:
            return {name: runner.tally.copy() for name, runner in self._pipelines.runners.items()}

        copying = asyncio.run_coroutine_threadsafe(copy(), self._loop)
        try:
            return copying.result(BEAT_EVERY_S)
        except (TimeoutError, CancelledError):
            copying.cancel()
            return {name: runner.tally for name, runner in self._pipelines.runners.copy().items()}

    def why_dead(self) -> list[str]:
        """(any thread) Return why the node must be restarted; empty if it is alive."""
        reasons = self._heartbeat.why_dead()
        if reasons:
            for name, runner in self._pipelines.runners.copy().items():
                if stage := runner.stage_on_loop():
                    reasons.append(f"pipeline {name}: stage {stage} runs on the event loop")
        return reasons

    def hung_stages(self) -> list[str]:
        """(any thread) Return the stages that hang in this process, which only a restart can end."""
        reasons = []
        for name, runner in self._pipelines.runners.copy().items():
            hang = runner.hang()
            if hang is not None and hang.expired and not runner.built.workers().memory_bytes:
                reasons.append(
                    f"pipeline {name}: stage {hang.stage} has not returned for {hang.waited_s:.0f} s; "
                    f"the limit is {hang.limit_s:g} s"
                )
        return reasons

    def why_unready(self) -> list[str]:
        """(any thread) Return why the node is not ready; empty if links are up, models loaded and frames flow."""
        failures = self._pipelines.failures.copy()
        reasons = [f"pipeline {name} cannot run: {published(error)[0]}" for name, error in failures.items()]
        if not self._client.connected:
            reasons.append("not connected to the broker")
        for name, runner in self._pipelines.runners.copy().items():
            reasons += self._why_not_flowing(name, runner)
        for name, waiting in self._pipelines.loading().items():
            reasons.append(
                f"pipeline {name} is loading its models" if waiting is None else f"pipeline {name}: {waiting}"
            )
        return reasons

    def _why_not_flowing(self, name: str, runner: PipelineRunner) -> Iterator[str]:
        if not runner.connected and runner.state == "running":
            yield f"pipeline {name} is not connected to the broker"
        yield from refused_subscriptions(name, runner)
        yield from hanging_stage(name, runner)
        longest_s = self._pipelines.config.metrics.flow_timeout_s  # None: no limit
        silent_s = time.time() - max(runner.tally.last_frame_at or 0.0, self._started_at)
        if longest_s is not None and runner.state == "running" and silent_s > longest_s:
            yield f"pipeline {name}: no frame for {silent_s:.0f} s"

    def _all_gauges(self) -> Iterator[tuple[str, str, dict[str, str], float]]:
        yield from gauges(self._pipelines.runners.copy(), self._client)
        for more in self._gauges:
            yield from more()


def gauges(runners: dict[str, PipelineRunner], client: Client) -> Iterator[tuple[str, str, dict[str, str], float]]:
    """Yield the metrics that are not in the pipelines' tallies: name, help, labels, value.

    Args:
        client: the node's own link.
    """
    yield "hedgerow_connected", "Whether the link to the broker is up.", {"link": "node"}, client.connected
    refused = client.refused_publishes
    yield "hedgerow_refused_publishes", "QoS 1 messages that the broker refused.", {"link": "node"}, refused
    for name, runner in runners.items():
        yield "hedgerow_connected", "Whether the link to the broker is up.", {"link": name}, runner.connected
        refused = runner.refused_publishes
        yield "hedgerow_refused_publishes", "QoS 1 messages that the broker refused.", {"link": name}, refused
        yield "hedgerow_frames_queued", "Frames waiting in the queue.", {"pipeline": name}, runner.queued
        yield "hedgerow_streams", "Streams currently tracked.", {"pipeline": name}, runner.streams
        workers = runner.built.workers()
        for reason, count in workers.ended.items():
            yield "hedgerow_worker_ends", "Workers replaced.", {"pipeline": name, "reason": reason}, count
        yield (
            "hedgerow_worker_memory_bytes",
            "Resident memory of the workers.",
            {"pipeline": name},
            sum(workers.memory_bytes),
        )
        yield "hedgerow_reconnects", "Times the link reconnected.", {"pipeline": name}, runner.reconnects
        lost = runner.sessions_lost
        yield "hedgerow_sessions_lost", "Times the broker forgot the session and its frames.", {"pipeline": name}, lost
        lowered = len(runner.lowered)
        yield (
            "hedgerow_qos_lowered",
            "Subscriptions that the broker granted with QoS 0 only.",
            {"pipeline": name},
            lowered,
        )
        replaced = runner.lanes_replaced
        yield "hedgerow_lanes_replaced", "Lanes whose thread ended unexpectedly.", {"pipeline": name}, replaced
    for info in running_models(runners.values()).values():
        labels = {
            "model": info.name,
            "version": info.version or "",
            "digest": info.digest.removeprefix("sha256:")[:12],
            "backend": info.backend,
            "device": info.device,
        }
        yield "hedgerow_model_frames", "Frames that a model processed.", labels, info.frames
        yield "hedgerow_model_inferences", "Inferences that a model ran.", labels, info.inferences
        yield (
            "hedgerow_model_degraded",
            "Whether it runs on another device than configured.",
            labels,
            bool(info.degraded),
        )
        if info.looked_at:
            share = info.not_finite / info.looked_at
            yield (
                "hedgerow_model_not_finite_share",
                "Share of recently sampled frames that gave NaN or infinity.",
                labels,
                share,
            )
        if info.drift is not None:
            yield "hedgerow_model_drift", "Distance of its outputs from the bundle's baseline.", labels, info.drift
        if info.input_drift is not None:
            yield (
                "hedgerow_model_input_drift",
                "Distance of its inputs from the bundle's baseline.",
                labels,
                info.input_drift,
            )
