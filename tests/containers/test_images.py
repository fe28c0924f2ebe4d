"""The images themselves: built, and run as a site runs them, against a real broker and with a real model.

Slow, since building takes minutes the first time: `make test-images`.
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
        assert time.monotonic() < deadline, f"waited in vain: {what()}"
        time.sleep(0.1)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def mounted(site: Path) -> list[str]:
    return [f"--volume={site}/config:{site}/config:ro", f"--volume={site}/state:{site}/state"]


def configure(site: Path, broker: Mosquitto, port: int, backend: str) -> list[str]:
    """Write a node's file with the vibration model beside it; what to run."""
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
    """Send frames until a result comes."""
    samples = np.random.default_rng(7).normal(size=2048).round(4).tolist()
    async with aiomqtt.Client("127.0.0.1", broker.port, protocol=aiomqtt.ProtocolVersion.V5) as client:
        await client.subscribe("hedgerow/v1/r/s/n/result/#", qos=1)
        await client.publish("plant/pump/vibration", json.dumps(samples), qos=1)
        async for message in client.messages:
            return dict(json.loads(message.payload))
    raise AssertionError("unreachable")


@pytest.mark.parametrize(("image", "backend"), [("onnx", "onnxruntime"), ("openvino", "openvino")])
async def test_a_node_in_a_container_answers_a_frame_with_a_result(
    engine: Engine, site: Path, mosquitto: Mosquitto, held_port: int, image: str, backend: str
) -> None:
    """Its root is read-only, its memory limited, it is nobody, has no rights, and ends within its time to drain."""
    command = configure(site, mosquitto, held_port, backend)
    with engine.running(f"localhost/hedgerow:{image}", *command, options=mounted(site)) as node:
        until(lambda: answers(f"http://127.0.0.1:{held_port}/readyz"), lambda: node.log)
        assert answers(f"http://127.0.0.1:{held_port}/healthz")
        result = await first_result(mosquitto)
        confined(node)
        probed = node.inside("probe", f"http://127.0.0.1:{held_port}/healthz")
        assert probed.stdout.startswith("200 ")

        assert node.stop(DRAIN_S + 20) == 0, node.log

    assert result["result"]["anomalous"] in (True, False)
    assert [model["backend"] for model in result["lineage"]["models"]] == [backend]
    assert (site / "state" / "outbox.db").exists(), "the state folder is all it may write to"


def confined(container: Container) -> None:
    """Who it is and what it may."""
    who = container.inside("id", "-u").stdout.split()
    assert who == [str(USER)]
    for place in ("/x", "/opt/hedgerow/x", "/etc/passwd", "/usr/bin/x"):
        refused = container.inside("sh", "-c", f"echo x >> {place}", check=False)
        assert refused.returncode != 0, place
    rights = container.inside("cat", "/proc/1/status").stdout
    assert "CapEff:\t0000000000000000" in rights
    assert "NoNewPrivs:\t1" in rights
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
        until(lambda: answers(f"http://127.0.0.1:{held_port}/readyz"), lambda: service.log)
        confined(service)
        until(lambda: collector(service, site).get("connected"), lambda: service.log)  # its first beat comes after

        assert service.stop(30) == 0, service.log


def collector(service: Container, site: Path) -> dict[str, Any]:
    """What the service's status says of its collector; nothing as long as it says nothing."""
    command = ("hedgerow", "region", "status", "--store", str(site / "state" / "region.db"), "--json")
    said = json.loads(service.inside(*command, check=False).stdout or "{}")
    return said.get("collector") or {}


def test_a_node_in_podman_tells_systemd_that_it_is_ready_and_alive(
    engine: Engine, site: Path, mosquitto: Mosquitto, held_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the Quadlet units have it. Here the test holds the socket that would be systemd's."""
    if engine.name != "podman":
        pytest.skip("only podman hands on systemd's socket")
    command = configure(site, mosquitto, held_port, "auto")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(f"{site}/notify")
        os.chmod(f"{site}/notify", 0o777)  # noqa: PTH101 # a socket
        notify.settimeout(PATIENCE_S)
        monkeypatch.setenv("NOTIFY_SOCKET", f"{site}/notify")
        options = [*mounted(site), "--sdnotify=container", "--env=WATCHDOG_USEC=60000000"]
        with engine.running("localhost/hedgerow:onnx", *command, options=options):
            monkeypatch.delenv("NOTIFY_SOCKET")
            heard = ""
            while not ("WATCHDOG=1" in heard and "READY=1" in heard):
                heard += notify.recv(4096).decode() + "\n"


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_is_small_and_holds_neither_tools_nor_models(engine: Engine, image: str, tmp_path: Path) -> None:
    known = inspected(engine, image)
    config: Any = known.get("Config")
    assert config["User"] == f"{USER}:{USER}"
    check: Any = known.get("Healthcheck") or config.get("Healthcheck")  # podman's place and docker's
    assert check["Test"][:2] == ["CMD", "probe"]
    found = engine.once(image, "-c", LOOK, options=["--entrypoint=sh"])
    assert found.split("\n")[0].split(": ") == ["tools", ""]
    assert found.split("\n")[1].split(": ") == ["models", ""]
    assert found.split("\n")[2].split(": ") == ["uncompiled", "0"]

    save = processes.start([engine.name, "save", image], stdout=subprocess.PIPE)
    packed = subprocess.run(["gzip", "-c"], stdin=save.stdout, capture_output=True, check=True).stdout
    assert save.wait() == 0
    assert len(packed) < IMAGES[image] * 1e6


LOOK = """
echo "tools: $(for tool in pip pip3 gcc cc make apt apt-get dpkg perl git curl wget; do command -v $tool; done)"
echo "models: $(find / -xdev \\( -name '*.onnx' -o -name '*.tflite' -o -name '*.pt' \\) 2>/dev/null)"
cd /opt/hedgerow/lib/hedgerow
echo "uncompiled: $(($(find . -name '*.py' | wc -l) - $(find . -name '*.pyc' | wc -l)))"
"""


def test_an_image_has_all_stages_and_both_backends(engine: Engine) -> None:
    """What was left out is not missed: every stage can be imported, and both backends say what they have."""
    stages = json.loads(engine.once("localhost/hedgerow:openvino", "plugin", "list", "--json"))
    assert {stage["package"] for stage in stages} == {
        "hedgerow", "hedgerow-vision", "hedgerow-audio", "hedgerow-signal"
    }  # fmt: skip
    assert not [stage for stage in stages if stage["error"]]
    doctor = json.loads(engine.once("localhost/hedgerow:openvino", "doctor", "--json", check=False))
    checks = {one["check"]: one["state"] for one in doctor["checks"]}
    assert (checks["onnxruntime"], checks["openvino"], checks["stages"]) == ("ok", "ok", "ok")
