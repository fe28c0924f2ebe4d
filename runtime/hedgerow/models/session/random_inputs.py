"""Random inputs of the right shapes, for measuring and warming up a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from hedgerow.backends.base import TensorSpec
from hedgerow.errors import ModelMismatch
from hedgerow.frame import Array
from hedgerow.models.session.signature import Signature


def random_batch(
    signature: Signature, rows: int, shapes: Mapping[str, Sequence[int]], seed: int = 0
) -> dict[str, Array]:
    """Return random inputs for one batch, with hidden state at zero and constants as configured.

    Args:
        rows: size of the batch axis, where it is dynamic.
        shapes: shapes by input, required for inputs with other dynamic axes; their batch axis is ignored.
    Returns: floats from 0 to 1; integers and booleans 0 or 1, which are valid indices into nearly everything.
    Raises: ModelMismatch: a shape does not fit the model, or a required one is missing.
    """
    rng = np.random.default_rng(seed)
    state = signature.zero_state()
    batch = dict(signature.constants)
    for spec in signature.inputs:
        axis = signature.axes[spec.name]
        if spec.name in state:
            zero = state[spec.name]
            grows = axis is not None and spec.shape[axis] != zero.shape[axis]
            batch[spec.name] = np.repeat(zero, signature.fixed or rows, axis=axis) if grows else zero
            continue
        shape = _shape(spec, shapes.get(spec.name), axis, rows)
        floats = spec.dtype.kind == "f"
        batch[spec.name] = (rng.random(shape) if floats else rng.integers(0, 2, shape)).astype(spec.dtype)
    return batch


def _shape(spec: TensorSpec, requested: Sequence[int] | None, axis: int | None, rows: int) -> list[int]:
    fits = requested is None or (
        len(requested) == len(spec.shape)
        and all(
            position == axis or expected in (None, actual)
            for position, (expected, actual) in enumerate(zip(spec.shape, requested, strict=True))
        )
    )
    if not fits:
        raise ModelMismatch(
            f"The model takes {spec}, but `--shape` is {spec.name}={','.join(map(str, requested or ()))}",
            remedy=f"Use {len(spec.shape)} matching sizes, including the batch axis.",
        )
    shape = []
    for position, dim in enumerate(spec.shape):
        if dim is None and position != axis and requested is None:
            raise ModelMismatch(
                f"The model takes {spec}, with dynamic axes besides the batch",
                remedy=f"Set the size of your frames: `--shape {spec.name}={_example(spec, axis)}`.",
            )
        if dim is not None:
            shape.append(dim)
        else:
            shape.append(rows if position == axis or requested is None else requested[position])
    return shape


def _example(spec: TensorSpec, axis: int | None) -> str:
    return ",".join("1" if position == axis else str(dim or 320) for position, dim in enumerate(spec.shape))
