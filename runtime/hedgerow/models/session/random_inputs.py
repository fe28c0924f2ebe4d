"""Random inputs of a model's shapes, for measuring it."""

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
    """Inputs of one batch: noise, with hidden state at zero and constants as configured.

    Args:
        rows: size along the batch axis, where the model leaves it open.
        shapes: shapes by input name, needed for inputs that are open elsewhere too; what they say of the batch is not
            looked at.
    Returns: floats from 0 to 1; integers and booleans 0 or 1, which are valid indices into nearly everything.
    Raises: ModelMismatch: a shape does not fit the model, or one is needed and not given.
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


def _shape(spec: TensorSpec, given: Sequence[int] | None, axis: int | None, rows: int) -> list[int]:
    fits = given is None or (
        len(given) == len(spec.shape)
        and all(
            place == axis or want in (None, got)
            for place, (want, got) in enumerate(zip(spec.shape, given, strict=True))
        )
    )
    if not fits:
        raise ModelMismatch(
            f"The model takes {spec}; `--shape` says {spec.name}={','.join(map(str, given or ()))}",
            remedy=f"Give {len(spec.shape)} numbers that fit, the batch axis among them.",
        )
    shape = []
    for place, dim in enumerate(spec.shape):
        if dim is None and place != axis and given is None:
            raise ModelMismatch(
                f"The model takes {spec}, open in more than the batch",
                remedy=f"Say how large your frames are: `--shape {spec.name}={_example(spec, axis)}`.",
            )
        if dim is not None:
            shape.append(dim)
        else:
            shape.append(rows if place == axis or given is None else given[place])
    return shape


def _example(spec: TensorSpec, axis: int | None) -> str:
    return ",".join("1" if place == axis else str(dim or 320) for place, dim in enumerate(spec.shape))
