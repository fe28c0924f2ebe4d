"""Interface of a backend, which opens model files as sessions.

Rules:
- A backend imports its vendor's library on first use, so that `hedgerow --help` is quick.
- A session reports the device it *runs on*, not the one requested.
- Every vendor exception is translated into a Hedgerow error with a remedy.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from hedgerow.frame import Array


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a model.

    Attributes:
        name: its name in the model.
        shape: one entry per dimension; None: dynamic. Empty for a scalar, and for an output of unknown rank.
        dtype: numpy dtype.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: np.dtype[Any]

    def accepts(self, array: Array) -> bool:
        """Return whether an array has this dtype and fits this shape."""
        return array.dtype == self.dtype and self.fits(array.shape)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Return whether a shape fits; dynamic dimensions accept any size."""
        return len(shape) == len(self.shape) and all(
            expected is None or expected == got for expected, got in zip(self.shape, shape, strict=True)
        )

    def __str__(self) -> str:
        dims = ", ".join("?" if dim is None else str(dim) for dim in self.shape)
        return f"{self.name}: {self.dtype}[{dims}]"


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """How to run a model.

    Attributes:
        device: the requested device, by its name in the backend: "CPU", "GPU", "NPU", "CUDA", "TensorRT", "AUTO".
        threads: threads per inference.
        streams: concurrent inferences.
        vendor: options passed unchanged to the vendor's library.
        batch_axes: batch axis by input, where it is not 0; None: the input has no batch axis.
        open_batch: make the batch axis dynamic where the file fixes it to 1, if the backend can.
        batch_sizes: rows to compile for, ascending, if the backend is faster with known shapes; empty: any size.
        cache_dir: folder for compiled forms of this model, for backends that produce them; None: do not cache.
    """

    device: str = "CPU"
    threads: int = 1
    streams: int = 1
    vendor: Mapping[str, Any] = field(default_factory=dict)
    batch_axes: Mapping[str, int | None] = field(default_factory=dict)
    open_batch: bool = False
    batch_sizes: tuple[int, ...] = ()
    cache_dir: Path | None = None


def input_fixed_to_one(inputs: Iterable[TensorSpec], batch_axes: Mapping[str, int | None]) -> str | None:
    """Return the name of the first input whose batch axis is fixed to 1; None: no input is."""
    for spec in inputs:
        axis = batch_axes.get(spec.name, 0)
        if axis is not None and axis < len(spec.shape) and spec.shape[axis] == 1:
            return spec.name
    return None


def installed_version(module: str, *distributions: str) -> str | None:
    """Return the version of an installed library without importing it.

    Args:
        module: the library's module.
        distributions: packages that may provide it.
    Returns: None: it is not installed; empty: it is installed, but no package states a version.
    """
    for name in distributions:
        with suppress(PackageNotFoundError):
            return version(name)
    return None if find_spec(module) is None else ""


class BoundRequest(Protocol):
    """An inference request with arrays of its own, which spares each run their allocation. One caller has it at a time."""

    inputs: Mapping[str, Array]
    """Arrays to fill before `run`."""
    outputs: Mapping[str, Array]
    """Arrays that `run` fills. Copy what is to last: the next run overwrites it."""

    def run(self) -> None:
        """Run the model on `inputs`; blocks with the interpreter lock released. Raises: InferenceError: the backend failed."""
        ...

    def release(self) -> None:
        """Return the request to its session."""
        ...


class Session(Protocol):
    """A loaded model."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    backend: str
    """Name of the backend, "onnxruntime" or "openvino"."""
    device: str
    """The device in use, by its name in the backend."""
    streams: int
    """How many callers may be inside `run` at the same time."""
    batch_sizes: tuple[int, ...]
    """Rows it is compiled for, ascending: pad other batches, which are slow. Empty: any size is equally fast."""
    metadata: Mapping[str, str]
    """The model's own metadata (ONNX `metadata_props`, OpenVINO `rt_info`)."""
    state: Mapping[str, str]
    """State that the file keeps inside, made explicit: input name → name of the output with its next value."""

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run one batch. Thread-safe; blocks with the interpreter lock released.

        Args:
            inputs: a C-contiguous array of the right dtype and shape for every input.
        Returns: a new array for every output, by name; an ONNX model has the same names on every backend.
        Raises: InferenceError: the backend failed.
        """
        ...

    def bound(self, rows: int) -> BoundRequest | None:
        """Wait for an idle request for a batch of exactly this many rows; call its `release` afterwards.

        Returns: None: there is none, since sizes vary, arrays are large, or the backend gains nothing; use `run`.
        """
        ...

    def value_sized(self, batch: Mapping[str, Array], constants: Collection[str]) -> str | None:
        """Return an operator whose output's size depends on the inputs' values, not on shapes alone; None: there is none.

        Reads the model's file again: for use while it loads.

        Args:
            batch: valid inputs.
            constants: inputs whose values never change.
        Raises: ModelUnreadable: the model cannot have inputs of these shapes, or its structure cannot be read.
        """
        ...

    def close(self) -> None:
        """Free the model."""
        ...


class Backend(Protocol):
    """A vendor's library."""

    name: str
    suffixes: frozenset[str]
    """File suffixes it can open, with the dot: {".onnx"}."""

    @property
    def installed(self) -> str | None:
        """Version of the vendor's library, found without importing it; None: not installed."""
        ...

    @property
    def version(self) -> str:
        """Version of the vendor's library. Raises: BackendMissing: it is not installed."""
        ...

    def devices(self) -> tuple[str, ...]:
        """Devices on this machine. Raises: BackendMissing: the library is not installed."""
        ...

    def open(self, path: Path, options: SessionOptions) -> Session:
        """Load a model file.

        Raises:
            BackendMissing: the vendor's library is not installed.
            DeviceMissing: this machine does not have the requested device.
            ModelUnreadable: the file is corrupt, or needs something the backend does not support.
            ConfigError: the vendor's library rejects an option.
        """
        ...
