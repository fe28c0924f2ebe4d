"""Contract tests for stages, with real frames: used by `hedgerow plugin test`, and usable in tests.

    for promise in try_stage([StageEntry(name="dim-light", config={"ceiling": 5})], frames):
        assert promise.kept, promise.detail

Each check uses a new instance of the stage; models are loaded once.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from hedgerow.backends.cores import cores
from hedgerow.config import ModelConfig, StageEntry
from hedgerow.errors import FrameError, StageMismatch
from hedgerow.frame import Frame
from hedgerow.models.serving.pool import ModelPool
from hedgerow.pipeline.chain.build import PipelineContext, build_chain, set_up
from hedgerow.pipeline.chain.live import FrameOutcome
from hedgerow.pipeline.chain.specs import RECEIVED, UNKNOWN, output_spec
from hedgerow.pipeline.chain.stage_failure import StageFailed
from hedgerow.stage import ArraySpec, FrameSpec
from hedgerow.testing.column_contract import Lists, compare_columns, mixed_rounds
from hedgerow.testing.comparison import contents, difference, on_stream, same, short
from hedgerow.testing.kit import column_outcomes_of, outcomes_of


@dataclass(frozen=True, slots=True)
class Promise:
    """A promise of the stage contract, and whether a stage keeps it.

    Attributes:
        name: the promise, as a sentence.
        kept: whether the stage keeps it.
        detail: how the stage breaks it, or a remark, or "".
    """

    name: str
    kept: bool
    detail: str = ""


def try_stage(
    stages: Sequence[StageEntry],
    samples: Sequence[Frame],
    *,
    models: Mapping[str, ModelConfig] | None = None,
    base_dir: Path = Path(),
) -> list[Promise]:
    """Test a stage against the stage contract (see `hedgerow.stage`).

    Args:
        stages: the stages before it, and the stage itself as the last one.
        samples: frames that the first of them can process.
        models: models that they may request, by name.
        base_dir: folder that relative model paths start from.
    Raises:
        HedgerowError: a stage cannot be created or set up.
        FrameError: no sample reaches the stage.
    """
    *before, stage = stages
    pool = ModelPool(cores=cores())

    def run(entries: Sequence[StageEntry], lists: Lists) -> tuple[list[FrameOutcome], int]:
        context = PipelineContext("test", models or {}, base_dir, pool)
        chain = build_chain(entries, context)
        counts: dict[str, int] = {}
        try:
            return [
                outcome
                for frames, columns in lists
                for outcome in (column_outcomes_of(chain, frames, counts) if columns else outcomes_of(chain, frames))
            ], sum(counts.values())
        finally:
            chain.close()
            context.release()

    model_holder = PipelineContext("test", models or {}, base_dir, pool)  # keeps models loaded between checks
    try:
        received = not any(sample.has_array or sample.tensors for sample in samples)
        build_chain(before, model_holder, incoming=RECEIVED if received else UNKNOWN).close()
        arrived = (
            run(before, [(samples, False)])[0] if before else [FrameOutcome(results=[sample]) for sample in samples]
        )
        reached = _out(arrived)
        if not reached:
            error = next((outcome.error for outcome in arrived if outcome.error is not None), None)
            why = f": {error}" if error is not None else ""
            raise FrameError(
                f"No sample reaches {stage.name}{why}", remedy="Use samples that the stages before it accept."
            )

        def run_stage(frames: Sequence[Frame], together: bool = True) -> list[FrameOutcome]:
            return run([stage], [(frames, False)] if together else [([frame], False) for frame in frames])[0]

        step = set_up(stage, model_holder)
        try:
            checks = {name: check(run_stage, reached) for name, check in _CHECKS.items()}
            checks["what it declares is true"] = _declares_truth(run_stage, reached, partial(output_spec, step))
            promises = [Promise(name, not detail, detail or "") for name, detail in checks.items()]
            if step.takes_batches:
                rounds = mixed_rounds(reached, _invalid_frames(reached[0]))
                promises.append(Promise(_COLUMNS, *compare_columns(partial(run, [stage]), rounds)))
        finally:
            step.stage.close()
        return promises
    finally:
        model_holder.release()
        pool.close()


_Run = Callable[..., list[FrameOutcome]]


def _out(outcomes: Sequence[FrameOutcome]) -> list[Frame]:
    return [frame for outcome in outcomes for frame in outcome.results]


def _accepts_valid(run: _Run, samples: Sequence[Frame]) -> str | None:
    error = next((outcome.error for outcome in run(samples) if outcome.error is not None), None)
    return None if error is None else f"{error} ({error.code})"


def _refuses_invalid(run: _Run, samples: Sequence[Frame]) -> str | None:
    for frame in _invalid_frames(samples[0]):
        (outcome,) = run([frame])
        if isinstance(outcome.error, StageFailed):
            return f"{_describe(frame)} crashes it: {outcome.error}"
    return None


def _isolates_invalid(run: _Run, samples: Sequence[Frame]) -> str | None:
    # A frame that is processed may change the state; one that fails must not.
    bad = [frame for frame in _invalid_frames(samples[0]) if run([frame])[0].error is not None]
    mixed = [frame for sample in samples for frame in (*bad, sample)]
    alone = run(samples)
    return difference(_out(alone), _out(run(mixed)[len(bad) :: len(bad) + 1]))


def _is_independent_of_lists(run: _Run, samples: Sequence[Frame]) -> str | None:
    return difference(_out(run(samples, together=False)), _out(run(samples, together=True)))


def _separates_streams(run: _Run, samples: Sequence[Frame]) -> str | None:
    other = [on_stream(sample, "another stream") for sample in samples]
    outcomes = run([frame for pair in zip(samples, other, strict=True) for frame in pair])
    return difference(_out(run(samples)), _out(outcomes[::2])) or difference(_out(run(other)), _out(outcomes[1::2]))


def _starts_without_state(run: _Run, samples: Sequence[Frame]) -> str | None:
    return difference(_out(run(samples)), _out(run(samples)))


def _leaves_input_unmodified(run: _Run, samples: Sequence[Frame]) -> str | None:
    before = [contents(sample) for sample in samples]
    run(samples)
    changed = [sample for sample, content in zip(samples, before, strict=True) if not same(content, contents(sample))]
    return f"it modified {_describe(changed[0])}; other frames may share that memory" if changed else None


def _declares_truth(run: _Run, samples: Sequence[Frame], output_spec: Callable[[FrameSpec], FrameSpec]) -> str | None:
    """Compare what the stage declares with what it does: exactly for each sample, then knowing nothing of it."""
    for sample in samples:
        (outcome,) = run([sample])
        try:
            declared = [output_spec(incoming) for incoming in (_spec_of(sample), UNKNOWN)]
        except StageMismatch as error:
            if outcome.error is None:
                return f"it accepts {_describe(sample)}, but declares that it does not: {error}"
            continue
        differences = [untrue(spec, frame) for spec in declared for frame in outcome.results]
        if found := next(filter(None, differences), None):
            return found
    return None


def _spec_of(frame: Frame) -> FrameSpec:
    return FrameSpec(
        array=ArraySpec.of(frame.array) if frame.has_array else None,
        tensors={name: ArraySpec.of(tensor) for name, tensor in frame.tensors.items()},
        meta={key: None if isinstance(value, str) else value for key, value in frame.meta.items()},  # a sender's words
        more_meta=False,
        content_type=frame.content_type or None,
    )


def untrue(spec: FrameSpec, frame: Frame) -> str | None:
    """Return what a spec says wrongly of a frame; None: nothing."""
    actual = _spec_of(frame)
    if spec.array is None and actual.array is not None:
        return f"it declares no array; a frame has {actual.array}"
    if spec.array is not None and actual.array is not None and not spec.array.agrees(actual.array):
        return f"it declares the array {spec.array}; a frame has {actual.array}"
    if spec.tensors is not None and actual.tensors is not None:
        if spec.tensors.keys() != actual.tensors.keys():
            return f"it declares the tensors {sorted(spec.tensors)}; a frame has {sorted(actual.tensors)}"
        for name, declared in spec.tensors.items():
            if not declared.agrees(actual.tensors[name]):
                return f"it declares {name}: {declared}; a frame has {actual.tensors[name]}"
    for key, value in actual.meta.items():
        if key not in spec.meta and not spec.more_meta:
            return f"it declares no meta {key!r}; a frame has it"
        if None not in (value, spec.meta.get(key)) and not same(spec.meta[key], value):
            return f"it declares meta {key!r} as {short(spec.meta[key])}; a frame has {short(value)}"
    return None


_COLUMNS: Final = "columns give the same outcomes as single frames"
_CHECKS: Final[Mapping[str, Callable[[_Run, Sequence[Frame]], str | None]]] = {
    "valid frames are accepted": _accepts_valid,
    "invalid frames raise FrameError": _refuses_invalid,
    "an invalid frame does not affect other frames": _isolates_invalid,
    "a list of frames gives the same results as single frames": _is_independent_of_lists,
    "streams are independent": _separates_streams,
    "a new instance starts without state": _starts_without_state,
    "input data is not modified": _leaves_input_unmodified,
}


def _invalid_frames(sample: Frame) -> list[Frame]:
    """Return invalid frames with the sample's stream and content type."""
    noise = random.Random(7).randbytes(4096)
    payload = bytes(sample.payload)
    payloads = [b"", b"\0", noise, payload[: len(payload) // 2], payload + noise[:64], noise[:16] + payload]
    frames = [sample.with_payload(data, sample.content_type) for data in payloads]
    frames.append(sample.with_payload(noise, "application/x-unknown"))
    if sample.has_array:
        array = sample.array
        arrays = [np.zeros((0,), array.dtype), np.zeros((1,) * (array.ndim + 2), array.dtype)]
        if array.dtype.kind == "f":
            arrays.append(np.full_like(array, np.nan))
        frames += [sample.with_array(array) for array in arrays]
    if sample.has_array or sample.tensors:
        frames.append(Frame(payload, stream=sample.stream, topic=sample.topic, content_type=sample.content_type))
    for number, frame in enumerate(frames):
        frame.id = f"invalid-{number}"
    return frames


def _describe(frame: Frame) -> str:
    array = f", array {frame.array.dtype}{list(frame.array.shape)}" if frame.has_array else ""
    return f"a frame of {len(frame.payload)} bytes ({frame.content_type or 'no content type'}{array})"
