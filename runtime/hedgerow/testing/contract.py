"""What every stage promises, tried on it with real frames: behind `hedgerow plugin test`, and for tests.

    for promise in try_stage([StageEntry(name="dim-light", config={"ceiling": 5})], frames):
        assert promise.kept, promise.detail

Every trial has a stage of its own, fresh from its configuration; models are loaded once.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from hedgerow.backends.cores import cores
from hedgerow.config import ModelConfig, StageEntry
from hedgerow.errors import FrameError
from hedgerow.frame import Frame
from hedgerow.models.serving.pool import ModelPool
from hedgerow.pipeline.chain.build import PipelineContext, build_chain
from hedgerow.pipeline.chain.chain import FrameOutcome, StageFailed

_TOLERANCE: Final = 1e-3
"""How far numbers may lie apart between a batch and single frames: backends add up in another order."""


@dataclass(frozen=True, slots=True)
class Promise:
    """One thing a stage promises.

    Attributes:
        name: what, as a sentence.
        kept: whether it did.
        detail: how it did not; "" if it did.
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
    """Try a stage against everything that stages promise (`hedgerow.stage` says what).

    Args:
        stages: the stage, last, after those whose frames it takes.
        samples: frames that the first of them can process.
        models: models they may ask for, by name.
        base_dir: what the models' paths are relative to.
    Raises:
        HedgerowError: a stage cannot be made or set up.
        FrameError: no sample comes as far as the stage.
    """
    *before, stage = stages
    pool = ModelPool(cores=cores())

    def run(entries: Sequence[StageEntry], frames: Sequence[Frame], together: bool) -> list[FrameOutcome]:
        context = PipelineContext("test", models or {}, base_dir, pool)
        chain = build_chain(entries, context)
        try:
            lists = [list(frames)] if together else [[frame] for frame in frames]
            return [outcome for each in lists for outcome in chain.run(each).outcomes]
        finally:
            chain.close()
            context.release()

    holding = PipelineContext("test", models or {}, base_dir, pool)  # so that models stay loaded from trial to trial
    try:
        build_chain(stages, holding)
        arrived = run(before, samples, True) if before else [FrameOutcome(results=[sample]) for sample in samples]
        reached = _out(arrived)
        if not reached:
            error = next((outcome.error for outcome in arrived if outcome.error is not None), None)
            why = f": {error}" if error is not None else ""
            raise FrameError(
                f"No sample comes as far as {stage.name}{why}", remedy="Give samples that the stages before it take."
            )

        def trial(frames: Sequence[Frame], together: bool = True) -> list[FrameOutcome]:
            return run([stage], frames, together)

        found = ((name, check(trial, reached) or "") for name, check in _TRIALS.items())
        return [Promise(name, not detail, detail) for name, detail in found]
    finally:
        holding.release()
        pool.close()


_Run = Callable[..., list[FrameOutcome]]


def _out(outcomes: Sequence[FrameOutcome]) -> list[Frame]:
    return [frame for outcome in outcomes for frame in outcome.results]


def _passes(run: _Run, samples: Sequence[Frame]) -> str | None:
    error = next((outcome.error for outcome in run(samples) if outcome.error is not None), None)
    return None if error is None else f"{error} ({error.code})"


def _bad_frames(run: _Run, samples: Sequence[Frame]) -> str | None:
    for frame in _hostile(samples[0]):
        (outcome,) = run([frame])
        if isinstance(outcome.error, StageFailed):
            return f"{_describe(frame)} made it crash: {outcome.error}"
    return None


def _neighbours(run: _Run, samples: Sequence[Frame]) -> str | None:
    # A frame that it can make something of may well change its state; one that dies may not.
    bad = [frame for frame in _hostile(samples[0]) if run([frame])[0].error is not None]
    mixed = [frame for sample in samples for frame in (*bad, sample)]
    alone = run(samples)
    return _difference(_out(alone), _out(run(mixed)[len(bad) :: len(bad) + 1]))


def _together(run: _Run, samples: Sequence[Frame]) -> str | None:
    return _difference(_out(run(samples, together=False)), _out(run(samples, together=True)))


def _streams(run: _Run, samples: Sequence[Frame]) -> str | None:
    other = [_on_stream(sample, "another stream") for sample in samples]
    outcomes = run([frame for pair in zip(samples, other, strict=True) for frame in pair])
    return _difference(_out(run(samples)), _out(outcomes[::2])) or _difference(_out(run(other)), _out(outcomes[1::2]))


def _afresh(run: _Run, samples: Sequence[Frame]) -> str | None:
    return _difference(_out(run(samples)), _out(run(samples)))


def _untouched(run: _Run, samples: Sequence[Frame]) -> str | None:
    before = [_contents(sample) for sample in samples]
    run(samples)
    changed = [sample for sample, content in zip(samples, before, strict=True) if not _same(content, _contents(sample))]
    return f"it wrote into {_describe(changed[0])}; other frames may share that memory" if changed else None


_TRIALS: Final[Mapping[str, Callable[[_Run, Sequence[Frame]], str | None]]] = {
    "good frames pass": _passes,
    "a bad frame is refused with FrameError": _bad_frames,
    "a bad frame changes nothing for the others": _neighbours,
    "frames together give what they give one by one": _together,
    "streams do not mix": _streams,
    "a new stage starts afresh": _afresh,
    "what comes in is not written to": _untouched,
}


def _hostile(sample: Frame) -> list[Frame]:
    """Frames that no sensor should send, of the sample's stream and type."""
    noise = random.Random(7).randbytes(4096)
    payload = bytes(sample.payload)
    payloads = [b"", b"\0", noise, payload[: len(payload) // 2], payload + noise[:64], noise[:16] + payload]
    frames = [sample.with_payload(data, sample.content_type) for data in payloads]
    frames.append(sample.with_payload(noise, "application/x-nobody-knows"))
    if sample.has_array:
        array = sample.array
        arrays = [np.zeros((0,), array.dtype), np.zeros((1,) * (array.ndim + 2), array.dtype)]
        if array.dtype.kind == "f":
            arrays.append(np.full_like(array, np.nan))
        frames += [sample.with_array(array) for array in arrays]
    if sample.has_array or sample.tensors:
        frames.append(Frame(payload, stream=sample.stream, topic=sample.topic, content_type=sample.content_type))
    for number, frame in enumerate(frames):
        frame.id = f"hostile-{number}"
    return frames


def _on_stream(frame: Frame, stream: str) -> Frame:
    moved = frame.with_meta()
    moved.stream = stream
    return moved


def _describe(frame: Frame) -> str:
    array = f", array {frame.array.dtype}{list(frame.array.shape)}" if frame.has_array else ""
    return f"a frame of {len(frame.payload)} bytes ({frame.content_type or 'no content type'}{array})"


def _contents(frame: Frame) -> dict[str, Any]:
    """A frame by what it holds, copied."""
    return {
        "payload": bytes(frame.payload),
        "array": frame.array.copy() if frame.has_array else None,
        "tensors": {name: tensor.copy() for name, tensor in frame.tensors.items()},
        "meta": dict(frame.meta),
        "result": frame.result,
    }


def _difference(expected: Sequence[Frame], got: Sequence[Frame]) -> str | None:
    if len(expected) != len(got):
        return f"{len(got)} frames came out instead of {len(expected)}"
    for number, (left, right) in enumerate(zip(expected, got, strict=True)):
        before, after = _contents(left), _contents(right)
        for part, value in before.items():
            if not _same(value, after[part]):
                return f"{part} of frame {number} is another: {_short(after[part])} instead of {_short(value)}"
    return None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:119]}…"


def _same(left: Any, right: Any) -> bool:
    """Whether two values are the same, numbers within the tolerance."""
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(_same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        return len(left) == len(right) and all(map(_same, left, right))
    if isinstance(left, (np.ndarray, np.number, float)) and isinstance(right, (np.ndarray, np.number, float, int)):
        left, right = np.asarray(left), np.asarray(right)
        if left.dtype.kind in "fc" and left.shape == right.shape:
            return bool(np.allclose(left, right, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True))
        return bool(np.array_equal(left, right))
    return bool(left == right)
