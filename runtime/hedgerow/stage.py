"""The API that plugin authors implement: a stage, its configuration, and its view of the node.

Rules:
- A stage is plain synchronous Python, called from one thread at a time unless it is `concurrent`.
- A stage receives the frames of each stream in order, and may receive many streams.
- An exception in `process` dead-letters that frame only. Raise `FrameError` for bad data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Final, Generic, Protocol, TypeAlias, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict

from hedgerow.backends.base import TensorSpec
from hedgerow.columns.frame_batch import FrameBatch, Irregular
from hedgerow.columns.stream_table import StreamTable
from hedgerow.errors import HedgerowError, StageMismatch
from hedgerow.frame import Array, Drop, Frame

Outcome: TypeAlias = Frame | Drop | Iterable[Frame] | None
"""Return value of a stage for one frame: a frame, several, none (None or empty), or a `Drop`."""

MOST_PARTS: Final = 65_536
"""Most frames that a stage may return for one frame."""

S = TypeVar("S")


class StageConfig(BaseModel):
    """Base of stage configurations: frozen, unknown keys are errors, units in names (`max_age_s`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")


C = TypeVar("C", bound=StageConfig)

THRESHOLD: Final[dict[str, Any]] = {"threshold": True}
"""Marks a number of a stage's configuration that operators may change on a running node, within its limits:
`min_score: float = Field(0.5, ge=0, le=1, json_schema_extra=THRESHOLD)`."""


def is_threshold(config_type: type[StageConfig], setting: str) -> bool:
    """Return whether a setting is declared as a threshold."""
    field = config_type.model_fields.get(setting)
    extra = None if field is None else field.json_schema_extra
    return isinstance(extra, dict) and extra.get("threshold") is True


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """What is known of an array before the first frame.

    Attributes:
        dtype: name of its numpy dtype; None: unknown.
        shape: one entry per dimension, None for any size; None: unknown rank.
    """

    dtype: str | None = None
    shape: tuple[int | None, ...] | None = None

    @classmethod
    def of(cls, array: Array | TensorSpec) -> ArraySpec:
        """Return the spec of an array, or of a model's input or output."""
        return cls(str(array.dtype), tuple(array.shape))

    def agrees(self, other: ArraySpec) -> bool:
        """Return whether an array may be of both specs; what is unknown agrees with anything."""
        if None not in (self.dtype, other.dtype) and self.dtype != other.dtype:
            return False
        if self.shape is None or other.shape is None:
            return True
        return len(self.shape) == len(other.shape) and all(
            None in pair or pair[0] == pair[1] for pair in zip(self.shape, other.shape, strict=True)
        )

    def __str__(self) -> str:
        if self.dtype is None and self.shape is None:
            return "unknown"
        dims = "…" if self.shape is None else ", ".join("?" if dim is None else str(dim) for dim in self.shape)
        return f"{self.dtype or 'any'}[{dims}]"


@dataclass(frozen=True, slots=True)
class FrameSpec:
    """What is known of the frames between two stages before the first one comes; by default, nothing.

    Attributes:
        array: their array; None: they have none.
        tensors: their tensors by name; None: unknown.
        meta: keys that their meta may have, with the value if it is always the same, else None.
        more_meta: whether it may have other keys.
        content_type: media type of their payload, or a range (`image/*`, `audio/*`) once a stage has read it; None: unknown.
        unstated: whether their sender states nothing, so that settings apply such as the rate of sound.
    """

    array: ArraySpec | None = ArraySpec()
    tensors: Mapping[str, ArraySpec] | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    more_meta: bool = True
    content_type: str | None = None
    unstated: bool = False

    def with_array(self, array: ArraySpec, **meta: Any) -> FrameSpec:
        """Return a copy with another array, and additional meta."""
        return replace(self, array=array, meta={**self.meta, **meta})

    def with_tensors(self, tensors: Mapping[str, ArraySpec] | None, **meta: Any) -> FrameSpec:
        """Return a copy with other tensors, and additional meta."""
        return replace(self, tensors=tensors, meta={**self.meta, **meta})

    def with_meta(self, **meta: Any) -> FrameSpec:
        """Return a copy with additional meta."""
        return replace(self, meta={**self.meta, **meta})

    def expect_array(self, *accepted: ArraySpec, remedy: str) -> ArraySpec:
        """Check that frames have an array, of one of these specs if any are given.

        Returns: what is known of it.
        Raises: StageMismatch: they have none, or of another kind.
        """
        takes = " or ".join(map(str, accepted))
        if self.array is None:
            raise StageMismatch(f"an array{f', {takes}' if takes else ''}", "frames without one", remedy=remedy)
        if accepted and not any(map(self.array.agrees, accepted)):
            raise StageMismatch(f"an array, {takes}", str(self.array), remedy=remedy)
        return self.array

    def expect_tensor(self, name: str, *accepted: ArraySpec, remedy: str) -> ArraySpec:
        """Check that frames have a tensor, of one of these specs if any are given.

        Returns: what is known of it.
        Raises: StageMismatch: they have none of that name, or of another kind.
        """
        if self.tensors is None:
            return ArraySpec()
        found, takes = self.tensors.get(name), " or ".join(map(str, accepted))
        if found is None:
            listed = ", ".join(f"{key}: {spec}" for key, spec in self.tensors.items())
            raise StageMismatch(f"the tensor {name!r}", listed or "frames without tensors", remedy=remedy)
        if accepted and not any(map(found.agrees, accepted)):
            raise StageMismatch(f"{name}: {takes}", f"{name}: {found}", remedy=remedy)
        return found

    def expect_meta(self, key: str, *, remedy: str) -> Any:
        """Check that frames have a key in their meta.

        Returns: its value; None: unknown.
        Raises: StageMismatch: no stage before sets it.
        """
        if key not in self.meta and not self.more_meta:
            raise StageMismatch(f"meta {key!r}", "frames without it", remedy=remedy)
        return self.meta.get(key)


class ModelSignature(Protocol):
    """Inputs and outputs of a model; they never change while a stage uses it."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Inputs that a caller must pass; without those that the configuration fixes (`constants`)."""
        ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Outputs of the model."""
        ...

    @property
    def state(self) -> Mapping[str, str]:
        """Hidden state: input name → output name; empty for a stateless model."""
        ...

    @property
    def batch_axis(self) -> Mapping[str, int]:
        """Batch axis of the inputs and outputs where it is not 0."""
        ...


class ModelHandle(ModelSignature, Protocol):
    """A stage's view of a model: its inputs and outputs, and methods that run it."""

    @property
    def name(self) -> str:
        """The model's name in the configuration."""
        ...

    @property
    def metadata(self) -> Mapping[str, str]:
        """Metadata of the model file, e.g. ONNX `metadata_props`."""
        ...

    def infer(self, requests: Sequence[Mapping[str, Array]]) -> list[dict[str, Array]]:
        """Run the model on every request; requests are batched automatically, across callers too.

        Blocks, with the interpreter lock released while the backend runs.

        Args:
            requests: for each, an array per input, with its batch axis (of size 1 or more).
        Returns: the outputs of each request, in order.
        Raises:
            ModelMismatch: an array does not fit the model; the message names it and says why.
            InferenceError: the backend failed.
        """
        ...

    def infer_each(self, requests: Sequence[Mapping[str, Array]]) -> list[dict[str, Array] | HedgerowError]:
        """Like `infer`, but returns the error of a failed request in its place; other requests are unaffected."""
        ...

    def infer_batch(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model on rows of several frames at once, batched with the requests of other callers.

        The outputs are those of `infer_each` for the same rows. If it raises, nothing is counted as failed: call
        `infer_each` for the single rows then, as `process_many` does after `Irregular`.

        Args:
            inputs: an array per input, with as many rows on its batch axis as there are frames.
        Returns: new arrays, one per output, with a row per frame on their batch axis.
        Raises:
            ModelMismatch: an array does not fit the model, or the model takes no batches.
            InferenceError: the backend failed, perhaps for a single row.
        """
        ...

    def zero_state(self) -> dict[str, Array]:
        """Return the hidden state of a new stream, by input name, with a batch axis of size 1."""
        ...

    @property
    def state_token(self) -> object:
        """Identifies the model version that hidden state belongs to; changes when the node swaps the version.

        State stored under another token must be reset to `zero_state`. The token is constant during a list of frames.
        """
        ...


class PerStream(dict[str, S]):
    """State by stream: `state[frame.stream]` creates it on first access.

    When there are too many streams, the node discards the state of those silent for longest.
    """

    def __init__(self, factory: Callable[[], S]) -> None:
        super().__init__()
        self._factory = factory

    def __missing__(self, stream: str) -> S:
        value = self[stream] = self._factory()
        return value


class StageContext(Protocol):
    """A stage's view of the node during `setup`."""

    @property
    def pipeline(self) -> str:
        """Name of the stage's pipeline."""
        ...

    def model(self, name: str) -> ModelHandle:
        """Return the model configured under this name, loaded and ready.

        Raises:
            ConfigError: the model is not configured.
            ModelError: the model cannot be loaded.
        """
        ...

    @property
    def models(self) -> Sequence[ModelHandle]:
        """Models that this pipeline's stages have requested so far, in order."""
        ...

    def per_stream(self, factory: Callable[[], S]) -> PerStream[S]:
        """Return per-stream state; when there are too many streams, the node discards the one silent for longest."""
        ...

    def stream_table(self, **columns: tuple[Any, ...]) -> StreamTable:
        """Return per-stream state as arrays with a row per stream, for `process_batch`; discarded likewise.

        Args:
            columns: for each array: shape of a row, dtype, and optionally its initial value (else 0, or None for objects).
        """
        ...

    def path(self, path: Path) -> Path:
        """Resolve a path from the stage's configuration, relative to the folder of the configuration file."""
        ...


class Stage(Generic[C]):
    """One step of a pipeline: a frame in, zero or more frames out.

    Implement `process`, or `process_many` to process a list of frames at once. A stage that computes on arrays may
    implement `process_batch` in addition.

    Attributes:
        config: the validated configuration, of the class given as type argument.
        concurrent: whether several threads may call `process` at once. Set it for stages without state of their own
            that spend their time outside the interpreter lock.
        max_list: most frames that the node gives it at once; None: no limit. Set it for a stage that waits, for a device
            or a service: several lanes then share its frames.
    """

    config: C
    concurrent: ClassVar[bool] = False
    max_list: ClassVar[int | None] = None
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
        """Prepare: request models, create state. Called once, before the first frame."""

    def output_spec(self, incoming: FrameSpec) -> FrameSpec:
        """Declare what the stage takes and gives, so that a chain that cannot work is refused before the first frame.

        Called after `setup`. Without it, the stage takes anything, and what it gives is unknown.

        Args:
            incoming: what is known of the frames that arrive.
        Returns: what is known of the frames that it passes on.
        Raises: StageMismatch: every such frame would be dead-lettered, or give a wrong answer.
        """
        return FrameSpec()

    def process(self, frame: Frame) -> Outcome:
        """Process one frame.

        Raises: FrameError: the frame is bad; it is dead-lettered with the error's code as reason.
        """
        raise NotImplementedError(f"{type(self).__name__} implements neither process nor process_many")

    def process_many(self, frames: Sequence[Frame]) -> Sequence[Outcome | Exception]:
        """Process a list of frames.

        Override it to vectorise. If it raises, it is called again with one frame at a time, so that only the bad frame
        is dead-lettered: change no state before the last line that may raise.

        Returns: one outcome per frame, in order; an exception dead-letters that frame only.
        """
        return process_each(self.process, frames, [])

    def process_batch(self, batch: FrameBatch) -> FrameBatch:
        """Process a list of frames as columns: an array operation for the list instead of one per frame.

        Optional, in addition to `process` or `process_many`, which process the frames that do not fit into columns. All
        of them must give the same for a frame, and use the same state (`StageContext.stream_table`).

        Rows that are unlike the others leave by `batch.leave` or `batch.defer`. If it raises, `process_many` gets the
        frames, so change no state before the last line that may raise.

        Args:
            batch: frames of different streams.
        Returns: the same rows in the same order.
        Raises: Irregular: it does not take this batch.
        """
        raise Irregular

    def close(self) -> None:
        """Release what `setup` acquired. Called once, after the last frame."""


def takes_batches(stage_type: type[Stage[Any]]) -> bool:
    """Return whether a stage implements `process_batch`, for the `process` or `process_many` that it has.

    A subclass that overrides only one of those processes frames in its own way: the inherited `process_batch` does not.
    """
    for base in stage_type.__mro__:
        if "process_batch" in vars(base):
            return base is not Stage
        if "process" in vars(base) or "process_many" in vars(base):
            return False
    return False


def process_each(process: Callable[[Frame], Outcome], frames: Sequence[Frame], outcomes: list[Any]) -> list[Any]:
    """Process frames one by one, as a stage without `process_many` does.

    Args:
        process: the stage's method.
        frames: the frames, in order.
        outcomes: gets the outcome of each frame, and so shows how far the stage is.
    Returns: `outcomes`.
    """
    for frame in frames:
        try:
            outcome = process(frame)
            kind = type(outcome)
            if kind is Frame or kind is list or outcome is None:
                pass  # nearly always; to ask an abstract class takes as long as a small stage
            elif isinstance(outcome, Iterable) and not isinstance(outcome, (Drop, Sequence, Mapping)):
                outcome = list(islice(outcome, MOST_PARTS + 1))  # a generator runs only here
        except BaseException as error:  # noqa: BLE001 - a plugin may raise anything, such as a panic of native code
            outcomes.append(error)
        else:
            outcomes.append(outcome)
    return outcomes
