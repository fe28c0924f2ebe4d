"""The OpenVINO backend.

Options under `options:` are passed on unchanged, by their OpenVINO names: `INFERENCE_PRECISION_HINT: bf16`.

Three defaults differ from the vendor's:
- Models compute in the precision they were exported in. By default the CPU device lowers it to bfloat16 where the
  processor has it, so the same file would give different outputs on different machines.
- Threads are not pinned to cores: two models on one node would be pinned to the same ones.
- Streams and threads follow the node's configuration, not the machine's size.

One limit cannot be changed: the CPU device computes integers and floats in 32 bits at most. Run a model that needs full
int64 or float64 on ONNX Runtime.
"""

from __future__ import annotations

import math
import queue
import re
import shutil
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np

from hedgerow.backends.background import idle_priority
from hedgerow.backends.base import BoundRequest, Session, SessionOptions, TensorSpec, installed_version
from hedgerow.backends.graphs.onnx_file import is_whole
from hedgerow.backends.graphs.openvino_graph import (
    make_state_explicit,
    name_of,
    open_batch,
    reason_of,
    value_sized,
    with_rows,
)
from hedgerow.backends.vendors import openvino_package
from hedgerow.errors import ConfigError, DeviceMissing, InferenceError, ModelUnreadable
from hedgerow.frame import Array

_DTYPES: Final = {
    "f16": np.float16,
    "f32": np.float32,
    "f64": np.float64,
    "i8": np.int8,
    "i16": np.int16,
    "i32": np.int32,
    "i64": np.int64,
    "u8": np.uint8,
    "u16": np.uint16,
    "u32": np.uint32,
    "u64": np.uint64,
    "boolean": np.bool_,
}
_UNSUPPORTED: Final = re.compile(
    r"(?:Conversion is failed for|No conversion rule found for operations?): *(?P<read>[^\n]+)"
    r"|doesn't support (?P<compile>\w+ operation[^\n]*)"
    r"|Cannot create (?P<create>\w+) layer [^\n]* from unsupported opset"
    r"|doesn't contain the operation with type: (?P<type>\w+)"
)
_IR_VERSION: Final = 11
_LARGEST_BOUND: Final = 1 << 20
"""Bytes: to copy larger inputs and outputs takes longer than to allocate them, and a request for each size would hold them."""
_VIRTUAL: Final = ("AUTO", "MULTI", "HETERO", "BATCH")
_core_lock = threading.Lock()
_core: Any = None


class OpenVino:
    """Opens .onnx, OpenVINO IR (.xml with its .bin) and .tflite files."""

    name = "openvino"
    suffixes = frozenset({".onnx", ".xml", ".tflite"})

    @property
    def installed(self) -> str | None:
        """Version of the installed OpenVINO; see `Backend.installed`."""
        return installed_version("openvino", "openvino")

    @property
    def version(self) -> str:
        """Version of OpenVINO. Raises: BackendMissing: it is not installed."""
        return str(openvino_package().__version__).partition("-")[0]

    def devices(self) -> tuple[str, ...]:
        """Return the devices on this machine. Raises: BackendMissing: OpenVINO is not installed."""
        return tuple(_shared_core().available_devices)

    def open(self, path: Path, options: SessionOptions) -> Session:
        """Load a model file.

        Raises:
            BackendMissing: OpenVINO is not installed.
            DeviceMissing: this machine does not have the requested device.
            ModelUnreadable: the file is corrupt, or needs something OpenVINO does not support.
            ConfigError: OpenVINO rejects an option.
        """
        core = _shared_core()
        device = self._device(options.device)
        model, state = _read(core, path, options)
        inputs, outputs = _specs(path, model.inputs), _specs(path, model.outputs)
        try:
            compiled = _compile(core, model, device, options)
            by_rows = {  # one at a time: copying a model holds the interpreter lock, and takes memory
                rows: _compile(core, with_rows(path, model, options.batch_axes, rows), device, options)
                for rows in options.batch_sizes
            }
        except ConfigError:
            raise
        except Exception as error:
            option = next((name for name in options.vendor if name in str(error)), None)
            if option is not None:
                raise ConfigError(
                    f"OpenVINO rejects the option {option}: {reason_of(error)}",
                    remedy=f"Correct or remove {option} under the model's `options:`.",
                ) from error
            raise _unreadable(path, error) from error
        return OpenVinoSession(compiled, by_rows, path, inputs, outputs, options, _metadata(model), state)

    def _device(self, requested: str) -> str:
        device, available = requested.upper(), self.devices()
        family = device.partition(".")[0]
        if device.partition(":")[0] in _VIRTUAL or any(name.partition(".")[0] == family for name in available):
            return device
        raise DeviceMissing(
            f"OpenVINO has no device {requested} on this machine (available: {', '.join(available)})",
            remedy=f"Choose one of {', '.join(available)}, or install the driver for {requested}.",
        )


class OpenVinoSession:
    """A model loaded by OpenVINO: compiled for any batch, and for each of `batch_sizes`."""

    backend = "openvino"

    def __init__(
        self,
        compiled: Any,
        by_rows: Mapping[int, Any],
        path: Path,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        options: SessionOptions,
        metadata: Mapping[str, str],
        state: Mapping[str, str],
    ) -> None:
        self.inputs = inputs
        self.outputs = outputs
        self.device = ",".join(compiled.get_property("EXECUTION_DEVICES"))
        self.streams = options.streams
        self.batch_sizes = tuple(by_rows)
        self.metadata = metadata
        self.state = state
        self._path = path
        self._options = options
        self._tensor = openvino_package().Tensor
        self._ports = [(number, spec.name) for number, spec in enumerate(inputs)]
        self._names = [spec.name for spec in outputs]
        self._any_batch = _RequestPool(compiled, self.streams)
        self._by_rows: dict[int, _RequestPool] = {}
        self._bound: dict[int, _RequestPool] = {}
        for rows, one in by_rows.items():
            if _is_small(one, (*inputs, *outputs)):
                self._bound[rows] = _RequestPool(one, self.streams, self._bind)
            else:
                self._by_rows[rows] = _RequestPool(one, self.streams)
        axes = ((spec, options.batch_axes.get(spec.name, 0)) for spec in inputs)
        self._row_axis = next(((spec.name, axis) for spec, axis in axes if axis is not None), None)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run one batch; see `Session.run`."""
        requests = self._any_batch
        if self.batch_sizes and self._row_axis is not None:
            name, axis = self._row_axis
            rows = inputs[name].shape[axis]
            if (bound := self.bound(rows)) is not None:
                return self._run_bound(bound, inputs)
            requests = self._by_rows.get(rows, requests)
        request = requests.acquire()
        if request is None:
            raise InferenceError(f"{self._path.name} is closed", remedy="Open the model again.")
        try:
            for number, name in self._ports:
                array = inputs[name]
                # OpenVINO shares memory with writable arrays only; it copies others.
                request.set_input_tensor(number, self._tensor(array, shared_memory=array.flags.writeable))
            # Outputs are copied: the request's next run overwrites its buffers. `infer` releases the interpreter lock as
            # `start_async` and `wait` do, but without hopping to another thread and back.
            return dict(zip(self._names, request.infer(share_outputs=False).to_tuple(), strict=True))
        except Exception as error:
            raise self._failed(error) from error
        finally:
            requests.release(request)

    def bound(self, rows: int) -> BoundRequest | None:
        """Wait for an idle request with arrays of its own; see `Session.bound`."""
        requests = self._bound.get(rows)
        request: BoundRequest | None = None if requests is None else requests.acquire()
        return request

    def _bind(self, request: Any, requests: _RequestPool) -> BoundRequest:
        """Give a request arrays of its own."""
        ins = {name: _empty_like(request.get_input_tensor(number)) for number, name in self._ports}
        outs = {name: _empty_like(request.get_output_tensor(number)) for number, name in enumerate(self._names)}
        for number, name in self._ports:
            request.set_input_tensor(number, self._tensor(ins[name], shared_memory=True))
        for number, name in enumerate(self._names):
            request.set_output_tensor(number, self._tensor(outs[name], shared_memory=True))
        return _OpenVinoBound(request, requests, self._failed, ins, outs)

    def _run_bound(self, request: BoundRequest, inputs: Mapping[str, Array]) -> dict[str, Array]:
        try:
            for name, own in request.inputs.items():
                given = inputs[name]
                if given.shape != own.shape or given.dtype != own.dtype:  # an assignment would broadcast or convert it
                    raise InferenceError(
                        f"{self._path.name} takes {name} as {own.dtype}{list(own.shape)}, not {given.dtype}{list(given.shape)}",
                        remedy="Check the stage that makes it.",
                    )
                own[...] = given
            request.run()
            return {name: array.copy() for name, array in request.outputs.items()}
        finally:
            request.release()

    def _failed(self, error: Exception) -> InferenceError:
        return InferenceError(
            f"OpenVINO failed to run {self._path.name}: {reason_of(error)}",
            remedy="If other frames work, check this one's tensors; otherwise try `backend: onnxruntime`.",
        )

    def value_sized(self, batch: Mapping[str, Array], constants: Collection[str]) -> str | None:
        """Return an operator whose output's size depends on values; see `Session.value_sized`."""
        model, _ = _read(_shared_core(), self._path, self._options)
        return value_sized(self._path, model, batch, constants)

    def close(self) -> None:
        """Free the model; runs in progress finish first, waiting ones fail."""
        for requests in (self._any_batch, *self._by_rows.values(), *self._bound.values()):
            requests.close()


class _OpenVinoBound:
    """A request of OpenVINO with arrays of its own; see `BoundRequest`."""

    def __init__(
        self,
        request: Any,
        pool: _RequestPool,
        failed: Callable[[Exception], InferenceError],
        inputs: Mapping[str, Array],
        outputs: Mapping[str, Array],
    ) -> None:
        self.inputs = inputs
        self.outputs = outputs
        self._request = request
        self._pool = pool
        self._failed = failed

    def run(self) -> None:
        """Run the model on `inputs`; see `BoundRequest.run`."""
        try:
            self._request.infer(share_outputs=True)
        except Exception as error:
            raise self._failed(error) from error

    def release(self) -> None:
        """Return the request to its session."""
        self._pool.release(self)


class _RequestPool:
    """The inference requests of a compiled model, one per stream.

    Args:
        bind: makes of a request what callers get.
    """

    def __init__(
        self, compiled: Any, streams: int, bind: Callable[[Any, _RequestPool], Any] = lambda request, _: request
    ) -> None:
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(streams):
            self._idle.put(bind(compiled.create_infer_request(), self))
        self._closed = False

    def acquire(self) -> Any:
        """Wait for an idle request and return it; None: closed."""
        request = None if self._closed else self._idle.get()
        if request is None:
            self._idle.put(None)  # wakes the next waiting caller
        return request

    def release(self, request: Any) -> None:
        """Return a request to the pool."""
        if not self._closed:
            self._idle.put(request)

    def close(self) -> None:
        """Free idle requests, and wake waiting callers."""
        self._closed = True
        with suppress(queue.Empty):
            while True:
                self._idle.get_nowait()
        self._idle.put(None)


def _is_small(compiled: Any, specs: Iterable[TensorSpec]) -> bool:
    """Return whether all inputs and outputs of a compiled model have known sizes, and together few bytes."""
    ports = (*compiled.inputs, *compiled.outputs)
    if any(port.get_partial_shape().is_dynamic for port in ports):
        return False
    sizes = (math.prod(port.get_shape()) for port in ports)
    return int(sum(size * spec.dtype.itemsize for size, spec in zip(sizes, specs, strict=True))) <= _LARGEST_BOUND


def _empty_like(tensor: Any) -> Array:
    return np.zeros(tuple(tensor.shape), _DTYPES[tensor.element_type.to_string()])


def _shared_core() -> Any:
    """Return the process's only Core: each Core loads the device plugins again and has its own threads."""
    global _core  # noqa: PLW0603 - one per process, created on first use
    with _core_lock:
        if _core is None:
            _core = openvino_package().Core()
        return _core


def _read(core: Any, path: Path, options: SessionOptions) -> tuple[Any, dict[str, str]]:
    """Read a model, with explicit state and its batch axis opened if requested. Returns: the model, and its state."""
    try:
        model = core.read_model(path)
    except Exception as error:
        raise _unreadable(path, error) from error
    state = make_state_explicit(path, model)
    if options.open_batch:
        open_batch(path, model, options.batch_axes)
    return model, state


def _compile(core: Any, model: Any, device: str, options: SessionOptions) -> Any:
    settings: dict[str, Any] = {}
    if device == "CPU":
        settings |= {
            "INFERENCE_PRECISION_HINT": "f32",
            "ENABLE_CPU_PINNING": False,
            "NUM_STREAMS": options.streams,
            "INFERENCE_NUM_THREADS": options.threads * options.streams,  # all streams together
        }
    if options.cache_dir is not None:
        settings["CACHE_DIR"] = str(options.cache_dir)
    settings |= options.vendor
    try:
        with idle_priority():
            return core.compile_model(model, device, settings)
    except Exception:
        if options.cache_dir is None or not options.cache_dir.exists():
            raise
        # A cache file truncated by a power cut must not keep a good model from loading.
        shutil.rmtree(options.cache_dir, ignore_errors=True)
        return core.compile_model(model, device, settings)


def _specs(path: Path, ports: Any) -> tuple[TensorSpec, ...]:
    specs = tuple(_spec(path, port) for port in ports)
    if len({spec.name for spec in specs}) < len(specs):
        # Two results of one tensor share its names, but not their nodes' names.
        friendly = (port.get_node().get_friendly_name() for port in ports)
        return tuple(TensorSpec(name, spec.shape, spec.dtype) for name, spec in zip(friendly, specs, strict=True))
    return specs


def _spec(path: Path, port: Any) -> TensorSpec:
    name = name_of(port)
    dtype = _DTYPES.get(port.get_element_type().to_string())
    if dtype is None:
        raise ModelUnreadable(
            f"{path.name}: {name} has the type {port.get_element_type().to_string()}, which numpy does not support",
            remedy="Export the model with f32, f16, integer or bool inputs and outputs.",
        )
    dims = port.get_partial_shape()
    # As with ONNX Runtime, the shape is empty if the rank is dynamic.
    shape = () if dims.rank.is_dynamic else tuple(None if dim.is_dynamic else dim.get_length() for dim in dims)
    return TensorSpec(name, shape, np.dtype(dtype))


def _metadata(model: Any) -> dict[str, str]:
    """Flatten `rt_info` with dots; ONNX's `metadata_props`, which OpenVINO puts under `framework`, keep their names."""
    return {key.removeprefix("framework."): value for key, value in _flat(model.get_rt_info(), "")}


def _flat(info: Any, prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in info.items():
        value = getattr(value, "value", value)
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)


def _unreadable(path: Path, error: Exception) -> ModelUnreadable:
    text, found = str(error), _UNSUPPORTED.search(str(error))
    onnx = path.suffix.lower() == ".onnx"
    if found:
        operators = next(name for name in found.groups() if name)
        return ModelUnreadable(
            f"OpenVINO {OpenVino().version} does not support operators that {path.name} uses: {operators}",
            remedy="Use `backend: onnxruntime`, or export the model without these operators."
            if onnx
            else "Update OpenVINO, or convert the model again with this version of it.",
        )
    if "outside the base directory" in text:
        return ModelUnreadable(
            f"OpenVINO cannot read {path.name}: {reason_of(text)}",
            remedy="Copy the model's files into one folder, without links (`cp -L`), or use `backend: onnxruntime`.",
        )
    if "Unable to read the model" in text:
        text = "unknown format"
    remedy = "Copy the file again (an .xml needs its .bin beside it): it is truncated, or its suffix is wrong."
    if onnx and is_whole(path):
        remedy = "The file is whole, so try `backend: onnxruntime`, update OpenVINO, or export the model again."
    elif newer := _newer_ir(path):
        text, remedy = (
            f"it has IR version {newer}",
            "Update OpenVINO, or convert the model again with this version of it.",
        )
    return ModelUnreadable(
        f"OpenVINO {OpenVino().version} cannot read {path.name} ({path.stat().st_size:,} bytes): {reason_of(text)}",
        remedy=remedy,
    )


def _newer_ir(path: Path) -> int | None:
    """Return the version of an IR, if it is newer than what OpenVINO has written since 2022."""
    with path.open("rb") as stream:
        found = re.search(rb'<net [^>]*version="(\d{1,6})"', stream.read(4096))
    return int(found[1]) if found and int(found[1]) > _IR_VERSION else None
