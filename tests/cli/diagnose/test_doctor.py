"""`hedgerow doctor`: what it finds on this machine, at a real broker, and in a configuration with a real model."""

from __future__ import annotations

import os
import shutil
import signal
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hedgerow.backends.onnxruntime import OnnxRuntime
from hedgerow.cli.diagnose import checks
from hedgerow.cli.diagnose.checks import CheckResult
from hedgerow.config import BrokerSection
from hedgerow.errors import BackendMissing
from hedgerow.node.link.options import on_loopback
from hedgerow.testing import Mosquitto


@pytest.fixture
def findings(hedgerow):
    def look(*arguments: object) -> dict[str, Any]:
        said = hedgerow("doctor", "--json", *arguments)
        found = {check["check"]: check for check in said.json["checks"]}
        return found | {"exit": said.code, "ok": said.json["ok"]}

    return look


ADD = "(float[N,3] x) => (float[N,3] y) { y = Add(x, x) }"


def test_a_machine_that_is_fit_passes_every_check(findings, broker, onnx_file, tmp_path: Path) -> None:
    onnx_file(ADD, name="door.onnx")
    config = tmp_path / "node.yaml"
    config.write_text(
        "node: {state_dir: state}\n"
        f"broker: {{url: '{broker.url}'}}\n"
        "models: {door: {path: door.onnx, backend: onnxruntime}}\n"
        "pipelines: {doors: {subscribe: plant/+, stages: [parse, infer: {model: door}]}}\n"
    )

    found = findings("--config", config)

    assert (found["exit"], found["ok"]) == (0, True)
    assert found["config"]["detail"] == f"{config}: 1 pipeline, 1 model"
    assert "on CPU, x: float32[?, 3], loaded in " in found["model door"]["detail"]
    assert found["disk"]["detail"].endswith(f" free for {tmp_path}/state")
    assert found["broker"]["detail"].startswith(f"{broker.url}, MQTT 5; largest packet ")
    assert found["round trip"]["detail"].endswith("MQTT 5 properties are kept")
    assert not (tmp_path / "state").exists(), "a check leaves nothing behind"


NOWHERE = "mqtt://127.0.0.1:1"


@pytest.mark.parametrize("options", [(), ("--config", "node.yaml")])
def test_without_a_broker_of_ones_own_it_only_warns(
    findings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: tuple[str, ...]
) -> None:
    """Nobody gave an address; a newcomer has no broker yet."""
    monkeypatch.chdir(tmp_path)
    Path("node.yaml").write_text("node: {name: press}\n")
    default = BrokerSection.model_construct(_fields_set=set(), url=NOWHERE)
    monkeypatch.setattr(checks, "broker_section", lambda *_: default)

    found = findings(*options)

    assert found["exit"] == 0
    assert (found["broker"]["state"], found["broker"]["detail"]) == (
        "warning",
        f"none at {NOWHERE}, the default, and no other address was given",
    )


@pytest.mark.parametrize(
    ("options", "environment", "giver"),
    [
        (("--broker", NOWHERE), {}, "--broker"),
        (("--config", "node.yaml"), {}, "node.yaml"),
        ((), {"HEDGEROW_BROKER__URL": NOWHERE}, "HEDGEROW_BROKER__URL"),
        (("--config", "node.yaml"), {"HEDGEROW_BROKER__URL": NOWHERE}, "HEDGEROW_BROKER__URL"),
    ],
)
def test_a_broker_whose_address_was_given_must_be_there(
    findings,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    options: tuple[str, ...],
    environment: dict[str, str],
    giver: str,
) -> None:
    """Whoever gave it is named: a variable set long ago is easily forgotten."""
    monkeypatch.chdir(tmp_path)
    Path("node.yaml").write_text(f"broker: {{url: '{NOWHERE}'}}\n")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    found = findings(*options)

    assert (found["exit"], found["ok"], found["broker"]["state"]) == (1, False, "failed")
    assert found["broker"]["detail"].endswith(f"(the address is from {giver})")


@pytest.mark.parametrize("scheme", ["mqtt", "mqtts"])
def test_a_broker_that_accepts_connections_and_answers_nothing_is_called_hung(
    findings, monkeypatch: pytest.MonkeyPatch, mosquitto: Mosquitto, scheme: str
) -> None:
    """Stopped by a signal, which stands for one that spins: for both the kernel accepts connections all the same."""
    monkeypatch.setattr("hedgerow.cli.base.connection.HUNG_AFTER_S", 0.3)
    assert mosquitto.pid is not None
    os.kill(mosquitto.pid, signal.SIGSTOP)

    found = findings("--broker", f"{scheme}://127.0.0.1:{mosquitto.port}")["broker"]

    assert found["state"] == "failed"
    assert found["detail"].startswith(f"{scheme}://127.0.0.1:{mosquitto.port} accepts connections and answered nothing")
    assert "likely hung" in found["detail"]
    assert found["remedy"].startswith("Restart it")


def test_what_the_broker_limits_is_told(findings) -> None:
    with Mosquitto(config=["max_packet_size 20000", "max_inflight_messages 7", "retain_available false"]) as broker:
        detail = findings("--broker", broker.url)["broker"]["detail"]

    assert "largest packet 20.0 kB" in detail
    assert "7 QoS 1 messages under way to it" in detail
    assert "no retained messages" in detail


def test_access_control_that_swallows_replies_is_noticed(findings, tmp_path: Path) -> None:
    (tmp_path / "acl").write_text("topic write #\n")
    with Mosquitto(config=[f"acl_file {tmp_path}/acl"]) as broker:
        found = findings("--broker", broker.url)

    assert found["round trip"]["state"] == "warning"
    assert "see the broker's ACL" in found["round trip"]["remedy"]


def test_a_wrong_configuration_fails_with_every_problem(findings, broker, tmp_path: Path) -> None:
    config = tmp_path / "node.yaml"
    config.write_text(f"broker: {{url: '{broker.url}'}}\nmodels: {{door: {{path: no.onnx}}}}\n")

    found = findings("--config", config)

    assert found["exit"] == 1
    assert f"{config}:2: models.door.path: No model file" in found["config"]["detail"]
    assert found["broker"]["state"] == "ok", "what can be checked all the same is checked"


def test_a_model_that_does_not_load_fails(findings, broker, tmp_path: Path) -> None:
    (tmp_path / "door.onnx").write_bytes(b"not a model")
    config = tmp_path / "node.yaml"
    config.write_text(f"broker: {{url: '{broker.url}'}}\nmodels: {{door: {{path: door.onnx}}}}\n")

    found = findings("--config", config)

    assert (found["exit"], found["model door"]["state"]) == (1, "failed")
    assert found["model door"]["remedy"]


@pytest.mark.parametrize(
    ("url", "stays"),
    [
        ("mqtt://127.0.0.1:1883", True),
        ("mqtt://[::1]:1883", True),
        ("mqtt://localhost", True),
        ("mqtt://127.1.2.3", True),
        ("unix:///run/mosquitto.sock", True),
        ("mqtt://192.168.1.10:1883", False),
        ("mqtt://broker.site.lan", False),
        ("mqtt://127.0.0.1.site.lan", False),
    ],
)
def test_what_stays_on_this_machine_is_told_from_what_a_network_can_read(url: str, stays: bool) -> None:
    assert on_loopback(url) is stays


def test_a_missing_backend_is_a_warning_and_none_at_all_a_failure(findings, monkeypatch: pytest.MonkeyPatch) -> None:
    class Missing(OnnxRuntime):
        @property
        def version(self) -> str:
            raise BackendMissing("ONNX Runtime is not installed", remedy="`pip install 'hedgerow[onnx]'`")

    monkeypatch.setattr("hedgerow.backends.backends", lambda: (Missing(),))

    found = findings("--broker", "mqtt://127.0.0.1:1")

    assert (found["onnxruntime"]["state"], found["backends"]["state"]) == ("warning", "failed")
    assert found["backends"]["remedy"] == "`pip install 'hedgerow[onnx,openvino]'`"


@pytest.mark.parametrize(("free", "state"), [(10 << 30, "ok"), (500 << 20, "warning"), (50 << 20, "failed")])
def test_little_room_on_the_disk_is_told_in_time(free: int, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))

    assert checks._disk().state == state


def test_a_clock_that_was_never_set_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway without a battery wakes up in 1970."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime(1970, 1, 1, 0, 1, tzinfo=UTC)

    monkeypatch.setattr(checks, "datetime", Clock)

    assert checks._clock() == CheckResult(
        "clock",
        "failed",
        "1970-01-01 00:01:00 UTC",
        "Set the clock: frames would expire, and certificates not be valid.",
    )


def test_on_paper_each_check_is_a_line_and_its_remedy_stands_below(hedgerow) -> None:
    said = hedgerow("doctor", "--broker", "mqtt://127.0.0.1:1")

    lines = said.out.splitlines()
    (at,) = [number for number, line in enumerate(lines) if line.startswith("failed   broker")]
    assert lines[at].split(maxsplit=2)[2].startswith("The broker at mqtt://127.0.0.1:1 cannot be reached")
    assert lines[at + 1].startswith(" " * 23 + "→ Check that it is running, or name another")
    assert lines[-1].startswith("1 check failed")
    assert any(line.startswith("ok       python        CPython 3.") for line in lines)
