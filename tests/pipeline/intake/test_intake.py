"""The intake: a stream's state is discarded only while no stage uses it."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

from hedgerow.bus.message import Message
from hedgerow.config import NodeConfig
from hedgerow.pipeline.intake.intake import Intake
from hedgerow.telemetry.tally import Tally


def message(topic: str) -> Message:
    return Message(topic, b"x", 0, 0, time.monotonic())


def test_a_stream_whose_frame_is_in_a_lane_is_forgotten_when_its_list_has_run() -> None:
    """Before, another stream could get the row that its stage is about to write to."""
    pipeline = {
        "subscribe": "a/#",
        "stages": [{"name": "infer", "config": {"model": "m"}}],
        "stream": {"max_streams": 2},
    }
    config = NodeConfig.model_validate({"pipelines": {"main": pipeline}}).pipelines["main"]
    forgotten: list[str] = []
    built: Any = SimpleNamespace(config=config, lanes=1, pinned=False, forget=forgotten.append)
    intake = Intake(built, SimpleNamespace(), Tally(), lambda *_: None)  # type: ignore[arg-type] - not used
    queue = intake.queues[0]

    intake.receive([message("a/running")])
    (running,), _ = queue.take(10, time.monotonic())
    intake.receive([message("a/idle")])
    queue.take(10, time.monotonic())
    queue.release(["a/idle"])
    intake.receive([message("a/2")])  # forgets the one in the lane
    intake.receive([message("a/3")])  # forgets the idle one

    assert forgotten == ["a/idle"]
    assert queue.runs(running.stream)
    assert intake.forgotten({running.stream, "a/3"}) == [running.stream]
