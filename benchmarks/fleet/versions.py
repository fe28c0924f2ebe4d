"""Versions of the voice activity model as a region publishes them, and nodes that are told to serve them.

Each is the same model with another note in its file: to the node, its backend and its compile cache it is another one.
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
"""Of frames; the file takes one at a time, and a backend opens that."""


class Bundle(NamedTuple):
    """A version that lies on the disk, to be published."""

    folder: Path


@dataclass(slots=True)
class Steps:
    """How a node got to what was wanted.

    Attributes:
        began: when each step was first said to have begun, in seconds of the monotonic clock.
        ended: when it was said to be over, or to be where it was waited for.
        state: how.
    """

    began: dict[str, float] = field(default_factory=dict)
    ended: float = 0.0
    state: str = ""


class Region:
    """A repository, what gives sites its content, and the desired documents of nodes; in a thread of its own."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._folder = arena.folder / "region"
        self._folder.mkdir()
        self._made = make_repository(self._folder / "repository", ["vad"])
        self._root = self._folder / "root.json"
        self._root.write_bytes(self._made.root)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._versions = self._generation = 0
        self._steps, self._until = Steps(), ""
        self._over, self._flows = threading.Event(), threading.Event()

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
        """What a node's file says of its fleet."""
        return {"root_file": str(self._root)}

    def watch(self, node: str) -> None:
        """Hear what a node reports."""
        self._do(self._client.subscribe({_address(node).topic(Channel.REPORTED): 1}))

    def wait_flow(self, node: str) -> None:
        """Wait until a result comes. Raises: TimeoutError: none does."""
        topic = _address(node).topic(Channel.RESULT, "main")
        self._flows = threading.Event()
        self._do(self._client.subscribe({topic: 0}))
        self._flows.wait(PATIENCE_S)
        self._do(self._client.unsubscribe([topic]))

    def want(self, node: str, ref: ModelRef, policy: dict[str, Any], until: str = "") -> Steps:
        """Have a node go over to a version, and wait until it has.

        Args:
            until: wait for this step only.
        Raises: RuntimeError: it does not.
        """
        self._generation += 1
        self._steps, self._until, self._over = Steps(), until, threading.Event()
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
        if not self._over.wait(5 * PATIENCE_S) or self._steps.state not in ("in-progress", "succeeded"):
            raise RuntimeError(f"The node did not go over to {ref}: {self._steps}")
        return self._steps

    def publish(self) -> ModelRef:
        """A version that no node has seen."""
        self._versions += 1
        version = f"{self._versions}.0.0"
        folder = self._folder / version
        manifest = _make(folder, version)
        self._made.repository.publish(Bundle(folder), self._made.owner)
        return ModelRef(name="vad", version=version, digest=manifest.digest)

    def _take(self, messages: list[Message]) -> None:
        for message in messages:
            if "/result/" in message.topic:
                self._flows.set()
                continue
            now, said = time.monotonic(), Reported.model_validate_json(bytes(message.payload))
            self._client.ack(message)
            if said.generation != self._generation or self._over.is_set():
                continue
            step, self._steps.state = said.step.partition(" ")[0], said.state
            self._steps.began.setdefault(step, now)
            if said.state != "in-progress" or (self._until and step == self._until):
                self._steps.ended = now
                self._over.set()

    async def _open(self) -> None:
        url = self._arena.broker.url
        self._client = Client(ClientOptions(url=url, client_id="bench/region"), self._take)
        self._server = BlobServer(ClientOptions(url=url), REGION, self._made.repository.folder)
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


def _make(folder: Path, version: str) -> Manifest:
    """Lay a version down: the model with a note of its own, a golden case, and a manifest."""
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
