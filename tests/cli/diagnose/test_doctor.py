"""`hedgerow doctor`: checks of this machine, a real broker, and a configuration with a real model."""

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
from hedgerow.cli.diagnose import checks, takeover
from hedgerow.cli.diagnose.checks import CheckResult
from hedgerow.config import BrokerSection
from hedgerow.errors import BackendMissing
from hedgerow.node.link.options import on_loopback
from hedgerow.testing import Mosquitto, processes


@pytest.fixture
def findings(hedgerow):
    def run(*arguments: object) -> dict[str, Any]:
        result = hedgerow("doctor", "--json", *arguments)
        found = {check["check"]: check for check in result.json["checks"]}
        return found | {"exit": result.code, "ok": result.json["ok"]}

    return run


ADD = "(float[N,3] x) => (float[N,3] y) { y = Add(x, x) }"


def test_a_sound_machine_passes_every_check(findings, broker, onnx_file, tmp_path: Path) -> None:
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
    assert found["pipeline doors"]["detail"] == "parse → infer"
    assert found["disk"]["detail"].endswith(f" free for {tmp_path}/state")
    assert found["broker"]["detail"].startswith(f"{broker.url}, MQTT 5; largest packet ")
    assert found["round trip"]["detail"].endswith("MQTT 5 properties are preserved")
    assert not (tmp_path / "state").exists(), "a check leaves no files behind"


def test_a_chain_whose_frames_would_all_die_fails(findings, broker, onnx_file, tmp_path: Path) -> None:
    onnx_file(ADD, name="door.onnx")
    config = tmp_path / "node.yaml"
    config.write_text(
        f"broker: {{url: '{broker.url}'}}\n"
        "models: {door: {path: door.onnx, backend: onnxruntime}, gate: {path: bundle:gate}}\n"
        "pipelines:\n"
        "  doors: {subscribe: plant/+, stages: [infer: {model: door}]}\n"
        "  gates: {subscribe: plant/+, stages: [parse, infer: {model: gate}]}\n"
    )

    found = findings("--config", config)

    assert found["exit"] != 0
    assert found["pipeline doors"]["state"] == "failed"
    assert found["pipeline doors"]["detail"].startswith("Stage infer takes x: float32[?, 3] for model door; it gets ")
    assert found["pipeline gates"]["state"] == "warning"
    assert found["pipeline gates"]["detail"].startswith("not checked from stage infer on: Model gate is bundle:gate")


NOWHERE = "mqtt://127.0.0.1:1"


@pytest.mark.parametrize("options", [(), ("--config", "node.yaml")])
def test_an_unreachable_default_broker_is_only_a_warning(
    findings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: tuple[str, ...]
) -> None:
    """No address is set: a new user may have no broker yet."""
    monkeypatch.chdir(tmp_path)
    Path("node.yaml").write_text("node: {name: press}\n")
    default = BrokerSection.model_construct(_fields_set=set(), url=NOWHERE)
    monkeypatch.setattr(checks, "broker_section", lambda *_: default)

    found = findings(*options)

    assert found["exit"] == 0
    assert (found["broker"]["state"], found["broker"]["detail"]) == (
        "warning",
        f"none at {NOWHERE}, the default, and no other address is set",
    )


@pytest.mark.parametrize(
    ("options", "environment", "source"),
    [
        (("--broker", NOWHERE), {}, "--broker"),
        (("--config", "node.yaml"), {}, "node.yaml"),
        ((), {"HEDGEROW_BROKER__URL": NOWHERE}, "HEDGEROW_BROKER__URL"),
        (("--config", "node.yaml"), {"HEDGEROW_BROKER__URL": NOWHERE}, "HEDGEROW_BROKER__URL"),
    ],
)
def test_a_broker_whose_address_was_set_must_be_reachable(
    findings,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    options: tuple[str, ...],
    environment: dict[str, str],
    source: str,
) -> None:
    """The failure names where the address was set: an environment variable is easily forgotten."""
    monkeypatch.chdir(tmp_path)
    Path("node.yaml").write_text(f"broker: {{url: '{NOWHERE}'}}\n")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    found = findings(*options)

    assert (found["exit"], found["ok"], found["broker"]["state"]) == (1, False, "failed")
    assert found["broker"]["detail"].endswith(f"(address from {source})")


@pytest.mark.parametrize("scheme", ["mqtt", "mqtts"])
def test_a_broker_that_accepts_connections_without_answering_is_called_hung(
    findings, monkeypatch: pytest.MonkeyPatch, mosquitto: Mosquitto, scheme: str
) -> None:
    """Stopped by a signal, in place of one in an endless loop: the kernel accepts connections for both."""
    monkeypatch.setattr("hedgerow.bus.diagnosis.ANSWER_WITHIN_S", 0.3)
    assert mosquitto.pid is not None
    os.kill(mosquitto.pid, signal.SIGSTOP)

    found = findings("--broker", f"{scheme}://127.0.0.1:{mosquitto.port}")["broker"]

    assert found["state"] == "failed"
    assert found["detail"].startswith(
        f"{scheme}://127.0.0.1:{mosquitto.port} accepts connections but did not answer for"
    )
    assert "likely hung" in found["detail"]
    assert found["remedy"].startswith("Restart it")


def test_the_brokers_limits_are_shown(findings) -> None:
    with Mosquitto(config=["max_packet_size 20000", "max_inflight_messages 7", "retain_available false"]) as broker:
        detail = findings("--broker", broker.url)["broker"]["detail"]

    assert "largest packet 20.0 kB" in detail
    assert "7 QoS 1 messages in flight" in detail
    assert "no retained messages" in detail


def test_an_access_list_that_blocks_delivery_is_a_warning(findings, tmp_path: Path) -> None:
    (tmp_path / "acl").write_text("topic write #\n")
    with Mosquitto(config=[f"acl_file {tmp_path}/acl"]) as broker:
        found = findings("--broker", broker.url)

    assert found["round trip"]["state"] == "warning"
    assert "see the broker's ACL" in found["round trip"]["remedy"]


def test_an_invalid_configuration_fails_with_every_problem(findings, broker, tmp_path: Path) -> None:
    config = tmp_path / "node.yaml"
    config.write_text(f"broker: {{url: '{broker.url}'}}\nmodels: {{door: {{path: no.onnx}}}}\n")

    found = findings("--config", config)

    assert found["exit"] == 1
    assert f"{config}:2: models.door.path: Model file not found" in found["config"]["detail"]
    assert found["broker"]["state"] == "ok", "the other checks still run"


def test_a_model_that_does_not_load_is_a_failure(findings, broker, tmp_path: Path) -> None:
    (tmp_path / "door.onnx").write_bytes(b"not a model")
    config = tmp_path / "node.yaml"
    config.write_text(f"broker: {{url: '{broker.url}'}}\nmodels: {{door: {{path: door.onnx}}}}\n")

    found = findings("--config", config)

    assert (found["exit"], found["model door"]["state"]) == (1, "failed")
    assert found["model door"]["remedy"]


@pytest.mark.parametrize(
    ("url", "loopback"),
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
def test_loopback_addresses_are_recognised(url: str, loopback: bool) -> None:
    assert on_loopback(url) is loopback


def test_a_missing_backend_is_a_warning_and_no_backend_a_failure(findings, monkeypatch: pytest.MonkeyPatch) -> None:
    class Missing(OnnxRuntime):
        @property
        def version(self) -> str:
            raise BackendMissing("ONNX Runtime is not installed", remedy="`pip install 'hedgerow[onnx]'`")

    monkeypatch.setattr("hedgerow.backends.backends", lambda: (Missing(),))

    found = findings("--broker", "mqtt://127.0.0.1:1")

    assert (found["onnxruntime"]["state"], found["backends"]["state"]) == ("warning", "failed")
    assert found["backends"]["remedy"] == "Run `pip install 'hedgerow[onnx,openvino]'`."


@pytest.mark.parametrize(("free", "state"), [(10 << 30, "ok"), (500 << 20, "warning"), (50 << 20, "failed")])
def test_low_disk_space_is_reported_early(free: int, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))

    assert checks._disk().state == state


def test_a_clock_that_was_never_set_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway without a battery boots in 1970."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime(1970, 1, 1, 0, 1, tzinfo=UTC)

    monkeypatch.setattr(checks, "datetime", Clock)

    assert checks._clock() == CheckResult(
        "clock",
        "failed",
        "1970-01-01 00:01:00 UTC",
        "Set the clock: until then frames expire and certificates are invalid.",
    )


def test_each_check_is_a_line_with_its_remedy_below(hedgerow) -> None:
    result = hedgerow("doctor", "--broker", "mqtt://127.0.0.1:1")

    lines = result.out.splitlines()
    (at,) = [number for number, line in enumerate(lines) if line.startswith("failed   broker")]
    assert lines[at].split(maxsplit=2)[2].startswith("mqtt://127.0.0.1:1 refused the connection: nothing")
    assert lines[at + 1].startswith(" " * 23 + "→ Start the broker there, or check the port. Name another")
    assert lines[-1].startswith("1 check failed")
    assert any(line.startswith("ok       python        CPython 3.") for line in lines)


def test_a_broker_with_qos_0_only_fails(findings) -> None:
    with Mosquitto(config=["max_qos 0"]) as broker:
        found = findings("--broker", broker.url)["broker"]

    assert found["state"] == "failed"
    assert "QoS 0 only" in found["detail"]
    assert "max_qos 0" in found["remedy"]


def test_whether_a_client_without_credentials_ends_a_session_is_tried(
    findings, broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With throwaway ids, on a real broker."""
    found = findings("--broker", broker.url)["client ids"]
    assert found["state"] == "ok", "a broker on this machine"
    assert "ends its session" in found["detail"]

    monkeypatch.setattr(takeover, "on_loopback", lambda _: False)
    elsewhere = findings("--broker", broker.url)["client ids"]
    assert elsewhere["state"] == "warning"
    assert "allow_anonymous false" in elsewhere["remedy"]

    passwords = tmp_path / "passwords"
    passwords.touch()
    processes.run(["mosquitto_passwd", "-b", passwords, "node", "secret"], check=True)
    with Mosquitto(config=["allow_anonymous false", f"password_file {passwords}"]) as strict:
        monkeypatch.setenv("HEDGEROW_BROKER__USERNAME", "node")
        monkeypatch.setenv("HEDGEROW_BROKER__PASSWORD", "secret")
        found = findings("--broker", strict.url)["client ids"]
        log = strict.log
    assert (found["state"], found["detail"].partition(",")[0]) == ("ok", "no client gets in without credentials")
    assert "hedgerow-doctor/" in log


def test_a_group_that_others_may_join_is_a_warning(findings, broker, tmp_path: Path) -> None:
    config = tmp_path / "node.yaml"
    config.write_text(
        f"broker: {{url: '{broker.url}'}}\npipelines: {{p: {{subscribe: $share/g/plant/+, stages: [parse]}}}}\n"
    )
    found = findings("--config", config)["groups"]
    assert (found["state"], "$share/g/plant/+" in found["detail"]) == ("warning", True)


def test_state_that_other_users_can_read_is_reported(tmp_path: Path) -> None:
    """Until the node is restarted, which mends it."""
    config: Any = SimpleNamespace(node=SimpleNamespace(state_dir=tmp_path / "state"))
    assert list(checks._private_state(config)) == []
    (tmp_path / "state").mkdir(mode=0o700)
    (tmp_path / "state" / "outbox.db").touch(mode=0o644)
    assert list(checks._private_state(config)) == [], "nobody else can reach it"
    (tmp_path / "state").chmod(0o755)

    (found,) = checks._private_state(config)

    assert (found.check, found.state) == ("permissions", "warning")
    assert "outbox.db" in found.detail
    assert found.remedy.startswith(f"`chmod -R go-rwx {tmp_path}/state`")
