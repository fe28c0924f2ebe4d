"""State inside OpenVINO models: kept for each stream, or refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
from openvino import opset13 as ops
from openvino.op.util import Variable, VariableInfo

from hedgerow import backends
from hedgerow.backends.base import SessionOptions
from hedgerow.errors import ModelUnreadable
from hedgerow.testing.kit import frame, run_stage


def stateful(path: Path, shape: list[int], start: Any, *, rows: list[int] | None = None, twice: bool = False) -> Path:
    """Write a model that adds its input to a sum of its own."""
    x = ops.parameter(rows or shape, np.float32, name="x")
    x.output(0).set_names({"x"})
    names = ["first", "second"] if twice else ["first"]
    total, sinks = x, []
    for name in names:
        info = VariableInfo()
        info.data_shape, info.data_type, info.variable_id = openvino.PartialShape(shape), openvino.Type.f32, name
        variable = Variable(info)
        read = ops.read_value(start(x) if callable(start) else ops.constant(np.asarray(start, np.float32)), variable)
        total = ops.add(total, read)
        sinks.append(ops.assign(total, variable))
    result = ops.result(total)
    result.output(0).set_names({"sum"})
    openvino.save_model(openvino.Model([result], sinks, [x], "sums"), path, compress_to_fp16=False)
    return path


def of_the_batch(value: float) -> Callable[[Any], Any]:
    """Return a start value with as many rows as the input."""
    return lambda x: ops.broadcast(ops.constant(np.float32(value)), ops.shape_of(x))


def alone(path: Path, values: list[float]) -> list[float]:
    """Run one stream with OpenVINO alone, which keeps the state itself."""
    request = openvino.Core().compile_model(path, "CPU").create_infer_request()
    return [float(request.infer({"x": np.full((1, 3), value, np.float32)})["sum"][0, 0]) for value in values]


ZERO = np.zeros((1, 3))
SENT = {"a": [1.0, 2.0, 3.0, 4.0], "b": [10.0, 20.0, 30.0, 40.0], "c": [0.5, 0.0, 0.0, 0.25]}


@pytest.mark.parametrize(
    ("make", "batches"),
    [
        (lambda path: stateful(path, [1, 3], ZERO), False),
        (lambda path: stateful(path, [1, 3], ZERO, twice=True), False),
        (lambda path: stateful(path, [-1, 3], of_the_batch(0)), True),
    ],
    ids=["one frame", "two variables", "any batch"],
)
def test_each_stream_has_a_state_of_its_own(tmp_path: Path, make: Callable[[Path], Path], batches: bool) -> None:
    path = make(tmp_path / "sums.xml")
    sent = [
        frame(np.full((1, 3), SENT[stream][number], np.float32), stream=stream)
        for number in range(4)
        for stream in SENT
    ]

    run = run_stage("infer", sent, models={"m": str(path)}, together=True, model="m")

    assert run.dead == {}
    assert [one.tensors.keys() for one in run.out] == [{"sum"}] * 12
    for stream, values in SENT.items():
        assert [one.tensors["sum"][0, 0] for one in run.out if one.stream == stream] == alone(path, values)
    rows = backends.get("openvino").open(path, SessionOptions()).inputs[0].shape[0]
    assert (rows is None) == batches


def test_a_state_fixed_to_one_row_is_opened_with_the_batch(tmp_path: Path) -> None:
    session = backends.get("openvino").open(
        stateful(tmp_path / "sums.xml", [1, 3], ZERO), SessionOptions(open_batch=True)
    )

    assert session.state == {"state.first": "state.first.next"}
    assert [spec.shape for spec in session.inputs] == [(None, 3), (None, 3)]


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda path: stateful(path, [1, 3], np.ones((1, 3))), "starts at values other than zero"),
        (lambda path: stateful(path, [-1, 3], of_the_batch(2)), "starts at values other than zero"),
        (lambda path: stateful(path, [1, 3], ops.relu), "starts at values other than zero"),
        (
            lambda path: stateful(path, [-1, -1], of_the_batch(0), rows=[-1, -1]),
            "size at a stream's start is not known",
        ),
    ],
    ids=["ones", "twos", "the first frame", "any width"],
)
def test_a_state_whose_start_is_not_known_to_be_zero_is_refused(
    tmp_path: Path, make: Callable[[Path], Path], why: str
) -> None:
    with pytest.raises(ModelUnreadable, match=why) as raised:
        backends.get("openvino").open(make(tmp_path / "sums.xml"), SessionOptions())
    assert "first" in str(raised.value)
    assert "`state:`" in raised.value.remedy


def test_a_model_without_state_is_unchanged(tmp_path: Path) -> None:
    x = ops.parameter([-1, 3], np.float32, name="x")
    openvino.save_model(openvino.Model([ops.result(ops.relu(x))], [x], "relu"), tmp_path / "relu.xml")

    assert backends.get("openvino").open(tmp_path / "relu.xml", SessionOptions()).state == {}
