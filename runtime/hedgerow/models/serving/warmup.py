"""Warm-up of an engine off the live path, since its first runs are slow."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from hedgerow.errors import HedgerowError
from hedgerow.models.serving.engine import Engine
from hedgerow.models.session.random_inputs import random_batch

_SIZES: Final = (1, 2, 3, 4)
_MOST_SIZES: Final = 12


def prepare(engine: Engine, sizes: Iterable[int] = ()) -> None:
    """Prepare an engine for live frames, and reset its statistics.

    Args:
        sizes: see `warm_up`.
    """
    warm_up(engine, sizes)
    engine.reset_statistics()


def warm_up(engine: Engine, sizes: Iterable[int] = _SIZES) -> None:
    """Run random batches. A model that rejects random inputs is not warmed up.

    Args:
        sizes: expected numbers of rows, from the previous version if there is one.
    """
    signature = engine.signature
    shapes = {spec.name: [1 if dim is None else dim for dim in spec.shape] for spec in engine.inputs}
    batch_sizes = sorted({*_SIZES, *sizes})[:_MOST_SIZES] if engine.max_batch > 1 and signature.fixed is None else [1]
    for rows in batch_sizes:
        try:
            engine.run_batch(random_batch(signature, rows, shapes))
        except HedgerowError:
            return
