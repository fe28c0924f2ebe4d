"""What a detector knows of the model whose outputs it decodes: labels, shapes and metadata."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from hedgerow import HedgerowError, ModelHandle
from hedgerow.errors import ModelMismatch
from hedgerow.models.bundle.class_names import class_names

Shape = tuple[int | None, ...]


_NO_OBJECT: Final = ("no-object", "no object", "no_object", "background", "__background__")
_TENSORFLOW: Final = "???"
"""TensorFlow's first label, and in other places a class without a name."""


class BadLabels(HedgerowError):
    """The labels of a detector cannot be used."""

    code = "bad-labels"

    def __init__(self, message: str, outside: str | None = None) -> None:
        super().__init__(message, remedy="Correct `labels`, `labels_file` or `only` of this stage.", outside=outside)


class Source:
    """One version of the model whose outputs a detector decodes.

    Args:
        model: None if the stage runs without a model before it, as in tests: then only what is configured is known.
        labels: configured names of the classes; empty: those in the model's metadata.
        only: labels to keep; empty: all.
    Attributes:
        token: identifies the version, see `ModelHandle.state_token`.
        labels: names of the classes, by index; empty: not known.
        only: indices of the classes to keep; None: all.
        metadata: of the model.
    Raises: BadLabels: `only` names labels that do not exist.
    """

    def __init__(self, model: ModelHandle | None, labels: Sequence[str], only: Sequence[str]) -> None:
        self.token = None if model is None else model.state_token
        self.metadata: Mapping[str, str] = {} if model is None else model.metadata
        self.labels = tuple(labels) or class_names(self.metadata)
        self._name = "the model" if model is None else model.name
        self._shapes: dict[str, Shape] = {} if model is None else {spec.name: spec.shape for spec in model.outputs}
        self._dtypes = {} if model is None else {spec.name: spec.dtype for spec in model.outputs}
        self._inputs: list[Shape] = [] if model is None else [spec.shape for spec in model.inputs]
        self.only: NDArray[np.intp] | None = None
        if only:
            if missing := sorted(set(only) - set(self.labels)):
                raise BadLabels(f"`only` names labels that do not exist: {', '.join(missing)}")
            self.only = np.flatnonzero(np.isin(self.labels, only))

    @property
    def input_size(self) -> tuple[int, int] | None:
        """Width and height of the model's picture, pixels; None: not known, or any."""
        for shape in self._inputs:
            if len(shape) == 4:
                height, width = shape[2:] if shape[1] in (1, 3) else shape[1:3]
                return None if width is None or height is None else (width, height)
        return None

    def has(self, output: str) -> bool:
        """Whether the model has such an output."""
        return output in self._shapes

    def shape(self, output: str) -> Shape | None:
        """Return the shape of an output; None: not known."""
        return self._shapes.get(output) or None

    def masks(self, output: str) -> int | None:
        """Return the number of prototype masks, which another output holds at a quarter of the input's size."""
        size = self.input_size
        for name, shape in self._shapes.items():
            if name != output and size is not None and shape[2:] == (size[1] // 4, size[0] // 4):
                return shape[1]
        return None

    def label(self, index: int) -> str:
        """Return the name of a class, or its index if it has none."""
        return (self.labels[index] if index < len(self.labels) else "") or str(index)

    def described(self, output: str) -> str:
        """Describe an output: its model, name and shape."""
        sides = ", ".join("?" if side is None else str(side) for side in self._shapes.get(output, ()))
        return f"{output} [{sides}] of {self._name}"

    @property
    def background(self) -> Literal["first", "last"] | None:
        """Class that is no object, as far as the labels say."""
        if self.labels and self.labels[-1].lower() in _NO_OBJECT:
            return "last"
        return "first" if self.labels and self.labels[0].lower() in _NO_OBJECT else None

    @property
    def may_be_shifted(self) -> bool:
        """Whether the first label is no object, which a model may count as class 0 or not."""
        return bool(self.labels) and (self.background == "first" or self.labels[0] == _TENSORFLOW)

    def check_floats(self, *outputs: str) -> None:
        """Check that outputs with scores are floats. Raises: ModelMismatch: one is not: it is quantised."""
        for name in outputs:
            dtype = self._dtypes.get(name)
            if dtype is not None and dtype.kind != "f":
                raise ModelMismatch(
                    f"{self.described(name)} is {dtype}, and scores between 0 and 1 cannot be",
                    remedy="Export the model with its outputs dequantised to float32.",
                )

    def check_classes(self, classes: int | None, what: str, note: str = "") -> None:
        """Check the number of classes. Raises: ModelMismatch: there is another number of labels."""
        if classes is not None and self.labels and classes != len(self.labels):
            raise ModelMismatch(
                f"{what} has {classes} classes{note}, but there are {len(self.labels)} labels",
                remedy="Give the labels that the model was trained with, one for each class; a blank line for one without.",
            )


def model_before(models: Sequence[Any], outputs: Sequence[str]) -> ModelHandle | None:
    """Return the last of the models that has all of these outputs; None: none has."""
    for model in reversed(models):
        if set(outputs) <= {spec.name for spec in model.outputs}:
            handle: ModelHandle = model
            return handle
    return None
