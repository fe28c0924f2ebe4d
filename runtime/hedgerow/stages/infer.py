"""The `infer` stage: runs a model on frames."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import Field

from hedgerow.backends.base import TensorSpec
from hedgerow.columns.frame_batch import FrameBatch, Irregular
from hedgerow.errors import ConfigError, FrameError, HedgerowError, ModelMismatch, StageMismatch
from hedgerow.frame import Array, Frame
from hedgerow.stage import ArraySpec, FrameSpec, ModelHandle, Outcome, Stage, StageConfig, StageContext
from hedgerow.stages.hidden_state import HiddenStates
from hedgerow.stages.model_input import ModelInput


class InferConfig(StageConfig):
    """Configuration of `infer`."""

    model: str = Field(description="Name of the model under `models:`.")
    inputs: dict[str, str] = Field(
        default_factory=dict,
        description="Model input → name of the frame's tensor, where the names differ.",
        examples=[{"x": "image"}],
    )
    keep: bool = Field(False, description="Keep the frame's tensors in addition to the model's outputs.")
    finite: bool = Field(True, description="Dead-letter a frame whose inputs contain NaN or infinity.")


class Infer(Stage[InferConfig]):
    """Run a model on frames; its outputs become the frame's tensors.

    Inputs are the frame's tensors, or its array if it has no tensors and the model has one input. A missing batch axis
    is added. Float32 becomes float16 for a model that takes it, and JSON's whole numbers and booleans (int64, uint64, bool)
    become floats, exactly. Outputs keep their batch axis, of size 1.

    Hidden state is stored per stream, and updated only after a successful inference. It is reset by a frame with
    `begins` in its meta (the first after a gap), and in all streams when the node swaps the model's version, unless the
    new version's manifest has `state: carries-over` in its parameters.
    """

    concurrent = True  # state belongs to streams, and a stream is in one lane at a time

    def setup(self, context: StageContext) -> None:
        """Load the model.

        Raises:
            ConfigError: the model is not configured, or lacks an input that `inputs` names.
            ModelError: the model cannot be loaded.
        """
        self._model: ModelHandle = context.model(self.config.model)
        specs = tuple(spec for spec in self._model.inputs if spec.name not in self._model.state)
        names = [spec.name for spec in specs]
        for name in self.config.inputs:
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1)
                raise ConfigError(
                    f"infer: model {self.config.model} has no input {name!r}; it has {', '.join(names)}",
                    remedy=f"Did you mean {near[0]!r}?" if near else f"Use one of {', '.join(names)}.",
                )
        self._inputs = [ModelInput(spec, self.config.inputs.get(spec.name, spec.name), self._model) for spec in specs]
        self._state_pairs = tuple(self._model.state.items())
        self._next_states = frozenset(self._model.state.values())
        self._states = HiddenStates(context, self._model, self._state_pairs) if self._state_pairs else None

    def output_spec(self, incoming: FrameSpec) -> FrameSpec:
        """Take what fills the model's inputs; give its outputs.

        Raises: StageMismatch: an input is filled by nothing, or by an array that does not fit.
        """
        model, tensors = self._model, incoming.tensors
        takes = f"{', '.join(str(input_.spec) for input_ in self._inputs)} for model {model.name}"
        if tensors:
            for input_ in self._inputs:
                if input_.tensor not in tensors:
                    gets = ", ".join(f"{name}: {spec}" for name, spec in tensors.items())
                    raise StageMismatch(takes, gets, remedy=self._missing_remedy(input_, tensors))
                input_.check(tensors[input_.tensor], input_.tensor, model.name)
        elif tensors is not None and self._inputs:
            if incoming.array is None:
                raise StageMismatch(takes, "frames that are not decoded", remedy="Put `decode` or `parse` before it.")
            if len(self._inputs) > 1:
                names = ", ".join(f"{input_.tensor}: FIELD" for input_ in self._inputs)
                remedy = f"Make these tensors in a stage before it: `parse: {{tensors: {{{names}}}}}`."
                raise StageMismatch(takes, f"one array, {incoming.array}", remedy=remedy)
            self._inputs[0].check(incoming.array, "an array", model.name)
        outputs = {spec.name: _output_spec(spec, model) for spec in model.outputs if spec.name not in self._next_states}
        if self.config.keep:
            return incoming.with_tensors(None if tensors is None else {**tensors, **outputs})
        return incoming.with_tensors(outputs)

    def _missing_remedy(self, missing: ModelInput, tensors: Mapping[str, ArraySpec]) -> str:
        unused = sorted(tensors.keys() - {input_.tensor for input_ in self._inputs})
        fitting = next((name for name in unused if missing.takes(tensors[name])), None)
        if fitting is not None:
            return f"Name its tensor: `inputs: {{{missing.name}: {fitting}}}`."
        if unused and len(self._inputs) == 1:
            return f"Name its tensor, `inputs: {{{missing.name}: {unused[0]}}}`. {missing.remedy(tensors[unused[0]])}"
        return f"Make {missing.tensor!r} too in a stage before it."

    def process_many(self, frames: Sequence[Frame]) -> Sequence[Outcome | Exception]:
        """Run the model on a list of frames, in as few batches as possible."""
        outcomes: list[Any] = []
        for frame in frames:
            try:
                outcomes.append(self._request(frame))
            except FrameError as error:
                outcomes.append(error)
        if self._states is None:
            self._infer(frames, outcomes, [i for i, request in enumerate(outcomes) if request.__class__ is dict])
        else:
            for positions in _rounds(frames, outcomes):
                self._infer_with_state(frames, outcomes, positions, self._states)
        return outcomes

    def _infer(self, frames: Sequence[Frame], outcomes: list[Any], positions: list[int]) -> None:
        """Replace the requests at these positions by the outcomes of their frames."""
        results = self._model.infer_each([outcomes[i] for i in positions])
        for i, result in zip(positions, results, strict=True):
            outcomes[i] = self._outcome(frames[i], outcomes[i], result)

    def _infer_with_state(
        self, frames: Sequence[Frame], outcomes: list[Any], positions: list[int], states: HiddenStates
    ) -> None:
        """Like `_infer` with hidden state; no two frames may be of one stream."""
        version = states.version()
        for i in positions:
            frame = frames[i]
            outcomes[i].update(states.one(frame.stream, version, begins=bool(frame.meta.get("begins"))))
        results = self._model.infer_each([outcomes[i] for i in positions])
        for i, result in zip(positions, results, strict=True):
            if result.__class__ is dict:
                states.put_one(frames[i].stream, version, result)
            outcomes[i] = self._outcome(frames[i], outcomes[i], result)

    def process_batch(self, batch: FrameBatch) -> FrameBatch:
        """Run the model on all rows as one request; a row with NaN or infinity is left to `process_many`.

        Raises: Irregular: the rows do not fit the model, or one of them makes it fail: `process_many` has to find which.
        """
        try:
            return self._process_batch(batch)
        except HedgerowError as error:
            raise Irregular from error

    def _process_batch(self, batch: FrameBatch) -> FrameBatch:
        inputs = {input_.name: self._column(batch, input_) for input_ in self._inputs}
        bad = self._not_finite_rows(inputs)
        begins = batch.meta_column("begins") if self._states is not None else ()
        if bad is None:
            outputs = self._infer_columns(inputs, batch.streams, begins)
        else:
            good = np.flatnonzero(~bad).tolist()
            if not good:
                raise Irregular
            for input_ in self._inputs:
                inputs[input_.name] = inputs[input_.name].take(good, input_.axis)
            some = self._infer_columns(
                inputs, [batch.streams[row] for row in good], [begins[row] for row in good] if begins else ()
            )
            outputs = {name: self._spread(name, array, good, len(batch)) for name, array in some.items()}
            for row in np.flatnonzero(bad).tolist():
                batch.defer(row)
        axes = self._model.batch_axis
        tensors = {}
        for name, array in outputs.items():
            axis = axes.get(name, 0)
            tensors[name] = array[np.newaxis].swapaxes(0, 1 + axis) if axis else array[:, np.newaxis]
        return batch.with_tensors({**batch.tensors, **tensors} if self.config.keep else tensors)

    def _spread(self, name: str, array: Array, rows: Sequence[int], count: int) -> Array:
        """Return an output of some rows as one of all; the others are zero."""
        axis = self._model.batch_axis.get(name, 0)
        whole = np.zeros((*array.shape[:axis], count, *array.shape[axis + 1 :]), array.dtype)
        whole.swapaxes(0, axis)[rows] = array.swapaxes(0, axis)
        return whole

    def _column(self, batch: FrameBatch, input_: ModelInput) -> Array:
        """Return what fills an input, its rows on the batch axis."""
        array = batch.tensors.get(input_.tensor) if batch.tensors else batch.array if len(self._inputs) == 1 else None
        column = None if array is None else input_.column(array)
        if column is None:
            raise Irregular
        return column

    def _not_finite_rows(self, inputs: Mapping[str, Array]) -> Array | None:
        """Return which rows contain NaN or infinity; None: none does."""
        if not self.config.finite:
            return None
        bad: Array | None = None
        for input_ in self._inputs:
            array = inputs[input_.name]
            if input_.floats and not _finite(array):
                others = tuple(axis for axis in range(array.ndim) if axis != input_.axis)
                rows: Array = np.logical_not(np.isfinite(array).all(axis=others))
                bad = rows if bad is None else bad | rows
        return bad

    def _infer_columns(
        self, inputs: dict[str, Array], streams: Sequence[str], begins: Sequence[Any]
    ) -> dict[str, Array]:
        """Run the model on rows of different streams. Returns: its outputs without hidden state, rows on their batch axis."""
        states = self._states
        if states is None:
            return self._model.infer_batch(inputs)
        version = states.version()
        found = states.many(streams, version, begins)
        if found is None:
            raise Irregular
        rows, before = found
        outputs = self._model.infer_batch({**inputs, **before})
        axes = self._model.batch_axis
        for name, array in outputs.items():  # before any state is stored: then nothing after it can fail
            axis = axes.get(name, 0)
            if array.ndim <= axis or array.shape[axis] != len(streams):
                raise Irregular
        if not states.put_many(rows, version, outputs):
            raise Irregular
        return outputs

    def _outcome(self, frame: Frame, request: dict[str, Array], result: Any) -> Frame | Exception:
        if result.__class__ is dict:
            return frame.with_tensors({**frame.tensors, **result} if self.config.keep else result)
        return (self._mismatch(request) if isinstance(result, ModelMismatch) else None) or result

    def _request(self, frame: Frame) -> dict[str, Array]:
        tensors = frame.tensors
        finite = self.config.finite
        request = {}
        for input_ in self._inputs:
            if tensors:
                array = tensors.get(input_.tensor)
                if array is None:
                    raise FrameError(
                        f"The frame has no tensor {input_.tensor!r}; it has {', '.join(tensors)}",
                        code="missing-tensor",
                        remedy=f"Add a stage before `infer` that creates it, or map it: `inputs: {{{input_.name}: NAME}}`.",
                    )
            elif len(self._inputs) == 1:
                array = frame.array
            else:
                raise FrameError(
                    f"Model {self.config.model} takes {', '.join(f.name for f in self._inputs)}; the frame has no tensors",
                    code="missing-tensor",
                    remedy="Add a stage before `infer` that creates these tensors.",
                )
            if array.ndim == input_.ndim - 1:
                array = array[np.newaxis] if input_.axis == 0 else np.expand_dims(array, input_.axis)
            fits = array.dtype == input_.dtype  # an array of another dtype is refused by the model later
            if not fits and input_.converts(array.dtype):
                array, fits = input_.convert(array), True
            if finite and input_.floats and fits and not _finite(array):
                bad = int(array.size - np.isfinite(array).sum())
                too_large = ", or too large for float16" if input_.half else ""
                raise FrameError(
                    f"{bad} of {array.size} values of {input_.tensor} are NaN or infinite{too_large}", code="not-finite"
                )
            request[input_.name] = array
        return request

    def _mismatch(self, request: dict[str, Array]) -> FrameError | None:
        """Return a FrameError that explains why a request does not fit the model."""
        for input_ in self._inputs:
            array = request[input_.name]
            if array.dtype != input_.spec.dtype:
                return FrameError(
                    f"{input_.tensor} is {array.dtype}; model {self.config.model} takes {input_.spec}",
                    code="dtype-mismatch",
                    remedy="Send true and false, or use a model that takes numbers."
                    if input_.spec.dtype.kind == "b"
                    else f"Set `dtype: {input_.spec.dtype}` of the stage that makes it (`parse`, `resize`), or use a model that takes {array.dtype}.",
                )
            if not input_.spec.fits(array.shape):
                return FrameError(
                    f"{input_.tensor} is {list(array.shape)}; model {self.config.model} takes {input_.spec}",
                    code="shape-mismatch",
                    remedy="Resize or crop in a stage before `infer`, or send frames of that size."
                    if len(input_.spec.shape) > 2
                    else "Send as many numbers as the model takes, or choose them with `field` of `parse`.",
                )
        return None


def _rounds(frames: Sequence[Frame], outcomes: Sequence[Any]) -> list[list[int]]:
    """Return the positions of the requests in rounds: round r has the r-th request of every stream."""
    rounds: list[list[int]] = []
    seen: dict[str, int] = {}
    for position, outcome in enumerate(outcomes):
        if outcome.__class__ is dict:
            stream = frames[position].stream
            number = seen[stream] = seen.get(stream, -1) + 1
            if number == len(rounds):
                rounds.append([])
            rounds[number].append(position)
    return rounds


def _output_spec(spec: TensorSpec, model: ModelHandle) -> ArraySpec:
    """Return what is known of an output; one without a shape may have any rank."""
    axis = model.batch_axis.get(spec.name, 0)
    shape = tuple(None if place == axis else size for place, size in enumerate(spec.shape))
    return ArraySpec(str(spec.dtype), shape or None)


def _finite(array: Array) -> bool:
    """Whether all values are finite.

    The sum of squares needs one pass and no temporary array, and is finite only if every value is. If it is not, large
    values may have overflowed, so a full check decides.
    """
    if array.itemsize < 4:  # half precision has no fast dot product; vdot, unlike dot, is silent when it overflows
        return bool(np.isfinite(array).all())
    flat = array.reshape(-1)
    return math.isfinite(np.vdot(flat, flat)) or bool(np.isfinite(array).all())
