"""The ONNX Runtime backend.

Options under `options:` are passed on unchanged: a key with a dot (`session.disable_prepacking`) is a session
configuration entry, any other key an option of the device's execution provider (`device_id`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from hedgerow.backends.background import idle_priority
from hedgerow.backends.base import Session, SessionOptions, TensorSpec, installed_version
from hedgerow.backends.graphs.onnx_file import is_whole, read_onnx
from hedgerow.backends.graphs.onnx_sizes import value_sized
from hedgerow.errors import BackendMissing, ConfigError, DeviceMissing, InferenceError, ModelUnreadable
from hedgerow.frame import Array

_SUFFIX: Final = "ExecutionProvider"
_PACKAGES: Final = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-rocm")
_GPU: Final = ("CUDA", "ROCM", "MIGraphX", "DML", "WebGPU")
_DTYPES: Final = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int8)": np.int8,
    "tensor(int16)": np.int16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(uint8)": np.uint8,
    "tensor(uint16)": np.uint16,
    "tensor(uint32)": np.uint32,
    "tensor(uint64)": np.uint64,
    "tensor(bool)": np.bool_,
    "tensor(string)": np.object_,
}
_OPERATOR: Final = re.compile(
    r"implementation for (?P<a>[\w.]+)\(|No Op registered for (?P<b>[\w.]+)|error: (?P<c>[\w.:]+)\(-?\d+\) is not a reg"
)
_NEWER: Final = re.compile(
    r"Unsupported model (?P<ir>IR version): (?P<has>\d+), max supported IR version: (?P<most>\d+)"
    r"|Opset (?P<opset>\d+) is under development.*official support for domain (?P<domain>\S+) is till opset (?P<till>\d+)"
)
_ERROR, _FATAL = 3, 4  # severities of onnxruntime's log


class OnnxRuntime:
    """Opens .onnx files."""

    name = "onnxruntime"
    suffixes = frozenset({".onnx"})

    @property
    def installed(self) -> str | None:
        """Version of the installed onnxruntime; see `Backend.installed`."""
        return installed_version("onnxruntime", *_PACKAGES)

    @property
    def version(self) -> str:
        """Version of onnxruntime. Raises: BackendMissing: it is not installed."""
        return str(_vendor().__version__)

    def devices(self) -> tuple[str, ...]:
        """Return the devices this build of onnxruntime supports. Raises: BackendMissing: it is not installed."""
        names = (name.removesuffix(_SUFFIX) for name in _vendor().get_available_providers())
        return tuple(name for name in names if name != "Azure")  # a remote service, not a device

    def open(self, path: Path, options: SessionOptions) -> Session:
        """Load an .onnx file.

        Raises:
            BackendMissing: onnxruntime is not installed.
            DeviceMissing: this machine does not have the requested device.
            ModelUnreadable: the file is corrupt, or needs something onnxruntime does not support.
            ConfigError: an option would be ignored.
        """
        ort = _vendor()
        device = self._device(options.device)
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = options.threads
        settings.inter_op_num_threads = 1
        # Memory patterns save 5 µs per run, but hold 20 MB where shapes vary.
        settings.enable_mem_pattern = False
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        # Failures also raise exceptions, except for an accelerator that cannot be used: onnxruntime only logs that.
        settings.log_severity_level = _FATAL if device == "CPU" else _ERROR
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        provider: dict[str, Any] = {}
        for key, value in options.vendor.items():
            if "." in key:
                settings.add_session_config_entry(key, str(int(value) if isinstance(value, bool) else value))
            elif device == "CPU":
                raise ConfigError(  # onnxruntime would ignore it silently
                    f"onnxruntime's CPU provider has no option {key}",
                    remedy="Remove it from the model's `options:`. Names of session entries have a dot: `session.NAME`.",
                )
            else:
                provider[key] = value
        providers = [(device + _SUFFIX, provider)]
        if device != "CPU":
            providers.append(("CPU" + _SUFFIX, {}))
        try:
            with idle_priority():
                session = ort.InferenceSession(path, settings, providers=providers)
        except Exception as error:
            raise _unreadable(path, error) from error
        actual = session.get_providers()[0].removesuffix(_SUFFIX)
        if actual != device:
            raise DeviceMissing(
                f"onnxruntime supports {device} but cannot use it on this machine; it would run {path.name} on {actual}",
                remedy=f"Install the driver and libraries that {device} needs.",
            )
        return OnnxRuntimeSession(session, path, actual, options.streams)

    def _device(self, requested: str) -> str:
        available = self.devices()
        names = {name.lower(): name for name in available}
        if requested.lower() in names:
            return names[requested.lower()]
        if requested.upper() == "AUTO":
            return available[0]
        if requested.upper() == "GPU":
            for name in _GPU:
                if name in available:
                    return name
        raise DeviceMissing(
            f"onnxruntime has no device {requested} on this machine (available: {', '.join(available)})",
            remedy=f"Choose one of {', '.join(available)}, or install the onnxruntime build for {requested}.",
        )


class OnnxRuntimeSession:
    """A model loaded by ONNX Runtime."""

    backend = "onnxruntime"
    batch_sizes: tuple[int, ...] = ()
    state: Mapping[str, str] = MappingProxyType({})  # ONNX has none between runs

    def __init__(self, session: Any, path: Path, device: str, streams: int) -> None:
        self.inputs = tuple(_spec(path, item) for item in session.get_inputs())
        self.outputs = tuple(_spec(path, item) for item in session.get_outputs())
        self.device = device
        self.streams = streams
        self.metadata: Mapping[str, str] = dict(session.get_modelmeta().custom_metadata_map)
        self._path = path
        self._names = [spec.name for spec in self.outputs]
        self._session = session

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run one batch; see `Session.run`."""
        session = self._session
        if session is None:
            raise InferenceError(f"{self._path.name} is closed", remedy="Open the model again.")
        try:
            return dict(zip(self._names, session.run(self._names, inputs), strict=True))
        except Exception as error:
            raise InferenceError(
                f"onnxruntime failed to run {self._path.name}: {_reason(error)}",
                remedy="If other frames work, check this one's tensors; otherwise try `backend: openvino`.",
            ) from error

    def bound(self, rows: int) -> None:
        """Return None: binding saves nothing here in batches, and next to nothing alone; see `Session.bound`."""

    def value_sized(self, batch: Mapping[str, Array], constants: Collection[str]) -> str | None:
        """Return an operator whose output's size depends on values; see `Session.value_sized`."""
        try:
            return value_sized(read_onnx(self._path), constants)
        except (OSError, ValueError) as error:
            raise ModelUnreadable(
                f"The structure of {self._path.name} cannot be read: {error}", remedy="Export the model again."
            ) from error

    def close(self) -> None:
        """Free the model; runs in progress finish first."""
        self._session = None


def _vendor() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendMissing(
            f"onnxruntime cannot be imported: {error}", remedy="Run `pip install 'hedgerow[onnx]'`."
        ) from error
    return onnxruntime


def _spec(path: Path, item: Any) -> TensorSpec:
    dtype = _DTYPES.get(item.type)
    if dtype is None:
        remedy = "Export the model with plain numeric tensors as inputs and outputs"
        if item.type.startswith(("seq", "map")):
            remedy += "; for scikit-learn classifiers, convert with `options={'zipmap': False}`"
        raise ModelUnreadable(f"{path.name}: {item.name} has the unsupported type {item.type}", remedy=f"{remedy}.")
    shape = tuple(dim if isinstance(dim, int) and dim >= 0 else None for dim in item.shape)
    return TensorSpec(item.name, shape, np.dtype(dtype))


def _unreadable(path: Path, error: Exception) -> ModelUnreadable:
    text = _reason(error)
    found = _OPERATOR.search(str(error))
    if found:
        operator = next(name for name in found.groups() if name)
        return ModelUnreadable(
            f"onnxruntime {version('onnxruntime')} does not support the operator {operator}, which {path.name} uses: {text}",
            remedy="Try `backend: openvino`, update onnxruntime, or export the model for an older opset.",
        )
    newer = _NEWER.search(str(error))
    if newer:
        has, most = newer["has"] or newer["opset"], newer["most"] or newer["till"]
        what = "IR version" if newer["ir"] else f"{newer['domain']} opset"
        return ModelUnreadable(
            f"{path.name} has {what} {has}; onnxruntime {version('onnxruntime')} reads up to {most}",
            remedy=f"Update onnxruntime, or export the model with {what} {most} or older.",
        )
    remedy = "Copy the file again: it is truncated, or not an ONNX model."
    if "External data path" in text:
        remedy = "Copy the model's files into one folder, without links (`cp -L`)."
    elif is_whole(path):
        remedy = "The file is whole, so try `backend: openvino`, update onnxruntime, or export the model again."
    return ModelUnreadable(
        f"onnxruntime cannot read {path.name} ({path.stat().st_size:,} bytes): {text}", remedy=remedy
    )


def _reason(error: Exception) -> str:
    """Return onnxruntime's message on one line, without its numeric codes."""
    text = " ".join(str(error).split())
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)[:500] or type(error).__name__
