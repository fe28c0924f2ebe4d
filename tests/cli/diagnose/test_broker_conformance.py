"""`hedgerow region check --connect`: what we rely on of a region's broker, tried on brokers that have it and that have not."""

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

EVERYTHING = {
    "QoS 1", "wildcards", "properties", "packets", "retained", "retain flag", "no local", "client ids", "sessions",
}  # fmt: skip
"""What is tried, beside TLS and the limits that a broker tells."""


@pytest.fixture
def check(hedgerow: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Check:
    """What is said of a broker, by what was tried: "ok", "warning" or "failed"."""
    monkeypatch.setattr(broker_conformance, "_WAIT_S", 2.0)

    def run(url: str, code: int = 0, user: str = "") -> dict[str, str]:
        broker = f"url: '{url}'" + (f", username: {user}, password: x" if user else "")
        (tmp_path / "region.yaml").write_text(f"region: {{name: north}}\nbroker: {{{broker}}}\n")
        said = hedgerow("region", "check", tmp_path / "region.yaml", "--connect", "--json")
        assert said.code == code, said.out + said.err
        assert said.json["ok"] is (code == 0)
        assert all(finding["remedy"] for finding in said.json["broker"] if finding["state"] != "ok")
        return {finding["check"]: finding["state"] for finding in said.json["broker"]}

    return run


def test_mosquitto_has_everything(check: Check) -> None:
    with Mosquitto() as broker:
        found = check(broker.url)

    assert {name for name, state in found.items() if state == "ok"} == EVERYTHING | {"rate"}
    assert found["TLS"] == "warning", "it is plain text"


@pytest.mark.parametrize(
    ("lines", "lacks"),
    [
        (["retain_available false"], {"limits", "retained", "retain flag"}),
        (["max_qos 0"], {"limits"}),
        (["max_packet_size 100000"], {"limits", "packets"}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_a_broker_lacks_is_named(check: Check, lines: list[str], lacks: set[str]) -> None:
    with Mosquitto(config=lines) as broker:
        found = check(broker.url, code=1)

    assert {name for name, state in found.items() if state == "failed"} >= lacks


def test_a_broker_that_is_not_there_is_another_matter(
    check: Check, hedgerow: Callable[..., Any], tmp_path: Path, held_port: int
) -> None:
    (tmp_path / "region.yaml").write_text(f"broker: {{url: 'mqtt://127.0.0.1:{held_port}'}}\n")
    said = hedgerow("region", "check", tmp_path / "region.yaml", "--connect")

    assert said.code == 3
    assert "cannot be reached" in said.err


@pytest.fixture
def rumqttd(tmp_path: Path, held_port: int) -> Iterator[str]:
    """Another MQTT 5 broker, in Rust; the package `iotcore` brings it."""
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


def test_rumqttd_speaks_mqtt_5_and_will_not_do(rumqttd: str, check: Check) -> None:
    """Bridges to it would send everything back, and lose what is retained: it is found out before that."""
    found = check(rumqttd, code=1)

    assert {name for name, state in found.items() if state == "failed"} == {"retain flag", "no local", "client ids"}
    assert {name for name, state in found.items() if state == "ok"} >= {
        "QoS 1",
        "wildcards",
        "properties",
        "packets",
        "retained",
    }


@needs_ejabberd
def test_ejabberd_has_everything(check: Check, tmp_path: Path, held_port: int) -> None:
    """A broker that clusters."""
    (tmp_path / "ejabberd").mkdir()
    with Ejabberd(tmp_path / "ejabberd", held_port) as broker:
        found = check(f"mqtt://127.0.0.1:{broker.port}", user="service@localhost")

    assert {name for name, state in found.items() if state == "ok"} == EVERYTHING | {"rate"}
