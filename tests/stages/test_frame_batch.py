"""Frames as columns: each row is exactly the frame that it stands for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hedgerow import ABSENT, Frame, FrameBatch, Irregular, Stage, StageConfig
from hedgerow.columns.frame_batch import DEFERRED
from hedgerow.stage import takes_batches


def frames(count: int, **changes: Any) -> list[Frame]:
    return [
        Frame(
            bytes([row]),
            **{
                "id": f"id-{row}",
                "stream": f"stream/{row}",
                "topic": f"topic/{row}",
                "sequence": 7 + row,
                "captured_at": 0.5 + row,
                "content_type": "audio/l16",
                **changes,
            },
        )
        for row in range(count)
    ]


def batch_of(count: int, **changes: Any) -> FrameBatch:
    batch = FrameBatch.of(frames(count, **changes))
    assert batch is not None
    return batch


def content(frame: Frame) -> dict[str, Any]:
    """All that a frame has, comparable, with the types."""
    plain = {name: getattr(frame, name) for name in Frame.__slots__ if name not in ("_array", "tensors")}
    arrays = {"array": frame._array, **frame.tensors}
    told = {name: each if each is None else (each.dtype, each.shape, each.tobytes()) for name, each in arrays.items()}
    return {**{name: repr(value) for name, value in plain.items()}, "arrays": told}


def random_frames(draw: st.DrawFn, count: int) -> list[Frame]:
    made = frames(count)
    if draw(st.booleans()):
        made = [frame.with_array(np.full((2, 3), row, np.int16)) for row, frame in enumerate(made)]
    if draw(st.booleans()):
        made = [
            frame.with_tensors({"x": np.full((), row, ">f4"), "y": np.ones((1, 4))}) for row, frame in enumerate(made)
        ]
    for row, frame in enumerate(made):
        if draw(st.booleans()):
            made[row] = frame = frame.with_meta(begins=True)
        if draw(st.booleans()):
            made[row] = frame = frame.with_meta(rate=8000.0 + row)
        if draw(st.booleans()):
            made[row] = frame = frame.with_result({"n": row} if draw(st.booleans()) else b"bytes")
        if draw(st.booleans()):
            frame.traceparent = f"00-{row}"
        if draw(st.booleans()):
            frame.fields = {"name": row}
    return made


@given(st.data())
def test_the_rows_of_a_batch_are_the_frames_that_it_was_made_of(data: st.DataObject) -> None:
    made = random_frames(cast(st.DrawFn, data.draw), data.draw(st.integers(1, 4)))
    batch = FrameBatch.of(made)

    if batch is None:  # the only difference among these that columns cannot hold
        assert len({tuple(frame.meta) for frame in made}) > 1
        return
    assert len(batch) == len(made)
    assert [content(batch.frame(row)) for row in range(len(made))] == [content(frame) for frame in made]

    chosen = data.draw(st.lists(st.integers(0, len(made) - 1), unique=True))
    some = batch.select(chosen)
    assert [content(some.frame(row)) for row in range(len(some))] == [content(made[row]) for row in chosen]


UNLIKE: dict[str, Sequence[Frame]] = {
    "none": [],
    "two of one stream": [Frame(stream="a"), Frame(stream="a")],
    "other content types": [Frame(stream="a", content_type="x/y"), Frame(stream="b")],
    "one without an array": [Frame(stream="a", array=np.zeros(1)), Frame(stream="b")],
    "other shapes": [Frame(stream="a", array=np.zeros(1)), Frame(stream="b", array=np.zeros(2))],
    "other dtypes": [Frame(stream="a", array=np.zeros(1, "<f4")), Frame(stream="b", array=np.zeros(1, ">f4"))],
    "other tensors": [Frame(stream="a", tensors={"x": np.zeros(1)}), Frame(stream="b", tensors={"y": np.zeros(1)})],
    "masked arrays": [Frame(stream=name, array=np.ma.masked_array([1.0], [True])) for name in "ab"],
    "no arrays": [Frame(stream=name, array=cast(Any, [1.0])) for name in "ab"],
    "other orders of meta": [Frame(stream="a", meta={"x": 1, "y": 1}), Frame(stream="b", meta={"y": 1, "x": 1})],
    "a frame of another class": [Frame(stream="a"), type("Named", (Frame,), {})(stream="b")],
}


@pytest.mark.parametrize("what", UNLIKE)
def test_frames_that_are_not_alike_do_not_become_columns(what: str) -> None:
    assert FrameBatch.of(UNLIKE[what]) is None


def test_a_batch_is_a_value() -> None:
    batch = batch_of(2)
    samples = np.arange(6.0).reshape(2, 3)
    changed = batch.with_array(samples, rate=[8000, 16000]).with_meta(kind="sound").with_tensors({"x": samples})

    assert batch.array is None
    assert batch.frame(1).meta == {}
    assert not batch.tensors
    assert changed.frame(1).meta == {"rate": 16000, "kind": "sound"}
    assert changed.frame(1).array.tolist() == changed.frame(1).tensors["x"].tolist() == [3.0, 4.0, 5.0]


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abc"), st.integers(0, 9)), max_size=6))
def test_meta_has_the_order_and_the_last_value_that_a_frame_would_have(changes: list[tuple[bool, str, int]]) -> None:
    """A result that is nothing but meta is published in this order."""
    batch, made = batch_of(2), frames(2)
    for in_columns, key, value in changes:
        if in_columns:
            batch = batch.with_meta_columns(**{key: [value, -value]})
            made = [made[0].with_meta(**{key: value}), made[1].with_meta(**{key: -value})]
        else:
            batch = batch.with_meta(**{key: value})
            made = [frame.with_meta(**{key: value}) for frame in made]

    assert [list(batch.frame(row).meta.items()) for row in range(2)] == [list(frame.meta.items()) for frame in made]
    for key in "abc":
        assert batch.meta_column(key, "none") == [frame.meta.get(key, "none") for frame in made]


def test_a_row_may_lack_a_key_of_meta() -> None:
    batch = batch_of(2).with_meta_columns(begins=[ABSENT, True])

    assert batch.frame(0).meta == {}
    assert batch.frame(1).meta == {"begins": True}
    assert batch.meta_column("begins", False) == [False, True]


def test_a_row_without_a_new_value_keeps_its_meta() -> None:
    """As in `process`, where such a frame is not changed."""
    batch = batch_of(2).with_meta(a=1).with_meta_columns(a=[ABSENT, 2]).with_meta_columns(a=[3, ABSENT])

    assert [batch.frame(row).meta for row in range(2)] == [{"a": 3}, {"a": 2}]


@pytest.mark.parametrize("dtype", ["f4", "f8", "i2", "?", "O"])
def test_a_result_in_columns_is_made_of_plain_python_values(dtype: str) -> None:
    """Else float32 would be published with other digits than by a stage that converts it."""
    score = np.array([0.1, 1.0]).astype(dtype)
    batch = batch_of(2).with_result_columns(score=score, box=np.array([[1, 2], [3, 4]]), label=["a", "b"])
    expected = {"score": score.tolist()[0], "box": [1, 2], "label": "a"}

    assert batch.frame(0).result == expected
    assert list(map(type, batch.frame(0).result.values())) == list(map(type, expected.values()))
    assert batch.with_results([None, 3]).frame(1).result == 3
    assert batch.with_results([None, 3]).frame(0).result is None
    assert batch.select([1]).frame(0).result == {"score": score.tolist()[1], "box": [3, 4], "label": "b"}


def test_rows_leave_by_any_copy_of_the_batch() -> None:
    batch = batch_of(3)
    batch.with_meta(a=1).leave(1, None)
    batch.defer(2)

    assert batch.left == {1: None, 2: DEFERRED}


class _Batches(Stage[StageConfig]):
    def process_batch(self, batch: FrameBatch) -> FrameBatch:
        return batch


class _OwnProcess(_Batches):
    def process(self, frame: Frame) -> Frame:
        return frame


class _OwnBatchesToo(_OwnProcess):
    def process_batch(self, batch: FrameBatch) -> FrameBatch:
        return batch


def test_a_subclass_that_processes_frames_in_its_own_way_does_not_inherit_the_columns_of_another() -> None:
    assert [takes_batches(each) for each in (Stage, _Batches, _OwnProcess, _OwnBatchesToo)] == [
        False,
        True,
        False,
        True,
    ]
    with pytest.raises(Irregular):
        Stage(StageConfig()).process_batch(batch_of(1))
