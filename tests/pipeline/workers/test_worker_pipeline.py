"""Stages in processes of their own: the same results, and a crash that costs one frame."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from hedgerow.bus.message import Message
from hedgerow.config import ModelConfig, NodeConfig
from hedgerow.errors import ConfigError, HedgerowError
from hedgerow.models.monitor.observations import Observations
from hedgerow.models.serving.pool import ModelPool
from hedgerow.pipeline.built_pipeline import BuiltPipeline, Completed
from hedgerow.pipeline.delivery import Delivery
from hedgerow.pipeline.local_pipeline import LocalPipeline
from hedgerow.pipeline.workers.worker_pipeline import WorkerPipeline

STAGES = '''
import os
import time
from hedgerow import Drop, FrameError, Stage, StageConfig


class Doomed(Stage[StageConfig]):
    """Brings its process down before there is a frame."""

    def setup(self, context):
        os._exit(12)


class Limits(StageConfig):
    most: float = 1.0


class Limited(Stage[Limits]):
    """Says how it was made."""

    def process(self, frame):
        return frame.with_result({"most": str(self.config.most), "environment": dict(os.environ)})


class Treat(Stage[StageConfig]):
    """Does what a payload says: crash, drop, die, or count its stream's frames."""

    def setup(self, context):
        self.seen = context.per_stream(list)

    def process(self, frame):
        word = bytes(frame.payload).decode()
        if word == "crash":
            os._exit(11)
        if word == "drop":
            return Drop("told-to")
        if word == "die":
            raise FrameError("told to", code="told-to-die")
        self.seen[frame.stream].append(word)
        return frame.with_result({"pid": os.getpid(), "count": len(self.seen[frame.stream])})
'''


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A plugin, installed where only this test and its workers look."""
    folder = tmp_path_factory.mktemp("plugin")
    (folder / "treats.py").write_text(STAGES)
    info = folder / "treats-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: treats\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[hedgerow.stages]\ntreat = treats:Treat\ndoomed = treats:Doomed\nlimited = treats:Limited\n"
    )
    sys.path.insert(0, str(folder))
    yield
    sys.path.remove(str(folder))


def quiet(*_: Any) -> None:
    """Takes events that a test does not look at."""


def config(**pipeline: Any) -> NodeConfig:
    return NodeConfig.model_validate({"pipelines": {"p": {"subscribe": "a/#", "stages": ["treat"], **pipeline}}})


@pytest.fixture
def events() -> list[tuple[str, dict[str, Any]]]:
    return []


@pytest.fixture
def built(stages: None, events: list[tuple[str, dict[str, Any]]]) -> Iterator[WorkerPipeline]:
    built = WorkerPipeline(config(workers=2), "p", Path.cwd(), 2, lambda kind, detail: events.append((kind, detail)))
    yield built
    built.close()


def deliveries(*words: str, stream: str = "a/1") -> list[Delivery]:
    now = time.monotonic()
    messages = [Message(stream, word.encode(), 2, number + 1, now) for number, word in enumerate(words)]
    return [Delivery(message, stream, number, None) for number, message in enumerate(messages)]


def outcome(completed: Completed) -> list[Any]:
    """Per settlement: the result, the reason for a drop, or the code of a death."""
    return [
        orjson.loads(each.results[0].payload)["result"] if each.results else each.dropped or each.reason
        for each in completed.settlements
    ]


def test_a_worker_gives_what_the_node_itself_would_give(built: WorkerPipeline) -> None:
    local: BuiltPipeline = LocalPipeline(config(), "p", Path.cwd(), ModelPool(cores=1), 1, quiet)
    given = deliveries("x", "drop", "die", "y")

    there, here = built.run(given, 0), local.run(given, 0)

    (first, *_), (other, *_) = outcome(there), outcome(here)
    assert first["pid"] != other["pid"] == os.getpid()
    assert [each if isinstance(each, str) else each["count"] for each in outcome(there)] == [
        1,
        "told-to",
        "told-to-die",
        2,
    ]
    assert [each.delivery for each in there.settlements] == [each.delivery for each in here.settlements] == given
    assert [name for name, _, _ in there.timings] == ["treat"]
    assert there.snapshot is not None
    assert there.snapshot.frame.payload == b"y"
    local.close()


def test_each_lane_has_a_process_and_keeps_its_streams_state(built: WorkerPipeline) -> None:
    one, two = (outcome(built.run(deliveries("x", stream=f"a/{lane}"), lane))[0] for lane in (0, 1))
    again = outcome(built.run(deliveries("x", stream="a/0"), 0))[0]

    assert one["pid"] != two["pid"]
    assert (again["pid"], again["count"]) == (one["pid"], 2)


def test_a_frame_that_crashes_its_worker_is_dead_lettered_and_its_neighbours_are_not(
    built: WorkerPipeline, events: list[tuple[str, dict[str, Any]]]
) -> None:
    """The frame gets a second try, alone; the worker is started anew each time and reported."""
    before = outcome(built.run(deliveries("x"), 0))[0]["pid"]
    built.observe("model")

    words = outcome(built.run(deliveries("x", "crash", "y"), 0))

    assert [each if isinstance(each, str) else "result" for each in words] == ["result", "worker-crashed", "result"]
    assert words[0]["pid"] != before
    assert [kind for kind, _ in events] == ["worker-crashed", "worker-crashed"]
    assert events[0][1]["code"] == 11
    assert built.observations() == Observations(frames=1, failures=1, crashes=2), (
        "what is held against a version on trial"
    )
    built.observe(None)
    assert built.observations() == Observations()

    built.retired, given = True, deliveries("x", "crash", "y")
    completed = built.run(given, 0)
    assert (completed.settlements, completed.left) == ([], given), "the pipeline that took its place may do better"


def test_a_forgotten_stream_begins_anew(built: WorkerPipeline) -> None:
    lane = hash("a/1") % 2
    built.run(deliveries("x", "y"), lane)
    built.forget("a/1")

    assert outcome(built.run(deliveries("z"), lane))[0]["count"] == 1


def test_a_pipeline_that_cannot_be_built_says_so_as_it_would_in_the_node(stages: None) -> None:
    broken = config(workers=1, stages=["treat", {"infer": {"model": "nobody"}}])

    with pytest.raises(HedgerowError, match="No model 'nobody'") as raised:
        WorkerPipeline(broken, "p", Path.cwd(), 1, quiet)

    assert raised.value.code == ConfigError.code


def test_a_stage_that_brings_its_worker_down_in_setup_is_an_error_of_its_pipeline(stages: None) -> None:
    """A native library may do so; were it no HedgerowError, it would end the node."""
    with pytest.raises(HedgerowError, match="ended with code 12") as raised:
        WorkerPipeline(config(workers=2, stages=["doomed"]), "p", Path.cwd(), 2, quiet)

    assert raised.value.code == "worker-not-started"


def test_a_worker_gets_the_configuration_the_node_has_and_no_secrets(
    stages: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Infinity has no JSON; and the environment, which holds passwords, went into the configuration already."""
    made = config(workers=1, stages=[{"limited": {"most": float("inf")}}])
    monkeypatch.setenv("HEDGEROW_NODE__NAME", "another")
    monkeypatch.setenv("HEDGEROW_BROKER__PASSWORD", "hush")
    built = WorkerPipeline(made, "p", Path.cwd(), 1, quiet)

    (settlement,) = built.run(deliveries("x"), 0).settlements
    built.close()

    body = orjson.loads((settlement.results or [])[0].payload)
    assert body["result"]["most"] == "inf"
    assert body["node"] == str(made.node.address)
    assert [name for name in body["result"]["environment"] if name.startswith("HEDGEROW_")] == []


def test_what_workers_see_of_a_model_is_told_as_one(onnx_file: Callable[..., Path]) -> None:
    pool = ModelPool(cores=1)
    path = onnx_file("(float[N,3] x) => (float[N,3] y) { y = Add(x, x) }")
    info = pool.acquire("door", ModelConfig(path=str(path)), Path()).info()
    pool.close()
    one = replace(info, looked_at=10, not_finite=1, drift=0.4)

    both = one + replace(info, looked_at=5, drift=0.1, input_drift=0.2)

    assert (both.looked_at, both.not_finite, both.drift, both.input_drift) == (15, 1, 0.4, 0.2)
    assert (info + info).drift is None
