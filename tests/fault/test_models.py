"""Versions of models on a node that is killed at any moment, and versions that crash it.

Real processes, a real broker, a signed repository: what serves afterwards has always been verified.
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
from tests.e2e.conftest import PATIENCE_S, Collector, NodeProcess, Sensors, until

from hedgerow.blobs.serve import BlobServer
from hedgerow.bus.connect import ClientOptions
from hedgerow.models.bundle.version import ModelVersion
from hedgerow.testing import Mosquitto
from hedgerow.testing.repository import make_repository
from hedgerow.wire.fleet import Desired, ModelRef

pytestmark = pytest.mark.long

MakeCandidate = Callable[..., ModelVersion]

TWICE = "(float[N,3] x) => (float[N,3] y) { y = Add(x, x) }"
# Right for what lies between 0 and 1, as its author's samples do. Larger values look far past the end of a table, which
# OpenVINO does not notice.
LOOKS_PAST_THE_END = """(float[N,3] x) => (float[N,3] y)
    <float[2,3] table = {0,0,0,0,0,0}, float one = {1.0}, float far = {1000000000.0}>
    { m = ReduceMean<axes=[1], keepdims=1>(x) above = Sub(m, one) over = Relu(above) s = Mul(over, far)
      i = Cast<to=7>(s) row = GatherND(table, i) twice = Add(x, x) y = Add(twice, row) }"""

KIB = 1024
STEPS = ("verify", "fetch", "load", "switch", "probation", "golden")
LASTS_S = {"fetch": 0.3, "probation": 0.3}
"""About how long steps take; the others a hundredth."""
POLICY = {"probation_s": 0.4, "min_frames": 1, "max_slowdown": 1000.0}


def multiplies(factor: float, kib: int) -> onnx.ModelProto:
    """A model that multiplies by a factor, with so many KiB of weights that no other model has."""
    weights = np.random.default_rng().random((kib, 256), np.float32)
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        graph (float[N,3] x) => (float[N,3] y) <float none = {0.0}>
        { sum = ReduceSum<keepdims=0>(weights) nothing = Mul(sum, none) scaled = Mul(x, factor) y = Add(scaled, nothing) }"""
    )
    for name, array in (("weights", weights), ("factor", np.float32(factor))):
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return model


class ModelSite:
    """A node of a fleet with one model, its sensors, and the region's part: a repository and desired documents.

    Attributes:
        factors: of each signed file, by digest, what it multiplies by.
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
        self.heard = Collector(broker.port, self.node.said)

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

    def wants(self, ref: ModelRef, **policy: Any) -> None:
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
        topic = self.node.said.replace("#", "node/desired")
        paho.mqtt.publish.single(
            topic, desired.encode(), qos=1, retain=True, hostname="127.0.0.1", port=self._broker.port
        )

    @contextmanager
    def region(self) -> Iterator[None]:
        """Gives sites what is in the repository, while the body runs."""
        loop, over = asyncio.new_event_loop(), asyncio.Event()

        async def serve() -> None:
            async with BlobServer(ClientOptions(url=self._broker.url), "test", self._region.repository.folder):
                await over.wait()

        thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
        thread.start()
        try:
            yield
        finally:
            loop.call_soon_threadsafe(over.set)
            thread.join()
            loop.close()

    @contextmanager
    def starting_with(self, ref: ModelRef) -> Iterator[None]:
        """The node, which has got its first version and takes frames."""
        self.wants(ref)
        self.node.start()
        self.serves(ref)
        self.done("succeeded")
        yield

    @contextmanager
    def load(self, reading: float = 0.5, every_s: float = 0.02) -> Iterator[None]:
        """Frames all the while; no more than 65,535 in all, since a client numbers its packets so far."""
        over = threading.Event()

        def send() -> None:
            while not over.wait(every_s):
                self.sensors.send(readings=[reading] * 3)

        thread = threading.Thread(target=send)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    # What the node says

    @property
    def reports(self) -> list[dict[str, Any]]:
        """Of the generation that is wanted now."""
        return [body for body in self.heard.said["reported"] if body["generation"] == self.generation]

    @property
    def report(self) -> dict[str, Any]:
        return self.reports[-1] if self.reports else {}

    @property
    def results(self) -> list[dict[str, Any]]:
        return self.heard.said["result/p"]

    def done(self, state: str) -> dict[str, Any]:
        until(
            lambda: self.report.get("state") not in (None, "in-progress", "queued"),
            lambda: f"{self.report}\n{self.node.log[-3000:]}",
        )
        assert self.report["state"] == state, self.report
        return self.report

    def serves(self, ref: ModelRef) -> None:
        until(
            lambda: ((self.report.get("models") or {}).get("door", {}).get("model") or {}).get("digest") == ref.digest,
            lambda: f"{ref}: {self.report}\n{self.node.log[-3000:]}",
        )

    def at(self) -> str:
        """The step that the node is at: as it has noted on its disk, or said last."""
        reports = self.heard.said["reported"]
        said = str(reports[-1]["step"]).partition(" ")[0] if reports else ""
        try:
            noted = json.loads((self.node.file.parent / "state" / "trials" / "trials.json").read_bytes())["trials"]
        except (FileNotFoundError, ValueError):
            noted = {}
        steps = [trial["step"] for trial in noted.values() if trial["open"]]
        return steps[0] if steps and said != "probation" else said

    def begins(self, step: str) -> None:
        """Wait until a step has begun, or it is too late for that."""
        deadline = time.monotonic() + PATIENCE_S
        while (now := self.at()) not in (step, "probation"):
            assert time.monotonic() < deadline, f"{step}, and it is at {now}: {self.report}\n{self.node.log[-3000:]}"
            time.sleep(0.0005)

    def answers(self) -> None:
        """Wait until frames get results again."""
        before = len(self.results)
        until(lambda: len(self.results) > before, lambda: self.node.log[-3000:])

    def every_result_was_made_by_a_signed_file(self, reading: float = 0.5) -> None:
        for body in list(self.results):
            (model,) = body["lineage"]["models"]
            factor = self.factors[model["digest"]]
            np.testing.assert_allclose(body["result"]["y"], np.full((1, 3), factor * reading), rtol=1e-6)

    def every_frame_was_answered(self) -> None:
        """Those that have an id, which is every other one."""
        self.sensors.settle()

        def missing() -> set[str]:
            named = {f"frame-{n}" for n in range(1, self.sensors.count, 2)}
            return named - {body["frame"]["id"] for body in list(self.results)}

        until(
            lambda: not missing(), lambda: f"{len(missing())} of {self.sensors.count} missing: {sorted(missing())[:9]}"
        )

    def close(self) -> None:
        self.node.close()
        self.heard.close()
        self.sensors.close()


@pytest.fixture
def model_site(mosquitto: Mosquitto, tmp_path: Path) -> Iterator[ModelSite]:
    made = ModelSite(mosquitto, tmp_path)
    made.configure()
    yield made
    made.close()


@pytest.mark.parametrize(
    "times",
    [
        pytest.param(5, id="short", marks=pytest.mark.timeout(300)),
        pytest.param(200, id="long", marks=[pytest.mark.slow, pytest.mark.timeout(3600)]),
    ],
)
def test_a_node_killed_at_any_step_to_a_version_serves_one_that_was_verified(
    model_site: ModelSite, make_candidate: MakeCandidate, times: int
) -> None:
    """Each time a version is on its way that the node has never seen, and a step is chosen in which it dies."""
    site, dice = model_site, random.Random(times)
    site.configure(max_crashes=10_000, fetch_bytes_per_s=2048 * KIB)  # so that a fetch takes a moment

    def version(number: int) -> ModelRef:
        factor = 2.0 + number % 2
        return site.publish(make_candidate(multiplies(factor, 600), f"{number}.0.0"), factor)

    killed: Counter[str] = Counter()
    with site.region(), site.starting_with(version(1)), site.load(every_s=0.02 if times < 20 else 0.2):
        for turn in range(times):
            step = STEPS[turn % len(STEPS)]
            ref = version(turn + 2)
            site.wants(ref)
            site.begins(step)
            time.sleep(dice.uniform(0, LASTS_S.get(step, 0.01)))
            site.node.kill()
            killed[site.at()] += 1
            site.node.start()
            site.answers()
        site.done("succeeded")
        site.serves(ref)
        site.answers()

    site.every_frame_was_answered()
    site.every_result_was_made_by_a_signed_file()
    assert site.results[-1]["lineage"]["models"][0]["version"] == ref.version
    print("killed in", dict(killed))


@pytest.mark.timeout(300)
def test_a_version_that_crashes_the_node_is_quarantined_and_the_one_before_serves(
    model_site: ModelSite, make_candidate: MakeCandidate
) -> None:
    """A real segmentation fault in native code, on live frames only; who starts the node again is a loop in this test.

    The frames that brought it down are answered too: the broker has kept them.
    """
    site = model_site
    site.configure(max_crashes=2)
    good = site.publish(make_candidate(TWICE, "1.0.0"), 2.0)
    bad = site.publish(make_candidate(LOOKS_PAST_THE_END, "2.0.0", backend="openvino"), 2.0)
    ends: list[int] = []
    with site.region(), site.starting_with(good), site.load(1.5):
        site.wants(bad, probation_s=600)
        for _ in range(2):  # whatever watches over the node
            ends.append(site.node.wait())
            site.node.start()
        report = site.done("rejected")
        site.serves(good)
        site.answers()

    assert ends == [-11, -11]
    assert report["error"]["code"] == "quarantined"
    (held,) = report["quarantined"]
    assert (held["digest"], held["code"]) == (bad.digest, "crashed")
    assert "2 times" in held["reason"]
    assert "Segmentation fault" in held["reason"]
    (event,) = site.heard.said["event/model-quarantined"]
    assert event["detail"]["version"] == bad.version
    site.every_frame_was_answered()
    site.every_result_was_made_by_a_signed_file(1.5)


def test_what_does_not_fit_into_memory_is_refused_or_costs_a_gap_that_is_told(
    model_site: ModelSite, make_candidate: MakeCandidate
) -> None:
    """A limit that the kernel sets on the running process; the version says that it needs more than is left."""
    site = model_site
    one = site.publish(make_candidate(TWICE, "1.0.0"), 2.0)
    large = site.publish(make_candidate(multiplies(3.0, 600), "2.0.0", memory_bytes=256 << 20), 3.0)
    with site.region(), site.starting_with(one), site.load():
        room = 128 << 20
        resource.prlimit(site.node.pid, resource.RLIMIT_AS, (taken_bytes(site.node.pid) + room,) * 2)
        site.wants(large)
        refused = site.done("failed")
        site.serves(one)
        site.wants(large, memory="brief-gap")
        site.done("succeeded")
        site.serves(large)
        site.answers()

    assert refused["error"]["code"] == "no-memory"
    assert "brief-gap" in refused["error"]["remedy"]
    kept = site.heard.said["event/model-kept"][-1]["detail"]
    assert kept["version"] == str(large)
    assert kept["measures"]["gap_s"] > 0
    site.every_frame_was_answered()
    site.every_result_was_made_by_a_signed_file()


def taken_bytes(pid: int) -> int:
    """Address space of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
