"""Metrics and probes, as Prometheus and an orchestrator see them."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from hedgerow.errors import ConfigError
from hedgerow.telemetry.metrics import ProbeServer, TallyCollector, _Handler
from hedgerow.telemetry.tally import Tally

Gauges = list[tuple[str, str, dict[str, str], float]]


@pytest.fixture
def tally() -> Tally:
    tally = Tally()
    tally.received, tally.bytes_in, tally.out, tally.results = 7, 700, 3, 4
    tally.dropped["expired"] = 2
    tally.dead["bad-jpeg"] = 1
    tally.held.add("one")
    tally.stage_s["decode"], tally.stage_frames["decode"] = 0.5, 6
    for seconds in (0.001, 0.002, 100.0):
        tally.latency.add(seconds)
    return tally


@pytest.fixture
def probes(tally: Tally) -> Iterator[tuple[ProbeServer, list[str], list[str]]]:
    dead: list[str] = []
    unready: list[str] = []
    gauges: Gauges = [("hedgerow_streams", "Streams.", {"pipeline": "doors"}, 5.0)]
    collector = TallyCollector(lambda: {"doors": tally}, lambda: gauges)
    server = ProbeServer("127.0.0.1", 0, collector, lambda: dead, lambda: unready)
    yield server, dead, unready
    server.close()


def get(server: ProbeServer, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_metrics_show_the_tally(probes: tuple[ProbeServer, list[str], list[str]]) -> None:
    status, text = get(probes[0], "/metrics")
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }

    assert status == 200
    assert found["hedgerow_frames_received_total", "doors"] == 7
    assert found["hedgerow_received_bytes_total", "doors"] == 700
    assert found["hedgerow_frames_out_total", "doors"] == 3
    assert found["hedgerow_results_total", "doors"] == 4
    assert found["hedgerow_frames_dropped_total", "doors", "expired"] == 2
    assert found["hedgerow_frames_dead_total", "doors", "bad-jpeg"] == 1
    assert found["hedgerow_frames_in_flight", "doors"] == 1
    assert found["hedgerow_stage_seconds_total", "doors", "decode"] == 0.5
    assert found["hedgerow_stage_frames_total", "doors", "decode"] == 6
    assert found["hedgerow_streams", "doors"] == 5


def test_the_latency_histogram_is_cumulative(
    probes: tuple[ProbeServer, list[str], list[str]],
) -> None:
    families = {family.name: family for family in text_string_to_metric_families(get(probes[0], "/metrics")[1])}
    samples = families["hedgerow_latency_seconds"].samples
    buckets = [(float(s.labels["le"]), s.value) for s in samples if s.name.endswith("_bucket")]

    assert buckets == sorted(buckets)
    assert dict(buckets)[0.001] == 1
    assert dict(buckets)[60.0] == 2
    assert dict(buckets)[float("inf")] == 3
    assert {s.name: s.value for s in samples}["hedgerow_latency_seconds_count"] == 3
    assert {s.name: s.value for s in samples}["hedgerow_latency_seconds_sum"] == pytest.approx(100.003)


def test_a_probe_that_fails_says_why(probes: tuple[ProbeServer, list[str], list[str]]) -> None:
    server, dead, unready = probes
    assert get(server, "/healthz")[0] == get(server, "/readyz")[0] == 200
    unready.append("pipeline doors is loading its models")

    status, body = get(server, "/readyz")
    assert (status, json.loads(body)) == (503, {"ok": False, "reasons": unready})
    assert get(server, "/healthz")[0] == 200
    dead.append("the event loop has been blocked for 12 s")
    assert get(server, "/healthz")[0] == 503


def test_an_unknown_path_lists_the_known_ones(probes: tuple[ProbeServer, list[str], list[str]]) -> None:
    status, body = get(probes[0], "/")

    assert status == 404
    assert "/metrics" in body


def test_a_port_in_use_is_a_configuration_error(probes: tuple[ProbeServer, list[str], list[str]]) -> None:
    with pytest.raises(ConfigError, match=str(probes[0].port)) as caught:
        ProbeServer("127.0.0.1", probes[0].port, TallyCollector(dict, list), list, list)

    assert "port" in caught.value.remedy


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "::", "0.0.0.0", "localhost"])
def test_probes_are_served_on_any_address_of_this_machine(host: str) -> None:
    if ":" in host and not Path("/proc/net/if_inet6").exists():
        pytest.skip("this machine has no IPv6")
    server = ProbeServer(host, 0, CollectorRegistry(), list, list)
    try:
        url = server.url.replace("[::]", "[::1]").replace("0.0.0.0", "127.0.0.1")
        with urllib.request.urlopen(f"{url}/healthz") as response:
            assert response.status == 200
    finally:
        server.close()


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", "a..b", "::zz", "fe80::1%none0"])
def test_an_address_that_is_not_of_this_machine_is_a_configuration_error(host: str) -> None:
    with pytest.raises(ConfigError, match="Cannot serve metrics on") as caught:
        ProbeServer(host, 0, CollectorRegistry(), list, list)

    assert "metrics: {host: …}" in caught.value.remedy


def test_starting_the_server_looks_up_no_host_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A site may have no DNS server, and the node must start anyway."""

    def getfqdn(name: str = "") -> str:
        raise AssertionError(f"looked up {name!r}")

    monkeypatch.setattr(socket, "getfqdn", getfqdn)
    server = ProbeServer("127.0.0.1", 0, TallyCollector(dict, list), list, list)
    try:
        assert get(server, "/healthz") == (200, '{"ok": true, "reasons": []}\n')
    finally:
        server.close()


def test_an_idle_connection_is_closed(
    probes: tuple[ProbeServer, list[str], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each connection occupies a thread."""
    monkeypatch.setattr(_Handler, "timeout", 0.05)
    with socket.create_connection(("127.0.0.1", probes[0].port), timeout=10) as idle:
        assert idle.recv(1) == b""

    assert get(probes[0], "/healthz")[0] == 200
