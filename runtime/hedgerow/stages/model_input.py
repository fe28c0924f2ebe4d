"""One input of a model, and the frame's tensor that fills it: for `infer`."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from hedgerow.backends.base import TensorSpec
from hedgerow.errors import FrameError, StageMismatch
from hedgerow.frame import Array
from hedgerow.stage import ArraySpec, ModelHandle
from hedgerow.wire.numbers import convert

_SINGLE: Final = np.dtype(np.float32)
_HALF: Final = np.dtype(np.float16)
_WHOLE: Final = frozenset(np.dtype(kind) for kind in (np.int64, np.uint64, np.bool_))


class ModelInput:
    """One input of a model, and the tensor it takes.

    Attributes:
        axis: the batch axis.
        floats: whether it takes floating point numbers.
        half: whether it takes float16, to which float32 is converted: no stage makes float16.

    What JSON's whole numbers become is converted to floats, since a sensor's 21 is no other kind of number than its 21.5.
    Pixels are not: they would have to be scaled.
    """

    __slots__ = ("axis", "dtype", "floats", "half", "name", "ndim", "spec", "tensor")

    def __init__(self, spec: TensorSpec, tensor: str, model: ModelHandle) -> None:
        self.spec = spec
        self.name = spec.name
        self.tensor = tensor
        self.dtype = spec.dtype
        self.ndim = len(spec.shape)
        self.axis = model.batch_axis.get(spec.name, 0)
        self.floats = spec.dtype.kind == "f"
        self.half = spec.dtype == _HALF

    def check(self, array: ArraySpec, name: str, model: str) -> None:
        """Check what is known of an array.

        Args:
            name: what the array is called.
            model: name of the model.
        Raises: StageMismatch: no such array fits.
        """
        if not self.takes(array):
            raise StageMismatch(f"{self.spec} for model {model}", f"{name}: {array}", remedy=self.remedy(array))

    def takes(self, array: ArraySpec) -> bool:
        """Return whether such an array fits, as far as it is known."""
        return self._takes_dtype(array.dtype) and self._takes_shape(array.shape)

    def converts(self, dtype: np.dtype[Any]) -> bool:
        """Return whether arrays of another dtype are converted."""
        return self.floats and (dtype in _WHOLE or (self.half and dtype == _SINGLE))

    def convert(self, array: Array) -> Array:
        """Convert an array of such a dtype.

        Raises: FrameError: a whole number has more digits than the model's dtype keeps.
        """
        if array.dtype != _SINGLE:
            try:
                return convert(array, self.dtype, label=self._label)
            except FrameError as error:
                remedy = f"The model takes {self.dtype}: subtract a constant at the sensor, or use a model of float64."
                raise FrameError(str(error), code=error.code, remedy=remedy) from error
        with np.errstate(over="ignore"):  # what is too large becomes infinite
            return array.astype(_HALF)

    def column(self, array: Array) -> Array | None:
        """Return the arrays of several frames, stacked along a first axis, as rows on the batch axis.

        Returns: a view where possible; None: the model does not take them so, or only after a closer look.
        Raises: FrameError: see `convert`.
        """
        if not self.ndim:
            return None
        if array.ndim == self.ndim + 1:  # each frame has a batch axis
            if array.shape[1 + self.axis] != 1:
                return None
            array = array.squeeze(1 + self.axis)
        elif array.ndim != self.ndim:
            return None
        if array.dtype != self.dtype:
            if not self.converts(array.dtype):
                return None
            array = self.convert(array)
        return np.moveaxis(array, 0, self.axis) if self.axis else array

    def _label(self, position: tuple[int, ...]) -> str:
        return self.tensor + "".join(f"[{index}]" for index in position)

    def _takes_dtype(self, dtype: str | None) -> bool:
        return dtype in (None, str(self.dtype)) or self.converts(np.dtype(dtype))

    def _takes_shape(self, shape: tuple[int | None, ...] | None) -> bool:
        if shape is None:
            return True
        if len(shape) == self.ndim - 1:  # `infer` adds the batch axis
            shape = (*shape[: self.axis], 1, *shape[self.axis :])
        return len(shape) == self.ndim and all(
            # A batch that is not full is padded.
            size is None or expected is None or size == expected or (axis == self.axis and 0 < size < expected)
            for axis, (size, expected) in enumerate(zip(shape, self.spec.shape, strict=True))
        )

    def remedy(self, array: ArraySpec) -> str:
        """Return what to change if an array does not fit."""
        if not self._takes_dtype(array.dtype):
            dtype = _SINGLE if self.half else self.dtype
            return f"Set `dtype: {dtype}` of the stage that makes it, or use a model that takes {array.dtype}."
        shape = array.shape or ()
        if len(shape) not in (self.ndim, self.ndim - 1):
            return f"Make it of {self.ndim} dimensions, with or without the batch axis, in a stage before this one."
        whole = (None, *shape) if len(shape) < self.ndim else shape
        if len(whole) == 4:
            batch, *sides = whole
            if self._takes_shape((batch, sides[2], sides[0], sides[1])):
                return "Set `layout: nchw` of the stage that makes it: the model takes channels first."
            if self._takes_shape((batch, sides[1], sides[2], sides[0])):
                return "Set `layout: nhwc` of the stage that makes it: the model takes channels last."
            if 3 in (sides[0], sides[2]) and 1 in self.spec.shape[1:]:
                return "Set `channels: grey` of `resize` or `letterbox`: the model takes one channel."
            height, width = self.spec.shape[2:] if sides[0] == self.spec.shape[1] else self.spec.shape[1:3]
            if width is not None and height is not None:
                return f"Set `size: [{width}, {height}]` of the stage that makes it, or use a model of that size."
        return "Change `size` of the stage that makes it, or use a model of that size."
