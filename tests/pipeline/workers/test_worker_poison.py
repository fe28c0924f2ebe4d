"""Poison frames in a worker process: they die alone, the process goes on, and the node's log has the traceback."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
from tests.pipeline.lane_bench import LaneBench, node_config

from hedgerow.pipeline.workers.worker_pipeline import WorkerPipeline

STAGE = '''
import asyncio
from itertools import repeat

from hedgerow import Drop, Frame, FrameError, Stage, StageConfig


class Panic(BaseException):
    pass


class Unprintable(Exception):
    def __str__(self):
        raise KeyboardInterrupt


class Worse(Stage[StageConfig]):
    """Does what the payload says."""

    def process(self, frame):
        match bytes(frame.payload).decode():
            case "cancel":
                raise asyncio.CancelledError
            case "exit":
                raise SystemExit(3)
            case "interrupt":
                raise KeyboardInterrupt
            case "generator-exit":
                raise GeneratorExit
            case "panic":
                raise Panic("index out of bounds")
            case "unprintable":
                raise Unprintable
            case "code":
                raise FrameError("x", code=[object()])
            case "stream":
                return Frame(stream="in/b", result=1)
            case "endless":
                return repeat(frame)
            case "nan":
                return frame.with_result(float("nan"))
            case "recursion":
                return self.process(frame)
            case "drop":
                return Drop(object())
        return frame.with_result({"n": int(bytes(frame.payload))})
'''

POISON = {
    "cancel": "stage-failed",
    "exit": "stage-failed",
    "interrupt": "stage-failed",
    "generator-exit": "stage-failed",
    "panic": "stage-failed",
    "unprintable": "stage-failed",
    "code": "[<object",
    "stream": "stage-failed",
    "endless": "stage-failed",
    "nan": "unserialisable-result",
    "recursion": "stage-failed",
}


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[WorkerPipeline]:
    """A pipeline with one worker, whose standard error is `log`, and a plugin that only it has."""
    (tmp_path / "worse_stages.py").write_text(STAGE)
    info = tmp_path / "worse_stages-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: worse-stages\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[hedgerow.stages]\nworse = worse_stages:Worse\n")
    sys.path.insert(0, str(tmp_path))
    config = node_config(workers=1, stages=["worse"], lanes=None, batch=4)
    with (tmp_path / "log").open("w") as log, _standard_error(log.fileno()):
        built = WorkerPipeline(config.model_copy(update={"log": LOG}), "p", Path.cwd(), 1, lambda *_: None)
    yield built
    sys.path.remove(str(tmp_path))
    built.close()


@contextlib.contextmanager
def _standard_error(file: int) -> Iterator[None]:
    """Let processes that are started meanwhile write their errors to another file."""
    saved = os.dup(2)
    os.dup2(file, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


LOG = node_config().log.model_copy(update={"format": "json"})


async def test_poison_frames_of_all_kinds_leave_one_worker_alive(worker: WorkerPipeline, tmp_path: Path) -> None:
    pid = worker._workers[0].pid
    async with LaneBench(built=worker) as bench:
        for number, poison in enumerate(POISON):
            bench.send([poison.encode(), b"%d" % number])
            await bench.settled()
        bench.send([b"drop"])
        await bench.settled()

    assert worker._workers[0].pid == pid
    assert [body["result"]["n"] for body in bench.published("result")] == list(range(len(POISON)))
    reasons = [letter["reason"] for letter in bench.published("dead")]
    assert all(map(str.startswith, reasons, POISON.values())), reasons
    assert len(bench.source.acked) == 2 * len(POISON) + 1
    assert bench.tally.balanced
    panic = next(each for each in bench.published("dead") if "out of bounds" in each["message"])
    assert 'raise Panic("index out of bounds")' in panic["traceback"]
    written = [orjson.loads(line) for line in (tmp_path / "log").read_text().splitlines() if '"stage-failed"' in line]
    assert any('raise Panic("index out of bounds")' in line.get("exception", "") for line in written)
    assert {line["pipeline"] for line in written} == {"p"}
