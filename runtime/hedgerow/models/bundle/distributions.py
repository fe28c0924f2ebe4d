"""What values look like: distributions of inputs and outputs, built as they come, and how far two are apart. Pure.

The measure is the population stability index: Σ (q - p) · ln(q / p) over bins that hold a tenth of the baseline each.
By custom, less than 0.1 is no change, more than 0.25 is one. Of few values it is mostly chance: about
(bins - 1) · (1 / values then + 1 / values now) for values that did not change at all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hedgerow.frame import Array
from hedgerow.models.bundle.manifest import Distribution

_KEPT: Final = 1 << 17
"""Values that are kept to find the bins by; of more, so many are drawn."""

_TENTHS: Final = np.arange(1, 10) / 10
_NEAR: Final = 1e-3
"""Part of the range within which values are the same: devices do not agree on the last digits."""

_LEAST: Final = 1e-12
"""Distance within which they are anyway."""

_EMPTY: Final = 0.5
"""Values that every bin is given, so that an empty one does not make the index infinite."""


class Accumulator:
    """Gathers values and says how they are distributed.

    Args:
        edges: borders of the bins, as of a baseline that is to be compared with; None: they are found by the values.
        at_most: values looked at of one array, evenly spread; None: all. A detector's raw output has a million.

    Attributes:
        values: how many finite ones came.
        not_finite: how many others.
    """

    def __init__(self, edges: Sequence[float] | None = None, *, at_most: int | None = None) -> None:
        self.values = 0
        self.not_finite = 0
        self._at_most = at_most
        self._mean = 0.0
        self._squares = 0.0
        self._least, self._most = math.inf, -math.inf
        self._edges = None if edges is None else np.asarray(edges, np.float64)
        self._counts = np.zeros(0 if edges is None else len(edges) + 1, np.int64)
        self._kept: NDArray[np.float64] = np.zeros(0)
        self._keys: NDArray[np.float64] = np.zeros(0)
        self._draw = np.random.default_rng(0)

    def add(self, array: Array) -> None:
        """Take in an array's values; its shape does not matter."""
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
            self._keep(values)

    @property
    def counts(self) -> tuple[int, ...]:
        """Values by bin; empty before there are edges."""
        return tuple(self._counts.tolist())

    def counts_in(self, edges: Sequence[float]) -> tuple[int, ...]:
        """Values by the bins of another distribution; of those that are kept, where there were no edges."""
        return tuple(_count(self._kept, np.asarray(edges, np.float64)).tolist())

    def distribution(self, resolution: float = 0.0) -> Distribution:
        """What has been gathered. Where more values came than are kept, `counts` are of those that were.

        Args:
            resolution: values no further apart are the same, as far as bins go: what devices and variants may differ by.
        """
        if not self.values:
            return Distribution(values=0, not_finite=self.not_finite, mean=0, deviation=0, minimum=0, maximum=0)
        edges, counts = self._edges, self._counts
        if edges is None:
            near = max(_NEAR * (self._most - self._least or abs(self._most)), resolution, _LEAST)
            edges = _edges(self._kept, near)
            counts = _count(self._kept, edges)
        return Distribution(
            values=self.values,
            not_finite=self.not_finite,
            mean=self._mean,
            deviation=math.sqrt(max(0.0, self._squares / self.values)),
            minimum=self._least,
            maximum=self._most,
            edges=tuple(edges.tolist()),
            counts=tuple(counts.tolist()),
        )

    def _moments(self, values: NDArray[np.float64]) -> None:
        """Join mean and squared deviations with those so far (Chan, Golub and LeVeque, 1979)."""
        mean, count = float(values.mean()), values.size
        apart, total = mean - self._mean, self.values + count
        self._squares += float(((values - mean) ** 2).sum()) + apart * apart * self.values * count / total
        self._mean += apart * count / total
        self.values = total
        self._least = min(self._least, float(values.min()))
        self._most = max(self._most, float(values.max()))

    def _keep(self, values: NDArray[np.float64]) -> None:
        """Keep all, or those with the smallest random keys: each value has the same chance, whenever it came."""
        keys = self._draw.random(values.size)
        if self._keys.size >= _KEPT:
            near = keys < self._keys.max()
            keys, values = keys[near], values[near]
        self._keys, self._kept = np.concatenate([self._keys, keys]), np.concatenate([self._kept, values])
        if self._keys.size > _KEPT:
            smallest = np.argpartition(self._keys, _KEPT)[:_KEPT]
            self._keys, self._kept = self._keys[smallest], self._kept[smallest]


def shift(baseline: Distribution, counts: Sequence[int]) -> float:
    """How far values have moved away from a baseline: the population stability index; 0: not at all.

    Args:
        counts: values by bin, of an `Accumulator` with the baseline's edges. Those of several may be added up.
    Raises: ValueError: there are not as many as the baseline has bins.
    """
    if len(counts) != len(baseline.counts):
        raise ValueError(f"{len(counts)} counts for a baseline of {len(baseline.counts)} bins")
    before, now = np.asarray(baseline.counts, np.float64), np.asarray(counts, np.float64)
    if not before.sum() or not now.sum():
        return 0.0
    p = (before + _EMPTY) / (before + _EMPTY).sum()
    q = (now + _EMPTY) / (now + _EMPTY).sum()
    return float(((q - p) * np.log(q / p)).sum())


def rebinned(distribution: Distribution, edges: Sequence[float]) -> NDArray[np.float64]:
    """Values by the bins of another distribution, about: within a bin they are taken to be spread evenly.

    Args:
        edges: where the other bins end, ascending.
    """
    ends = np.array([distribution.minimum, *distribution.edges, distribution.maximum], np.float64)
    below = np.concatenate([[0.0], np.cumsum(np.asarray(distribution.counts, np.float64))])
    # The extremes may be met by an edge; of two equal places the later one counts.
    ends = np.maximum.accumulate(ends)
    last = np.append(ends[1:] > ends[:-1], True)
    upto = np.interp(np.asarray(edges, np.float64), ends[last], below[last], left=0.0, right=below[-1])
    return np.diff(np.concatenate([[0.0], upto, [below[-1]]]))


def _edges(values: NDArray[np.float64], near: float) -> NDArray[np.float64]:
    """Deciles that are not near each other. Where several are, as at a rectifier's zero, there is a bin around them."""
    edges: list[float] = []
    deciles = np.quantile(values, _TENTHS, method="inverted_cdf")
    begin = 0
    while begin < len(deciles):
        first = deciles[begin]
        end = int(np.searchsorted(deciles, first + near, side="right"))
        edges += [first - near, first + near] if end - begin > 1 else [first]
        begin = end
    return np.unique(edges)


def _count(values: NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.bincount(np.searchsorted(edges, values), minlength=len(edges) + 1).astype(np.int64)


def _step(size: int, at_most: int) -> int:
    """A step through an array that meets all its columns alike: one that has no divisor in common with its size."""
    step = -(-size // at_most)
    while math.gcd(step, size) > 1:
        step += 1
    return step
