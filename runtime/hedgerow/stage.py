"""What a plugin author implements: a stage, its configuration, and what it sees of the node.

Rules:
- A stage is plain synchronous Python, called from one thread at a time (unless it says it is `concurrent`).
- A stage gets frames of one stream in order; it may see many streams.
- What `process` raises dead-letters that frame, nothing else. Raise `FrameError` for bad data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeAlias, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict

from hedgerow.backends.base import TensorSpec
from hedgerow.errors import HedgerowError
from hedgerow.frame import Array, Drop, Frame

Outcome: TypeAlias = Frame | Drop | Iterable[Frame] | None
"""What a stage makes of one frame: a frame, several, none (None or empty), or a decision to drop it."""

S = TypeVar("S")


class StageConfig(BaseModel):
    """Base of every stage's configuration: frozen, unknown keys refused, units in names (`max_age_s`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")


C = TypeVar("C", bound=StageConfig)


class ModelSignature(Protocol):
    """What goes into a model and what comes out; what a stage has seen of it must stay true."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Inputs a caller must give; what the configuration fixes (`constants`) is left out."""
        ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What comes back."""
        ...

    @property
    def state(self) -> Mapping[str, str]:
        """Hidden state, as input name → output name; empty for a stateless model."""
        ...

    @property
    def batch_axis(self) -> Mapping[str, int]:
        """Axis that batches are stacked on, of the inputs and outputs where it is not 0."""
        ...


class ModelHandle(ModelSignature, Protocol):
    """All that a stage sees of a model: what goes in, what comes out, and a call that runs it."""

    @property
    def name(self) -> str:
        """The model's name in the configuration."""
        ...

    @property
    def metadata(self) -> Mapping[str, str]:
        """The model's own metadata, e.g. ONNX `metadata_props`."""
        ...

    def infer(self, requests: Sequence[Mapping[str, Array]]) -> list[dict[str, Array]]:
        """Run the model on every request; batches form by themselves, across callers too.

        Blocks, with the interpreter lock released while the backend runs.

        Args:
            requests: an array for every input, each with its batch axis (of size 1 or more).
        Returns: the outputs of every request, in order.
        Raises:
            ModelMismatch: an array does not fit the model; the message says which and why.
            InferenceError: the backend failed.
        """
        ...

    def infer_each(self, requests: Sequence[Mapping[str, Array]]) -> list[dict[str, Array] | HedgerowError]:
        """As `infer`, but a request that fails has its error in its place and harms no other."""
        ...

    def zero_state(self) -> dict[str, Array]:
        """Hidden state of a stream that has just begun, by input name, with a batch axis of size 1."""
        ...

    @property
    def state_token(self) -> object:
        """What hidden state belongs to: it changes when the node goes over to another version of the model.

        State that was kept under another token must begin at `zero_state` again. It is the same throughout a list of frames.
        """
        ...


class PerStream(dict[str, S]):
    """State by stream: `state[frame.stream]` makes a new one at first sight.

    The node forgets streams that have fallen silent, longest silent first, when there are too many.
    """

    def __init__(self, factory: Callable[[], S]) -> None:
        super().__init__()
        self._factory = factory

    def __missing__(self, stream: str) -> S:
        value = self[stream] = self._factory()
        return value


class StageContext(Protocol):
    """What a stage may ask of the node while it is set up."""

    @property
    def pipeline(self) -> str:
        """Name of the pipeline the stage stands in."""
        ...

    def model(self, name: str) -> ModelHandle:
        """The model of that name in the configuration, loaded and ready.

        Raises: ModelError: there is none, or it cannot be loaded; the message says which and why.
        """
        ...

    def per_stream(self, factory: Callable[[], S]) -> PerStream[S]:
        """State by stream, forgotten by the node when a stream falls silent."""
        ...

    def path(self, path: Path) -> Path:
        """A path from the stage's configuration; a relative one starts at the folder of the configuration's file."""
        ...


class Stage(Generic[C]):
    """One step of a pipeline: a frame in, zero or more frames out.

    Implement `process`, or, to see all waiting frames at once, `process_many`.

    Attributes:
        config: the validated configuration; its class is the stage's type argument.
        concurrent: whether `process` may be called from several threads at once. Say so for stages that keep no state
            of their own and spend their time outside the interpreter lock.
    """

    config: C
    concurrent: ClassVar[bool] = False
    config_type: ClassVar[type[StageConfig]] = StageConfig

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for base in cls.__dict__.get("__orig_bases__", ()):
            origin, args = get_origin(base), get_args(base)
            if isinstance(origin, type) and issubclass(origin, Stage) and args and isinstance(args[0], type):
                cls.config_type = args[0]

    def __init__(self, config: C) -> None:
        self.config = config

    def setup(self, context: StageContext) -> None:
        """Get ready: ask for models, make state. Called once, before the first frame."""

    def process(self, frame: Frame) -> Outcome:
        """Make something of one frame.

        Raises: FrameError: the frame is bad; it is dead-lettered with the error's code as the reason.
        """
        raise NotImplementedError(f"{type(self).__name__} implements neither process nor process_many")

    def process_many(self, frames: Sequence[Frame]) -> Sequence[Outcome | Exception]:
        """Make something of all the frames that wait, at once.

        Overriding it is for stages that vectorise. If it raises, the frames are given again one at a time so that
        only the bad one is dead-lettered: change no state before the last line that may raise.

        Returns: one outcome a frame, in order; an exception in its place dead-letters that frame alone.
        """
        outcomes: list[Outcome | Exception] = []
        process = self.process
        for frame in frames:
            try:
                outcome = process(frame)
                if outcome.__class__ is not Frame and outcome is not None and not isinstance(outcome, (Frame, Drop)):
                    outcome = list(outcome)  # a generator raises only here
            except Exception as error:  # noqa: BLE001 - an author's stage may raise anything
                outcomes.append(error)
            else:
                outcomes.append(outcome)
        return outcomes

    def close(self) -> None:
        """Let go of what `setup` took. Called once, after the last frame."""
