"""Warm a model up: its first runs are slow, and must not be those of live frames."""

from __future__ import annotations

from hedgerow.errors import HedgerowError, ModelMismatch
from hedgerow.models.engine import Engine
from hedgerow.models.samples import random_batch

_MOST_ROWS = 4


def warm_up(engine: Engine) -> None:
    """Run a few batches of noise through it, of sizes that it will meet. Noise that a model refuses does no harm."""
    fit = engine.fit
    shapes = {spec.name: [1 if dim is None else dim for dim in spec.shape] for spec in engine.inputs}
    for rows in range(1, 1 + (_MOST_ROWS if fit.batches and fit.fixed is None else 1)):
        try:
            engine.run_batch(random_batch(fit, rows, shapes))
        except (HedgerowError, ModelMismatch):
            return
