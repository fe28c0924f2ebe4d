"""What a backend is: something that opens model files as sessions.

Rules:
- A backend imports its vendor's library when it is first used, so that `hedgerow --help` is quick.
- A session reports the device it *got*, not the one it was asked for.
- Every vendor exception becomes one of ours, with a remedy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
        name: as the model names it.
        shape: one entry a dimension; None where it is dynamic. Empty for a scalar, and for an output whose number of
            dimensions the model leaves open.
        dtype: numpy dtype.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: np.dtype[Any]

    def accepts(self, array: Array) -> bool:
        """Whether an array has this dtype and fits this shape."""
        return array.dtype == self.dtype and self.fits(array.shape)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a shape fits, dynamic dimensions taking any size."""
        return len(shape) == len(self.shape) and all(
            want is None or want == got for want, got in zip(self.shape, shape, strict=True)
        )

    def __str__(self) -> str:
        dims = ", ".join("?" if dim is None else str(dim) for dim in self.shape)
        return f"{self.name}: {self.dtype}[{dims}]"


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """How a model is to run.

    Attributes:
        device: the device asked for, in the backend's words: "CPU", "GPU", "NPU", "CUDA", "TensorRT", "AUTO".
        threads: threads one inference may use.
        streams: inferences that may run at the same time.
        vendor: options passed to the vendor's library as they are.
        batch_axes: the batch axis of inputs where it is not 0; None for an input that has none.
        open_batch: open the batch axis where the file fixes it to 1, if the backend can.
        batch_sizes: rows to prepare for, ascending, if the backend is faster with shapes it knows; empty: any alike.
        cache_dir: folder for compiled forms of this one model, for backends that make them; None: keep none.
    """

    device: str = "CPU"
    threads: int = 1
    streams: int = 1
    vendor: Mapping[str, Any] = field(default_factory=dict)
    batch_axes: Mapping[str, int | None] = field(default_factory=dict)
    open_batch: bool = False
    batch_sizes: tuple[int, ...] = ()
    cache_dir: Path | None = None


def fixed_to_one(inputs: Iterable[TensorSpec], batch_axes: Mapping[str, int | None]) -> str | None:
    """The first input that has one place for frames; None: there is none."""
    for spec in inputs:
        axis = batch_axes.get(spec.name, 0)
        if axis is not None and axis < len(spec.shape) and spec.shape[axis] == 1:
            return spec.name
    return None


def installed_version(module: str, *distributions: str) -> str | None:
    """Version of a library as it is installed, found without loading it.

    Args:
        module: what is imported of it.
        distributions: packages that it may come in.
    Returns: None: it is not there; empty: it is, and no package says which version.
    """
    for name in distributions:
        with suppress(PackageNotFoundError):
            return version(name)
    return None if find_spec(module) is None else ""


class Session(Protocol):
    """A loaded model."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    backend: str
    """Name of the backend, "onnxruntime" or "openvino"."""
    device: str
    """The device in use, as the backend names it."""
    streams: int
    """How many callers may be inside `run` at the same time."""
    batch_sizes: tuple[int, ...]
    """Rows it is prepared for, ascending: others are slow, and better padded. Empty: any alike."""
    metadata: Mapping[str, str]
    """The model's own metadata (ONNX `metadata_props`, OpenVINO `rt_info`)."""

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run one batch; safe to call from several threads; blocks, with the interpreter lock released.

        Args:
            inputs: an array for every input, C-contiguous, of its dtype and shape.
        Returns: a fresh array for every output, by name; an ONNX model has the same names on every backend.
        Raises: InferenceError: the backend failed.
        """
        ...

    def close(self) -> None:
        """Free the model."""
        ...


class Backend(Protocol):
    """A vendor's library."""

    name: str
    suffixes: frozenset[str]
    """Endings of the files it can open, with the dot: {".onnx"}."""

    @property
    def installed(self) -> str | None:
        """Version of the vendor's library as it is installed, found without loading it; None: it is not."""
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
            DeviceMissing: the device asked for is not on this machine.
            ModelUnreadable: the file is corrupt, or uses something the backend lacks.
            ConfigError: the vendor's library refuses an option.
        """
        ...
