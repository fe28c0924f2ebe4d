"""Proves that a model's batches can be split by frame, before any frames share one.

Many exported models claim to take batches but do not: they reshape to one frame, normalise over the batch, or return the
detections of all frames in one list. So the node batches only if
- no operator makes an output's size depend on values: then sizes seen in trials are those of any frames;
- in trial batches of different sizes, every output has a row for each frame;
- a frame's row is the same, to the last bit, beside other frames as beside copies of itself;
- and the same as alone, within rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Final

import numpy as np

from hedgerow.backends.base import Session, TensorSpec
from hedgerow.errors import HedgerowError
from hedgerow.frame import Array
from hedgerow.models.session import batching
from hedgerow.models.session.signature import Signature

_SIZES: Final = (2, 3)
"""Sizes of trial batches. No fixed number of rows is equal to both."""

_LARGER: Final = 5
"""Size of one more. Still larger ones would take memory that backends keep, on a node that may never need it."""

_CANDIDATES: Final = 12
"""Frames to try until two of them have different outputs."""

_LARGEST_FRAME: Final = 1 << 26
"""Bytes of the largest frame that is tried; larger ones gain nothing from batches."""

_OTHER_SIZES: Final = (64, 320, 16, 1)
"""Sizes to try for dynamic axes other than the batch."""

_ROUNDING: Final = {"CPU": (1e-3, 1e-5)}
"""Largest difference between a frame alone and in a batch, for which devices choose other kernels: relative to the value,
and to the largest value of the same output and frame."""

_ROUNDING_ELSEWHERE: Final = (2e-2, 1e-3)
"""As above on accelerators, which may compute in half precision."""

_Frame = dict[str, Array]


class _Differs(Exception):
    """The model cannot be batched; the message says why."""


class _NoRows(_Differs):
    """The model is fixed to several frames, and its outputs have no row for each."""


def try_batches(session: Session, signature: Signature, typical: Sequence[Mapping[str, Array]] = ()) -> None:
    """Stop a model's batching unless trials prove that its batches can be split by frame.

    If the model is fixed to several rows and its outputs cannot be split into theirs, requests must then have all rows.

    Args:
        signature: gets the reason as its `unbatched`.
        typical: real frames to try first, if there are some: all inputs, one row each, of the same shapes.
    """
    if not signature.batches:
        return
    try:
        _BatchTrial(session, signature).run(typical)
    except _NoRows as why:
        signature.require_all_rows(str(why))
    except _Differs as why:
        signature.unbatched = str(why)


class _BatchTrial:
    """A trial of one model."""

    def __init__(self, session: Session, signature: Signature) -> None:
        self._session = session
        self._signature = signature
        self._fixed = signature.fixed
        self._rounding = _ROUNDING.get(session.device, _ROUNDING_ELSEWHERE)

    def run(self, typical: Sequence[Mapping[str, Array]]) -> None:
        frames, alike = self._frames(typical)
        once, again = (self._batch([frames[0]] * (self._fixed or 1)) for _ in range(2))
        if not all(_identical(array, again[name]) for name, array in once.items()):
            raise _Differs("it gives the same frame other outputs from run to run, so trials show nothing")
        if self._fixed is not None:
            self._try_fixed(frames, self._fixed)
        else:
            self._try(frames)
        if alike:
            raise _Differs(
                f"all trial frames have the same {', '.join(sorted(alike))}, which does not show whether a batch mixes frames"
            )

    def _try(self, frames: Sequence[_Frame]) -> None:
        self._check_operators(frames, _SIZES[-1])
        alone = [self._batch([frame]) for frame in frames]
        for size in _SIZES:
            chosen = [(size + position) % len(frames) for position in range(size)]
            mixed = self._in_batch([frames[number] for number in chosen])
            copies = {number: self._in_batch([frames[number]] * size) for number in chosen}
            for position, number in enumerate(chosen):
                self._same_beside_others(mixed, copies[number], position)
            for number, batch in copies.items():
                for position in range(size):
                    self._same_alone(self._row(batch, position), alone[number], size)
        mixed = self._in_batch([frames[position % len(frames)] for position in range(_LARGER)])
        for position in range(_LARGER):
            self._same_alone(self._row(mixed, position), alone[position % len(frames)], _LARGER)

    def _try_fixed(self, frames: Sequence[_Frame], size: int) -> None:
        """As above for a model fixed to a number of frames, which runs a single frame beside copies of itself."""
        try:
            self._check_operators(frames, size)
            copies = [self._in_batch([frame] * size) for frame in frames]
            for one in copies:
                for position in range(size):
                    self._same_alone(self._row(one, position), self._row(one, 0), size)
        except _Differs as why:
            raise _NoRows(f"it takes {size} rows at once, and its outputs cannot be split into theirs: {why}") from None
        mixed = self._in_batch([frames[position % len(frames)] for position in range(size)])
        for position in range(size):
            self._same_beside_others(mixed, copies[position % len(frames)], position)

    def _frames(self, typical: Sequence[Mapping[str, Array]]) -> tuple[list[_Frame], set[str]]:
        """Return two or three frames that the model accepts, and the outputs that are the same for the first two.

        There are none of these if any frames have different outputs, since others would not show a mixture.
        """
        accepted: list[tuple[_Frame, dict[str, Array]]] = []
        best: tuple[list[_Frame], set[str]] | None = None
        failure: HedgerowError | None = None
        for frame in self._candidates(typical):
            try:
                outputs = self._batch([frame] * (self._fixed or 1))
            except HedgerowError as error:
                failure = error
                continue
            for other, others in accepted:
                alike = {name for name, array in outputs.items() if _identical(array, others[name])}
                if best is None or len(alike) < len(best[1]):
                    best = [other, frame, *[one for one, _ in accepted if one is not other][:1]], alike
            if best is not None and not best[1]:
                break
            accepted.append((frame, outputs))
        if best is None:
            raise _Differs(f"trial frames fail: {failure}")
        return best

    def _candidates(self, typical: Sequence[Mapping[str, Array]]) -> Iterator[_Frame]:
        inputs, axes = self._signature.inputs, self._signature.axes
        shapes = {name: array.shape for name, array in typical[0].items()} if typical else self._shapes()
        # Only requests with the same values of inputs without a batch axis share a batch.
        shared = {
            spec.name: typical[0][spec.name] if typical else _values(spec, shapes[spec.name], 0, position)
            for position, spec in enumerate(inputs)
            if axes[spec.name] is None
        }
        state = self._signature.zero_state()  # where real frames start: no state to mix
        for number, frame in enumerate(typical):
            states = {
                spec.name: _values(spec, shapes[spec.name], 6 * number, position)
                for position, spec in enumerate(inputs)
                if spec.name in state
            }
            yield {**frame, **states, **shared}
        if sum(math.prod(shapes[spec.name]) * spec.dtype.itemsize for spec in inputs) > _LARGEST_FRAME:
            raise _Differs("its frames are too large to try batches of them")
        for number in range(_CANDIDATES):
            values = {
                spec.name: _values(spec, shapes[spec.name], number, position) for position, spec in enumerate(inputs)
            }
            yield {**values, **shared}

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of one frame's inputs, with sizes that the model accepts for dynamic axes."""
        inputs, axes = self._signature.inputs, self._signature.axes
        shapes: dict[str, tuple[int, ...]] = {}
        for size in _OTHER_SIZES:
            shapes = {
                spec.name: tuple(1 if i == axes[spec.name] else dim or size for i, dim in enumerate(spec.shape))
                for spec in inputs
            }
            if not any(dim is None for spec in inputs for i, dim in enumerate(spec.shape) if i != axes[spec.name]):
                return shapes
            frame = {spec.name: _values(spec, shapes[spec.name], 0, position) for position, spec in enumerate(inputs)}
            with suppress(HedgerowError):
                self._batch([frame] * (self._fixed or 1))
                return shapes
        return shapes

    def _check_operators(self, frames: Sequence[_Frame], size: int) -> None:
        batch = batching.stack([frames[position % len(frames)] for position in range(size)], self._signature.axes, 0)
        constants = self._signature.constants
        try:
            operator = self._session.value_sized({**batch, **constants}, constants)
        except HedgerowError as error:
            raise _Differs(str(error)) from error
        if operator is not None:
            raise _Differs(
                f"sizes of its outputs may depend on what its frames show ({operator}), so nothing tells which frame a row is of"
            )

    def _batch(self, frames: Sequence[_Frame]) -> dict[str, Array]:
        batch = batching.stack(frames, self._signature.axes, 0)
        return self._session.run({**batch, **self._signature.constants})

    def _in_batch(self, frames: Sequence[_Frame]) -> dict[str, Array]:
        """Run a batch, and check that every output has a row for each frame."""
        size = len(frames)
        try:
            outputs = self._batch(frames)
        except HedgerowError as error:
            raise _Differs(f"a batch of {size} failed, but its frames succeed alone: {error}") from error
        for name, array in outputs.items():
            axis = self._signature.output_axes[name]
            if array.ndim <= axis or array.shape[axis] != size:
                hint = (
                    f"; if axis {array.shape.index(size)} counts frames, set `batch_axis`"
                    if size in array.shape
                    else ""
                )
                raise _Differs(
                    f"for a batch of {size}, output {name} has the shape {list(array.shape)}, not {size} rows on axis {axis}{hint}"
                )
        return outputs

    def _rows(self, outputs: Mapping[str, Array], name: str, position: int) -> Array:
        return outputs[name].take([position], self._signature.output_axes[name])

    def _row(self, outputs: Mapping[str, Array], position: int) -> dict[str, Array]:
        return {name: self._rows(outputs, name, position) for name in outputs}

    def _same_beside_others(self, mixed: Mapping[str, Array], copies: Mapping[str, Array], position: int) -> None:
        for name, own in self._row(copies, position).items():
            if not _identical(self._rows(mixed, name, position), own):
                raise _Differs(f"output {name} of a frame depends on the other frames of its batch")

    def _same_alone(self, own: Mapping[str, Array], alone: Mapping[str, Array], size: int) -> None:
        for name, expected in alone.items():
            if not _close(own[name], expected, self._rounding):
                raise _Differs(
                    f"output {name} of a frame depends on its place in a batch of {size}, or on the batch's size"
                )


def _values(spec: TensorSpec, shape: Sequence[int], number: int, position: int) -> Array:
    """Return values for a trial frame: small, large or smooth, so that one shows in the outputs of another."""
    rng = np.random.default_rng((number, position))
    if spec.dtype.kind == "f":
        values = (
            lambda: rng.random(shape),
            lambda: rng.random(shape) * 255,
            lambda: rng.normal(size=shape),
            lambda: np.linspace(rng.random(), rng.random(), math.prod(shape)).reshape(shape),
            lambda: np.full(shape, rng.random()),
            lambda: rng.normal(size=shape) * 1000,
        )
        return np.asarray(values[number % len(values)]()).astype(spec.dtype)
    # Integers are often indices, so most frames have small ones.
    integers = np.asarray(rng.integers(0, (2, 2, 10, 2, 100)[number % 5], shape))
    return integers.astype(str).astype(object) if spec.dtype.kind == "O" else integers.astype(spec.dtype)


def _identical(one: Array, other: Array) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(np.array_equal(one, other, equal_nan=one.dtype.kind == "f"))


def _close(one: Array, other: Array, rounding: tuple[float, float]) -> bool:
    if one.dtype.kind != "f" or one.shape != other.shape or one.dtype != other.dtype:
        return _identical(one, other)
    own, top = _ROUNDING_ELSEWHERE if one.dtype.itemsize < 4 else rounding
    a, b = one.astype(np.float64), other.astype(np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    if not _identical(np.where(finite, 0, a), np.where(finite, 0, b)):
        return False
    size = np.abs(b[finite])
    return bool((np.abs(a[finite] - b[finite]) <= own * size + top * size.max(initial=0)).all())
