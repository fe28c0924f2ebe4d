"""`infer` on columns: hidden state is one, whether a list runs as columns or frames, and across versions of the model."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hedgerow import Frame, FrameBatch, Irregular
from hedgerow.config import ModelConfig
from hedgerow.frame import Array
from hedgerow.models.serving.engine import open_engine
from hedgerow.models.serving.pool import ModelPool
from hedgerow.models.serving.slot import Pins, Slot
from hedgerow.pipeline.chain.build import PipelineContext
from hedgerow.stages.infer import Infer, InferConfig

OnnxFile = Callable[..., Path]
SUM = """(float[N,2] x, float[1,N,2] total) => (float[N,2] y, float[1,N,2] next)
    <int64[1] first = {0}> { next = Add(total, x) y = Squeeze(next, first) }"""
STATE: dict[str, Any] = {"state": {"total": "next"}, "batch_axis": {"total": 1, "next": 1}}


class Bench:
    """The stage with a model whose output is the sum of what a stream has sent to this version."""

    def __init__(self, path: Path, **config: Any) -> None:
        self.config = ModelConfig(path=path.name, **{**STATE, **config})
        self.folder = path.parent
        self.pool = ModelPool(cores=1)
        self.context = PipelineContext("test", {"m": self.config}, self.folder, self.pool)
        self.stage = Infer(InferConfig(model="m"))
        self.stage.setup(self.context)
        (self.slot,) = self.context.slots
        self.columns = 0

    def frame(self, stream: str, value: float, **meta: Any) -> Frame:
        return Frame(stream=stream, array=np.array([value, 1], np.float32), meta=meta)

    def run(self, frames: Sequence[Frame], *, columns: bool) -> list[Any]:
        batch = FrameBatch.of(frames) if columns else None
        if batch is None:
            return list(self.stage.process_many(frames))
        try:
            returned = self.stage.process_batch(batch)
        except Irregular:
            return list(self.stage.process_many(frames))
        self.columns += len(frames) - len(batch.left)
        deferred = {row: self.stage.process_many([frames[row]])[0] for row in batch.left}
        return [deferred.get(row) or returned.frame(row) for row in range(len(frames))]


@pytest.fixture
def bench(onnx_file: OnnxFile) -> Any:
    benches: list[Bench] = []

    def make(body: str = SUM, **config: Any) -> Bench:
        benches.append(Bench(onnx_file(body), **config))
        return benches[-1]

    yield make
    for each in benches:
        each.pool.close()


def value(outcome: Any) -> float:
    tensor: Array = outcome.tensors["y"]
    assert tensor.shape == (1, 2)
    return float(tensor[0, 0])


@pytest.mark.parametrize(
    "config", [{"backend": "onnxruntime"}, {"backend": "openvino", "static_batches": True, "max_batch": 4}], ids=str
)
@pytest.mark.parametrize("seed", range(2))
def test_state_is_one_for_both_ways_and_belongs_to_a_version(bench: Any, config: dict[str, Any], seed: int) -> None:
    """Lists as columns and frames by turns, streams that begin anew, NaN, a version on trial for some, then for all."""
    one, rng = bench(**config), random.Random(seed)
    slot: Slot = one.slot
    versions = [slot.serving, open_engine("m", one.config, one.folder, 1, None)]
    sums: dict[str, tuple[object, float]] = {}
    for number in range(40):
        if number == 10:
            slot.split(versions[1], 50)
        elif number == 20:
            slot.promote(versions[1])
        on_trial = number >= 10 and (number >= 20 or bool(rng.randrange(2)))
        streams = rng.sample([f"s{n}" for n in range(7) if number < 10 or number >= 20 or (n % 2 == 0) == on_trial], 3)
        with Pins([slot], [on_trial]) as (engine,):
            frames, expected = [], []
            for stream in streams:
                begins, bad = rng.random() < 0.1, rng.random() < 0.1
                sent = float(rng.randrange(1, 9))
                frames.append(one.frame(stream, float("nan") if bad else sent, begins=begins))
                token, total = sums.get(stream, (None, 0.0))
                total = 0.0 if begins or token is not engine.state_token else total
                expected.append(None if bad else total + sent)
                if not bad:
                    sums[stream] = engine.state_token, total + sent
            outcomes = one.run(frames, columns=bool(rng.randrange(3)))

        assert [None if isinstance(each, Exception) else value(each) for each in outcomes] == expected
        if rng.random() < 0.2:
            gone = rng.choice(sorted(sums))
            one.context.forget(gone)
            del sums[gone]
    assert one.columns > 40


WIDE = """(float[N,2] x, float[3,N,2] total) => (float[N,2] y, float[3,N,2] next)
    { next = Add(total, x) y = ReduceMax<keepdims = 0, axes = [0]>(next) }"""


def test_a_version_with_state_of_another_size_starts_at_zero(bench: Any, onnx_file: OnnxFile) -> None:
    """It does not fit into the table, so it goes frame by frame."""
    one = bench()
    wide = ModelConfig(path=onnx_file(WIDE, name="wide.onnx").name, **STATE)
    frames = [one.frame("a", 1), one.frame("b", 2)]

    assert [value(each) for each in one.run(frames, columns=True)] == [1, 2]
    assert [value(each) for each in one.run(frames, columns=True)] == [2, 4]
    one.slot.promote(open_engine("m", wide, one.folder, 1, None))
    for times in range(1, 4):
        assert [value(each) for each in one.run(frames, columns=True)] == [times, 2 * times]
    assert one.columns == 4


def test_state_that_grows_is_kept_frame_by_frame(bench: Any) -> None:
    """The state is all that the stream has sent."""
    body = """(float[N,2] x, float[N,T,2] seen) => (float[N,2] y, float[N,S,2] now)
        <int64[1] at = {1}> { one = Unsqueeze(x, at) now = Concat<axis = 1>(seen, one)
        y = ReduceSum<keepdims = 0>(now, at) }"""
    one = bench(body, backend="onnxruntime", state={"seen": "now"}, batch_axis={})

    for times in range(1, 5):
        outcomes = one.run([one.frame("a", 1), one.frame("b", 2)], columns=True)
        assert [value(each) for each in outcomes] == [times, 2 * times]


@pytest.mark.parametrize("columns", [True, False])
def test_a_failed_batch_leaves_the_states_as_they_were(bench: Any, columns: bool) -> None:
    """A table of four has no row 9, so the batch fails; each other stream's state advances once."""
    body = """(int64[N] id, float[N] total) => (float[N] y, float[N] next)
        <float[4] table = {10, 20, 30, 40}> { v = Gather(table, id) next = Add(total, v) y = Identity(next) }"""
    one = bench(body, backend="onnxruntime", batch_axis={})
    frames = [Frame(stream=stream, array=np.array([row])) for stream, row in (("a", 0), ("b", 9), ("c", 2))]

    for times in range(1, 4):
        outcomes = one.run(frames, columns=columns)
        assert [outcomes[row].tensors["y"].tolist() for row in (0, 2)] == [[10 * times], [30 * times]]
        assert isinstance(outcomes[1], Exception)
    assert one.slot.info().failures == 3
