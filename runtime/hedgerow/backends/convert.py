"""From one form of a model to another: half precision, eight bits, OpenVINO's own format.

The vendors' converters do it. What stands here is what they need to give the same file each time, and an account of what
they refuse.
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from hedgerow.errors import BackendMissing, HedgerowError, ModelUnreadable
from hedgerow.frame import Array

# What takes the time. Eight bits elsewhere cost accuracy and gain nothing.
_HEAVY: Final = ["Conv", "Gemm", "MatMul"]


def to_fp16(path: Path, out: Path) -> None:
    """Write an ONNX model that computes in half precision; its inputs and outputs stay as they are.

    Raises: ModelUnreadable: it cannot be converted; BackendMissing: a package for that is missing.
    """
    onnx = onnx_package()
    with _explained(path, "fp16"):
        from onnxruntime.transformers.float16 import convert_float_to_float16

        made = convert_float_to_float16(onnx.load(path), keep_io_types=True)
        onnx.save(made, out)


def to_int8(path: Path, out: Path, samples: Iterable[Mapping[str, Array]]) -> str:
    """Write an ONNX model whose convolutions and products are computed in eight bits.

    Args:
        samples: inputs of single runs, by which the range of every tensor is found; none: it is found anew at each run,
            which costs time there.
    Returns: how it was done: `static, per channel`, `static, per tensor` or `dynamic`.
    Raises: ModelUnreadable: it cannot be quantised; BackendMissing: a package for that is missing.
    """
    samples = list(samples)
    onnx_package()
    with tempfile.TemporaryDirectory() as folder, _explained(path, "int8"):
        from onnxruntime.quantization import QuantType, quantize_dynamic, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        ready = Path(folder, path.name)
        try:
            quant_pre_process(path, ready, skip_symbolic_shape=True)
        except Exception:  # noqa: BLE001 - shapes that it cannot follow; the model is quantised as it is
            ready = path
        failed: Exception | None = None
        for per_channel in (True, False) if samples else ():
            try:
                quantize_static(
                    ready,
                    out,
                    _Calibration(samples),
                    op_types_to_quantize=_HEAVY,
                    per_channel=per_channel,
                    activation_type=QuantType.QInt8,
                    weight_type=QuantType.QInt8,
                )
                _try(out, samples[0])
            except Exception as error:  # noqa: BLE001 - the next way may do
                failed = error
            else:
                return "static, per channel" if per_channel else "static, per tensor"
        try:
            quantize_dynamic(ready, out, per_channel=True, weight_type=QuantType.QInt8)
        except Exception as error:
            raise failed or error from error
        return "dynamic"


def to_openvino(path: Path, out: Path, *, half: bool) -> None:
    """Write a model in OpenVINO's format: an .xml, and a .bin beside it.

    Args:
        half: keep weights in half precision; the device computes in what it likes best.
    Raises: ModelUnreadable: OpenVINO cannot read it; BackendMissing: it is not installed.
    """
    openvino = _openvino()
    with _explained(path, "OpenVINO's format"):
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
    with _explained(path, "out"):
        sizes = _onnx_weights(path) if path.suffix == ".onnx" else _openvino_weights(path)
        return max(sizes, key=lambda name: (sizes[name], name), default="fp32")


def external_data(path: Path) -> list[str]:
    """Files beside an ONNX file that hold weights of it, as it names them.

    Raises: ModelUnreadable: it cannot be read; BackendMissing: the package `onnx` is missing.
    """
    onnx = onnx_package()
    with _explained(path, "out"):
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
    for node in _openvino().Core().read_model(path).get_ordered_ops():
        if node.get_type_name() == "Constant" and (kind := kinds.get(node.get_element_type().to_string())) is not None:
            sizes[kind] = sizes.get(kind, 0) + math.prod(node.get_output_shape(0))
    return sizes


def onnx_package() -> Any:
    """The package `onnx`. Raises: BackendMissing: it is not installed."""
    try:
        import onnx
    except ImportError as error:
        raise BackendMissing(
            f"To make and read ONNX files, the package onnx is needed: {error}",
            remedy="Run `pip install 'hedgerow[build]'`.",
        ) from error
    return onnx


def _openvino() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise BackendMissing(
            f"OpenVINO cannot be imported: {error}", remedy="Run `pip install 'hedgerow[openvino]'`."
        ) from error
    return openvino


class _Calibration:
    """Samples, as ONNX Runtime's quantiser asks for them."""

    def __init__(self, samples: Iterable[Mapping[str, Array]]) -> None:
        self._samples: Iterator[Mapping[str, Array]] = iter(samples)

    def get_next(self) -> dict[str, Array] | None:
        """The next one; None: that was all."""
        sample = next(self._samples, None)
        return None if sample is None else dict(sample)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Not asked of readers that give one sample after the other."""
        raise NotImplementedError


def _try(path: Path, sample: Mapping[str, Array]) -> None:
    """The quantiser writes files that cannot be opened, now and then."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    onnxruntime.InferenceSession(path, options).run(None, dict(sample))


@contextmanager
def _explained(path: Path, form: str) -> Iterator[None]:
    """Make a vendor's exception one of ours, and keep vendors' warnings to what they lead to."""
    quiet = logging.getLogger()
    before = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        yield
    except HedgerowError:
        raise
    except ImportError as error:
        raise BackendMissing(
            f"A package that converts models is missing: {error}", remedy="Run `pip install 'hedgerow[build]'`."
        ) from error
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ModelUnreadable(
            f"{path.name} cannot be made {form}: {reason}",
            remedy="Leave that variant out, or export the model in that form.",
        ) from error
    finally:
        quiet.setLevel(before)
