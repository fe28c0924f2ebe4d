"""Reading ONNX files without the package `onnx`, compared with the package."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx.parser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.examples import examples

from hedgerow.backends.graphs.onnx_file import OnnxGraph, is_whole, read_onnx
from hedgerow.models.bundle.model_file import resolve

PACKAGED = (
    "silero_vad/data/silero_vad.onnx",
    "silero_vad/data/silero_vad_16k_op15.onnx",
    "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
)

Node = tuple[str, str, list[str], list[str]]


def nodes_of(graph: OnnxGraph) -> Iterator[Node]:
    for node in graph.nodes:
        yield node.op, node.domain, node.inputs, node.outputs
        for body in node.graphs:
            yield from nodes_of(body)


def nodes_by_package(graph: onnx.GraphProto) -> Iterator[Node]:
    for node in graph.node:
        yield node.op_type, node.domain, list(node.input), list(node.output)
        for attribute in node.attribute:
            for body in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from nodes_by_package(body)


@pytest.mark.parametrize("name", PACKAGED)
def test_a_real_models_structure_is_read_as_the_package_reads_it(name: str) -> None:
    path = resolve(f"package:{name}", Path()).path
    expected = onnx.load(path)

    file = read_onnx(path)

    assert list(nodes_of(file.graph)) == list(nodes_by_package(expected.graph))
    assert file.graph.inputs == [value.name for value in expected.graph.input]
    assert file.graph.outputs == [value.name for value in expected.graph.output]
    assert file.graph.initializers == [tensor.name for tensor in expected.graph.initializer]
    assert file.external == set()


@given(st.binary(max_size=200))
@settings(max_examples=examples(50), deadline=None)
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "any.onnx"
    path.write_bytes(content)

    assert is_whole(path) in (True, False)


def test_a_part_of_a_file_is_not_whole(tmp_path: Path) -> None:
    path = resolve(f"package:{PACKAGED[0]}", Path()).path
    content = path.read_bytes()
    (tmp_path / "part.onnx").write_bytes(content[: len(content) // 2])

    assert is_whole(path)
    assert not is_whole(tmp_path / "part.onnx")


def field(number: int, content: bytes) -> bytes:
    size, length = len(content), b""
    while size > 127:
        length += bytes([size & 127 | 128])
        size >>= 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


def test_graphs_nested_without_end_are_refused(tmp_path: Path) -> None:
    graph = b""
    for _ in range(5000):
        graph = field(1, field(5, field(6, graph)))  # a node, its attribute, that one's graph
    (tmp_path / "deep.onnx").write_bytes(field(7, graph))

    with pytest.raises(ValueError, match="too deeply"):
        read_onnx(tmp_path / "deep.onnx")
