"""Signature of a model: its inputs and outputs with its configuration applied.

It determines which requests may share a batch:
- All inputs have a dynamic batch axis: requests with the same shapes share batches.
- All inputs have a batch axis fixed to N > 1: requests share batches; a batch that is not full is padded with its last row.
  If outputs have no row for each (`batch_trial.py`), that axis does not count frames: every request must have all rows.
- An input has a batch axis fixed to 1: the model takes no batches; every request runs alone.
- Scalar inputs have no batch axis: only requests with the same value share a batch.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Hashable, Iterable, Mapping
from typing import Final

import numpy as np

from hedgerow.backends.base import TensorSpec
from hedgerow.config import ModelConfig
from hedgerow.errors import ConfigError, ModelMismatch
from hedgerow.frame import Array

_CACHED: Final = 512

_LARGEST_TENSOR: Final = 1 << 34
"""Largest size of a tensor, from its fixed dimensions: no frame is larger, and allocating it would kill the node."""


class Signature:
    """A model's signature, with its configuration applied.

    Attributes:
        inputs: inputs that callers provide.
        constants: inputs with a configured value.
        axes: batch axis of every input in `inputs`; None: it has none.
        output_axes: batch axis of every output.
        fixed: number of rows the model is fixed to, if more than one; else None.
        batches: whether the model claims that requests may share a batch.
        unbatched: why they must not, found by trials (`batch_trial.py`); None: they may.
    """

    def __init__(
        self, name: str, config: ModelConfig, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
    ) -> None:
        self._name = name
        for spec in (*inputs, *outputs):
            _check_size(name, spec)
        ins = {spec.name: spec for spec in inputs}
        outs = {spec.name: spec for spec in outputs}
        _known(name, "constants", config.constants, ins)
        _known(name, "state", config.state, ins)
        _known(name, "state", config.state.values(), outs)
        _known(name, "batch_axis", config.batch_axis, {**ins, **outs})
        both = sorted(config.constants.keys() & config.state.keys())
        if both:
            raise ConfigError(
                f"Model {name}: {both[0]} is in both `constants` and `state`", remedy="Remove it from one of them."
            )
        self.constants = {key: _constant(name, ins[key], value) for key, value in config.constants.items()}
        self.inputs = tuple(spec for spec in inputs if spec.name not in config.constants)
        self._specs = {spec.name: spec for spec in self.inputs}
        self.axes = {spec.name: _axis(name, spec, config.batch_axis) for spec in self.inputs}
        # A state's next value has the same batch axis as the state, unless configured otherwise.
        next_axes = {output: self.axes[key] or 0 for key, output in config.state.items()}
        self.output_axes = {
            spec.name: config.batch_axis.get(spec.name, next_axes.get(spec.name, 0)) for spec in outputs
        }
        self._state = [ins[key] for key in config.state]
        for key, output in config.state.items():
            _check_state(name, ins[key], outs[output])
        sizes = {spec.shape[axis] for spec in self.inputs if (axis := self.axes[spec.name]) is not None}
        self.batches = bool(sizes) and 1 not in sizes and config.max_batch != 1
        self.fixed: int | None = None
        if sizes and 1 not in sizes and sizes != {None}:
            if len(sizes) > 1:
                raise ModelMismatch(_uneven(name, self.inputs, self.axes), remedy=_which_axis(self.inputs, self.axes))
            self.fixed = sizes.pop()
            self.batches = True
        self.unbatched: str | None = None
        self._admitted: dict[Hashable, tuple[Hashable, int]] = {}
        self._keyed_by_value = [key for key, axis in self.axes.items() if axis is None]
        self._names = tuple(self._specs)

    def limit(self, max_batch: int) -> int:
        """Return the most rows in a batch."""
        if not self.batches or self.unbatched is not None:
            return 1
        return min(max_batch, self.fixed) if self.fixed is not None else max_batch

    def require_all_rows(self, why: str) -> None:
        """Admit only requests with all rows that the model is fixed to: its outputs cannot be split into those of a part."""
        self.fixed, self.batches, self.unbatched = None, False, why

    def zero_state(self) -> dict[str, Array]:
        """Return the initial hidden state of a stream: zeros, one row, dynamic dimensions of size 1."""
        state = {}
        for spec in self._state:
            shape = [1 if dim is None else dim for dim in spec.shape]
            axis = self.axes[spec.name]
            if axis is not None and self.batches:
                shape[axis] = 1
            state[spec.name] = np.zeros(shape, spec.dtype)
        return state

    def rows(self, request: Mapping[str, Array]) -> int:
        """Return the number of rows along the batch axis of the first input that has one; 1: none has, or it is missing."""
        for name, axis in self.axes.items():
            if axis is not None and (array := request.get(name)) is not None and array.ndim > axis:
                return int(array.shape[axis])
        return 1

    def admit(self, request: Mapping[str, Array]) -> tuple[Hashable, int]:
        """Check a request.

        Returns: its key (requests with the same key may share a batch; None: it runs alone), and its number of rows.
        Raises: ModelMismatch: it does not fit; the message names the input, and the expected and actual arrays.
        """
        try:
            signature = tuple([((array := request[name]).shape, array.dtype) for name in self._names])
            found = self._admitted.get(signature)
        except (KeyError, AttributeError, TypeError):
            found = signature = None
        if found is None or len(request) != len(self._names):
            found = self._check(request)
            if len(self._admitted) >= _CACHED:  # a sensor may send new shapes all the time
                self._admitted.clear()
            self._admitted[signature] = found
        if self._keyed_by_value and found[0] is not None:
            return (found[0], *[request[name].item() for name in self._keyed_by_value]), found[1]
        return found

    def _check(self, request: Mapping[str, Array]) -> tuple[Hashable, int]:
        missing = [name for name in self._names if name not in request]
        unknown = [name for name in request if name not in self._specs]
        if missing or unknown:
            raise ModelMismatch(
                f"Model {self._name} takes {', '.join(self._names)}; got {', '.join(request) or 'nothing'}",
                remedy=f"Add {missing[0]}." if missing else f"Remove {unknown[0]}; constants are added automatically.",
            )
        for name, spec in self._specs.items():
            array: object = request[name]
            if not isinstance(array, np.ndarray):
                got = type(array).__name__
            elif array.dtype == spec.dtype and self._fits(spec, array):
                continue
            else:
                got = f"{array.dtype}{list(array.shape)}"
            raise ModelMismatch(
                f"Model {self._name} takes {spec}; got {got}",
                remedy=f"Pass {name} as {spec.dtype} with {len(spec.shape)} dimensions, including the batch axis.",
            )
        rows = {request[name].shape[axis] for name, axis in self.axes.items() if axis is not None}
        if not self.batches or len(rows) != 1:
            return None, 1
        shapes = []
        for name, axis in self.axes.items():
            shape = request[name].shape
            shapes.append(shape if axis is None else (*shape[:axis], *shape[axis + 1 :]))
        return tuple(shapes), rows.pop()

    def _fits(self, spec: TensorSpec, array: Array) -> bool:
        axis = self.axes[spec.name]
        if self.fixed is None or axis is None:
            return spec.fits(array.shape)
        open_shape = (*spec.shape[:axis], None, *spec.shape[axis + 1 :])
        return TensorSpec(spec.name, open_shape, spec.dtype).fits(array.shape) and 0 < array.shape[axis] <= self.fixed


def _check_size(model: str, spec: TensorSpec) -> None:
    size = math.prod(dim for dim in spec.shape if dim is not None) * spec.dtype.itemsize
    if size > _LARGEST_TENSOR:
        raise ModelMismatch(
            f"Model {model}: {spec} would have {size:,} bytes",
            remedy="The file is damaged or malicious: export the model again.",
        )


def _known(model: str, field: str, names: Iterable[str], known: Mapping[str, TensorSpec]) -> None:
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise ConfigError(
                f"Model {model}: `{field}` names {name!r}; the model has {', '.join(known) or 'none'}",
                remedy=f"Did you mean {near[0]!r}?" if near else "Use one of the model's names.",
            )


def _constant(model: str, spec: TensorSpec, value: float) -> Array:
    array = np.full([1 if dim is None else dim for dim in spec.shape], value).astype(spec.dtype)
    if array.size and array.flat[0] != value and spec.dtype.kind not in "fc":
        raise ConfigError(
            f"Model {model}: {spec.name} is {spec.dtype} and cannot be {value!r}",
            remedy=f"Set {spec.name} to a value that {spec.dtype} can represent.",
        )
    return array


def _axis(model: str, spec: TensorSpec, batch_axis: Mapping[str, int]) -> int | None:
    axis = batch_axis.get(spec.name, 0)
    if not spec.shape and spec.name not in batch_axis:
        return None
    if not 0 <= axis < len(spec.shape):
        raise ConfigError(
            f"Model {model}: `batch_axis` is {axis} for {spec}, which has {len(spec.shape)} dimensions",
            remedy=f"Use an axis from 0 to {len(spec.shape) - 1}."
            if spec.shape
            else f"Remove {spec.name} from `batch_axis`.",
        )
    return axis


def _check_state(model: str, spec: TensorSpec, output: TensorSpec) -> None:
    fits = spec.dtype == output.dtype and (
        not output.shape  # the backend does not know the output's shape
        or (
            len(spec.shape) == len(output.shape)
            and all(a is None or b is None or a == b for a, b in zip(spec.shape, output.shape, strict=True))
        )
    )
    if not fits:
        raise ModelMismatch(
            f"Model {model}: hidden state {spec} cannot take its next value from {output}",
            remedy="Under `state:`, name the output that has the state's shape.",
        )


def _uneven(model: str, inputs: Iterable[TensorSpec], axes: Mapping[str, int | None]) -> str:
    each = ", ".join(f"{spec} on axis {axes[spec.name]}" for spec in inputs if axes[spec.name] is not None)
    return f"Model {model}: its inputs have different batch sizes: {each}"


def _which_axis(inputs: Iterable[TensorSpec], axes: Mapping[str, int | None]) -> str:
    for spec in inputs:
        axis = axes[spec.name]
        if axis is not None and spec.shape[axis] is not None and None in spec.shape:
            return f"Set `batch_axis: {{{spec.name}: {spec.shape.index(None)}}}`, if that axis counts streams."
    return "Under `batch_axis:`, set the axis that counts frames."
