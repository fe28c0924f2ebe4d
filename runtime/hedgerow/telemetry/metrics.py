"""Prometheus metrics and health probes over HTTP: /metrics, /healthz, /readyz.

A scrape reads the pipelines' counters; nothing is counted here. Labels hold configuration names and drop reasons, never
topics or frame ids, so the configuration bounds the number of series.
"""

from __future__ import annotations

import errno
import json
import socket
import socketserver
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from hedgerow import tasks
from hedgerow.errors import ConfigError
from hedgerow.telemetry.tally import BUCKETS_S, Tally

log = structlog.get_logger(__name__)

Check = Callable[[], list[str]]
"""Returns what is wrong; empty if nothing is."""


class TallyCollector(Collector):
    """Converts tallies to metrics at each scrape.

    Args:
        tallies: returns the current tallies by pipeline.
        gauges: returns further gauges: name, help, labels, value.
    """

    def __init__(
        self,
        tallies: Callable[[], Mapping[str, Tally]],
        gauges: Callable[[], Iterable[tuple[str, str, dict[str, str], float]]],
    ) -> None:
        self._tallies = tallies
        self._gauges = gauges

    def collect(self) -> Iterator[Metric]:
        """Yield the current metrics."""
        by_pipeline = ["pipeline"]
        received = CounterMetricFamily("hedgerow_frames_received", "Frames received.", labels=by_pipeline)
        received_bytes = CounterMetricFamily("hedgerow_received_bytes", "Payload bytes received.", labels=by_pipeline)
        out = CounterMetricFamily(
            "hedgerow_frames_out",
            "Frames whose results were accepted by the broker or stored in the outbox.",
            labels=by_pipeline,
        )
        results = CounterMetricFamily("hedgerow_results", "Results accepted by the broker.", labels=by_pipeline)
        dropped = CounterMetricFamily("hedgerow_frames_dropped", "Frames dropped.", labels=["pipeline", "reason"])
        dead = CounterMetricFamily("hedgerow_frames_dead", "Frames dead-lettered.", labels=["pipeline", "reason"])
        in_flight = GaugeMetricFamily("hedgerow_frames_in_flight", "Frames not settled yet.", labels=by_pipeline)
        latency = HistogramMetricFamily(
            "hedgerow_latency_seconds",
            "Time from reception until the result is accepted by the broker or stored in the outbox.",
            labels=by_pipeline,
        )
        stage_s = CounterMetricFamily("hedgerow_stage_seconds", "Time spent in a stage.", labels=["pipeline", "stage"])
        stage_frames = CounterMetricFamily(
            "hedgerow_stage_frames", "Frames that a stage processed.", labels=["pipeline", "stage"]
        )
        stage_columns = CounterMetricFamily(
            "hedgerow_stage_column_frames",
            "Frames that a stage processed as columns, with all others of their list.",
            labels=["pipeline", "stage"],
        )
        hung = CounterMetricFamily(
            "hedgerow_stage_hung", "Times that a stage took longer than its `timeout_s`.", labels=["pipeline", "stage"]
        )
        for name, tally in self._tallies().items():
            received.add_metric([name], tally.received)
            received_bytes.add_metric([name], tally.bytes_in)
            out.add_metric([name], tally.out)
            results.add_metric([name], tally.results)
            in_flight.add_metric([name], tally.in_flight)
            for reason, count in list(tally.dropped.items()):
                dropped.add_metric([name, reason], count)
            for reason, count in list(tally.dead.items()):
                dead.add_metric([name, reason], count)
            latency.add_metric([name], list(_cumulative(tally)), tally.latency.total_s)
            for stage, seconds in list(tally.stage_s.items()):
                stage_s.add_metric([name, stage], seconds)
                stage_frames.add_metric([name, stage], tally.stage_frames[stage])
                stage_columns.add_metric([name, stage], tally.stage_columns[stage])
            for stage, count in list(tally.hung.items()):
                hung.add_metric([name, stage], count)
        yield from (
            received,
            received_bytes,
            out,
            results,
            dropped,
            dead,
            in_flight,
            latency,
            stage_s,
            stage_frames,
            stage_columns,
            hung,
        )
        yield from gauge_families(self._gauges())


def gauge_families(gauges: Iterable[tuple[str, str, dict[str, str], float]]) -> Iterator[Metric]:
    """Yield one gauge family per metric name.

    Args:
        gauges: name, help, labels, value.
    """
    families: dict[str, GaugeMetricFamily] = {}
    for metric, text, labels, value in gauges:
        family = families.get(metric)
        if family is None:
            family = families[metric] = GaugeMetricFamily(metric, text, labels=list(labels))
        family.add_metric(list(labels.values()), value)
    yield from families.values()


def _cumulative(tally: Tally) -> Iterator[tuple[str, float]]:
    total = 0
    for edge, count in zip([*BUCKETS_S, float("inf")], list(tally.latency.counts), strict=True):
        total += count
        yield ("+Inf" if edge == float("inf") else repr(edge)), float(total)


class ProbeServer:
    """Serves /metrics, /healthz and /readyz from its own thread, so it responds even if the event loop hangs.

    Args:
        host: address to listen on.
        port: port to listen on; 0 picks a free one.
        collector: yields the metrics for /metrics.
        alive: the check behind /healthz.
        ready: the check behind /readyz.
        facts: further fields of the body of both.
    Raises: ConfigError: it cannot listen there.
    Attributes:
        port: the port it listens on.
        url: its address, without a path.
    """

    def __init__(
        self,
        host: str,
        port: int,
        collector: Collector,
        alive: Check,
        ready: Check,
        facts: Callable[[], dict[str, str]] = dict,
    ) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(collector)
        self._checks = {"/healthz": alive, "/readyz": ready}
        self._facts = facts
        try:
            self._server = _Server((host, port), _Handler)
        except (OSError, UnicodeError) as error:  # UnicodeError: a label of more than 63 characters, or an empty one
            in_use = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
            raise ConfigError(
                f"Cannot serve metrics on {host_port(host, port)}: {getattr(error, 'strerror', None) or error}",
                remedy="Set `metrics: {port: …}` to a free port, or to 0 to pick one."
                if in_use
                else "Set `metrics: {host: …}` to an address of this machine: 127.0.0.1, ::1, or 0.0.0.0 for all; "
                "and `port` to one that this user may listen on (1024 or above).",
            ) from error
        self._server.set_app(self._answer)
        self.port: int = self._server.server_port
        self.url = f"http://{host_port(host, self.port)}"
        tasks.supervise_thread(self._server.serve_forever, "probes")

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        path = environ.get("PATH_INFO", "/")
        if environ.get("REQUEST_METHOD") not in ("GET", "HEAD"):
            return _respond(start_response, "405 Method Not Allowed", "text/plain", b"Use GET.\n")
        if path == "/metrics":
            encode, content_type = choose_encoder(environ.get("HTTP_ACCEPT", ""))
            return _respond(start_response, "200 OK", content_type, encode(self._registry))
        if path in self._checks:
            reasons = self._checks[path]()
            body = json.dumps({"ok": not reasons, "reasons": reasons, **self._facts()}).encode() + b"\n"
            return _respond(
                start_response, "503 Service Unavailable" if reasons else "200 OK", "application/json", body
            )
        return _respond(
            start_response, "404 Not Found", "text/plain", b"Not found. Try /metrics, /healthz or /readyz.\n"
        )


def _respond(start_response: Any, status: str, content_type: str, body: bytes) -> list[bytes]:
    start_response(status, [("Content-Type", content_type), ("Content-Length", str(len(body)))])
    return [body]


def host_port(host: str, port: int) -> str:
    """Return host and port as in an address; an IPv6 address is put in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[WSGIRequestHandler]) -> None:
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, handler)

    def server_bind(self) -> None:
        """Bind without the reverse DNS lookup of `HTTPServer`, which takes long if the DNS server is unreachable."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()


class _Handler(WSGIRequestHandler):
    timeout = 10.0  # an idle connection must not occupy a thread

    def handle(self) -> None:
        with suppress(TimeoutError, ConnectionError):
            super().handle()

    def log_message(self, format: str, *args: Any) -> None:
        log.debug("probe", request=format % args)
