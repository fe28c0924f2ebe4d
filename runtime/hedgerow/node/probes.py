"""What /metrics, /healthz and /readyz answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING

import structlog

from hedgerow.node.health import STUCK_AFTER_S, refused_subscriptions, serving
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
    """Answers from a thread of their own, so also while the event loop hangs.

    Args:
        pipelines: of the node.
        heartbeat: says whether the event loop hangs.
        client: the node's own link.
        gauges: further metrics: each gives name, help, labels and value.
    Attributes:
        port: where they are served; None: they are not.
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

    def serve(self) -> None:
        """Begin to answer, if the configuration says so. Raises: ConfigError: the address is taken."""
        metrics = self._pipelines.config.metrics
        if metrics.enabled:
            tallies = TallyCollector(self.tallies, self._all_gauges)
            self._server = ProbeServer(metrics.host, metrics.port, tallies, self._heartbeat.why_dead, self.why_unready)
            self.port = self._server.port
            log.info("probes", url=f"http://{metrics.host}:{self.port}/metrics")

    def close(self) -> None:
        """Answer no more."""
        if self._server is not None:
            self._server.close()

    def tallies(self) -> dict[str, Tally]:
        """(another thread) The pipelines' tallies, all of one moment, so that they balance.

        They are copied between two turns of the event loop; if it hangs, nothing changes them either.
        """

        async def copies() -> dict[str, Tally]:
            return {name: runner.tally.copy() for name, runner in self._pipelines.runners.items()}

        copying = asyncio.run_coroutine_threadsafe(copies(), self._loop)
        try:
            return copying.result(BEAT_EVERY_S)
        except (TimeoutError, CancelledError):
            copying.cancel()
            return {name: runner.tally for name, runner in self._pipelines.runners.copy().items()}

    def why_unready(self) -> list[str]:
        """(any thread) Why the node is not ready: connected, models loaded, frames flowing; empty: it is."""
        failures = self._pipelines.failures.copy()
        reasons = [f"pipeline {name} cannot run: {error}" for name, error in failures.items()]
        if not self._client.connected:
            reasons.append("not connected to the broker")
        for name, runner in self._pipelines.runners.copy().items():
            reasons += self._why_not_flowing(name, runner)
        for name, awaited in self._pipelines.loading().items():
            reasons.append(
                f"pipeline {name} is loading its models" if awaited is None else f"pipeline {name}: {awaited}"
            )
        return reasons

    def _why_not_flowing(self, name: str, runner: PipelineRunner) -> Iterator[str]:
        if not runner.connected and runner.state == "running":
            yield f"pipeline {name} is not connected to the broker"
        yield from refused_subscriptions(name, runner)
        if runner.stuck_for_s() > STUCK_AFTER_S:
            yield f"pipeline {name}: a stage hangs"
        longest_s = self._pipelines.config.metrics.flow_timeout_s  # None: silence is fine
        silent_s = time.time() - max(runner.tally.last_frame_at or 0.0, self._started_at)
        if longest_s is not None and runner.state == "running" and silent_s > longest_s:
            yield f"pipeline {name}: no frame for {silent_s:.0f} s"

    def _all_gauges(self) -> Iterator[tuple[str, str, dict[str, str], float]]:
        yield from gauges(self._pipelines.runners.copy(), self._client)
        for more in self._gauges:
            yield from more()


def gauges(runners: dict[str, PipelineRunner], client: Client) -> Iterator[tuple[str, str, dict[str, str], float]]:
    """What /metrics shows beside the pipelines' tallies: name, help, labels, value.

    Args:
        client: the node's own link.
    """
    yield "hedgerow_connected", "Whether the broker can be reached.", {"link": "node"}, client.connected
    refused = client.refused_publishes
    yield "hedgerow_refused_publishes", "QoS 1 messages that the broker did not take.", {"link": "node"}, refused
    for name, runner in runners.items():
        yield "hedgerow_connected", "Whether the broker can be reached.", {"link": name}, runner.connected
        refused = runner.refused_publishes
        yield "hedgerow_refused_publishes", "QoS 1 messages that the broker did not take.", {"link": name}, refused
        yield "hedgerow_frames_queued", "Frames that wait.", {"pipeline": name}, runner.queued
        yield "hedgerow_streams", "Streams known.", {"pipeline": name}, runner.streams
        yield "hedgerow_reconnects", "Times the link was made anew.", {"pipeline": name}, runner.reconnects
    for info in serving(runners.values()).values():
        labels = {
            "model": info.name,
            "version": info.version or "",
            "digest": info.digest.removeprefix("sha256:")[:12],
            "backend": info.backend,
            "device": info.device,
        }
        yield "hedgerow_model_frames", "Frames a model has seen.", labels, info.frames
        yield "hedgerow_model_inferences", "Inferences a model has run.", labels, info.inferences
        yield "hedgerow_model_degraded", "Whether it runs on another device than asked.", labels, bool(info.degraded)
        if info.looked_at:
            share = info.not_finite / info.looked_at
            yield (
                "hedgerow_model_not_finite_share",
                "Frames looked at of late that gave NaN or infinity.",
                labels,
                share,
            )
        if info.drift is not None:
            yield "hedgerow_model_drift", "How far its outputs are from its author's samples.", labels, info.drift
        if info.input_drift is not None:
            yield "hedgerow_model_input_drift", "How far what comes in is from them.", labels, info.input_drift
