"""`infer_batch`, with real models on real backends: the rows of many frames as one request."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hedgerow.config import ModelConfig
from hedgerow.errors import InferenceError, ModelMismatch
from hedgerow.frame import Array
from hedgerow.models.serving.observer import Observer
from hedgerow.models.serving.pool import ModelPool
from hedgerow.models.serving.slot import Slot

OnnxFile = Callable[..., Path]
MakeSlot = Callable[..., Slot]

WEIGHTS = ", ".join(f"{value:.3f}" for value in np.random.default_rng(3).normal(size=64))
MIX = f"""(float[N,8] x, float[2,N,4] h) => (float[N,8] y, float[2,N,4] g)
    <float[8,8] w = {{{WEIGHTS}}}> {{ z = MatMul(x, w)  y = Tanh(z)  s = Sin(h)  g = Add(s, h) }}"""
LOOKUP = """(int64[N] id) => (float[N] value)
    <float[4] table = {10, 11, 12, 13}> { value = Gather(table, id) }"""
DOUBLE = "(float[N,3] x) => (float[N,3] y) { y = Add(x, x) }"
WAYS: list[dict[str, Any]] = [
    {"backend": "openvino", "static_batches": True, "max_batch": 6},
    {"backend": "onnxruntime"},
]
EACH_WAY = pytest.mark.parametrize("way", WAYS, ids=["openvino", "onnxruntime"])


@pytest.fixture
def slot(onnx_file: OnnxFile) -> Iterator[MakeSlot]:
    pool = ModelPool(cores=2)

    def make(body: str, **config: Any) -> Slot:
        return pool.acquire("door", ModelConfig(path=str(onnx_file(body)), **config), Path())

    yield make
    pool.close()


def mix(rows: int, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {
        "x": rng.normal(size=(rows, 8)).astype(np.float32),
        "h": rng.normal(size=(2, rows, 4)).astype(np.float32),
    }


def rows_of(inputs: dict[str, Array]) -> list[dict[str, Array]]:
    return [{"x": inputs["x"][[n]], "h": inputs["h"][:, [n]]} for n in range(len(inputs["x"]))]


@EACH_WAY
@pytest.mark.parametrize("rows", [1, 20])
def test_the_outputs_are_those_of_single_requests_to_the_bit(slot: MakeSlot, way: dict[str, Any], rows: int) -> None:
    door = slot(MIX, batch_axis={"h": 1, "g": 1}, state={"h": "g"}, **way)
    inputs = mix(rows)

    batch, each = door.infer_batch(inputs), door.infer(rows_of(inputs))

    assert batch["y"].tobytes() == np.concatenate([one["y"] for one in each]).tobytes()
    assert batch["g"].tobytes() == np.concatenate([one["g"] for one in each], axis=1).tobytes()
    assert door.info().frames == 2 * rows
    assert door.info().failures == 0


@EACH_WAY
def test_outputs_and_inputs_are_not_overwritten_by_later_runs(slot: MakeSlot, way: dict[str, Any]) -> None:
    """The backend's requests keep their buffers: what is handed out must be a copy, and what comes in stays as it is."""
    door = slot(MIX, batch_axis={"h": 1, "g": 1}, **way)
    given = [mix(4, seed) for seed in range(8)]
    copies = [{name: array.copy() for name, array in inputs.items()} for inputs in given]
    held = [door.infer_batch(inputs) for inputs in given]
    held += door.infer(given)

    for inputs, copy, out in zip((*given, *given), (*copies, *copies), held, strict=True):
        assert all(inputs[name].tobytes() == copy[name].tobytes() for name in copy)
        np.testing.assert_allclose(out["g"], np.sin(copy["h"]) + copy["h"], rtol=1e-5)


@EACH_WAY
def test_two_lanes_keep_their_outputs_while_the_other_runs(slot: MakeSlot, way: dict[str, Any]) -> None:
    door = slot(DOUBLE, streams=2, **way)
    start = threading.Barrier(2)

    def lane(base: int) -> list[tuple[float, Array]]:
        start.wait(60)
        values = [float(base + number) for number in range(60)]
        return [(value, door.infer_batch({"x": np.full((2, 3), value, np.float32)})["y"]) for value in values]

    with ThreadPoolExecutor(2) as threads:
        for held in threads.map(lane, (1000, 2000)):
            for value, out in held:
                assert out.tolist() == [[2 * value] * 3] * 2


def test_a_bad_row_fails_the_batch_uncounted_and_single_requests_find_it(slot: MakeSlot) -> None:
    """A table of four has no row 99. The caller goes on with single requests, whose failure counts once."""
    door = slot(LOOKUP, backend="onnxruntime")

    with pytest.raises(InferenceError):
        door.infer_batch({"id": np.array([0, 99, 3])})

    assert door.info().failures == 0
    assert door.infer_batch({"id": np.array([0, 2, 3])})["value"].tolist() == [10, 12, 13]
    assert door.info().unbatched is None
    single = door.infer_each([{"id": np.array([number])} for number in (0, 99, 3)])
    assert [one.__class__ is dict for one in single] == [True, False, True]
    assert door.info().failures == 1


def test_a_bad_row_of_one_caller_fails_no_other(slot: MakeSlot) -> None:
    door = slot(LOOKUP, backend="onnxruntime")
    start = threading.Barrier(4)

    def caller(number: int) -> list[Any]:
        start.wait(60)
        outcomes: list[Any] = []
        for _ in range(20):
            try:
                outcomes.append(door.infer_batch({"id": np.array([0, number])})["value"].tolist())
            except InferenceError as error:
                outcomes.append(error)
        return outcomes

    with ThreadPoolExecutor(4) as threads:
        for number, outcomes in zip((99, 1, 99, 2), threads.map(caller, (99, 1, 99, 2)), strict=True):
            if number == 99:
                assert all(isinstance(outcome, InferenceError) for outcome in outcomes)
            else:
                assert outcomes == [[10, 10 + number]] * 20


@pytest.mark.parametrize(
    ("body", "config", "inputs"),
    [
        ("(float[4,3] x) => (float[4,3] y) { y = Add(x, x) }", {}, {"x": np.ones((9, 3), np.float32)}),
        (
            "(float[N,3] x, float[1] k) => (float[N,3] y) { y = Mul(x, k) }",
            {"constants": {"k": 2}, "static_batches": True, "max_batch": 4},
            {"x": np.ones((7, 3), np.float32)},
        ),
    ],
    ids=["fixed-to-four", "constants"],
)
def test_rows_beyond_a_models_batch_run_in_several(
    slot: MakeSlot, body: str, config: dict[str, Any], inputs: dict[str, Array]
) -> None:
    door = slot(body, backend="openvino", **config)

    assert door.infer_batch(inputs)["y"].tolist() == (2 * inputs["x"]).tolist()
    assert door.info().frames == len(inputs["x"])


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"x": np.ones((2, 4), np.float32)},
        {"x": np.ones((2, 3))},
        {"x": np.ones((2, 3), np.float32), "z": np.ones(1)},
    ],
    ids=["nothing", "width", "dtype", "unknown"],
)
def test_what_does_not_fit_is_refused(slot: MakeSlot, inputs: dict[str, Array]) -> None:
    door = slot(DOUBLE, backend="openvino", static_batches=True, max_batch=4)

    with pytest.raises(ModelMismatch, match="Model door takes"):
        door.infer_batch(inputs)
    assert door.info().inferences == 0


@pytest.mark.parametrize(
    ("body", "config"),
    [("(float[1,3] x) => (float[1,3] y) { y = Add(x, x) }", {}), (DOUBLE, {"max_batch": 1})],
    ids=["fixed-to-one", "no-batches"],
)
@pytest.mark.parametrize("rows", [1, 4])
def test_a_model_that_takes_no_batches_runs_nothing(
    slot: MakeSlot, body: str, config: dict[str, Any], rows: int
) -> None:
    """An output of a single frame may have several rows, so only `infer_each` can tell whose they are."""
    door = slot(body, **config)

    with pytest.raises(ModelMismatch, match="takes no batches"):
        door.infer_batch({"x": np.ones((rows, 3), np.float32)})
    assert door.info().inferences == 0


@EACH_WAY
def test_observers_see_every_row_and_no_padding(slot: MakeSlot, way: dict[str, Any]) -> None:
    door = slot(DOUBLE, **way)
    assert door.serving is not None
    observer = Observer(door.serving)
    x = np.ones((5, 3), np.float32)
    x[4] = np.inf

    door.infer_batch({"x": x})

    assert (observer.frames, observer.failures, observer.not_finite) == (5, 0, 1)


@EACH_WAY
def test_a_closed_model_fails_the_batch(slot: MakeSlot, way: dict[str, Any]) -> None:
    door = slot(DOUBLE, **way)
    door.close()

    with pytest.raises(InferenceError, match="closed"):
        door.infer_batch({"x": np.ones((2, 3), np.float32)})
