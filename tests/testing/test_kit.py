"""Running stages and pipelines without a broker."""

from __future__ import annotations

import signal
from collections.abc import Sequence

import numpy as np
import pytest

from hedgerow import Drop, Frame, FrameError, PerStream, Stage, StageConfig, StageContext
from hedgerow.errors import ConfigError, ModelError, PluginError
from hedgerow.testing import frame, frames, run_pipeline, run_stage


class LimitConfig(StageConfig):
    top: int = 10


class Limit(Stage[LimitConfig]):
    """Accepts small numbers, drops large ones, fails on negative ones."""

    def process(self, frame: Frame) -> Frame | Drop:
        value = int(bytes(frame.payload))
        if value < 0:
            raise FrameError(f"{value} is negative", code="negative")
        return frame.with_result(value) if value <= self.config.top else Drop("too-large")


class Count(Stage[StageConfig]):
    """Numbers the frames of each stream."""

    seen: PerStream[list[int]]
    lists: list[int]
    closed = 0

    def setup(self, context: StageContext) -> None:
        self.seen = context.per_stream(list)
        self.lists = []

    def process_many(self, frames: Sequence[Frame]) -> Sequence[Frame]:
        self.lists.append(len(frames))
        numbered = []
        for one in frames:
            self.seen[one.stream].append(one.sequence)
            numbered.append(one.with_result(len(self.seen[one.stream])))
        return numbered

    def close(self) -> None:
        self.closed += 1


def test_a_run_reports_results_drops_and_errors() -> None:
    run = run_stage(Limit, frames(["1", "20", "-3", "7"]), top=9)

    assert run.results == [1, 7]
    assert [out.sequence for out in run.out] == [0, 3]
    assert (run.dropped, run.dead) == ({"too-large": 1}, {"negative": 1})
    assert [str(error) for error in run.errors] == ["-3 is negative"]


def test_a_stage_gets_its_frames_as_one_list_or_one_by_one() -> None:
    counting = Count(StageConfig())
    assert run_stage(counting, frames(["a", "b", "c"])).results == [1, 2, 3]
    assert counting.lists == [3]
    assert run_stage(counting, frames(["a", "b", "c"]), together=False).results == [1, 2, 3]
    assert counting.lists == [1, 1, 1]
    assert counting.closed == 2


def test_state_is_per_stream() -> None:
    a, b = frame("x", stream="a"), frame("x", stream="b")

    assert run_stage(Count, [a, b, a, a]).results == [1, 1, 2, 3]


def test_a_pipeline_accepts_names_entries_classes_and_instances() -> None:
    run = run_pipeline(
        ["parse", {"parse": {"format": "json", "dtype": "int32"}}, Count, Count(StageConfig())],
        [frame("[1, 2]", content_type="application/json")],
    )

    assert run.out[0].array.dtype == np.int32
    assert run.results == [1]


def test_a_frame_is_created_from_an_array_bytes_or_text() -> None:
    array = np.zeros((2, 2), np.uint8)

    assert frame(array).array is array
    assert bytes(frame(b"\0\1").payload) == b"\0\1"
    assert bytes(frame("ü").payload) == "ü".encode()
    assert [one.id for one in frames([b"", b""], stream="s")] == ["s-0", "s-1"]
    assert frame(b"", content_type="image/jpeg", meta={"a": 1}).meta == {"a": 1}


def test_no_frames_give_an_empty_run() -> None:
    run = run_stage(Limit, [])

    assert (run.out, run.dropped, run.dead, run.errors) == ([], {}, {}, [])


def test_errors_of_setup_are_raised_at_once() -> None:
    with pytest.raises(ConfigError, match="did you mean 'top'"):
        run_stage(Limit, [], topp=3)
    with pytest.raises(PluginError, match="no-such-stage"):
        run_stage("no-such-stage", [])
    with pytest.raises(ModelError, match=r"gone\.onnx"):
        run_pipeline([{"infer": {"model": "gone"}}], [], models={"gone": "gone.onnx"})
    with pytest.raises(ConfigError, match="Model 'other' is not configured"):
        run_pipeline([{"infer": {"model": "other"}}], [])


def test_ctrl_c_ends_a_run_and_is_no_failure_of_the_stage_that_it_interrupts() -> None:
    """A chain takes it for one, as a plugin may raise it in any thread of a node."""

    class Endless(Stage[StageConfig]):
        def process(self, frame: Frame) -> Frame:
            signal.raise_signal(signal.SIGINT)
            return frame

    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_stage(Endless, [frame("1")])
    finally:
        signal.signal(signal.SIGINT, previous)
