"""The built-in stage `infer`: run a model on frames."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import Field

from hedgerow.backends.base import TensorSpec
from hedgerow.errors import ConfigError, FrameError, ModelMismatch
from hedgerow.frame import Array, Frame
from hedgerow.stage import ModelHandle, Outcome, PerStream, Stage, StageConfig, StageContext


class InferConfig(StageConfig):
    """What `infer` takes."""

    model: str = Field(description="The model's name under `models:`.")
    inputs: dict[str, str] = Field(
        default_factory=dict,
        description="Model input → name of the frame's tensor, where they differ.",
        examples=[{"x": "image"}],
    )
    keep: bool = Field(False, description="Keep the frame's own tensors beside the model's outputs.")
    finite: bool = Field(True, description="Dead-letter a frame whose floats hold NaN or infinity.")


class Infer(Stage[InferConfig]):
    """Run a model on frames and leave its outputs as the frame's tensors.

    Takes the frame's tensors; for a model with one input, and a frame without tensors, its array. One that lacks the
    batch axis gets it. A model's hidden state is kept for each stream and moves on only when an inference succeeds; a
    frame whose meta says `begins`, the first after a gap, finds it at zero again; so does every stream when the node goes over to another version of the
    model, but where that one's manifest says `state: carries-over` under its parameters.
    Outputs keep their batch axis, of size 1.
    """

    concurrent = True  # state belongs to streams, and a stream is in one lane at a time

    def setup(self, context: StageContext) -> None:
        """Load the model.

        Raises:
            ConfigError: `inputs` names an input that the model does not have.
            ModelError: the model cannot be loaded.
        """
        self._model: ModelHandle = context.model(self.config.model)
        self._specs = tuple(spec for spec in self._model.inputs if spec.name not in self._model.state)
        names = [spec.name for spec in self._specs]
        for name in self.config.inputs:
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1)
                raise ConfigError(
                    f"infer: model {self.config.model} has no input {name!r} to be given (it has {', '.join(names)})",
                    remedy=f"Did you mean {near[0]!r}?" if near else f"Use one of {', '.join(names)}.",
                )
        self._feeds = [_Feed(spec, self.config.inputs.get(spec.name, spec.name), self._model) for spec in self._specs]
        self._moves = tuple(self._model.state.items())
        self._states: PerStream[_Hidden] | None = context.per_stream(_Hidden) if self._moves else None

    def process_many(self, frames: Sequence[Frame]) -> Sequence[Outcome | Exception]:
        """Run the model on all frames that wait, in as few batches as it can."""
        outcomes: list[Any] = []
        for frame in frames:
            try:
                outcomes.append(self._request(frame))
            except FrameError as error:
                outcomes.append(error)
        if self._states is None:
            self._infer(frames, outcomes, [i for i, request in enumerate(outcomes) if request.__class__ is dict])
        else:
            for turn in _rounds(frames, outcomes):
                self._infer_with_state(frames, outcomes, turn, self._states)
        return outcomes

    def _infer(self, frames: Sequence[Frame], outcomes: list[Any], turn: list[int]) -> None:
        """Replace the requests at these positions by what becomes of their frames."""
        results = self._model.infer_each([outcomes[i] for i in turn])
        for i, result in zip(turn, results, strict=True):
            outcomes[i] = self._outcome(frames[i], outcomes[i], result)

    def _infer_with_state(
        self, frames: Sequence[Frame], outcomes: list[Any], turn: list[int], states: PerStream[_Hidden]
    ) -> None:
        """As `_infer`, for frames of different streams."""
        moves = self._moves
        token, zero = self._model.state_token, self._model.zero_state
        requests, before = [], []
        for i in turn:
            frame, request = frames[i], outcomes[i]
            if frame.meta.get("begins"):
                states.pop(frame.stream, None)
            hidden = states[frame.stream]
            if hidden.token is not token:  # it has just begun, or belongs to a version that no longer serves the stream
                hidden.token, hidden.arrays = token, zero()
            request.update(hidden.arrays)
            requests.append(request)
            before.append(hidden.arrays)
        results = self._model.infer_each(requests)
        for i, state, result in zip(turn, before, results, strict=True):
            if result.__class__ is dict:
                # Copied, so that a silent stream does not keep the whole batch in memory.
                for name, output in moves:
                    moved, kept = result.pop(output), state[name]
                    if kept.shape == moved.shape:
                        kept[...] = moved
                    else:
                        state[name] = moved.copy()
            outcomes[i] = self._outcome(frames[i], outcomes[i], result)

    def _outcome(self, frame: Frame, request: dict[str, Array], result: Any) -> Frame | Exception:
        if result.__class__ is dict:
            return frame.with_tensors({**frame.tensors, **result} if self.config.keep else result)
        return (self._misfit(request) if isinstance(result, ModelMismatch) else None) or result

    def _request(self, frame: Frame) -> dict[str, Array]:
        tensors = frame.tensors
        finite = self.config.finite
        request = {}
        for feed in self._feeds:
            if tensors:
                array = tensors.get(feed.tensor)
                if array is None:
                    raise FrameError(
                        f"The frame has no tensor {feed.tensor!r} (it has {', '.join(tensors)})",
                        code="missing-tensor",
                        remedy=f"Put a stage before `infer` that makes it, or map it: `inputs: {{{feed.name}: NAME}}`.",
                    )
            elif len(self._feeds) == 1:
                array = frame.array
            else:
                raise FrameError(
                    f"Model {self.config.model} takes {', '.join(f.name for f in self._feeds)}; the frame has no tensors",
                    code="missing-tensor",
                    remedy="Put a stage before `infer` that makes these tensors.",
                )
            if array.ndim == feed.ndim - 1:
                array = array[np.newaxis] if feed.axis == 0 else np.expand_dims(array, feed.axis)
            # Of another type than the model's, it is refused by the model later on.
            if finite and feed.floats and array.dtype == feed.dtype and not _finite(array):
                bad = int(array.size - np.isfinite(array).sum())
                raise FrameError(
                    f"{feed.tensor} holds {bad} of {array.size} values that are NaN or infinite", code="not-finite"
                )
            request[feed.name] = array
        return request

    def _misfit(self, request: dict[str, Array]) -> FrameError | None:
        """Why a request does not fit the model, in words for whoever sends the frames."""
        for feed in self._feeds:
            array = request[feed.name]
            if array.dtype != feed.spec.dtype:
                return FrameError(
                    f"{feed.tensor} is {array.dtype}; model {self.config.model} takes {feed.spec}",
                    code="dtype-mismatch",
                    remedy=f"Put a stage before `infer` that makes {feed.spec.dtype}; nothing is converted silently.",
                )
            if not feed.spec.fits(array.shape):
                return FrameError(
                    f"{feed.tensor} is {list(array.shape)}; model {self.config.model} takes {feed.spec}",
                    code="shape-mismatch",
                    remedy="Resize or cut in a stage before `infer`, or send frames of that size.",
                )
        return None


class _Hidden:
    """A stream's hidden state, and what it belongs to."""

    __slots__ = ("arrays", "token")

    def __init__(self) -> None:
        self.token: object = None
        self.arrays: dict[str, Array] = {}


class _Feed:
    """How one input of the model is filled."""

    __slots__ = ("axis", "dtype", "floats", "name", "ndim", "spec", "tensor")

    def __init__(self, spec: TensorSpec, tensor: str, model: ModelHandle) -> None:
        self.spec = spec
        self.name = spec.name
        self.tensor = tensor
        self.dtype = spec.dtype
        self.ndim = len(spec.shape)
        self.axis = model.batch_axis.get(spec.name, 0)
        self.floats = spec.dtype.kind == "f"


def _rounds(frames: Sequence[Frame], outcomes: Sequence[Any]) -> list[list[int]]:
    """Positions of the requests in rounds: round r has the r-th of every stream."""
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


def _finite(array: Array) -> bool:
    """Whether all values are finite.

    The sum of squares tells in one pass without a temporary array: it is finite only if every value is. When it is not,
    it may be that large values overflowed, so a second look decides.
    """
    if array.itemsize < 4:  # half precision has no fast dot product; vdot, unlike dot, is silent when it overflows
        return bool(np.isfinite(array).all())
    flat = array.reshape(-1)
    return math.isfinite(np.vdot(flat, flat)) or bool(np.isfinite(array).all())
