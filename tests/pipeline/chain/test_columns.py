"""Columns: whatever the stages do, a list that runs as columns ends exactly as frame by frame."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hedgerow import ABSENT, Drop, Frame, FrameBatch, FrameError, Irregular, Stage, StageConfig, StreamTable
from hedgerow.errors import InferenceError
from hedgerow.pipeline.chain import chain as chain_module
from hedgerow.pipeline.chain.chain import Chain, ChainStep
from hedgerow.pipeline.chain.live import FrameOutcome, Live
from hedgerow.pipeline.chain.progress import SIZE, StageProgress, this_thread

STREAMS = 5
ROUNDS = 4
Acts = dict[tuple[str, int], str]
"""What a stage does with a frame, by stream and sequence; by default it adds the frame's number to its array."""


def generated(frame: Frame) -> Iterator[Frame]:
    yield frame.with_meta(part=0)
    yield frame.with_meta(part=1)


def broken(frame: Frame) -> Iterator[Frame]:
    yield frame
    raise ValueError("in the middle")


def raising(error: Callable[[], BaseException]) -> Callable[[Frame], Any]:
    def act(frame: Frame) -> Any:
        raise error()

    return act


ACTS: dict[str, Callable[[Frame], Any]] = {
    "drop": lambda _: Drop("requested"),
    "absorb": lambda _: None,
    "absorb by an empty list": lambda _: [],
    "split": lambda frame: [frame.with_meta(part=0), frame.with_meta(part=1)],
    "split by a generator": generated,
    "another shape": lambda frame: frame.with_array(np.zeros((3, 3))),
    "other tensors": lambda frame: frame.with_tensors({"other": np.ones(2)}),
    "bad": raising(lambda: FrameError("bad", code="bad-frame")),
    "a bug": raising(lambda: ValueError("a bug")),
    "a model's error": raising(lambda: InferenceError("failed", remedy="none")),
    "an exit": raising(lambda: SystemExit(1)),
    "a number": lambda _: 5,
    "another stream": lambda _: Frame(stream="not mine"),
    "a generator that fails": broken,
}


class Counting(Stage[StageConfig]):
    """Numbers the frames of each stream, and adds the number to their arrays; acts up as it is told. Frame by frame."""

    def __init__(self, acts: Acts, *, last: bool = False) -> None:
        super().__init__(StageConfig())
        self.acts, self.last = acts, last
        self.table = StreamTable(count=((), np.int64))

    def process(self, frame: Frame) -> Any:
        act = self.acts.get((frame.stream, frame.sequence))
        if act is not None:
            return ACTS[act](frame)
        row = self.table.row(frame.stream)
        count = int(self.table.take("count", row)) + 1
        self.table.put("count", row, count)
        frame = frame.with_array(frame.array + count).with_meta(**({"odd": True} if count % 2 else {}))
        return frame.with_result({"sum": float(frame.array.sum()), "count": count}) if self.last else frame


class CountingLists(Counting):
    """Takes lists, and raises for all if it would for one."""

    def process_many(self, frames: Sequence[Frame]) -> Sequence[Any]:
        for frame in frames:
            if self.acts.get((frame.stream, frame.sequence)) in ("bad", "a bug", "an exit"):
                self.process(frame)
        outcomes: list[Any] = []
        for frame in frames:
            try:
                outcomes.append(self.process(frame))
            except (FrameError, InferenceError, ValueError) as error:
                outcomes.append(error)
        return outcomes


class ColumnsOf(Counting):
    """Likewise as columns; rows that act up leave, or are deferred."""

    defers: frozenset[int] = frozenset()
    refuses: frozenset[int] = frozenset()
    fails: frozenset[int] = frozenset()

    def process(self, frame: Frame) -> Any:
        return super().process(frame)

    def process_batch(self, batch: FrameBatch) -> FrameBatch:
        if batch.array is None or batch.array.shape[1:] != (2,) or set(batch.sequences) & self.refuses:
            raise Irregular
        if set(batch.sequences) & self.fails:
            raise KeyError("a bug in process_batch")
        regular = []
        for row, key in enumerate(zip(batch.streams, batch.sequences, strict=True)):
            act = self.acts.get(key)
            if act is None and key[1] not in self.defers:
                regular.append(row)
            elif key[1] in self.defers:
                batch.defer(row)
            else:
                try:
                    batch.leave(row, ACTS[act or ""](batch.frame(row)))
                except BaseException as error:  # noqa: BLE001 - what `process` would raise
                    batch.leave(row, error)
        numbers = self.table.rows([batch.streams[row] for row in regular])
        counts = self.table.take("count", numbers) + 1
        self.table.put("count", numbers, counts)
        array = batch.array.copy()
        array[regular] += counts[:, np.newaxis]
        every = np.zeros(len(batch), np.int64)
        every[regular] = counts
        batch = batch.with_array(array)
        if any(count % 2 for count in counts):
            batch = batch.with_meta_columns(odd=[True if count % 2 else ABSENT for count in every.tolist()])
        return batch.with_result_columns(sum=array.sum(axis=1), count=every) if self.last else batch


class ListsAndColumnsOf(ColumnsOf, CountingLists):
    """Offers all three."""

    def process_many(self, frames: Sequence[Frame]) -> Sequence[Any]:
        return CountingLists.process_many(self, frames)

    def process_batch(self, batch: FrameBatch) -> FrameBatch:
        return ColumnsOf.process_batch(self, batch)


class Clock:
    """A clock that the test turns."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic


class Bench:
    """A chain, and all that is told of it."""

    def __init__(self, stages: Sequence[Stage[Any]], threshold: int = 10) -> None:
        self.told: list[Any] = []
        self.columns = 0
        self.chain = Chain(
            [ChainStep(f"stage-{at}", stage, self._event, self._failure, at) for at, stage in enumerate(stages)]
        )
        for step in self.chain.steps:
            step.circuit.threshold = threshold

    def _event(self, kind: str, detail: dict[str, Any]) -> None:
        self.told.append((kind, detail["stage"]))

    def _failure(self, stage: str, failure: Exception) -> None:
        self.told.append((stage, str(failure)))

    def one_by_one(self, frames: Sequence[Frame]) -> list[Any]:
        return [content(outcome) for outcome in self.chain.run(frames).outcomes]

    def as_columns(self, frames: Sequence[Frame], *, beside: Sequence[int] = ()) -> list[Any]:
        """Run a list whose frames at some positions are frames from the beginning."""
        inside = [at for at in range(len(frames)) if at not in beside]
        batch = FrameBatch.of([frames[at] for at in inside])
        if batch is None:
            inside, beside = [], range(len(frames))
        run = self.chain.run_columns(Live(batch, inside, [frames[at] for at in beside], beside))
        self.columns += sum(count for _, count in run.columns)
        outcomes = dict(run.outcomes)
        for row, at in enumerate(run.rows):
            assert run.batch is not None
            assert at not in outcomes, "a frame that ended otherwise is no row"
            outcomes[at] = FrameOutcome([run.batch.frame(row)])
        assert sorted(outcomes) == list(range(len(frames))), "one outcome for each"
        return [content(outcomes[at]) for at in range(len(frames))]


def content(outcome: FrameOutcome) -> Any:
    """All of an outcome, comparable."""
    results = []
    for frame in outcome.results:
        told = {name: getattr(frame, name) for name in Frame.__slots__ if name not in ("_array", "tensors")}
        arrays = {"": frame._array, **frame.tensors}
        results.append(({**told}, {name: each if each is None else each.tolist() for name, each in arrays.items()}))
    return results, outcome.dropped, str(outcome.error), getattr(outcome.error, "code", None), outcome.stage


def a_list(number: int, size: int = STREAMS) -> list[Frame]:
    return [
        Frame(
            bytes([at]),
            id=f"{number}-{at}",
            stream=f"s/{at}",
            topic=f"s/{at}",
            sequence=number,
            array=np.array([at, 0.5]),
        )
        for at in range(size)
    ]


acts = st.dictionaries(
    st.tuples(st.sampled_from([f"s/{at}" for at in range(STREAMS)]), st.integers(0, ROUNDS - 1)),
    st.sampled_from(sorted(ACTS)),
)
some_lists = st.frozensets(st.integers(0, ROUNDS - 1), max_size=2)
stages = st.lists(
    st.tuples(st.sampled_from([Counting, CountingLists, ColumnsOf, ListsAndColumnsOf]), acts, *[some_lists] * 3),
    min_size=1,
    max_size=4,
)


@given(stages, st.lists(st.integers(0, STREAMS - 1), unique=True), st.integers(1, 4))
def test_any_chain_ends_every_frame_as_frame_by_frame(plan: list[Any], beside: list[int], threshold: int) -> None:
    """Stages with and without columns, bad rows of all kinds, refused batches, circuits that open and close."""

    def made(columns: bool) -> Bench:
        stages = []
        for at, (kind, acts, defers, refuses, fails) in enumerate(plan):
            frame_kind = CountingLists if issubclass(kind, CountingLists) else Counting
            stage = (kind if columns else frame_kind)(acts, last=at == len(plan) - 1)
            stage.defers, stage.refuses, stage.fails = defers, refuses, fails
            stages.append(stage)
        return Bench(stages, threshold)

    clock = Clock()
    one_by_one, columns = made(False), made(True)
    with patch.object(chain_module, "time", clock), patch.object(chain_module, "log_no_columns", lambda *_: None):
        for number in range(ROUNDS):
            clock.now += 0.4
            expected = one_by_one.one_by_one(a_list(number))
            assert columns.as_columns(a_list(number), beside=sorted(beside)) == expected
    assert columns.told == one_by_one.told
    assert [step.circuit.failures for step in columns.chain.steps] == [
        step.circuit.failures for step in one_by_one.chain.steps
    ]


class Halving(Stage[StageConfig]):
    """Splits some frames in two, and fails for others."""

    def process(self, frame: Frame) -> Any:
        if frame.stream == "s/0":
            return [frame.with_meta(part=part) for part in range(2)]
        if frame.stream == "s/1":
            raise FrameError("asked to", code="asked-to")
        return frame


class WithoutSecondParts(Stage[StageConfig]):
    """Drops the second part of each frame, or fails for it."""

    fails: bool

    def process(self, frame: Frame) -> Any:
        if frame.meta.get("part") != 1:
            return frame
        if self.fails:
            raise FrameError("second part", code="second")
        return Drop("second")


@pytest.mark.parametrize("fails", [False, True])
def test_the_last_part_of_a_frame_ends_with_the_others(fails: bool) -> None:
    """As a row of its own, it would end a second time."""

    def bench(kind: type[Counting]) -> Bench:
        filter_ = WithoutSecondParts(StageConfig())
        filter_.fails = fails
        return Bench([Halving(StageConfig()), filter_, kind({}, last=True)])

    expected = bench(Counting).one_by_one(a_list(0))
    assert bench(ColumnsOf).as_columns(a_list(0)) == expected
    assert [error for _, _, error, *_ in expected].count("None") == STREAMS - 1 - fails


def test_columns_run() -> None:
    """The counter: else the test above would compare frames with frames."""
    bench = Bench([ColumnsOf({("s/1", 0): "drop"}), ColumnsOf({}, last=True)])
    bench.as_columns(a_list(0))

    assert bench.columns == STREAMS + STREAMS - 1


def test_two_frames_of_one_stream_stay_frames_and_in_order() -> None:
    bench, expected = Bench([ColumnsOf({}, last=True)]), Bench([Counting({}, last=True)])
    frames = [*a_list(0), *a_list(1)]

    assert bench.as_columns(frames) == expected.one_by_one(frames)
    assert bench.columns == 0


def test_frames_become_columns_again_before_a_stage_that_takes_them() -> None:
    bench = Bench([Counting({("s/0", 0): "absorb"}), ColumnsOf({}, last=True)])
    bench.as_columns(a_list(0), beside=range(STREAMS))

    assert bench.columns == STREAMS - 1


class Returning(Counting):
    """Returns something else than the batch with its rows."""

    def __init__(self, act: Callable[[FrameBatch], Any]) -> None:
        super().__init__({})
        self.act = act

    def process(self, frame: Frame) -> Any:
        return super().process(frame)

    def process_batch(self, batch: FrameBatch) -> Any:
        return self.act(batch)


def renamed(batch: FrameBatch) -> FrameBatch:
    batch.streams = ("x",) * len(batch)
    return batch


def other_ids(batch: FrameBatch) -> FrameBatch:
    batch.ids = batch.ids[::-1]
    return batch


def with_array_in_place(array: Any) -> Callable[[FrameBatch], FrameBatch]:
    def act(batch: FrameBatch) -> FrameBatch:
        batch.array = array
        return batch

    return act


def leaving(row: Any) -> Callable[[FrameBatch], FrameBatch]:
    def act(batch: FrameBatch) -> FrameBatch:
        batch.left[row] = None
        return batch

    return act


WRONG: dict[str, Callable[[FrameBatch], Any]] = {
    "None": lambda _: None,
    "its frames": lambda batch: [batch.frame(row) for row in range(len(batch))],
    "one row less": lambda batch: batch.select(range(len(batch) - 1)),
    "no rows": lambda batch: batch.select([]),
    "another order": lambda batch: batch.select(range(len(batch))[::-1]),
    "other streams": renamed,
    "other ids": other_ids,
    "an array of another length": lambda batch: batch.with_array(np.zeros((2, 2))),
    "an array without rows": with_array_in_place(np.float64(1)),
    "a list as an array": lambda batch: batch.with_array([[1.0]] * len(batch)),  # type: ignore[arg-type]
    "a masked array": lambda batch: batch.with_array(np.ma.zeros((len(batch), 2))),
    "a short tensor": lambda batch: batch.with_tensors({"x": np.zeros(1)}),
    "a number as tensors": lambda batch: batch.with_tensors(5),  # type: ignore[arg-type]
    "short meta": lambda batch: batch.with_meta_columns(kind=["a"]),
    "a text as meta": lambda batch: batch.with_meta_columns(kind="abcde"),
    "too many results": lambda batch: batch.with_results([1] * 99),
    "a set of results": lambda batch: batch.with_results({1, 2, 3, 4, 5}),  # type: ignore[arg-type]
    "a short column of results": lambda batch: batch.with_result_columns(a=[1]),
    "a scalar as a column of results": lambda batch: batch.with_result_columns(a=np.array(5)),
    "a row that left but never came": leaving(STREAMS),
    "a row before the first": leaving(-1),
    "a row by name": leaving("first"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_batch_without_the_rows_that_were_given_is_not_trusted(what: str) -> None:
    """Its stage may have changed state already, so the frames are dead; those of the next list are given one by one."""
    bench, expected = Bench([Returning(WRONG[what])], threshold=99), Bench([Counting({})])
    ends = bench.as_columns(a_list(0))

    assert [(results, code) for results, _, _, code, _ in ends] == [([], "stage-failed")] * STREAMS
    assert "process_batch" in ends[0][2] or "not iterable" in ends[0][2] or "attribute" in ends[0][2]
    assert bench.as_columns(a_list(1)) == expected.one_by_one(a_list(1))
    assert bench.columns == STREAMS, "only in the first list"


def test_what_a_stage_changes_in_its_batch_does_not_reach_frames_that_it_then_refuses() -> None:
    def spoil(batch: FrameBatch) -> FrameBatch:
        batch.array, batch.streams, batch.ids = None, ("x",), ()
        raise Irregular

    bench, expected = Bench([Returning(spoil)]), Bench([Counting({})])

    assert bench.as_columns(a_list(0)) == expected.one_by_one(a_list(0))


def test_a_columns_call_shows_how_many_frames_may_take_the_stages_time() -> None:
    seen: list[Any] = []

    def look(batch: FrameBatch) -> FrameBatch:
        assert this_thread.progress is not None
        seen.append(this_thread.progress.now())
        return batch

    this_thread.progress = StageProgress(bytearray(SIZE))
    try:
        Bench([Counting({}), Returning(look)]).as_columns(a_list(0), beside=range(STREAMS))
        assert this_thread.progress.now() is None, "it has returned"
    finally:
        this_thread.progress = None

    assert [(call.stage, call.frames, call.done) for call in seen] == [(1, STREAMS, 0)]


def test_a_stage_that_is_not_concurrent_runs_one_batch_at_a_time() -> None:
    bench = Bench([])
    step = ChainStep("locked", Returning(lambda batch: batch.with_meta(locked=step._lock.locked())))  # type: ignore[attr-defined]
    bench.chain = Chain([step])
    (results, *_), *_ = bench.as_columns(a_list(0))

    assert results[0][0]["meta"] == {"locked": True}


def test_an_error_in_process_batch_is_logged_and_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[Any] = []
    monkeypatch.setattr(
        "hedgerow.pipeline.chain.stage_failure.log", SimpleNamespace(warning=lambda _, **told: logged.append(told))
    )
    stage = ColumnsOf({})
    stage.fails = frozenset({0})
    bench = Bench([stage])

    assert bench.as_columns(a_list(0)) == Bench([Counting({})]).one_by_one(a_list(0))
    assert bench.told == []
    assert [(each["stage"], each["type"]) for each in logged] == [("stage-0", "KeyError")]
    assert logged[0]["place"].startswith("test_columns.py:")
