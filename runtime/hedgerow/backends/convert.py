"""From one form of a model to another: half precision, OpenVINO's own format; eight bits are in `quantise`.

The vendors' converters do it. What stands here is what they need to give the same file each time, and an account of what
they refuse.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hedgerow.backends.vendors import explained, onnx_package, openvino_package


def to_fp16(path: Path, out: Path) -> None:
    """Write an ONNX model that computes in half precision; its inputs and outputs stay as they are.

    Raises: ModelUnreadable: it cannot be converted; BackendMissing: a package for that is missing.
    """
    onnx = onnx_package()
    with explained(path, "fp16"):
        from onnxruntime.transformers.float16 import convert_float_to_float16

        made = convert_float_to_float16(onnx.load(path), keep_io_types=True)
        onnx.save(made, out)


def to_openvino(path: Path, out: Path, *, half: bool) -> None:
    """Write a model in OpenVINO's format: an .xml, and a .bin beside it.

    Args:
        half: keep weights in half precision; the device computes in what it likes best.
    Raises: ModelUnreadable: OpenVINO cannot read it; BackendMissing: it is not installed.
    """
    openvino = openvino_package()
    with explained(path, "OpenVINO's format"):
        model = openvino.Core().read_model(path)
        for number, node in enumerate(model.get_ordered_ops()):
            # What has no name gets one that counts all nodes this process ever made, which differs each time.
            if node.get_friendly_name() == node.get_name():
                node.set_friendly_name(f"{node.get_type_name()}.{number}")
        openvino.save_model(model, out, compress_to_fp16=half)


def precision_of(path: Path) -> str:
    """The precision that most of a model's weights have: fp32, fp16, bf16, fp64, int8, int4.

    Raises: ModelUnreadable: it cannot be read; BackendMissing: a package for that is missing.
    """
    with explained(path, "out"):
        sizes = _onnx_weights(path) if path.suffix == ".onnx" else _openvino_weights(path)
        return max(sizes, key=lambda name: (sizes[name], name), default="fp32")


def external_data(path: Path) -> list[str]:
    """Files beside an ONNX file that hold weights of it, as it names them.

    Raises: ModelUnreadable: it cannot be read; BackendMissing: the package `onnx` is missing.
    """
    onnx = onnx_package()
    with explained(path, "out"):
        return sorted(
            {
                entry.value
                for tensor in _tensors(onnx.load(path, load_external_data=False).graph)
                if tensor.data_location == onnx.TensorProto.EXTERNAL
                for entry in tensor.external_data
                if entry.key == "location"
            }
        )


def _onnx_weights(path: Path) -> dict[str, int]:
    """Bytes of weights by precision, in subgraphs too."""
    onnx = onnx_package()
    kinds = {
        onnx.TensorProto.FLOAT: "fp32",
        onnx.TensorProto.FLOAT16: "fp16",
        onnx.TensorProto.BFLOAT16: "bf16",
        onnx.TensorProto.DOUBLE: "fp64",
        onnx.TensorProto.INT8: "int8",
        onnx.TensorProto.UINT8: "int8",
        onnx.TensorProto.INT4: "int4",
        onnx.TensorProto.UINT4: "int4",
    }
    sizes: dict[str, int] = {}
    for tensor in _tensors(onnx.load(path, load_external_data=False).graph):
        if (kind := kinds.get(tensor.data_type)) is not None:
            sizes[kind] = sizes.get(kind, 0) + math.prod(tensor.dims)
    return sizes


def _tensors(graph: Any) -> Iterator[Any]:
    """All weights of an ONNX graph, and of the graphs inside it."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _tensors(attribute.g)
            elif attribute.HasField("t"):
                yield attribute.t


def _openvino_weights(path: Path) -> dict[str, int]:
    kinds = {
        "f32": "fp32",
        "f16": "fp16",
        "bf16": "bf16",
        "f64": "fp64",
        "i8": "int8",
        "u8": "int8",
        "i4": "int4",
        "u4": "int4",
    }
    sizes: dict[str, int] = {}
    for node in openvino_package().Core().read_model(path).get_ordered_ops():
        if node.get_type_name() == "Constant" and (kind := kinds.get(node.get_element_type().to_string())) is not None:
            sizes[kind] = sizes.get(kind, 0) + math.prod(node.get_output_shape(0))
    return sizes
