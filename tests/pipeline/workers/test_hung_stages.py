"""Stages that hang in many ways: (frames, expected, seen). What is only slow goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from hedgerow.bus.message import Message
from hedgerow.config import NodeConfig
from hedgerow.errors import HedgerowError
from hedgerow.pipeline.delivery import Delivery
from hedgerow.pipeline.lanes.hang_watch import HangWatch
from hedgerow.pipeline.workers import worker as worker_module
from hedgerow.pipeline.workers.worker import ended
from hedgerow.pipeline.workers.worker_pipeline import WorkerPipeline

LIMIT_S = 1.0

DEAD = "stage-timeout in hanging"

QUICK = [
    "sleep",
    "endless-sum",
    "frozen-by-a-signal",
    "hang-beside-a-child-with-the-pipe",
    "result-that-cannot-be-sorted",
]

HANGS = dict.fromkeys(
    [
        "sleep",
        "busy-loop",
        "loop-that-catches-everything",
        "infinite-generator",
        "generator-that-stalls",
        "deep-recursion-by-generators",
        "event-never-set",
        "lock-never-released",
        "lock-of-a-dead-thread",
        "condition-without-notify",
        "empty-queue",
        "barrier-for-two",
        "future-never-done",
        "thread-that-is-joined",
        "event-loop-of-its-own",
        "native-with-the-interpreter-lock",
        "native-without-the-interpreter-lock",
        "catastrophic-expression",
        "endless-sum",
        "huge-number",
        "huge-text",
        "socket-that-stays-silent",
        "peer-that-does-not-read",
        "server-without-clients",
        "pipe-without-a-writer",
        "fifo-without-a-writer",
        "select-on-nothing",
        "selector-without-timeout",
        "locked-file",
        "wait-for-a-signal",
        "all-signals-blocked",
        "frozen-by-a-signal",
        "own-handler-of-the-stack-signal",
        "default-action-of-the-stack-signal",
        "child-process",
        "child-that-ignores-signals",
        "child-whose-output-is-not-read",
        "forked-child-that-is-awaited",
        "hang-beside-a-child-with-the-pipe",
    ],
    DEAD,
) | {"result-that-cannot-be-sorted": "stage-timeout in publish"}


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A plugin on a path that only this test and its workers have."""
    folder = tmp_path_factory.mktemp("plugin")
    info = folder / "hanging_stages-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hanging-stages\nVersion: 1.0\n")
    stages = {
        "hanging": "Hanging",
        "hanging-lists": "HangingLists",
        "forwards": "Forwards",
        "hangs-in-setup": "HangsInSetup",
        "hangs-in-close": "HangsInClose",
        "hangs-at-exit": "HangsAtExit",
    }
    lines = [f"{name} = hanging_stages:{attribute}" for name, attribute in stages.items()]
    (info / "entry_points.txt").write_text("\n".join(["[hedgerow.stages]", *lines, ""]))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        patch.syspath_prepend(str(folder))
        patch.setenv("HANGING_ONCE", str(folder / "once"))
        yield folder


class Watched:
    """A pipeline with one worker, watched as the node does, but more often."""

    def __init__(self, *stages: Any, **pipeline: Any) -> None:
        config = {"subscribe": "a/#", "stages": stages, "workers": 1, "stage_timeout_s": LIMIT_S, **pipeline}
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.built = WorkerPipeline(
            NodeConfig.model_validate({"pipelines": {"p": config}}),
            "p",
            Path.cwd(),
            1,
            lambda kind, detail: self.events.append((kind, detail)),
        )
        self._closed = threading.Event()
        self._watching = threading.Thread(target=self._watch)
        self._watching.start()

    def _watch(self) -> None:
        watch, built = HangWatch(), self.built
        while not self._closed.wait(0.1):
            built.supervise()
            call = built.stage_call(0)
            waited_s = watch.look(call, time.monotonic())
            if call is not None and waited_s > built.timeouts_s[call.stage] * call.frames:
                built.end_hung(0, call)

    def run(self, *frames: str) -> list[str]:
        """Run one list of `stream:payload`; return how each frame ended, in order."""
        now, deliveries = time.monotonic(), []
        for number, frame in enumerate(frames):
            stream, _, payload = frame.rpartition(":")
            message = Message(stream or "a/1", payload.encode(), 2, number + 1, now)
            deliveries.append(Delivery(message, stream or "a/1", number, None))
        settlements = self.built.run(deliveries, 0).settlements
        assert {each.delivery for each in settlements} == set(deliveries)
        return [_outcome(next(s for s in settlements if s.delivery is each)) for each in deliveries]

    def close(self) -> None:
        self._closed.set()
        self._watching.join()
        self.built.close()


def _outcome(settlement: Any) -> str:
    if settlement.dead is not None:
        return f"{settlement.reason} in {orjson.loads(settlement.dead.payload)['stage']}"
    return "result" if settlement.results else str(settlement.dropped)


@contextmanager
def watched(*stages: Any, **pipeline: Any) -> Iterator[Watched]:
    pipeline_ = Watched(*stages, **pipeline)
    try:
        yield pipeline_
    finally:
        pipeline_.close()


@pytest.fixture(scope="module")
def hanging(plugin: Path) -> Iterator[Watched]:
    with watched("forwards", "hanging") as found:
        yield found


def attempts() -> list[Any]:
    return [pytest.param(name, id=name, marks=[] if name in QUICK else pytest.mark.long) for name in HANGS]


@pytest.mark.parametrize("way", attempts())
def test_a_frame_that_hangs_its_stage_is_dead_lettered_with_the_stage_and_the_next_one_gives_a_result(
    hanging: Watched, way: str
) -> None:
    assert hanging.run(way) == [HANGS[way]]
    assert hanging.run("good") == ["result"]


LISTS: dict[str, tuple[list[str], list[str]]] = {
    "second-frame-of-a-list": (["one", "sleep", "three"], ["result", DEAD, "result"]),
    "first-frame-of-a-list": (["sleep", "two", "three"], [DEAD, "result", "result"]),
    "two-frames-of-a-list": (["sleep", "two", "endless-sum"], [DEAD, "result", DEAD]),
    "one-of-several-streams": (["a:one", "b:sleep", "a:two", "b:three"], ["result", DEAD, "result", "result"]),
    "hangs-once-then-works": (["one", "hang-once", "three"], ["result"] * 3),
    "slow-frames": (["slow"] * 4, ["result"] * 4),
    "slow-native-frames": (["slow-with-the-interpreter-lock"] * 4, ["result"] * 4),
    "child-keeps-the-pipe": (["child-with-the-pipe", "two"], ["result"] * 2),
    "crash-beside-a-child": (["crash-beside-a-child-with-the-pipe"], ["worker-crashed in hanging"]),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if "slow" in name or "second" in name else pytest.mark.long) for name in LISTS],
)
def test_only_the_frame_that_hangs_is_lost(hanging: Watched, name: str) -> None:
    frames, expected = LISTS[name]
    pid = hanging.built._workers[0].pid

    assert hanging.run(*frames) == expected

    if "slow" in name or "keeps" in name:
        assert hanging.built._workers[0].pid == pid, "what is only slow is not killed"


@pytest.mark.long
def test_a_stage_that_takes_lists_has_as_many_times_the_limit(plugin: Path) -> None:
    with watched("hanging-lists") as lists:
        assert lists.run("slow", "slow", "slow", "slow") == ["result"] * 4
        assert lists.run("one", "sleep", "three") == ["result", "stage-timeout in hanging-lists", "result"]


@pytest.mark.long
def test_each_stage_has_its_own_limit(plugin: Path) -> None:
    """0.4 s is too long for the second stage only."""
    with watched({"name": "hanging", "timeout_s": 30}, {"name": "hanging-lists", "timeout_s": 0.2}) as two:
        assert two.run("slow") == ["stage-timeout in hanging-lists"]


@pytest.mark.parametrize("stages", [["hangs-in-setup"], ["forwards", "hangs-in-setup"]], ids=["first", "second"])
@pytest.mark.long
def test_a_hang_in_setup_is_an_error_that_names_the_stage(
    plugin: Path, monkeypatch: pytest.MonkeyPatch, stages: list[str]
) -> None:
    monkeypatch.setattr(worker_module, "_STOP_S", 0.1)
    for limit_s in (3.0, 15.0, 60.0):  # on a busy machine the process itself takes seconds to start
        monkeypatch.setattr(worker_module, "_START_S", limit_s)
        with pytest.raises(HedgerowError, match=f"not ready within {limit_s:.0f} s") as refused:
            Watched(*stages)
        if "while stage" in str(refused.value):
            break

    assert "while stage hangs-in-setup was set up" in str(refused.value)


@pytest.mark.parametrize("stage", ["hangs-in-close", "hangs-at-exit"])
@pytest.mark.long
def test_a_hang_in_close_leaves_no_process(plugin: Path, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    monkeypatch.setattr(worker_module, "_STOP_S", 0.5)
    with watched(stage) as closing:
        assert closing.run("good") == ["result"]
        (worker,) = closing.built._workers

    assert "did not end" in worker.end().how or worker.has_ended()
    while Path(f"/proc/{worker.pid}").exists():
        time.sleep(0.01)


def test_a_signal_without_a_name_is_named_by_its_number() -> None:
    assert ended(-40) == "was killed by signal 40"
    assert ended(-11) == "was killed by SIGSEGV"
    assert "out of memory" in ended(-9)
    assert ended(3) == "exited with status 3"
