"""Quantisation to int8: little loss, since operators that lose much are left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from onnx import numpy_helper

from hedgerow.backends.quantise import to_int8
from hedgerow.errors import ModelUnreadable
from hedgerow.frame import Array

WIDTH = 16
RNG = np.random.default_rng(0)


def chain(path: Path, *, opset: int = 17) -> Path:
    """Write a model of six matrix products with rectifiers. The first ignores an input that `samples` may scale up."""
    steps, weights, before = [], [], "x"
    for number in range(6):
        values = RNG.normal(0, WIDTH**-0.5, (WIDTH, WIDTH)).astype(np.float32)
        if number == 0:
            values[0] = 0
        weights.append(numpy_helper.from_array(values, f"w{number}"))
        steps.append(f"m{number} = MatMul({before}, w{number}) h{number} = Relu(m{number})")
        before = f"h{number}"
    text = f"(float[N,{WIDTH}] x) => (float[N,{WIDTH}] h5) {{ {' '.join(steps)} }}"
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]>\ngraph {text}')
    for number, node in enumerate(model.graph.node):
        node.name = f"node{number}"
    model.graph.initializer.extend(weights)
    onnx.save(model, path)
    return path


def samples(spread: float) -> list[dict[str, Array]]:
    scale = np.array([spread] + [1.0] * (WIDTH - 1))
    return [{"x": (RNG.normal(0, 1, (4, WIDTH)) * scale).astype(np.float32)} for _ in range(8)]


def loss(path: Path, quantised: Path, inputs: list[dict[str, Array]]) -> float:
    expected, actual = (
        np.concatenate([onnxruntime.InferenceSession(each).run(None, one)[0] for one in inputs])
        for each in (path, quantised)
    )
    return float(np.sqrt(((actual - expected) ** 2).mean()) / expected.std())


def operators(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


@pytest.mark.parametrize("unsigned", [False, True])
def test_a_model_that_loses_little_is_quantised_whole(tmp_path: Path, unsigned: bool) -> None:
    path, inputs = chain(tmp_path / "m.onnx"), samples(1)

    how = to_int8(path, tmp_path / "int8.onnx", inputs, unsigned=unsigned)

    assert how == "static, per channel"
    assert loss(path, tmp_path / "int8.onnx", inputs) < 0.1
    assert "QuantizeLinear" in operators(tmp_path / "int8.onnx")


def test_operators_that_lose_much_are_not_quantised(tmp_path: Path) -> None:
    path, inputs = chain(tmp_path / "m.onnx"), samples(1000)

    how = to_int8(path, tmp_path / "int8.onnx", inputs)

    assert how == "static, per channel, 1 of 6 operators not quantised"
    assert loss(path, tmp_path / "int8.onnx", inputs) < 0.1


def test_a_model_of_an_older_opset_is_quantised_per_channel_too(tmp_path: Path) -> None:
    """Opset 12 has no scales per channel; the quantiser would write a file that cannot be opened."""
    path = chain(tmp_path / "m.onnx", opset=12)

    assert to_int8(path, tmp_path / "int8.onnx", samples(1)) == "static, per channel"


def test_sums_do_not_overflow_on_processors_without_eight_bit_dot_products(tmp_path: Path) -> None:
    """There, pairs of products are added in 16 bits: two products with weights up to 127 may overflow."""
    path = chain(tmp_path / "m.onnx")
    for name, calibration in (("static", samples(1)), ("dynamic", [])):
        to_int8(path, tmp_path / f"{name}.onnx", calibration)
        weights = [
            numpy_helper.to_array(each)
            for each in onnx.load(tmp_path / f"{name}.onnx").graph.initializer
            if each.data_type == onnx.TensorProto.INT8 and len(each.dims) == 2
        ]

        assert len(weights) == 6
        assert max(int(np.abs(each.astype(int)).max()) for each in weights) <= 64


def test_without_samples_ranges_are_computed_at_each_run(tmp_path: Path) -> None:
    path, inputs = chain(tmp_path / "m.onnx"), samples(1)

    assert to_int8(path, tmp_path / "int8.onnx", []) == "dynamic"
    assert "DynamicQuantizeLinear" in operators(tmp_path / "int8.onnx")
    assert loss(path, tmp_path / "int8.onnx", inputs) < 0.1


def test_the_same_samples_produce_the_same_file(tmp_path: Path) -> None:
    path, inputs = chain(tmp_path / "m.onnx"), samples(1000)
    for name in ("one", "two"):
        to_int8(path, tmp_path / f"{name}.onnx", inputs)

    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()


def test_a_file_that_is_not_a_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"no model")

    with pytest.raises(ModelUnreadable, match=r"m\.onnx cannot be quantised to int8"):
        to_int8(tmp_path / "m.onnx", tmp_path / "int8.onnx", samples(1))
