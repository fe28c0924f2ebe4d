"""The way of a list through a node's pipeline: as columns it ends exactly as frame by frame, to the byte."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.pipeline.lane_bench import LaneBench
from tests.pipeline.messages import message

from hedgerow import Drop, Frame, FrameBatch, FrameError, Stage, StageConfig, StageContext
from hedgerow.wire.codec import ENVELOPE, pack_envelope

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Adding(Stage[StageConfig]):
    """Adds up the bytes of each stream, frame by frame; the payload's first letter may ask for something else."""

    def setup(self, context: StageContext) -> None:
        self.sums = context.stream_table(sum=((), np.int64))

    def process(self, frame: Frame) -> Any:
        match bytes(frame.payload[:1]):
            case b"d":
                return Drop("asked-to")
            case b"a":
                return None
            case b"e":
                raise FrameError("asked to", code="asked-to-die")
            case b"b":
                raise ZeroDivisionError("asked to")
            case b"t":
                return [self._sum(frame.with_meta(part=part)) for part in range(2)]
            case b"n":
                return frame.with_result({"sum": float("nan")})
            case b"r":
                return frame.with_result(b"raw")
        return self._sum(frame)

    def _sum(self, frame: Frame) -> Frame:
        row = self.sums.row(frame.stream)
        total = int(self.sums.take("sum", row)) + sum(frame.payload)
        self.sums.put("sum", row, total)
        return frame.with_result({"sum": total, "stream": frame.stream})


class AddingColumns(Adding):
    """Likewise, as columns."""

    def process(self, frame: Frame) -> Any:
        return super().process(frame)

    def process_batch(self, batch: FrameBatch) -> FrameBatch:
        for row, payload in enumerate(batch.payloads):
            if bytes(payload[:1]) in (b"e", b"b", b"t"):
                batch.defer(row)
            elif bytes(payload[:1]) in (b"d", b"a"):
                batch.leave(row, Drop("asked-to") if payload[:1] == b"d" else None)
        results: list[Any] = [None] * len(batch)
        regular = [row for row in range(len(batch)) if row not in batch.left]
        summed = [row for row in regular if bytes(batch.payloads[row][:1]) not in (b"n", b"r")]
        rows = self.sums.rows([batch.streams[row] for row in summed])
        totals = self.sums.take("sum", rows) + np.array([sum(batch.payloads[row]) for row in summed], np.int64)
        self.sums.put("sum", rows, totals)
        for row, total in zip(summed, totals.tolist(), strict=True):
            results[row] = {"sum": total, "stream": batch.streams[row]}
        for row in set(regular).difference(summed):
            results[row] = b"raw" if bytes(batch.payloads[row][:1]) == b"r" else {"sum": float("nan")}
        return batch.with_results(results)


PAYLOADS = ["x", "y", "z", "d", "a", "e", "b", "t", "n", "r"]
STATED: dict[str, dict[str, Any]] = {
    "nothing": {},
    "all": {"id": "all", "time": "1777896000", "traceparent": TRACE},
    "a bad time": {"time": "yesterday"},
    "another type": {"content_type": "text/plain"},
}
sent = st.lists(  # lists of frames of different streams
    st.lists(
        st.tuples(st.sampled_from(PAYLOADS), st.sampled_from(sorted(STATED)), st.integers(0, 1), st.integers(0, 7)),
        max_size=8,
        unique_by=lambda each: each[3],
    ),
    min_size=1,
    max_size=3,
)


@pytest.fixture(autouse=True)
def _short_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns for one frame too."""
    monkeypatch.setattr("hedgerow.pipeline.local_pipeline.FEWEST_ROWS", 1)


async def ran(
    kind: type[Stage[Any]], lists: list[Any], patch: pytest.MonkeyPatch, **pipeline: Any
) -> tuple[Any, LaneBench]:
    """Run lists, and return all that can be seen of it."""
    patch.setattr("hedgerow.plugins.make", lambda *_: kind(StageConfig()))
    async with LaneBench(**pipeline) as bench:
        patch.setattr(bench.built._maker, "_id", lambda received: f"id of {received.topic}")  # else counted
        for number, batch in enumerate(lists):
            messages = []
            for payload, what, qos, stream in batch:
                fields = {"payload": payload.encode() + bytes([number]), "time": "1777896000", **STATED[what]}
                messages.append(message(**fields, topic=f"in/{stream}", qos=qos))
            bench.intake.receive(messages)
            bench.dispatcher.dispatch()
            await bench.settled()
        shown = sorted((topic, normal(payload), normal(properties)) for topic, payload, properties in bench.sink.sent)
        acked = sorted((each.topic, bytes(each.payload)) for each in bench.source.acked)
        tally, snapshot = bench.tally, bench.dispatcher.snapshot
        counts = (
            tally.out,
            tally.results,
            dict(tally.dropped),
            dict(tally.dead),
            tally.in_flight,
            dict(tally.stage_frames),
        )
        last = snapshot and (snapshot.frame.stream, bytes(snapshot.frame.payload), normal(snapshot.result.payload))
        return (shown, acked, counts, last, [kind for kind, _ in bench.events], tally.latency.count), bench


def normal(sent: bytes) -> bytes:
    """Without times, tracebacks and numbers that differ from run to run."""
    sent = re.sub(rb'"(at|captured_at|waited_ms|traceback)":("(\\.|[^"])*"|[0-9.e+-]+)', b"", sent)
    sent = re.sub(rb'"stages":\[.*?\]\]', b"", sent)
    return re.sub(rb"[0-9]{4}-[0-9-]+T[0-9:.]+Z|00-[0-9a-f]{32}-[0-9a-f]{16}-01", b"", sent)


@pytest.mark.parametrize("form", ["json", "msgpack"])
@pytest.mark.parametrize("qos", [0, 1])
@given(sent)
def test_every_frame_ends_as_without_columns(form: str, qos: int, lists: list[Any]) -> None:
    """Results, dead letters, drops, acknowledgements, counters, and the snapshot."""
    pipeline = {"publish": {"qos": qos, "format": form}, "content_type": "application/x", "stages": ["adding"]}
    with pytest.MonkeyPatch.context() as patch:
        if form == "msgpack":  # where times are no text that `normal` finds
            patch.setattr(time, "time", lambda: 1777896000.5)
            patch.setattr("hedgerow.pipeline.local_pipeline._waited_s", lambda _: 0.25)
            patch.setattr("hedgerow.pipeline.result_encoder.ResultEncoder.lineage", lambda self, _: {**self._lineage})
        expected, _ = asyncio.run(ran(Adding, lists, patch, **pipeline))
        found, bench = asyncio.run(ran(AddingColumns, lists, patch, **pipeline))

    assert found == expected
    assert bench.tally.balanced


@pytest.mark.parametrize("fields", [{}, {"keep": ["sum"]}, {"drop": ["sum"]}], ids=str)
async def test_results_of_columns_are_published_in_one_write(
    monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    writes: list[int] = []
    monkeypatch.setattr(
        "tests.pipeline.lane_bench.AcceptingLink.publish_all", lambda _, __, messages: writes.append(len(messages))
    )
    lists = [[("x", "nothing", 0, stream) for stream in range(8)]]
    _, bench = await ran(AddingColumns, lists, monkeypatch, publish={"qos": 0, "fields": fields}, stages=["adding"])

    assert writes == [8]
    assert bench.tally.stage_columns == {"adding": 8}


class TwoOfAStream(AddingColumns):
    lists: ClassVar[list[int]] = []

    def process_batch(self, batch: FrameBatch) -> FrameBatch:
        self.lists.append(len(batch))
        return super().process_batch(batch)


async def test_an_envelope_is_a_frame_beside_the_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hedgerow.plugins.make", lambda *_: TwoOfAStream(StageConfig()))
    async with LaneBench(publish={"qos": 0}, stages=["adding"]) as bench:
        messages = [message(b"x", topic=f"in/{number}", qos=0) for number in range(4)]
        messages[2:3] = [message(pack_envelope(b"inside", content_type=""), topic="in/2", qos=0, content_type=ENVELOPE)]
        bench.intake.receive(messages)
        bench.dispatcher.dispatch()
        await bench.settled()

        sums = {each["frame"]["stream"]: each["result"]["sum"] for each in bench.published("result")}
        assert sums == {"in/0": ord("x"), "in/1": ord("x"), "in/2": sum(b"inside"), "in/3": ord("x")}
        assert bench.tally.stage_columns == {"adding": 3}


async def test_a_frame_dropped_while_its_columns_ran_is_not_published(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the pipeline stops."""
    drop: list[Callable[[], None]] = []

    class Stopping(AddingColumns):
        def process_batch(self, batch: FrameBatch) -> FrameBatch:
            drop.pop()()
            return super().process_batch(batch)

    monkeypatch.setattr("hedgerow.plugins.make", lambda *_: Stopping(StageConfig()))
    async with LaneBench(publish={"qos": 0}, stages=["adding"], lanes=0) as bench:
        drop.append(
            lambda: bench.settler.drop(next(each for each in bench.tally.held if each.stream == "in/1"), "shutdown")
        )
        bench.intake.receive([message(b"x", topic=f"in/{number}", qos=0) for number in range(3)])
        bench.dispatcher.dispatch()
        await bench.settled()

        assert [each["frame"]["stream"] for each in bench.published("result")] == ["in/0", "in/2"]
        assert (bench.tally.out, dict(bench.tally.dropped)) == (2, {"shutdown": 1})
        assert bench.tally.balanced


async def test_the_lineage_of_columns_names_their_stages_and_times(monkeypatch: pytest.MonkeyPatch) -> None:
    lists = [[("x", "all", 0, stream) for stream in range(4)]]
    _, bench = await ran(AddingColumns, lists, monkeypatch, publish={"qos": 0}, stages=["adding"])
    (result, *_) = [orjson.loads(payload) for topic, payload, _ in bench.sink.sent]

    ((stage, took_ms, count),) = result["lineage"]["stages"]
    assert (stage, count) == ("adding", 4)
    assert took_ms > 0
    assert result["lineage"]["waited_ms"] >= 0
    assert result["frame"]["captured_at"] == 1777896000
    assert result["id"] == "all"


@pytest.mark.parametrize(("frames", "columns"), [(1, 0), (3, 0), (4, 4)])
async def test_a_short_list_stays_frames(monkeypatch: pytest.MonkeyPatch, frames: int, columns: int) -> None:
    """It would take longer as columns."""
    monkeypatch.undo()
    lists = [[("x", "nothing", 0, stream) for stream in range(frames)]]
    _, bench = await ran(AddingColumns, lists, monkeypatch, publish={"qos": 0}, stages=["adding"])

    assert bench.tally.stage_columns["adding"] == columns
    assert bench.tally.out == frames


async def test_a_list_with_several_frames_of_each_stream_runs_in_rounds_of_columns_in_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A backlog is where columns matter most. What one stream sent stays in order, also beside rows that leave the columns."""
    lists = [[("xytnd"[(turn + stream) % 5], "nothing", 0, stream) for turn in range(5) for stream in range(16)]]
    by_frame, _ = await ran(Adding, lists, monkeypatch)
    as_columns, bench = await ran(AddingColumns, lists, monkeypatch)

    assert as_columns == by_frame
    assert bench.tally.stage_columns.total() >= 3 * 16
    sent = [orjson.loads(payload)["frame"] for topic, payload, _ in bench.sink.sent if "/result/" in topic]
    for stream in range(16):
        numbers = [frame["sequence"] for frame in sent if frame["stream"] == f"in/{stream}"]
        assert numbers == sorted(numbers)


async def test_a_list_with_many_frames_of_few_streams_runs_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lists = [[("x", "nothing", 0, stream) for _ in range(6) for stream in range(4)]]
    _, bench = await ran(AddingColumns, lists, monkeypatch)

    assert bench.tally.stage_columns == {}
    assert bench.tally.out == 24
