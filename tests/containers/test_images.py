"""Builds the images and runs them as a site would, with a real broker and a real model.

Slow, because the first build takes minutes: `make test-images`.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiomqtt
import numpy as np
import pytest
from tests.containers.conftest import USER, Container, Engine, inspected

from hedgerow.testing import Mosquitto, processes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800), pytest.mark.xdist_group("images")]

MODEL = Path(__file__).parents[2] / "configs" / "models" / "vibration.onnx"
PATIENCE_S = 60
DRAIN_S = 15
IMAGES = {"localhost/hedgerow:onnx": 120, "localhost/hedgerow:openvino": 180, "localhost/hedgerow-region:latest": 120}


def until(happened: Callable[[], Any], what: Callable[[], Any] = lambda: "it") -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < deadline, f"timed out after {PATIENCE_S} s: {what()}"
        time.sleep(0.1)


def responds(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def mounted(site: Path) -> list[str]:
    return [f"--volume={site}/config:{site}/config:ro", f"--volume={site}/state:{site}/state"]


def configure(site: Path, broker: Mosquitto, port: int, backend: str) -> list[str]:
    """Write a node's configuration and the vibration model. Returns: the command to run."""
    shutil.copyfile(MODEL, site / "config" / "vibration.onnx")
    config = {
        "node": {"region": "r", "site": "s", "name": "n", "state_dir": str(site / "state"), "drain_s": DRAIN_S},
        "broker": {"url": broker.url},
        "metrics": {"port": port},
        "models": {"vibration": {"path": "vibration.onnx", "backend": backend}},
        "pipelines": {
            "machines": {
                "subscribe": "plant/+/vibration",
                "content_type": "application/json",
                "queue": {"policy": "fifo", "max_frames_per_stream": 64},
                "publish": {"durable": True},
                "stages": [
                    "parse",
                    {"window": {"size": 2048, "hop": 1024, "rate": 12800}},
                    {"fft-bands": {"model": "vibration"}},
                    {"infer": {"model": "vibration"}},
                    {"anomaly": {"model": "vibration"}},
                ],
            }
        },
    }
    (site / "config" / "node.yaml").write_text(json.dumps(config))
    return ["node", "run", f"{site}/config/node.yaml"]


async def first_result(broker: Mosquitto) -> dict[str, Any]:
    """Send a frame and return its result."""
    samples = np.random.default_rng(7).normal(size=2048).round(4).tolist()
    async with aiomqtt.Client("127.0.0.1", broker.port, protocol=aiomqtt.ProtocolVersion.V5) as client:
        await client.subscribe("hedgerow/v1/r/s/n/result/#", qos=1)
        await client.publish("plant/pump/vibration", json.dumps(samples), qos=1)
        async for message in client.messages:
            return dict(json.loads(message.payload))
    raise AssertionError("unreachable")


@pytest.mark.parametrize(("image", "backend"), [("onnx", "onnxruntime"), ("openvino", "openvino")])
async def test_a_node_in_a_container_processes_a_frame(
    engine: Engine, site: Path, mosquitto: Mosquitto, held_port: int, image: str, backend: str
) -> None:
    """With a read-only root, limited memory, and no privileges; it exits within its drain time."""
    command = configure(site, mosquitto, held_port, backend)
    with engine.running(f"localhost/hedgerow:{image}", *command, options=mounted(site)) as node:
        until(lambda: responds(f"http://127.0.0.1:{held_port}/readyz"), lambda: node.log)
        assert responds(f"http://127.0.0.1:{held_port}/healthz")
        result = await first_result(mosquitto)
        assert_confined(node)
        probed = node.inside("probe", f"http://127.0.0.1:{held_port}/healthz")
        assert probed.stdout.startswith("200 ")

        assert node.stop(DRAIN_S + 20) == 0, node.log

    assert result["result"]["anomalous"] in (True, False)
    assert [model["backend"] for model in result["lineage"]["models"]] == [backend]
    assert (site / "state" / "outbox.db").exists(), "the state folder is the only one it may write to"


def assert_confined(container: Container) -> None:
    """Check user, read-only root, capabilities and memory limit."""
    user = container.inside("id", "-u").stdout.split()
    assert user == [str(USER)]
    for path in ("/x", "/opt/hedgerow/x", "/etc/passwd", "/usr/bin/x"):
        refused = container.inside("sh", "-c", f"echo x >> {path}", check=False)
        assert refused.returncode != 0, path
    status = container.inside("cat", "/proc/1/status").stdout
    assert "CapEff:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status
    limits = "/sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes"
    assert container.inside("sh", "-c", f"cat {limits} 2>/dev/null", check=False).stdout.split() == [str(2**30)]


def test_a_region_service_in_a_container_collects(
    engine: Engine, site: Path, mosquitto: Mosquitto, held_port: int
) -> None:
    (site / "config" / "region.yaml").write_text(
        json.dumps(
            {
                "region": {"name": "r"},
                "broker": {"url": mosquitto.url},
                "store": {"url": str(site / "state" / "region.db")},
                "metrics": {"port": held_port},
            }
        )
    )
    command = ("region", "run", f"{site}/config/region.yaml")
    with engine.running("localhost/hedgerow-region", *command, options=mounted(site)) as service:
        until(lambda: responds(f"http://127.0.0.1:{held_port}/readyz"), lambda: service.log)
        assert_confined(service)
        until(lambda: collector(service, site).get("connected"), lambda: service.log)  # set by its first heartbeat

        assert service.stop(30) == 0, service.log


def collector(service: Container, site: Path) -> dict[str, Any]:
    """Return the collector's part of the service's status; empty if there is none yet."""
    command = ("hedgerow", "region", "status", "--store", str(site / "state" / "region.db"), "--json")
    status = json.loads(service.inside(*command, check=False).stdout or "{}")
    return status.get("collector") or {}


def test_a_node_in_podman_notifies_systemd(
    engine: Engine, site: Path, mosquitto: Mosquitto, held_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the Quadlet units. The test provides the socket in place of systemd."""
    if engine.name != "podman":
        pytest.skip("only podman passes on systemd's socket")
    command = configure(site, mosquitto, held_port, "auto")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(f"{site}/notify")
        os.chmod(f"{site}/notify", 0o777)  # noqa: PTH101 # a socket
        notify.settimeout(PATIENCE_S)
        monkeypatch.setenv("NOTIFY_SOCKET", f"{site}/notify")
        options = [*mounted(site), "--sdnotify=container", "--env=WATCHDOG_USEC=60000000"]
        with engine.running("localhost/hedgerow:onnx", *command, options=options):
            monkeypatch.delenv("NOTIFY_SOCKET")
            received = ""
            while not ("WATCHDOG=1" in received and "READY=1" in received):
                received += notify.recv(4096).decode() + "\n"


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_is_small_and_has_no_tools_or_models(engine: Engine, image: str, tmp_path: Path) -> None:
    metadata = inspected(engine, image)
    config: Any = metadata.get("Config")
    assert config["User"] == f"{USER}:{USER}"
    check: Any = metadata.get("Healthcheck") or config.get("Healthcheck")  # for podman and for docker
    assert check["Test"][:2] == ["CMD", "probe"]
    output = engine.once(image, "-c", INSPECT, options=["--entrypoint=sh"])
    assert output.split("\n")[0].split(": ") == ["tools", ""]
    assert output.split("\n")[1].split(": ") == ["models", ""]
    assert output.split("\n")[2].split(": ") == ["uncompiled", "0"]

    save = processes.start([engine.name, "save", image], stdout=subprocess.PIPE)
    packed = subprocess.run(["gzip", "-c"], stdin=save.stdout, capture_output=True, check=True).stdout
    assert save.wait() == 0
    assert len(packed) < IMAGES[image] * 1e6


INSPECT = """
echo "tools: $(for tool in pip pip3 gcc cc make apt apt-get dpkg perl git curl wget; do command -v $tool; done)"
echo "models: $(find / -xdev \\( -name '*.onnx' -o -name '*.tflite' -o -name '*.pt' \\) 2>/dev/null)"
cd /opt/hedgerow/lib/hedgerow
echo "uncompiled: $(($(find . -name '*.py' | wc -l) - $(find . -name '*.pyc' | wc -l)))"
"""


def test_an_image_has_all_stages_and_both_backends(engine: Engine) -> None:
    """Removed parts are not needed: every stage can be imported, and both backends work."""
    stages = json.loads(engine.once("localhost/hedgerow:openvino", "plugin", "list", "--json"))
    assert {stage["package"] for stage in stages} == {
        "hedgerow", "hedgerow-vision", "hedgerow-audio", "hedgerow-signal"
    }  # fmt: skip
    assert not [stage for stage in stages if stage["error"]]
    doctor = json.loads(engine.once("localhost/hedgerow:openvino", "doctor", "--json", check=False))
    checks = {one["check"]: one["state"] for one in doctor["checks"]}
    assert (checks["onnxruntime"], checks["openvino"], checks["stages"]) == ("ok", "ok", "ok")
