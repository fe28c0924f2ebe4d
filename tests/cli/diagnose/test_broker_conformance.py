"""`hedgerow region check --connect`: the features Hedgerow relies on, tested on brokers with and without them."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.fault.ejabberd import Ejabberd, needs_ejabberd

from hedgerow.cli.diagnose import broker_conformance
from hedgerow.testing import processes
from hedgerow.testing.mosquitto import Mosquitto

Check = Callable[..., Any]

FEATURES = {
    "QoS 1", "wildcards", "properties", "packets", "retained", "retain flag", "no local", "client ids", "sessions",
}  # fmt: skip
"""All tests, except TLS and the limits in the CONNACK."""


@pytest.fixture
def check(hedgerow: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Check:
    """Checks a broker, and returns the state of each test: "ok", "warning" or "failed"."""
    monkeypatch.setattr(broker_conformance, "_WAIT_S", 2.0)

    def run(url: str, code: int = 0, user: str = "") -> dict[str, str]:
        broker = f"url: '{url}'" + (f", username: {user}, password: x" if user else "")
        (tmp_path / "region.yaml").write_text(f"region: {{name: north}}\nbroker: {{{broker}}}\n")
        result = hedgerow("region", "check", tmp_path / "region.yaml", "--connect", "--json")
        assert result.code == code, result.out + result.err
        assert result.json["ok"] is (code == 0)
        assert all(finding["remedy"] for finding in result.json["broker"] if finding["state"] != "ok")
        return {finding["check"]: finding["state"] for finding in result.json["broker"]}

    return run


def test_mosquitto_has_every_feature(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker_conformance, "_WAIT_S", 60.0)  # nothing is waited for in vain
    with Mosquitto() as broker:
        states = check(broker.url)

    assert {name for name, state in states.items() if state == "ok"} == FEATURES | {"rate"}
    assert states["TLS"] == "warning", "the connection is plain text"


@pytest.mark.parametrize(
    ("config", "lacks"),
    [
        (["retain_available false"], {"limits", "retained", "retain flag"}),
        (["max_qos 0"], {"limits"}),
        (["max_packet_size 100000"], {"limits", "packets"}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_missing_features_are_named(check: Check, config: list[str], lacks: set[str]) -> None:
    with Mosquitto(config=config) as broker:
        states = check(broker.url, code=1)

    assert {name for name, state in states.items() if state == "failed"} >= lacks


def test_an_unreachable_broker_exits_with_3(
    check: Check, hedgerow: Callable[..., Any], tmp_path: Path, held_port: int
) -> None:
    (tmp_path / "region.yaml").write_text(f"broker: {{url: 'mqtt://127.0.0.1:{held_port}'}}\n")
    result = hedgerow("region", "check", tmp_path / "region.yaml", "--connect")

    assert result.code == 3
    assert "nothing listens there" in result.err


@pytest.fixture
def rumqttd(tmp_path: Path, held_port: int) -> Iterator[str]:
    """A running rumqttd, an MQTT 5 broker in Rust, from the package `iotcore`."""
    if importlib.util.find_spec("iotcore") is None:
        pytest.skip("rumqttd is not installed: `pip install iotcore`")
    port = held_port
    (tmp_path / "rumqttd.toml").write_text(
        "id = 0\n[router]\nid = 0\nmax_connections = 100\nmax_outgoing_packet_count = 200\n"
        "max_segment_size = 104857600\nmax_segment_count = 10\n"
        f'[v5.1]\nname = "v5"\nlisten = "127.0.0.1:{port}"\nnext_connection_delay_ms = 1\n'
        "[v5.1.connections]\nconnection_timeout_ms = 60000\nmax_payload_size = 20480000\nmax_inflight_count = 1000\n"
        "dynamic_filters = true\n"
    )
    process = processes.start(
        [sys.executable, "-m", "iotcore", "--config", tmp_path / "rumqttd.toml"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        from iotcore.broker import port_in_use

        deadline = time.monotonic() + 60
        while not port_in_use(port):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield f"mqtt://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def test_rumqttd_speaks_mqtt_5_but_lacks_features(rumqttd: str, check: Check) -> None:
    """Bridges to it would send everything back and lose retained messages; the check finds that beforehand."""
    states = check(rumqttd, code=1)

    assert {name for name, state in states.items() if state == "failed"} == {"retain flag", "no local", "client ids"}
    assert {name for name, state in states.items() if state == "ok"} >= {
        "QoS 1",
        "wildcards",
        "properties",
        "packets",
        "retained",
    }


@needs_ejabberd
def test_ejabberd_has_every_feature(check: Check, tmp_path: Path, held_port: int) -> None:
    """ejabberd can run as a cluster."""
    (tmp_path / "ejabberd").mkdir()
    with Ejabberd(tmp_path / "ejabberd", held_port) as broker:
        states = check(f"mqtt://127.0.0.1:{broker.port}", user="service@localhost")

    assert {name for name, state in states.items() if state == "ok"} == FEATURES | {"rate"}
