"""Rehearse with a model: its first runs are slow, and its first batch is compared with single frames. Not on live ones."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from hedgerow.errors import HedgerowError
from hedgerow.frame import Array
from hedgerow.models.bundle.arrays import read_arrays
from hedgerow.models.bundle.manifest import Manifest
from hedgerow.models.serving.engine import Engine
from hedgerow.models.session.random_inputs import random_batch

_SIZES: Final = (1, 2, 3, 4)
_MOST_SIZES: Final = 12


def prepare(engine: Engine, sizes: Iterable[int] = ()) -> None:
    """Have it ready for live frames; what it did until then is forgotten.

    Args:
        sizes: as `warm_up` takes them.
    Raises: ModelError: a golden input of its bundle cannot be read.
    """
    if engine.model_version is not None:
        prove_batches(engine, engine.model_version.folder, engine.model_version.manifest)
    warm_up(engine, sizes)
    engine.forget()


def warm_up(engine: Engine, sizes: Iterable[int] = _SIZES) -> None:
    """Run batches of noise through it. Noise that a model refuses does no harm.

    Args:
        sizes: rows of batches that it will meet; those of the version before, if there is one.
    """
    signature = engine.signature
    shapes = {spec.name: [1 if dim is None else dim for dim in spec.shape] for spec in engine.inputs}
    wanted = sorted({*_SIZES, *sizes})[:_MOST_SIZES] if signature.batches and signature.fixed is None else [1]
    for rows in wanted:
        try:
            engine.run_batch(random_batch(signature, rows, shapes))
        except HedgerowError:
            return


def prove_batches(engine: Engine, folder: Path, manifest: Manifest) -> None:
    """Give it two golden inputs as two callers' requests: it compares its first batch with its requests run alone.

    Args:
        folder: of the bundle.
    """
    for case in manifest.golden:
        arrays = read_arrays(folder / case.inputs.path)
        requests = [_row(engine, arrays, row) for row in (0, -1)]
        if not any(request is None for request in requests):
            engine.infer_each([request for request in requests if request is not None])
            return


def _row(engine: Engine, arrays: dict[str, Array], row: int) -> dict[str, Array] | None:
    """One of a batch's frames; None: it has not two."""
    request = {}
    for spec in engine.inputs:
        axis, array = engine.signature.axes[spec.name], arrays.get(spec.name)
        if array is None or axis is None or axis >= array.ndim or array.shape[axis] < 2:
            return None
        request[spec.name] = array.take([row], axis)
    return request
