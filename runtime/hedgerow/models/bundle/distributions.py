"""Distributions of inputs and outputs, built incrementally, and the distance between two of them. Pure.

The distance is the population stability index: Σ (q - p) · ln(q / p), over bins that hold a tenth of the baseline each.
By convention, less than 0.1 is no change, and more than 0.25 is one. With few values it is mostly chance: its expectation
for unchanged values is about (bins - 1) · (1 / baseline values + 1 / current values).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hedgerow.frame import Array
from hedgerow.models.bundle.manifest import Distribution

_SAMPLE_SIZE: Final = 1 << 17
"""Size of the random sample of values from which bins are derived."""

_TENTHS: Final = np.arange(1, 10) / 10
_NEAR: Final = 1e-3
"""Share of the range within which values count as equal: devices do not agree on the last digits."""

_SMALLEST_NEAR: Final = 1e-12
"""Smallest distance within which values count as equal."""

_PSEUDO_COUNT: Final = 0.5
"""Added to every bin, so that an empty one does not make the index infinite."""


class Accumulator:
    """Accumulates the distribution of values.

    Args:
        edges: edges of the bins, for comparison with a baseline; None: derive them from the values.
        at_most: number of values to use per array, evenly spread; None: all. A detector's raw output has a million.

    Attributes:
        values: number of finite values added.
        not_finite: number of other values.
    """

    def __init__(self, edges: Sequence[float] | None = None, *, at_most: int | None = None) -> None:
        self.values = 0
        self.not_finite = 0
        self._at_most = at_most
        self._mean = 0.0
        self._squares = 0.0
        self._minimum, self._maximum = math.inf, -math.inf
        self._edges = None if edges is None else np.asarray(edges, np.float64)
        self._counts = np.zeros(0 if edges is None else len(edges) + 1, np.int64)
        self._sample: NDArray[np.float64] = np.zeros(0)
        self._keys: NDArray[np.float64] = np.zeros(0)
        self._draw = np.random.default_rng(0)

    def add(self, array: Array) -> None:
        """Add an array's values; its shape does not matter."""
        flat = array.reshape(-1)
        if self._at_most is not None and flat.size > self._at_most:
            flat = flat[:: _step(flat.size, self._at_most)]
        values = flat.astype(np.float64)
        finite = np.isfinite(values)
        if not finite.all():
            self.not_finite += int(values.size - finite.sum())
            values = values[finite]
        if not values.size:
            return
        self._moments(values)
        if self._edges is not None:
            self._counts += _count(values, self._edges)
        else:
            self._add_to_sample(values)

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of values by bin; empty without `edges`."""
        return tuple(self._counts.tolist())

    def counts_in(self, edges: Sequence[float]) -> tuple[int, ...]:
        """Return the number of sampled values in the bins of another distribution. Only without `edges`."""
        return tuple(_count(self._sample, np.asarray(edges, np.float64)).tolist())

    def distribution(self, resolution: float = 0.0) -> Distribution:
        """Return the distribution so far. `counts` are those of the random sample, if there are more values than it holds.

        Args:
            resolution: distance within which values share a bin: how far devices and variants may differ.
        """
        if not self.values:
            return Distribution(values=0, not_finite=self.not_finite, mean=0, deviation=0, minimum=0, maximum=0)
        edges, counts = self._edges, self._counts
        if edges is None:
            near = max(_NEAR * (self._maximum - self._minimum or abs(self._maximum)), resolution, _SMALLEST_NEAR)
            edges = _edges(self._sample, near)
            counts = _count(self._sample, edges)
        return Distribution(
            values=self.values,
            not_finite=self.not_finite,
            mean=self._mean,
            deviation=math.sqrt(max(0.0, self._squares / self.values)),
            minimum=self._minimum,
            maximum=self._maximum,
            edges=tuple(edges.tolist()),
            counts=tuple(counts.tolist()),
        )

    def _moments(self, values: NDArray[np.float64]) -> None:
        """Update mean and squared deviations (Chan, Golub and LeVeque, 1979)."""
        mean, count = float(values.mean()), values.size
        delta, total = mean - self._mean, self.values + count
        self._squares += float(((values - mean) ** 2).sum()) + delta * delta * self.values * count / total
        self._mean += delta * count / total
        self.values = total
        self._minimum = min(self._minimum, float(values.min()))
        self._maximum = max(self._maximum, float(values.max()))

    def _add_to_sample(self, values: NDArray[np.float64]) -> None:
        """Keep all values, or those with the smallest random keys: each has the same chance, early or late."""
        keys = self._draw.random(values.size)
        if self._keys.size >= _SAMPLE_SIZE:
            near = keys < self._keys.max()
            keys, values = keys[near], values[near]
        self._keys, self._sample = np.concatenate([self._keys, keys]), np.concatenate([self._sample, values])
        if self._keys.size > _SAMPLE_SIZE:
            smallest = np.argpartition(self._keys, _SAMPLE_SIZE)[:_SAMPLE_SIZE]
            self._keys, self._sample = self._keys[smallest], self._sample[smallest]


def shift(baseline: Distribution, counts: Sequence[int]) -> float:
    """Return the population stability index of values against a baseline; 0: no shift.

    Args:
        counts: number of values by bin, from an `Accumulator` with the baseline's edges; sums of several are allowed.
    Raises: ValueError: the number of counts is not the baseline's number of bins.
    """
    if len(counts) != len(baseline.counts):
        raise ValueError(f"{len(counts)} counts for a baseline of {len(baseline.counts)} bins")
    before, now = np.asarray(baseline.counts, np.float64), np.asarray(counts, np.float64)
    if not before.sum() or not now.sum():
        return 0.0
    p = (before + _PSEUDO_COUNT) / (before + _PSEUDO_COUNT).sum()
    q = (now + _PSEUDO_COUNT) / (now + _PSEUDO_COUNT).sum()
    return float(((q - p) * np.log(q / p)).sum())


def rebinned(distribution: Distribution, edges: Sequence[float]) -> NDArray[np.float64]:
    """Estimate the counts in other bins, assuming that values are spread evenly within a bin.

    Args:
        edges: edges of the other bins, ascending.
    """
    ends = np.array([distribution.minimum, *distribution.edges, distribution.maximum], np.float64)
    below = np.concatenate([[0.0], np.cumsum(np.asarray(distribution.counts, np.float64))])
    # An extreme may coincide with an edge; of two equal positions the later one counts.
    ends = np.maximum.accumulate(ends)
    last = np.append(ends[1:] > ends[:-1], True)
    upto = np.interp(np.asarray(edges, np.float64), ends[last], below[last], left=0.0, right=below[-1])
    return np.diff(np.concatenate([[0.0], upto, [below[-1]]]))


def _edges(values: NDArray[np.float64], near: float) -> NDArray[np.float64]:
    """Return the deciles. Deciles near each other, as at a rectifier's zero, are replaced by one bin around them."""
    edges: list[float] = []
    deciles = np.quantile(values, _TENTHS, method="inverted_cdf")
    start = 0
    while start < len(deciles):
        first = deciles[start]
        end = int(np.searchsorted(deciles, first + near, side="right"))
        edges += [first - near, first + near] if end - start > 1 else [first]
        start = end
    return np.unique(edges)


def _count(values: NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.bincount(np.searchsorted(edges, values), minlength=len(edges) + 1).astype(np.int64)


def _step(size: int, at_most: int) -> int:
    """Return a step that samples all columns of an array evenly: one that is coprime with its size."""
    step = -(-size // at_most)
    while math.gcd(step, size) > 1:
        step += 1
    return step
