"""Stages for tests, installed through real entry points."""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import orjson
from pydantic import Field

from hedgerow import Drop, Frame, FrameBatch, FrameError, Irregular, PerStream, Stage, StageConfig, StageContext
from hedgerow.stage import THRESHOLD


class Panic(BaseException):
    """As native code raises it through pyo3."""


class TrialConfig(StageConfig):
    tag: str = ""
    sleep_s: float = 0.0
    level: float = Field(0.5, ge=0, le=1, json_schema_extra=THRESHOLD)


class Trial(Stage[TrialConfig]):
    """Does what the frame requests in `do`; the result has the frame's number and the tag."""

    concurrent = True

    def process(self, frame: Frame) -> Any:
        body = orjson.loads(frame.payload)
        if self.config.sleep_s:
            time.sleep(self.config.sleep_s)
        match body.get("do"):
            case None:
                return frame.with_result({"n": body["n"], "tag": self.config.tag})
            case "drop":
                return Drop("asked-to")
            case "nothing":
                return None
            case "two":
                return [frame.with_result({"n": body["n"], "part": part}) for part in range(2)]
            case "dies":
                raise FrameError("asked to", code="asked-to-die")
            case "crash":
                raise ZeroDivisionError("asked to")
            case "kill-process":
                os._exit(9)
            case "segfault":
                ctypes.string_at(0)
            case "hang":
                threading.Event().wait()
            case "exit":
                sys.exit(3)
            case "cancel":
                raise asyncio.CancelledError
            case "panic":
                raise Panic("index out of bounds")
            case "other-stream":
                return Frame(stream="elsewhere", result={"n": body["n"]})
            case "nan":
                return frame.with_result({"n": float("nan")})
            case "unencodable":
                return frame.with_result(object())
            case "large":
                return frame.with_result(bytes(body["size"]))
            case "two-large":
                return [frame.with_result(bytes(body["size"])) for _ in range(2)]
        raise AssertionError(body)


class TrialColumns(Trial):
    """The same as columns. What a frame requests beside a result of its own makes its row leave, or the batch irregular."""

    rows: ClassVar[int] = 0
    """Rows that columns of this process have given results for."""

    def process_batch(self, batch: FrameBatch) -> FrameBatch:
        bodies = [orjson.loads(payload) for payload in batch.payloads]
        requests = {row: body["do"] for row, body in enumerate(bodies) if body.get("do") is not None}
        if not requests.keys() < set(range(len(batch))) or "crash" in requests.values():
            raise Irregular
        for row, request in requests.items():
            match request:
                case "drop" | "nothing" | "two" | "other-stream" | "nan" | "large" | "two-large":
                    batch.leave(row, Trial.process(self, batch.frame(row)))
                case "dies":
                    batch.leave(row, FrameError("asked to", code="asked-to-die"))
                case "unencodable":
                    pass
                case _:
                    batch.defer(row)
        time.sleep(self.config.sleep_s * (len(batch) - len(requests)))
        TrialColumns.rows += len(batch) - len(requests)
        tag = self.config.tag
        if "unencodable" in requests.values():
            results = [object() if row in requests else {"n": body["n"], "tag": tag} for row, body in enumerate(bodies)]
            return batch.with_results(results)
        return batch.with_result_columns(n=[body["n"] for body in bodies], tag=[tag] * len(batch))


class GateConfig(StageConfig):
    path: Path


class Gate(Stage[GateConfig]):
    """Blocks until a file exists."""

    concurrent = True

    def process(self, frame: Frame) -> Frame:
        while not self.config.path.exists():
            time.sleep(0.002)
        return frame


class GateOfOne(Gate):
    """The same, for one lane at a time."""

    concurrent = False


class SetupGate(Stage[GateConfig]):
    """Cannot be set up until a file exists; `close` removes it."""

    def setup(self, context: StageContext) -> None:
        while not self.config.path.exists():
            time.sleep(0.002)

    def close(self) -> None:
        self.config.path.unlink()


class ReadsFile(Stage[GateConfig]):
    """The result is what a file has, as read in `setup`."""

    def setup(self, context: StageContext) -> None:
        self.text = context.path(self.config.path).read_text()

    def process(self, frame: Frame) -> Frame:
        return frame.with_result({"n": 0, "text": self.text})


class DiesInSetup(Stage[StageConfig]):
    """Crashes its process while it is set up."""

    def setup(self, context: StageContext) -> None:
        os._exit(9)


class OneAtATime(Stage[StageConfig]):
    """Passes frames on; wants short lists."""

    concurrent = True
    max_list = 1

    def process(self, frame: Frame) -> Frame:
        return frame


class Brittle(Stage[StageConfig]):
    """Crashes its process when a model returns NaN, as native code may."""

    def process(self, frame: Frame) -> Frame:
        if np.isnan(frame.tensors["y"]).any():
            os._exit(9)
        return frame


class TallyUp(Stage[StageConfig]):
    """The result counts the stream's frames so far."""

    states: ClassVar[list[PerStream[list[None]]]] = []

    def setup(self, context: StageContext) -> None:
        self.seen = context.per_stream(list)
        self.states.append(self.seen)

    def process(self, frame: Frame) -> Frame:
        self.seen[frame.stream].append(None)
        return frame.with_result({"seen": len(self.seen[frame.stream])})


class Numbered(Stage[StageConfig]):
    """Parses a frame's number, for `infer` and `seen`."""

    concurrent = True

    def process(self, frame: Frame) -> Frame:
        number = int(bytes(frame.payload))
        return frame.with_tensors({"x": np.array([[number]], np.float32)}, n=number)


class NumberedColumns(Numbered):
    """The same as columns."""

    def process_batch(self, batch: FrameBatch) -> FrameBatch:
        frames = [Numbered.process(self, batch.frame(row)) for row in range(len(batch))]
        made = FrameBatch.of(frames)
        if made is None:
            raise Irregular
        return batch.with_tensors(made.tensors, n=[frame.meta["n"] for frame in frames])


class SeenConfig(StageConfig):
    generation: int = 0


class Seen(Stage[SeenConfig]):
    """The result has the frame's number, the count of its stream's frames in this stage, and the model's output."""

    def setup(self, context: StageContext) -> None:
        self.seen: PerStream[int] = context.per_stream(int)

    def process(self, frame: Frame) -> Frame:
        self.seen[frame.stream] += 1
        return frame.with_result(
            {
                "n": frame.meta["n"],
                "generation": self.config.generation,
                "seen": self.seen[frame.stream],
                "model": frame.tensors["y"][0].tolist(),
            }
        )


class SeenColumns(Stage[SeenConfig]):
    """The same, as columns and as frames."""

    def setup(self, context: StageContext) -> None:
        self.table = context.stream_table(seen=((), np.int64))

    def process(self, frame: Frame) -> Frame:
        row = self.table.row(frame.stream)
        seen = int(self.table.take("seen", row)) + 1
        self.table.put("seen", row, seen)
        result = {"n": frame.meta["n"], "generation": self.config.generation, "seen": seen}
        return frame.with_result({**result, "model": frame.tensors["y"][0].tolist()})

    def process_batch(self, batch: FrameBatch) -> FrameBatch:
        rows = self.table.rows(batch.streams)
        seen = self.table.take("seen", rows) + 1
        self.table.put("seen", rows, seen)
        return batch.with_result_columns(
            n=batch.meta_column("n"),
            generation=[self.config.generation] * len(batch),
            seen=seen,
            model=batch.tensors["y"][:, 0],
        )


class Stuck(Stage[StageConfig]):
    """Never returns."""

    def process(self, frame: Frame) -> Frame:
        threading.Event().wait()
        return frame


class Stepped(Trial):
    """Waits for a turn before each frame: a slow stage, counted in turns instead of seconds."""

    turns: ClassVar[threading.Semaphore] = threading.Semaphore(0)

    def process(self, frame: Frame) -> Any:
        self.turns.acquire()
        return super().process(frame)


class BadSetup(Stage[StageConfig]):
    """Fails to set up."""

    def setup(self, context: StageContext) -> None:
        raise RuntimeError("no camera calibration")


class NotAStage:
    """Does not implement a stage."""
