"""Tests that a stage gives the same for columns as for frames: part of the stage contract."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TypeAlias

from hedgerow.frame import Frame
from hedgerow.pipeline.chain.live import FrameOutcome
from hedgerow.testing.comparison import difference, on_stream

Lists: TypeAlias = Sequence[tuple[Sequence[Frame], bool]]
"""Lists of frames, and whether each runs as columns."""
Run: TypeAlias = Callable[[Lists], tuple[list[FrameOutcome], int]]
"""Runs lists through a new instance of a stage. Returns: outcomes in order, and how many frames it processed as columns."""

_STREAMS = ("one stream", "another stream", "a third stream")


def mixed_rounds(samples: Sequence[Frame], invalid: Sequence[Frame]) -> list[list[Frame]]:
    """Return lists of frames of three streams, in which no stream comes twice.

    In every other list the second stream has an invalid frame; of every third, the third stream's frame is missing.
    """
    rounds = []
    bad = iter(invalid)
    for number, sample in enumerate(itertools.islice(itertools.cycle(samples), max(len(samples), 2 * len(invalid)))):
        frames = [on_stream(sample, stream) for stream in _STREAMS]
        if number % 2 and (invalid_frame := next(bad, None)) is not None:
            frames[1] = on_stream(invalid_frame, _STREAMS[1])
        for stream, frame in zip(_STREAMS, frames, strict=True):
            frame.sequence, frame.id = number, f"{stream} {number}"
        rounds.append(frames[:2] if number % 3 == 2 else frames)
    return rounds


def compare_columns(run: Run, rounds: Sequence[Sequence[Frame]]) -> tuple[bool, str]:
    """Run lists as single frames, as lists, as columns, and by turns, and compare the outcomes.

    Returns: whether they are the same; and the first difference, or a remark.
    """
    expected, _ = run([([frame], False) for frames in rounds for frame in frames])
    ways = {
        "as a list": [(frames, False) for frames in rounds],
        "as columns": [(frames, True) for frames in rounds],
        "as columns, after frames": [(frames, bool(number % 2)) for number, frames in enumerate(rounds)],
        "as frames, after columns": [(frames, not number % 2) for number, frames in enumerate(rounds)],
    }
    remark = ""
    for way, lists in ways.items():
        outcomes, in_columns = run(lists)
        every = (frame for frames in rounds for frame in frames)
        for frame, before, after in zip(every, expected, outcomes, strict=True):
            if found := _difference_of_outcomes(before, after):
                return False, f"frame {frame.sequence} of {frame.stream}, {way} instead of alone: {found}"
        if way == "as columns" and not in_columns:
            remark = "none of the samples ran as columns: `process_batch` raised Irregular, or deferred every row"
    return True, remark


def _difference_of_outcomes(expected: FrameOutcome, got: FrameOutcome) -> str | None:
    if _end(expected) != _end(got):
        return f"it is {_end(got)}, instead of {_end(expected)}"
    return difference(expected.results, got.results)


def _end(outcome: FrameOutcome) -> str:
    if outcome.error is not None:
        return f"dead ({outcome.error.code})"
    return "passed on" if outcome.results else f"dropped ({outcome.dropped})"
