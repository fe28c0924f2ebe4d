"""Publishes versions of the voice activity model, as a region does, and deploys them to nodes.

All are the same model with different metadata, which makes them distinct for the node, its backend and its compile
cache.
"""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import onnx
import onnxruntime

from benchmarks.data_path import vad
from benchmarks.harness.arena import Arena
from benchmarks.harness.load import PATIENCE_S
from benchmarks.harness.raw import VAD, path_of
from hedgerow.blobs.serve import BlobServer
from hedgerow.bus import Client, ClientOptions, Message
from hedgerow.models.bundle.arrays import write_arrays
from hedgerow.models.bundle.chunks import describe_file
from hedgerow.models.bundle.manifest import MANIFEST, GoldenCase, Manifest, Needs, Tensor, Tolerance, Variant
from hedgerow.models.bundle.model_file import digest
from hedgerow.testing.repository import make_repository
from hedgerow.topics import Address, Channel
from hedgerow.wire.fleet import Desired, ModelRef, Reported

SITE = "site"
REGION = "bench"
_AXES = {"input": 0, "output": 0, "state": 1, "stateN": 1}
"""Batch axes. The file has a fixed batch of one, which a backend makes dynamic."""


class Bundle(NamedTuple):
    """A version on disk, to be published."""

    folder: Path


@dataclass(slots=True)
class Steps:
    """Progress of a deployment, as reported by the node.

    Attributes:
        started: when each step was first reported, by the monotonic clock.
        ended: when the end, or the step waited for, was reported.
        state: last reported state.
    """

    started: dict[str, float] = field(default_factory=dict)
    ended: float = 0.0
    state: str = ""


class Region:
    """A repository, the server of its chunks, and the nodes' desired documents; runs in its own thread."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._folder = arena.folder / "region"
        self._folder.mkdir()
        self._source = make_repository(self._folder / "repository", ["vad"])
        self._root = self._folder / "root.json"
        self._root.write_bytes(self._source.root)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._versions = self._generation = 0
        self._steps, self._until = Steps(), ""
        self._done, self._result = threading.Event(), threading.Event()

    def __enter__(self) -> Self:
        self._thread.start()
        self._do(self._open())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def section(self) -> dict[str, Any]:
        """Return the `fleet` section of a node's configuration."""
        return {"root_file": str(self._root)}

    def watch(self, node: str) -> None:
        """Subscribe to a node's reports."""
        self._do(self._client.subscribe({_address(node).topic(Channel.REPORTED): 1}))

    def wait_for_result(self, node: str) -> None:
        """Wait up to PATIENCE_S until a node publishes a result."""
        topic = _address(node).topic(Channel.RESULT, "main")
        self._result = threading.Event()
        self._do(self._client.subscribe({topic: 0}))
        self._result.wait(PATIENCE_S)
        self._do(self._client.unsubscribe([topic]))

    def deploy(self, node: str, ref: ModelRef, policy: dict[str, Any], until: str = "") -> Steps:
        """Deploy a version to a node and wait until the swap succeeds.

        Args:
            until: wait only until this step is reported.
        Raises: RuntimeError: the swap failed, or timed out.
        """
        self._generation += 1
        self._steps, self._until, self._done = Steps(), until, threading.Event()
        desired = Desired.model_validate(
            {
                "node": str(_address(node)),
                "generation": self._generation,
                "at": time.time(),
                "models": {"vad": ref},
                "swap": policy,
            }
        )
        topic = _address(node).topic(Channel.DESIRED)
        self._do(self._client.publish_and_wait(topic, desired.encode(), qos=1, retain=True))
        if not self._done.wait(5 * PATIENCE_S) or self._steps.state not in ("in-progress", "succeeded"):
            raise RuntimeError(f"The node did not swap to {ref}: {self._steps}")
        return self._steps

    def publish(self) -> ModelRef:
        """Publish a new version."""
        self._versions += 1
        version = f"{self._versions}.0.0"
        folder = self._folder / version
        manifest = _write_bundle(folder, version)
        self._source.repository.publish(Bundle(folder), self._source.owner)
        return ModelRef(name="vad", version=version, digest=manifest.digest)

    def _receive(self, messages: list[Message]) -> None:
        for message in messages:
            if "/result/" in message.topic:
                self._result.set()
                continue
            now, reported = time.monotonic(), Reported.model_validate_json(bytes(message.payload))
            self._client.ack(message)
            if reported.generation != self._generation or self._done.is_set():
                continue
            step, self._steps.state = reported.step.partition(" ")[0], reported.state
            self._steps.started.setdefault(step, now)
            if reported.state != "in-progress" or (self._until and step == self._until):
                self._steps.ended = now
                self._done.set()

    async def _open(self) -> None:
        url = self._arena.broker.url
        self._client = Client(ClientOptions(url=url, client_id="bench/region"), self._receive)
        self._server = BlobServer(ClientOptions(url=url), REGION, self._source.repository.folder)
        await self._client.__aenter__()
        self._client.resume()
        await self._server.__aenter__()

    async def _close(self) -> None:
        await self._server.__aexit__(None, None, None)
        await self._client.__aexit__(None, None, None)

    def _do(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE_S)


def _address(node: str) -> Address:
    return Address(REGION, SITE, node)


def _write_bundle(folder: Path, version: str) -> Manifest:
    """Write a version: the model with distinct metadata, a golden case, and a manifest."""
    path = folder / "variants" / "onnx" / "vad.onnx"
    golden = folder / "golden"
    for each in (path.parent, golden / "onnx"):
        each.mkdir(parents=True)
    model = onnx.load(path_of(VAD))
    model.metadata_props.add(key="hedgerow.benchmark", value=version)
    onnx.save(model, path)
    inputs = {
        "input": np.random.default_rng(0).normal(0, 0.05, (4, 576)).astype(np.float32),
        "state": np.zeros((2, 4, 128), np.float32),
    }
    session = onnxruntime.InferenceSession(path)
    names = [each.name for each in session.get_outputs()]
    rows = [
        session.run(names, {key: array.take([row], _AXES[key]) for key, array in inputs.items()}) for row in range(4)
    ]
    outputs = {
        name: np.concatenate(each, _AXES[name]) for name, each in zip(names, zip(*rows, strict=True), strict=True)
    }
    write_arrays(golden / "0.inputs.npz", inputs)
    write_arrays(golden / "onnx" / "0.outputs.npz", outputs)
    described = {
        name: describe_file(folder / name, name) for name in ("golden/0.inputs.npz", "golden/onnx/0.outputs.npz")
    }
    manifest = Manifest(
        schema="hedgerow.model/1",
        name="vad",
        version=version,
        inputs=tuple(Tensor(name=key, dtype="float32", shape=(None, None)) for key in inputs),
        outputs=tuple(Tensor(name=key, dtype="float32", shape=(None, None)) for key in outputs),
        serving={key: value for key, value in vad.MODEL.items() if key != "path"},
        variants=(
            Variant(
                name="onnx",
                format="onnx",
                precision="fp32",
                files=(describe_file(path, "variants/onnx/vad.onnx"),),
                model_digest=digest(path),
                needs=Needs(backends=("openvino",)),
                tolerance=Tolerance(absolute=1e-3, relative=1e-2),
            ),
        ),
        golden=(
            GoldenCase(
                inputs=described["golden/0.inputs.npz"], outputs={"onnx": described["golden/onnx/0.outputs.npz"]}
            ),
        ),
    )
    (folder / MANIFEST).write_bytes(manifest.encode())
    return manifest
