"""Model versions on a node that is killed at any moment, and versions that crash it.

Real processes, a real broker, a signed repository: the version that serves afterwards has always been verified.
"""

from __future__ import annotations

import asyncio
import json
import random
import resource
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import paho.mqtt.publish
import pytest
from tests.e2e.conftest import TIMEOUT_S, Collector, NodeProcess, Sensors, until

from hedgerow.blobs.serve import BlobServer
from hedgerow.bus.connect import ClientOptions
from hedgerow.models.bundle.version import ModelVersion
from hedgerow.testing import Mosquitto
from hedgerow.testing.repository import make_repository
from hedgerow.wire.fleet import Desired, ModelRef

pytestmark = pytest.mark.long

MakeVersion = Callable[..., ModelVersion]

DOUBLE = "(float[N,3] x) => (float[N,3] y) { y = Add(x, x) }"
# Correct for inputs between 0 and 1, as its author's samples are. Larger inputs read far beyond the end of a table,
# which OpenVINO does not check.
READS_OUT_OF_BOUNDS = """(float[N,3] x) => (float[N,3] y)
    <float[2,3] table = {0,0,0,0,0,0}, float one = {1.0}, float far = {1000000000.0}>
    { m = ReduceMean<axes=[1], keepdims=1>(x) above = Sub(m, one) over = Relu(above) s = Mul(over, far)
      i = Cast<to=7>(s) row = GatherND(table, i) twice = Add(x, x) y = Add(twice, row) }"""

KIB = 1024
STEPS = ("verify", "fetch", "load", "switch", "probation", "golden")
STEP_DURATIONS_S = {"fetch": 0.3, "probation": 0.3}
"""Approximate durations of the longer steps; the others take about 0.01 s."""
POLICY = {"probation_s": 0.4, "min_frames": 1, "max_slowdown": 1000.0}


def multiplies(factor: float, kib: int) -> onnx.ModelProto:
    """Return a model that multiplies by a factor, with this many KiB of unique weights."""
    weights = np.random.default_rng().random((kib, 256), np.float32)
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        graph (float[N,3] x) => (float[N,3] y) <float none = {0.0}>
        { sum = ReduceSum<keepdims=0>(weights) nothing = Mul(sum, none) scaled = Mul(x, factor) y = Add(scaled, nothing)
        }"""
    )
    for name, array in (("weights", weights), ("factor", np.float32(factor))):
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return model


class ModelSite:
    """A node with one model from the region, its sensors, and a simulated region: repository and desired documents.

    Attributes:
        factors: factor of each signed model file, by digest.
    """

    def __init__(self, broker: Mosquitto, folder: Path) -> None:
        self.node = NodeProcess(broker, folder)
        self.factors: dict[str, float] = {}
        self.generation = 0
        self._broker = broker
        self._region = make_repository(folder / "repository", ["door"])
        self._root = folder / "root.json"
        self._root.write_bytes(self._region.root)
        self.sensors = Sensors(broker.port, self.node.topic)
        self.collector = Collector(broker.port, self.node.topic_filter)

    def configure(self, **fleet: Any) -> None:
        self.node.configure(
            {"parse": {"format": "json", "field": "readings", "dtype": "float32"}}, {"infer": {"model": "door"}}
        )
        config = json.loads(self.node.file.read_text())
        config["models"] = {"door": {"path": "bundle:door", "threads": 1}}
        config["fleet"] = {"root_file": str(self._root), **fleet}
        self.node.file.write_text(json.dumps(config))

    def publish(self, candidate: ModelVersion, factor: float) -> ModelRef:
        self._region.repository.publish(candidate, self._region.owner)
        self.factors[candidate.variant.model_digest] = factor
        return candidate.ref

    def set_desired(self, ref: ModelRef, **policy: Any) -> None:
        self.generation += 1
        desired = Desired.model_validate(
            {
                "node": f"test/{self.node.site}/node",
                "generation": self.generation,
                "at": time.time(),
                "models": {"door": ref},
                "swap": {**POLICY, **policy},
            }
        )
        topic = self.node.topic_filter.replace("#", "node/desired")
        paho.mqtt.publish.single(
            topic, desired.encode(), qos=1, retain=True, hostname="127.0.0.1", port=self._broker.port
        )

    @contextmanager
    def region(self) -> Iterator[None]:
        """Serve the repository to sites while the body runs."""
        loop, stopped = asyncio.new_event_loop(), asyncio.Event()

        async def serve() -> None:
            async with BlobServer(ClientOptions(url=self._broker.url), "test", self._region.repository.folder):
                await stopped.wait()

        thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
        thread.start()
        try:
            yield
        finally:
            loop.call_soon_threadsafe(stopped.set)
            thread.join()
            loop.close()

    @contextmanager
    def starting_with(self, ref: ModelRef) -> Iterator[None]:
        """Start the node with its first version."""
        self.set_desired(ref)
        self.node.start()
        self.wait_serving(ref)
        self.wait_done("succeeded")
        yield

    @contextmanager
    def load(self, reading: float = 0.5, every_s: float = 0.02) -> Iterator[None]:
        """Send frames while the body runs; at most 65,535 in all, the number of packet identifiers."""
        stopped = threading.Event()

        def send() -> None:
            while not stopped.wait(every_s):
                self.sensors.send(readings=[reading] * 3)

        thread = threading.Thread(target=send)
        thread.start()
        try:
            yield
        finally:
            stopped.set()
            thread.join()

    # Reports and results

    @property
    def reports(self) -> list[dict[str, Any]]:
        """Reported documents of the current generation."""
        return [body for body in self.collector.messages["reported"] if body["generation"] == self.generation]

    @property
    def report(self) -> dict[str, Any]:
        return self.reports[-1] if self.reports else {}

    @property
    def results(self) -> list[dict[str, Any]]:
        return self.collector.messages["result/p"]

    def wait_done(self, state: str) -> dict[str, Any]:
        until(
            lambda: self.report.get("state") not in (None, "in-progress", "queued"),
            lambda: f"{self.report}\n{self.node.log[-3000:]}",
        )
        assert self.report["state"] == state, self.report
        return self.report

    def wait_serving(self, ref: ModelRef) -> None:
        until(
            lambda: ((self.report.get("models") or {}).get("door", {}).get("model") or {}).get("digest") == ref.digest,
            lambda: f"{ref}: {self.report}\n{self.node.log[-3000:]}",
        )

    def current_step(self) -> str:
        """Return the node's current step: as recorded on its disk, or as last reported."""
        reports = self.collector.messages["reported"]
        reported = str(reports[-1]["step"]).partition(" ")[0] if reports else ""
        try:
            recorded = json.loads((self.node.file.parent / "state" / "trials" / "trials.json").read_bytes())["trials"]
        except (FileNotFoundError, ValueError):
            recorded = {}
        steps = [trial["step"] for trial in recorded.values() if trial["open"]]
        return steps[0] if steps and reported != "probation" else reported

    def wait_for_step(self, step: str) -> None:
        """Wait until a step has started, or the last one has."""
        deadline = time.monotonic() + TIMEOUT_S
        while (now := self.current_step()) not in (step, "probation"):
            assert time.monotonic() < deadline, f"waiting for {step}, now {now}: {self.report}\n{self.node.log[-3000:]}"
            time.sleep(0.0005)

    def wait_for_results(self) -> None:
        """Wait until a frame has a new result."""
        before = len(self.results)
        until(lambda: len(self.results) > before, lambda: self.node.log[-3000:])

    def assert_results_are_from_signed_files(self, reading: float = 0.5) -> None:
        for body in list(self.results):
            (model,) = body["lineage"]["models"]
            factor = self.factors[model["digest"]]
            np.testing.assert_allclose(body["result"]["y"], np.full((1, 3), factor * reading), rtol=1e-6)

    def assert_every_frame_has_its_result(self) -> None:
        """Checks the frames with an id, which is every other one."""
        self.sensors.settle()

        def missing() -> set[str]:
            with_id = {f"frame-{n}" for n in range(1, self.sensors.count, 2)}
            return with_id - {body["frame"]["id"] for body in list(self.results)}

        until(
            lambda: not missing(), lambda: f"{len(missing())} of {self.sensors.count} missing: {sorted(missing())[:9]}"
        )

    def close(self) -> None:
        self.node.close()
        self.collector.close()
        self.sensors.close()


@pytest.fixture
def model_site(mosquitto: Mosquitto, tmp_path: Path) -> Iterator[ModelSite]:
    site = ModelSite(mosquitto, tmp_path)
    site.configure()
    yield site
    site.close()


@pytest.mark.parametrize(
    "times",
    [
        pytest.param(5, id="short", marks=pytest.mark.timeout(300)),
        pytest.param(200, id="long", marks=[pytest.mark.slow, pytest.mark.timeout(3600)]),
    ],
)
def test_a_node_killed_at_any_step_of_a_swap_serves_a_verified_version(
    model_site: ModelSite, make_version: MakeVersion, times: int
) -> None:
    """Each round sends a new version and kills the node in a chosen step."""
    site, dice = model_site, random.Random(times)
    site.configure(max_crashes=10_000, fetch_bytes_per_s=2048 * KIB)  # slow enough to be killed during a fetch

    def version(number: int) -> ModelRef:
        factor = 2.0 + number % 2
        return site.publish(make_version(multiplies(factor, 600), f"{number}.0.0"), factor)

    killed: Counter[str] = Counter()
    with site.region(), site.starting_with(version(1)), site.load(every_s=0.02 if times < 20 else 0.2):
        for round_ in range(times):
            step = STEPS[round_ % len(STEPS)]
            ref = version(round_ + 2)
            site.set_desired(ref)
            site.wait_for_step(step)
            time.sleep(dice.uniform(0, STEP_DURATIONS_S.get(step, 0.01)))
            site.node.kill()
            killed[site.current_step()] += 1
            site.node.start()
            site.wait_for_results()
        site.wait_done("succeeded")
        site.wait_serving(ref)
        site.wait_for_results()

    site.assert_every_frame_has_its_result()
    site.assert_results_are_from_signed_files()
    assert site.results[-1]["lineage"]["models"][0]["version"] == ref.version
    print("killed in", dict(killed))


@pytest.mark.timeout(300)
def test_a_version_that_crashes_the_node_is_quarantined_and_rolled_back(
    model_site: ModelSite, make_version: MakeVersion
) -> None:
    """A real segmentation fault in native code, on live frames only; this test restarts the node.

    The frames that crashed it have results too, since the broker kept them.
    """
    site = model_site
    site.configure(max_crashes=2)
    good = site.publish(make_version(DOUBLE, "1.0.0"), 2.0)
    bad = site.publish(make_version(READS_OUT_OF_BOUNDS, "2.0.0", backend="openvino"), 2.0)
    exit_statuses: list[int] = []
    with site.region(), site.starting_with(good), site.load(1.5):
        site.set_desired(bad, probation_s=600)
        for _ in range(2):  # as a service manager would
            exit_statuses.append(site.node.wait())
            site.node.start()
        report = site.wait_done("rejected")
        site.wait_serving(good)
        site.wait_for_results()

    assert exit_statuses == [-11, -11]
    assert report["error"]["code"] == "quarantined"
    (quarantined,) = report["quarantined"]
    assert (quarantined["digest"], quarantined["code"]) == (bad.digest, "crashed")
    assert "2 times" in quarantined["reason"]
    assert "Segmentation fault" in quarantined["reason"]
    (event,) = site.collector.messages["event/model-quarantined"]
    assert event["detail"]["version"] == bad.version
    site.assert_every_frame_has_its_result()
    site.assert_results_are_from_signed_files(1.5)


def test_a_version_that_exceeds_memory_is_refused_or_swapped_with_a_reported_gap(
    model_site: ModelSite, make_version: MakeVersion
) -> None:
    """The kernel limits the running process; the version declares that it needs more memory than is left."""
    site = model_site
    one = site.publish(make_version(DOUBLE, "1.0.0"), 2.0)
    large = site.publish(make_version(multiplies(3.0, 600), "2.0.0", memory_bytes=256 << 20), 3.0)
    with site.region(), site.starting_with(one), site.load():
        headroom = 128 << 20
        resource.prlimit(site.node.pid, resource.RLIMIT_AS, (address_space_bytes(site.node.pid) + headroom,) * 2)
        site.set_desired(large)
        refused = site.wait_done("failed")
        site.wait_serving(one)
        site.set_desired(large, memory="brief-gap")
        site.wait_done("succeeded")
        site.wait_serving(large)
        site.wait_for_results()

    assert refused["error"]["code"] == "no-memory"
    assert "brief-gap" in refused["error"]["remedy"]
    model_kept = site.collector.messages["event/model-kept"][-1]["detail"]
    assert model_kept["version"] == str(large)
    assert model_kept["measures"]["gap_s"] > 0
    site.assert_every_frame_has_its_result()
    site.assert_results_are_from_signed_files()


def address_space_bytes(pid: int) -> int:
    """Return the size of a process's address space."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
