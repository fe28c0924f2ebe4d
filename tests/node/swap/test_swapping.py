"""Repeated swaps of a real model, on a real broker under full load."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import pytest
from trial_site import Site, duplicates, properties, received, until

from hedgerow.models.bundle.version import ModelVersion
from hedgerow.models.serving.slot import Slot
from hedgerow.node.node import Node
from hedgerow.wire.fleet import SwapPolicy

MakeVersion = Callable[..., ModelVersion]

VIBRATION: Final = Path(__file__).parents[3] / "configs/models/vibration.onnx"
IMMEDIATE: Final = SwapPolicy(probation_s=0, min_frames=0, max_slowdown=1000)
SPLIT_FIRST: Final = IMMEDIATE.model_copy(update={"split_percent": 50, "split_s": 0.001})
LONG: Final = IMMEDIATE.model_copy(update={"probation_s": 3600})
STREAMS, WINDOW, LANES, BATCH = 32, 64, 2, 16


def doubled(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with its first output doubled, so that a result shows which of the two produced it."""
    other = onnx.ModelProto()
    other.CopyFrom(model)
    name = other.graph.output[0].name
    for node in other.graph.node:
        node.output[:] = [f"{each}/once" if each == name else each for each in node.output]
        node.input[:] = [f"{each}/once" if each == name else each for each in node.input]
    other.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(2), "two"))
    other.graph.node.append(onnx.helper.make_node("Mul", [f"{name}/once", "two"], [name]))
    return other


@dataclass
class Load:
    """Publishes a frame for each result received, so that some always wait.

    Attributes:
        sent: number of frames published.
        results: (frame id, version, first value) of each result, in order of arrival.
    """

    site: Site
    payload: bytes
    sent: int = 0
    results: list[tuple[str, str | None, float]] = field(default_factory=list)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        window, done = asyncio.Semaphore(WINDOW), asyncio.Event()
        async with self.site.connect() as listener, self.site.connect() as sender:
            await listener.subscribe(self.site.address.topic("result", "p"), qos=1)

            async def listen() -> None:
                async for message in listener.messages:
                    body = received(message).body
                    (model,), (output, *_) = body["lineage"]["models"], body["result"].values()
                    self.results.append((body["frame"]["id"], model.get("version"), float(np.ravel(output)[0])))
                    window.release()

            async def send() -> None:
                while not done.is_set():
                    await window.acquire()
                    stream, number = self.sent % STREAMS, self.sent // STREAMS
                    self.sent += 1
                    user = properties(user={"id": f"{stream}/{number}"})
                    await sender.publish(self.site.topic(str(stream)), self.payload, qos=1, properties=user)

            listening, sending = asyncio.create_task(listen()), asyncio.create_task(send())
            try:
                yield
                done.set()
                window.release()
                await sending
                await until(lambda: len(self.results) >= self.sent, lambda: f"{len(self.results)} of {self.sent}")
                await asyncio.sleep(0.05)  # time for duplicates
            finally:
                sending.cancel()
                listening.cancel()

    async def wait_more(self, count: int) -> None:
        """Wait for this many more results."""
        total = len(self.results) + count
        await until(lambda: len(self.results) >= total, lambda: f"{len(self.results)} of {total} results")


def count_waits(slot: Slot) -> Counter[str]:
    """Count how often lists wait for a version to serve, by lane."""
    waits: Counter[str] = Counter()
    wait = slot._changed.wait

    def counted(timeout: float | None = None) -> bool:
        if (name := threading.current_thread().name).startswith("p-"):
            waits[name] += 1
        return wait(timeout)

    slot._changed.wait = counted  # type: ignore[method-assign]
    return waits


async def cancel_in_probation(node: Node, candidate: ModelVersion, load: Load) -> None:
    """Cancel a swap during probation, so that the previous version serves again."""
    steps: list[str] = []
    swapping = asyncio.create_task(node.swaps.swap_to(candidate, LONG, lambda step, _: steps.append(step)))
    await until(lambda: "probation" in steps)
    await load.wait_more(WINDOW)
    swapping.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await swapping


@pytest.mark.parametrize(
    "times",
    [
        pytest.param(5, id="shortest"),
        pytest.param(30, id="short", marks=[pytest.mark.long, pytest.mark.timeout(300)]),
        pytest.param(1000, id="long", marks=[pytest.mark.slow, pytest.mark.timeout(3600)]),
    ],
)
async def test_swaps_under_full_load_lose_duplicate_and_reorder_no_frame(
    own_site: Site, make_version: MakeVersion, times: int
) -> None:
    """A list of frames never waits for a version, and the old version finishes its lists after the switch.

    Every fifth swap is cancelled during probation; every third starts with a split of half of the streams.
    """
    model = onnx.load(VIBRATION)
    (tensor,) = model.graph.input
    width = tensor.type.tensor_type.shape.dim[1].dim_value
    samples = {tensor.name: np.random.default_rng(0).random((16, width), np.float32)}
    candidates = [
        make_version(each, f"{number}.0.0", samples=samples)
        for number, each in enumerate((model, doubled(model)), start=1)
    ]
    pipeline = own_site.pipeline({"parse": {"format": "raw", "dtype": "float32"}}, {"infer": {"model": "door"}})
    load = Load(own_site, samples[tensor.name][0].tobytes())
    swaps: list[tuple[int, int, int, SwapPolicy | None]] = []
    async with own_site.node(
        {"p": {**pipeline, "batch": BATCH, "lanes": LANES, "queue": {"policy": "fifo"}}},
        models={"door": {"path": str(VIBRATION), "threads": 1}},
    ) as node:
        (slot,) = node.swaps._pool.slots()
        waits = count_waits(slot)
        async with load.running():
            await load.wait_more(WINDOW)
            for turn in range(times):
                before, candidate = len(load.results), candidates[turn % 2]
                policy = None if turn % 5 == 4 else SPLIT_FIRST if turn % 3 == 2 else IMMEDIATE
                if policy is None:
                    await cancel_in_probation(node, candidate, load)
                else:
                    assert (await node.swaps.swap_to(candidate, policy, lambda *_: None)).kept
                await load.wait_more(WINDOW)  # all lists in flight have finished
                swaps.append((before, len(load.results), turn % 2, policy))

    assert waits == Counter(), "lists waited"
    check_all_came_once_and_in_order(load)
    values: dict[str | None, set[float]] = defaultdict(set)
    for _, version, value in load.results:
        values[version].add(round(value, 5))
    assert {version: len(found) for version, found in values.items()} == {None: 1, "1.0.0": 1, "2.0.0": 1}
    assert values[None] == values["1.0.0"] != values["2.0.0"], "each result names the version that produced it"
    for start, end, which, policy in swaps:
        check_one_swap(load.results[start:end], f"{which + 1}.0.0", policy)


def check_all_came_once_and_in_order(load: Load) -> None:
    ids = [each for each, _, _ in load.results]
    assert duplicates(ids) == {}
    assert len(ids) == load.sent
    last: dict[str, int] = defaultdict(lambda: -1)
    for stream, number in (each.split("/") for each in ids):
        assert int(number) == last[stream] + 1, f"stream {stream}: {number} after {last[stream]}"
        last[stream] = int(number)


def check_one_swap(results: list[tuple[str, str | None, float]], new: str, policy: SwapPolicy | None) -> None:
    """Check how each stream, and all together, changed to a version; and back, if the swap was cancelled."""
    sides = [version == new for _, version, _ in results]
    changes = 2 if policy is None else 1
    by_stream: dict[str, list[bool]] = defaultdict(list)
    for (each, _, _), side in zip(results, sides, strict=True):
        by_stream[each.split("/")[0]].append(side)
    for stream, own in by_stream.items():
        assert sum(a != b for a, b in pairwise(own)) <= changes, (
            f"stream {stream} changed more than {changes} times: {own}"
        )
    if policy is IMMEDIATE and True in sides:
        late = sides[sides.index(True) :].count(False)
        assert late <= (LANES - 1) * BATCH, f"{late} results of the previous version after the first one of {new}"


def test_the_doubled_model_returns_twice_the_output() -> None:
    """Otherwise the test above would prove nothing."""
    import onnxruntime

    model = onnx.load(VIBRATION)
    outputs: list[Any] = []
    for each in (model, doubled(model)):
        session = onnxruntime.InferenceSession(each.SerializeToString())
        (tensor,) = session.get_inputs()
        outputs.append(session.run(None, {tensor.name: np.full((1, tensor.shape[1]), 0.3, np.float32)})[0])
    np.testing.assert_allclose(outputs[1], 2 * outputs[0])
