"""Operators whose output's size depends on values, found in the graph alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

import onnx
import onnx.parser
import pytest

from hedgerow.backends.graphs.onnx_file import OnnxFile, OnnxGraph, OnnxNode, read_onnx
from hedgerow.backends.graphs.onnx_sizes import value_sized

TWICE_NONZERO = '<opset_import: ["": 17], domain: "own"> found (a) => (b) { n = NonZero(a) b = Transpose(n) }'


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("(float[N,3] x) => (int64[2,M] y) { y = NonZero(x) }", "NonZero"),
        ("(float[N,3] x) => (float[M] y) <float[2] c = {1, 0}> { i = NonZero(c) y = Identity(x) }", None),
        ("(float[N,3] x) => (int64[M,1] y) { s = Shape(x) n = NonZero(s) y = Transpose(n) }", None),
        ("(float[N,3] x, int64[R] s) => (float[] y) { y = Reshape(x, s) }", "Reshape"),
        ("(float[N,3] x) => (float[N,3] y) { s = Shape(x) y = Reshape(x, s) }", None),
        ("(float[N,3] x, int64[1] k) => (float[N,M] y) { y, i = TopK(x, k) }", "TopK"),
        ("(int64 n, int64 z, int64 o) => (int64[M] y) { y = Range(z, n, o) }", "Range"),
        ("(float[N,3] x) => (int64[M,2] y) { y = own.found(x) }", "NonZero"),
        ("(float[N,3] x) => (float[N,3] y) { s = ai.onnx.Shape(x) y = ai.onnx.Reshape(x, s) }", None),
        ("(float[N,3] x) => (float[] y) { y = vendor.Detect(x) }", "Detect"),
        ("(float[N,3] x) => (float[] y) { c = RandomUniform<shape=[3]>() n = NonZero(c) y = Identity(x) }", "NonZero"),
    ],
    ids=[
        "found values",
        "of a constant",
        "of a shape",
        "given shape",
        "own shape",
        "given number",
        "given range",
        "in a function",
        "by its long name",
        "of a vendor",
        "of noise",
    ],
)
def test_sizes_that_depend_on_values_are_told_from_those_of_shapes(
    tmp_path: Path, body: str, expected: str | None
) -> None:
    text = f'<ir_version: 8, opset_import: ["": 17, "own": 1, "vendor": 1]>\ngraph {body}\n{TWICE_NONZERO}'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "model.onnx")

    assert value_sized(read_onnx(tmp_path / "model.onnx")) == expected


@pytest.mark.parametrize(("constants", "expected"), [((), "If"), (("rate",), None)])
def test_a_branch_chosen_by_a_constant_input_is_always_the_same(
    onnx_file: Callable[..., Path], constants: tuple[str, ...], expected: str | None
) -> None:
    path = onnx_file(
        """(float[N,3] x, int64 rate) => (float[N,3] y) <int64 r = {8000}> { c = Equal(rate, r) y = If(c) <
            then_branch = a () => (float[N,3] p) { p = Neg(x) }, else_branch = b () => (float[N,3] q) { q = Abs(x) }> }"""
    )

    assert value_sized(read_onnx(path), constants) == expected


def test_a_function_that_calls_itself_is_refused(tmp_path: Path) -> None:
    """ONNX allows none, but a file may be made by anybody."""
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17, "own": 1]> g (float[N] x) => (float[N] y) { y = own.f(x) }\n'
        '<opset_import: ["": 17, "own": 1], domain: "own"> f (a) => (b) { b = own.f(a) }'
    )
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())

    assert value_sized(read_onnx(tmp_path / "model.onnx")) == "f"


def _functions(count: int, body: Callable[[int], list[OnnxNode]]) -> OnnxFile:
    """A model that calls f0; each function has the nodes that `body` returns, and the last one negates."""
    first = OnnxGraph(inputs=["x"], outputs=["y"], nodes=[OnnxNode("f0", "own", ["x"], ["y"])])
    last = [OnnxNode("Neg", "", ["v"], ["w"])]
    functions = [
        OnnxGraph(f"f{n}", "own", ["v"], ["w"], [], body(n + 1) if n < count - 1 else last) for n in range(count)
    ]
    return OnnxFile(first, functions)


def test_functions_that_call_functions_take_no_longer_than_they_are_long() -> None:
    """Each calls the next one twice: followed call by call, 60 of them would take a lifetime."""
    twice = _functions(60, lambda n: [OnnxNode(f"f{n}", "own", ["v"], ["a"]), OnnxNode(f"f{n}", "own", ["a"], ["w"])])
    assert value_sized(twice) is None


def test_what_is_nested_too_deep_may_be_sized_by_values() -> None:
    assert value_sized(_functions(900, lambda n: [OnnxNode(f"f{n}", "own", ["v"], ["w"])])) is not None

    def within(n: int, depth: int) -> list[OnnxNode]:
        if depth == 0:
            return [OnnxNode(f"f{n}", "own", ["v"], ["w"])]
        return [OnnxNode("If", "", [], ["w"], [OnnxGraph(outputs=["w"], nodes=within(n, depth - 1))])]

    assert value_sized(_functions(60, lambda n: within(n, 60))) is not None


def test_functions_of_many_inputs_are_given_up_after_a_while() -> None:
    names = [f"i{n}" for n in range(40)]
    chosen = Random(1)
    functions = [
        OnnxGraph(
            f"f{n}", "own", names, ["w"], [],
            [OnnxNode(f"f{n + 1}", "own", [chosen.choice([*names, "z"]) for _ in names], ["w"]) for _ in range(20)]
            if n < 11
            else [OnnxNode("Neg", "", ["i0"], ["w"])],
        )
        for n in range(12)
    ]  # fmt: skip
    first = OnnxGraph(inputs=["x"], outputs=["y"], nodes=[OnnxNode("f0", "own", ["x", *names[1:]], ["y"])])

    assert value_sized(OnnxFile(first, functions)) is not None
