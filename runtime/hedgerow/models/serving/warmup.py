"""Warm-up of an engine off the live path: its first runs are slow, and its first batch is compared with single frames."""

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
    """Prepare an engine for live frames, and reset its statistics.

    Args:
        sizes: see `warm_up`.
    Raises: ModelError: a golden input of its bundle cannot be read.
    """
    if engine.model_version is not None:
        verify_batches(engine, engine.model_version.folder, engine.model_version.manifest)
    warm_up(engine, sizes)
    engine.reset_statistics()


def warm_up(engine: Engine, sizes: Iterable[int] = _SIZES) -> None:
    """Run random batches. A model that rejects random inputs is not warmed up.

    Args:
        sizes: expected numbers of rows, from the previous version if there is one.
    """
    signature = engine.signature
    shapes = {spec.name: [1 if dim is None else dim for dim in spec.shape] for spec in engine.inputs}
    batch_sizes = sorted({*_SIZES, *sizes})[:_MOST_SIZES] if signature.batches and signature.fixed is None else [1]
    for rows in batch_sizes:
        try:
            engine.run_batch(random_batch(signature, rows, shapes))
        except HedgerowError:
            return


def verify_batches(engine: Engine, folder: Path, manifest: Manifest) -> None:
    """Submit two golden inputs as one batch: an engine compares its first batch with running the requests alone.

    Args:
        folder: the bundle's folder.
    """
    for case in manifest.golden:
        arrays = read_arrays(folder / case.inputs.path)
        requests = [_row(engine, arrays, row) for row in (0, -1)]
        if not any(request is None for request in requests):
            engine.infer_each([request for request in requests if request is not None])
            return


def _row(engine: Engine, arrays: dict[str, Array], row: int) -> dict[str, Array] | None:
    """Return one frame of a golden input; None: it has fewer than two."""
    request = {}
    for spec in engine.inputs:
        axis, array = engine.signature.axes[spec.name], arrays.get(spec.name)
        if array is None or axis is None or axis >= array.ndim or array.shape[axis] < 2:
            return None
        request[spec.name] = array.take([row], axis)
    return request
