"""Worker processes: the same results as in the node, and a crash that costs one frame."""

from __future__ import annotations

import os
import signal
import sys
import threading
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
import signal
import subprocess
import time
from hedgerow import Drop, FrameError, Stage, StageConfig


class Doomed(Stage[StageConfig]):
    """Ends its process during setup."""

    def setup(self, context):
        os._exit(12)


class Limits(StageConfig):
    most: float = 1.0


class Limited(Stage[Limits]):
    """Returns its configuration and environment."""

    def process(self, frame):
        return frame.with_result({"most": str(self.config.most), "environment": dict(os.environ)})


class Scripted(Stage[StageConfig]):
    """Does what the payload says: crash, drop, fail, or count the frames of its stream."""

    def setup(self, context):
        self.seen = context.per_stream(list)
        self.grown = []

    def process(self, frame):
        action = bytes(frame.payload).decode()
        if action == "crash":
            os._exit(11)
        if action == "crash-differently":
            with open(os.environ["CRASHES"], "a+") as crashes:
                crashes.seek(0)
                number = crashes.read().count("x")
                crashes.write("x")
            os.kill(os.getpid(), (signal.SIGKILL, signal.SIGSEGV)[number])
        if action == "orphan-and-crash":
            subprocess.Popen(["sleep", "1000"])
            os._exit(11)
        if action.startswith("grow "):
            self.grown.append(b"x" * int(action.removeprefix("grow")) * 2**20)
        if action == "grow-for-ever":
            while True:
                self.grown.append(b"x" * 2**20)
        if action == "drop":
            return Drop("requested")
        if action == "fail":
            raise FrameError("requested", code="requested-failure")
        self.seen[frame.stream].append(action)
        return frame.with_result({"pid": os.getpid(), "count": len(self.seen[frame.stream])})


class ScriptedColumns(Scripted):
    """The same as columns."""

    def process(self, frame):
        return super().process(frame)

    def process_batch(self, batch):
        results = []
        for row, payload in enumerate(batch.payloads):
            if payload in (b"drop", b"fail"):
                batch.defer(row)
                results.append(None)
            else:
                results.append(super().process(batch.frame(row)).result)
        return batch.with_results(results)
'''


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A plugin on a path that only this test and its workers have."""
    folder = tmp_path_factory.mktemp("plugin")
    (folder / "scripted_stages.py").write_text(STAGES)
    info = folder / "scripted_stages-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: scripted-stages\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[hedgerow.stages]\nscripted = scripted_stages:Scripted\ndoomed = scripted_stages:Doomed\nlimited = scripted_stages:Limited\n"
        "columns = scripted_stages:ScriptedColumns\n"
    )
    sys.path.insert(0, str(folder))
    yield
    sys.path.remove(str(folder))


def quiet(*_: Any) -> None:
    """Ignores events."""


def config(**pipeline: Any) -> NodeConfig:
    return NodeConfig.model_validate({"pipelines": {"p": {"subscribe": "a/#", "stages": ["scripted"], **pipeline}}})


@pytest.fixture
def events() -> list[tuple[str, dict[str, Any]]]:
    return []


@pytest.fixture
def built(stages: None, events: list[tuple[str, dict[str, Any]]]) -> Iterator[WorkerPipeline]:
    built = WorkerPipeline(config(workers=2), "p", Path.cwd(), 2, lambda kind, detail: events.append((kind, detail)))
    yield built
    built.close()


def deliveries(*payloads: str, stream: str = "a/1") -> list[Delivery]:
    now = time.monotonic()
    messages = [Message(stream, payload.encode(), 2, number + 1, now) for number, payload in enumerate(payloads)]
    return [Delivery(message, stream, number, None) for number, message in enumerate(messages)]


def outcomes(completed: Completed) -> list[Any]:
    """The result, drop reason or error code of each settlement."""
    return [
        orjson.loads(each.results[0].payload)["result"] if each.results else each.dropped or each.reason
        for each in completed.settlements
    ]


def test_a_worker_gives_the_same_results_as_the_node(built: WorkerPipeline) -> None:
    local: BuiltPipeline = LocalPipeline(config(), "p", Path.cwd(), ModelPool(cores=1), 1, quiet)
    batch = deliveries("x", "drop", "fail", "y")

    remote, inside = built.run(batch, 0), local.run(batch, 0)

    (first, *_), (other, *_) = outcomes(remote), outcomes(inside)
    assert first["pid"] != other["pid"] == os.getpid()
    assert [each if isinstance(each, str) else each["count"] for each in outcomes(remote)] == [
        1,
        "requested",
        "requested-failure",
        2,
    ]
    assert [each.delivery for each in remote.settlements] == [each.delivery for each in inside.settlements] == batch
    assert [name for name, _, _ in remote.timings] == ["scripted"]
    assert remote.snapshot is not None
    assert remote.snapshot.frame.payload == b"y"
    local.close()


def test_a_worker_runs_lists_as_columns_and_only_the_frame_that_ends_it_is_lost(stages: None) -> None:
    """The list runs again one by one: frames before it count twice, since the new process has no state."""
    built = WorkerPipeline(config(workers=1, stages=["columns"]), "p", Path.cwd(), 1, quiet)
    try:
        batch = [deliveries(what, stream=f"a/{at}")[0] for at, what in enumerate(["x", "drop", "y", "fail", "z"])]
        completed = built.run(batch, 0)
        found = dict(zip([each.delivery.stream for each in completed.settlements], outcomes(completed), strict=True))
        assert [each if isinstance(each, str) else each["count"] for _, each in sorted(found.items())] == [
            1, "requested", 1, "requested-failure", 1,
        ]  # fmt: skip
        assert completed.columns == [("columns", 3)]
        assert completed.snapshot is not None
        assert completed.snapshot.frame.payload == b"z"

        batch = [deliveries(what, stream=f"a/{at}")[0] for at, what in enumerate(["x", "x", "crash", "x"])]
        codes = {each.delivery.stream: each.reason for each in built.run(batch, 0).settlements}
        assert codes == {"a/0": "", "a/1": "", "a/2": "worker-crashed", "a/3": ""}
    finally:
        built.close()


def test_each_lane_has_its_own_process_which_keeps_the_state_of_its_streams(built: WorkerPipeline) -> None:
    one, two = (outcomes(built.run(deliveries("x", stream=f"a/{lane}"), lane))[0] for lane in (0, 1))
    again = outcomes(built.run(deliveries("x", stream="a/0"), 0))[0]

    assert one["pid"] != two["pid"]
    assert (again["pid"], again["count"]) == (one["pid"], 2)


def test_only_the_frame_that_crashes_its_worker_is_dead_lettered(
    built: WorkerPipeline, events: list[tuple[str, dict[str, Any]]]
) -> None:
    """The frame is retried alone; each crash restarts the worker and is reported."""
    before = outcomes(built.run(deliveries("x"), 0))[0]["pid"]
    built.observe("model")

    found = outcomes(built.run(deliveries("x", "crash", "y"), 0))

    assert [each if isinstance(each, str) else "result" for each in found] == ["result", "worker-crashed", "result"]
    assert found[0]["pid"] != before
    assert [kind for kind, _ in events] == ["worker-crashed", "worker-crashed"]
    assert events[0][1]["code"] == 11
    assert built.observations() == Observations(frames=1, failures=1, crashes=2), "the canary analysis counts these"
    built.observe(None)
    assert built.observations() == Observations()

    built.retired, batch = True, deliveries("x", "crash", "y")
    completed = built.run(batch, 0)
    assert (completed.settlements, completed.not_run) == ([], batch), "the replacement runs them"


def test_what_killed_a_worker_is_said_of_the_process_that_died_last(
    stages: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, events: list[tuple[str, dict[str, Any]]]
) -> None:
    """It dies by SIGKILL in the list, and by SIGSEGV when the frame runs alone."""
    monkeypatch.setenv("CRASHES", str(tmp_path / "crashes"))
    built = WorkerPipeline(config(workers=1), "p", Path.cwd(), 1, lambda kind, detail: events.append((kind, detail)))
    (settlement,) = built.run(deliveries("crash-differently"), 0).settlements
    built.close()

    assert settlement.dead is not None
    letter = orjson.loads(settlement.dead.payload)
    assert "crashed twice on this frame in stage scripted: it was killed by SIGSEGV" in letter["message"]
    assert letter["stage"] == "scripted"
    assert [detail["code"] for _, detail in events] == [-signal.SIGKILL, -signal.SIGSEGV]
    assert "out of memory" in events[0][1]["error"]
    assert events[1][1]["state_reset"] == ["scripted"]


def test_the_children_of_a_worker_that_crashed_end_with_it(built: WorkerPipeline) -> None:
    """They would hold its devices, and its pipe. Their own parent may leave them as zombies."""
    pid = outcomes(built.run(deliveries("x"), 0))[0]["pid"]
    assert outcomes(built.run(deliveries("orphan-and-crash"), 0)) == ["worker-crashed"]

    while any(_session_of(each) == pid for each in Path("/proc").glob("[0-9]*")):
        time.sleep(0.01)


def _session_of(process: Path) -> int | None:
    try:
        state, _, _, session, *_ = (process / "stat").read_text().rpartition(")")[2].split()
        return None if state == "Z" else int(session)
    except (FileNotFoundError, ProcessLookupError):
        return None


def replaced_after(built: WorkerPipeline, action: str) -> tuple[int, int]:
    """Run lists until another process replies; return the ids of the first and the last. Every list gives a result."""
    first = last = outcomes(built.run(deliveries(action), 0))[0]["pid"]
    while last == first:
        built.supervise()
        last = outcomes(built.run(deliveries(action), 0))[0]["pid"]
        time.sleep(0.01)
    return first, last


@pytest.mark.parametrize(
    "limit",
    [
        pytest.param({"worker_max_frames": 2}, id="frames"),
        pytest.param({"worker_max_bytes": 2**20}, id="bytes", marks=pytest.mark.long),
    ],
)
def test_a_worker_that_leaks_is_replaced_between_two_lists(
    stages: None, events: list[tuple[str, dict[str, Any]]], limit: dict[str, int]
) -> None:
    """It goes on until its successor is ready, so no frame waits and none is lost."""
    made = config(workers=1, **limit)
    if "worker_max_bytes" in limit:  # from here on it is over the limit; twice as much would kill it
        made = config(workers=1, worker_max_bytes=int(0.6 * measured(stages)))
    built = WorkerPipeline(made, "p", Path.cwd(), 1, lambda kind, detail: events.append((kind, detail)))
    try:
        first, second = replaced_after(built, "x")
        assert first != second
        assert [kind for kind, _ in events] == ["worker-replaced"]
        assert events[0][1]["state_reset"] == ["scripted"]
        assert built.workers().ended == {"replaced": 1}
        while Path(f"/proc/{first}").exists():
            time.sleep(0.01)
    finally:
        built.close()


def measured(stages: None) -> int:
    """Return the resident memory of a worker, in bytes."""
    built = WorkerPipeline(config(workers=1), "p", Path.cwd(), 1, quiet)
    built.run(deliveries("x"), 0)
    (size,) = built.workers().memory_bytes
    built.close()
    return size


def test_a_frame_that_takes_too_much_memory_costs_its_worker_not_the_node(stages: None) -> None:
    made = config(workers=1, worker_max_bytes=300 * 2**20)
    built = WorkerPipeline(made, "p", Path.cwd(), 1, quiet)
    closed = threading.Event()

    def supervise() -> None:
        while not closed.wait(0.05):
            built.supervise()

    watching = threading.Thread(target=supervise)
    watching.start()
    found = outcomes(built.run(deliveries("grow-for-ever"), 0)) + outcomes(built.run(deliveries("x"), 0))
    closed.set()
    watching.join()
    built.close()

    assert found[0] == "worker-memory"
    assert found[1]["count"] == 1
    assert built.workers().ended == {"memory": 1}


def test_a_forgotten_stream_starts_with_new_state(built: WorkerPipeline) -> None:
    lane = hash("a/1") % 2
    built.run(deliveries("x", "y"), lane)
    built.forget("a/1")

    assert outcomes(built.run(deliveries("z"), lane))[0]["count"] == 1


def test_a_pipeline_that_cannot_be_built_raises_the_same_error_as_in_the_node(stages: None) -> None:
    broken = config(workers=1, stages=["scripted", {"infer": {"model": "unknown"}}])

    with pytest.raises(HedgerowError, match="Model 'unknown' is not configured") as raised:
        WorkerPipeline(broken, "p", Path.cwd(), 1, quiet)

    assert raised.value.code == ConfigError.code


def test_a_crash_during_setup_is_an_error_of_the_pipeline(stages: None) -> None:
    """A native library can cause one; any error but a HedgerowError would end the node."""
    with pytest.raises(HedgerowError, match="exited with status 12") as raised:
        WorkerPipeline(config(workers=2, stages=["doomed"]), "p", Path.cwd(), 2, quiet)

    assert raised.value.code == "worker-not-started"


def test_a_worker_gets_the_node_configuration_but_no_secrets(stages: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """JSON has no infinity. The environment contains passwords, and its overrides are in the configuration already."""
    made = config(workers=1, stages=[{"limited": {"most": float("inf")}}])
    monkeypatch.setenv("HEDGEROW_NODE__NAME", "other")
    monkeypatch.setenv("HEDGEROW_BROKER__PASSWORD", "hush")
    built = WorkerPipeline(made, "p", Path.cwd(), 1, quiet)

    (settlement,) = built.run(deliveries("x"), 0).settlements
    built.close()

    body = orjson.loads((settlement.results or [])[0].payload)
    assert body["result"]["most"] == "inf"
    assert body["node"] == str(made.node.address)
    assert [name for name in body["result"]["environment"] if name.startswith("HEDGEROW_")] == []


def test_model_counters_are_summed_over_workers(onnx_file: Callable[..., Path]) -> None:
    pool = ModelPool(cores=1)
    path = onnx_file("(float[N,3] x) => (float[N,3] y) { y = Add(x, x) }")
    info = pool.acquire("door", ModelConfig(path=str(path)), Path()).info()
    pool.close()
    one = replace(info, looked_at=10, not_finite=1, drift=0.4)

    both = one + replace(info, looked_at=5, drift=0.1, input_drift=0.2)

    assert (both.looked_at, both.not_finite, both.drift, both.input_drift) == (15, 1, 0.4, 0.2)
    assert (info + info).drift is None
