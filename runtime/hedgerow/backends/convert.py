"""Conversion between model formats: half precision and OpenVINO's own format; `quantise` does int8.

The vendors' converters do the work. This module makes their output reproducible and explains their failures.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hedgerow.backends.vendors import onnx_package, openvino_package, translated_errors


def to_fp16(path: Path, out: Path) -> None:
    """Convert an ONNX model to half precision; its inputs and outputs keep their types.

    Raises: ModelUnreadable: it cannot be converted; BackendMissing: a package is missing.
    """
    onnx = onnx_package()
    with translated_errors(f"{path.name} cannot be converted to fp16"):
        from onnxruntime.transformers.float16 import convert_float_to_float16

        converted = convert_float_to_float16(onnx.load(path), keep_io_types=True)
        onnx.save(converted, out)


def to_openvino(path: Path, out: Path, *, half: bool) -> None:
    """Convert a model to OpenVINO's format: an .xml, and a .bin beside it.

    Args:
        half: store weights in half precision; the device still chooses the precision it computes in.
    Raises: ModelUnreadable: OpenVINO cannot read the model; BackendMissing: OpenVINO is not installed.
    """
    openvino = openvino_package()
    with translated_errors(f"{path.name} cannot be converted to OpenVINO's format"):
        model = openvino.Core().read_model(path)
        for number, node in enumerate(model.get_ordered_ops()):
            # Unnamed nodes are named by a counter of the whole process, which would make files differ between runs.
            if node.get_friendly_name() == node.get_name():
                node.set_friendly_name(f"{node.get_type_name()}.{number}")
        openvino.save_model(model, out, compress_to_fp16=half)


def precision_of(path: Path) -> str:
    """Return the precision of most of a model's weights: fp32, fp16, bf16, fp64, int8, int4.

    Raises: ModelUnreadable: it cannot be read; BackendMissing: a package is missing.
    """
    with translated_errors(f"{path.name} cannot be read"):
        sizes = _onnx_weights(path) if path.suffix == ".onnx" else _openvino_weights(path)
        return max(sizes, key=lambda name: (sizes[name], name), default="fp32")


def _onnx_weights(path: Path) -> dict[str, int]:
    """Return the number of weights by precision, subgraphs included."""
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
    """Yield all weights of an ONNX graph and its subgraphs."""
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
