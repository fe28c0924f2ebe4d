"""`plugin test` proves that columns give the same as frames: it detects each difference, and first-party stages have none."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmarks.data_path import vad

from hedgerow.config import ModelConfig, StageEntry
from hedgerow.testing import frame, frames
from hedgerow.testing.contract import Promise, try_stage

COLUMNS = "columns give the same outcomes as single frames"

# Each differs between its ways by a typical bug.
STAGES = '''
import numpy as np
from hedgerow import Frame, FrameError, Irregular, PerStream, Stage

class Counting(Stage):
    """Numbers the frames of a stream, correctly."""
    def setup(self, context):
        self.table = context.stream_table(count=((), np.int64))
    def process(self, frame):
        if not frame.payload.startswith(b"["):
            raise FrameError("no list", code="no-list")
        row = self.table.row(frame.stream)
        count = int(self.table.take("count", row)) + 1
        self.table.put("count", row, count)
        return frame.with_result({"count": count})
    def process_batch(self, batch):
        bad = [n for n, payload in enumerate(batch.payloads) if not payload.startswith(b"[")]
        for row in bad:
            batch.defer(row)
        rows = self.table.rows(batch.streams)
        counts = self.table.take("count", rows) + 1
        good = [n for n in range(len(batch)) if n not in bad]
        self.table.put("count", rows[good], counts[good])
        return batch.with_result_columns(count=counts)

class TwoStates(Counting):
    """Has a state of its own for columns."""
    def setup(self, context):
        super().setup(context)
        self.counts = context.per_stream(int)
    def process(self, frame):
        return super().process(frame)
    def process_batch(self, batch):
        for n, payload in enumerate(batch.payloads):
            if not payload.startswith(b"["):
                batch.defer(n)
            else:
                self.counts[batch.streams[n]] += 1
        return batch.with_result_columns(count=[self.counts[stream] for stream in batch.streams])

class Lenient(Counting):
    """Accepts as columns what it refuses as frames."""
    def process(self, frame):
        return super().process(frame)
    def process_batch(self, batch):
        rows = self.table.rows(batch.streams)
        counts = self.table.take("count", rows) + 1
        self.table.put("count", rows, counts)
        return batch.with_result_columns(count=counts)

class Backwards(Stage):
    """Mixes up its rows."""
    def process(self, frame):
        return frame.with_result(frame.stream)
    def process_batch(self, batch):
        return batch.with_results(list(reversed(batch.streams)))

class Late(Counting):
    """Raises Irregular after it has changed its state."""
    def process(self, frame):
        return super().process(frame)
    def process_batch(self, batch):
        rows = self.table.rows(batch.streams)
        self.table.put("count", rows, self.table.take("count", rows) + 1)
        raise Irregular

class Forgetting(Stage):
    """Makes fewer rows than it got."""
    def process(self, frame):
        return frame.with_array(np.ones(2))
    def process_batch(self, batch):
        return batch.with_array(np.ones((1, 2)))

class Dropping(Stage):
    """Absorbs as columns what it passes on as frames."""
    def process(self, frame):
        return frame.with_result(1)
    def process_batch(self, batch):
        batch.leave(0, None)
        return batch.with_results([1] * len(batch))

class Whole(Stage):
    """Returns whole numbers as columns, and floats as frames."""
    def process(self, frame):
        return frame.with_array(np.ones(2, np.float32)).with_result({"n": 1.5})
    def process_batch(self, batch):
        return batch.with_array(np.ones((len(batch), 2), np.float32)).with_result_columns(n=np.ones(len(batch), int))

class Plain(Stage):
    """Has no columns."""
    def process(self, frame):
        return frame.with_result(1)

class Never(Stage):
    """Takes no columns, for a good reason."""
    def process(self, frame):
        return frame.with_result(1)
    def process_batch(self, batch):
        raise Irregular
'''
LISTS = frames(["[1, 2]", "[3, 4, 5]", "[6]"], content_type="application/json")


@pytest.fixture(autouse=True)
def stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "acme_columns-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-columns\nVersion: 1.0\n")
    names = [line.split()[1].partition("(")[0] for line in STAGES.splitlines() if line.startswith("class ")]
    entries = [f"{name.lower()} = acme_columns:{name}" for name in names]
    (info / "entry_points.txt").write_text("\n".join(["[hedgerow.stages]", *entries]))
    (tmp_path / "acme_columns.py").write_text(STAGES)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "acme_columns", raising=False)
    importlib.invalidate_caches()


def promises(*entries: StageEntry, samples: Any = LISTS, **options: Any) -> dict[str, Promise]:
    return {promise.name: promise for promise in try_stage(entries, samples, **options)}


def test_a_stage_whose_ways_agree_keeps_the_promise() -> None:
    found = promises(StageEntry(name="counting"))

    assert found[COLUMNS] == Promise(COLUMNS, True, "")
    assert all(promise.kept for promise in found.values())


@pytest.mark.parametrize(
    ("stage", "detail"),
    [
        ("twostates", "as columns instead of alone: result of frame 0 differs: {'count': 1} instead of {'count': "),
        (
            "lenient",
            "frame 1 of another stream, as columns instead of alone: it is passed on, instead of dead (no-list)",
        ),
        (
            "backwards",
            "as columns instead of alone: result of frame 0 differs: 'a third stream' instead of 'one stream'",
        ),
        ("late", "as columns instead of alone: result of frame 0 differs: {'count': 2} instead of {'count': 1}"),
        ("forgetting", "as columns instead of alone: it is dead (stage-failed), instead of passed on"),
        ("dropping", "as columns instead of alone: it is dropped (absorbed), instead of passed on"),
        ("whole", "as columns instead of alone: result of frame 0 differs: {'n': 1} instead of {'n': 1.5}"),
    ],
)
def test_each_difference_is_reported_with_the_frame_and_the_way(stage: str, detail: str) -> None:
    promise = promises(StageEntry(name=stage))[COLUMNS]

    assert not promise.kept
    assert promise.detail.startswith("frame ")
    assert detail in promise.detail


def test_a_stage_that_takes_no_columns_of_the_samples_is_told_so() -> None:
    promise = promises(StageEntry(name="never"))[COLUMNS]

    assert promise.kept
    assert promise.detail.startswith("none of the samples ran as columns: `process_batch` raised Irregular")


def test_a_stage_without_columns_promises_nothing_of_them() -> None:
    assert COLUMNS not in promises(StageEntry(name="plain"))


COUNTER = """(float[N,3] x, float[1,N,3] total) => (float[N,3] y, float[1,N,3] next)
    <int64[1] first = {0}> { next = Add(total, x) sum = Squeeze(next, first) y = Sub(sum, x) }"""
STATE = {"state": {"total": "next"}, "batch_axis": {"total": 1, "next": 1}}


@pytest.mark.parametrize(
    ("config", "keep"),
    [
        ({"backend": "onnxruntime"}, True),
        ({"backend": "openvino", "static_batches": True, "max_batch": 2}, True),
    ],
    ids=str,
)
def test_infer_agrees(onnx_file: Any, config: dict[str, Any], keep: bool) -> None:
    """A model whose hidden state sums up what the stream has sent."""
    path = onnx_file(COUNTER)
    model = ModelConfig(path=path.name, **STATE, **config)
    stages = [
        StageEntry(name="parse", config={"dtype": "float32"}),
        StageEntry(name="infer", config={"model": "m", "keep": keep}),
    ]
    samples = frames(["[1.0, 2, 3]", "[4, 5, 6.5]", "[7, 8, 9]"], content_type="application/json")

    found = promises(*stages, samples=samples, models={"m": model}, base_dir=path.parent)

    assert found[COLUMNS] == Promise(COLUMNS, True, "")
    assert all(promise.kept for promise in found.values()), found


@pytest.mark.parametrize(
    "settings",
    [
        {"field": ["a", "b.c"], "dtype": "float32"},
        {"field": "a", "time": "t"},
        {"tensors": {"x": "a", "y": "b.c"}, "meta": {"rate": "hz"}},
        {"field": ["a", "b.c"], "missing": "drop"},
        {"field": ["a", "n"], "missing": 7},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["json", "msgpack"])
def test_parse_agrees_on_telemetry(settings: dict[str, Any], kind: str) -> None:
    import msgpack
    import orjson

    encode = orjson.dumps if kind == "json" else msgpack.packb
    bodies = [
        {"a": 1.5, "b": {"c": 2.25}, "t": 1_700_000_000 + number, "hz": 50, "name": "north", "n": number}
        for number in range(4)
    ]
    samples = frames([encode(body) for body in bodies], content_type=f"application/{kind}")

    found = promises(StageEntry(name="parse", config=settings), samples=samples)

    assert found[COLUMNS] == Promise(COLUMNS, True, "")
    assert all(promise.kept for promise in found.values()), found


AUDIO = [{"pcm16": {"rate": 16_000}}, {"vad-window": {}}, {"infer": {"model": "vad"}}, {"speech": {}}]


@pytest.mark.parametrize(
    ("until", "every_window"), [(1, True), (2, True), pytest.param(4, False, marks=pytest.mark.long), (4, True)]
)
def test_audio_stages_agree(until: int, every_window: bool) -> None:
    """On a voice-like buzz, which begins and ends."""
    if importlib.util.find_spec("silero_vad") is None or importlib.util.find_spec("hedgerow_audio") is None:
        pytest.skip("silero_vad or hedgerow-audio is not installed")
    samples = [
        frame(sound, sequence=number, content_type="audio/pcm", captured_at=100 + number * 0.032)
        for number, sound in enumerate(vad.sound()[:24])
    ]
    settings = {"speech": {"every_window": every_window, "min_speech_s": 0.0, "threshold": 0.2}}
    entries = [
        StageEntry(name=name, config=settings.get(name, config))
        for each in AUDIO[:until]
        for name, config in each.items()
    ]

    found = promises(*entries, samples=samples, models={"vad": ModelConfig(**{**vad.MODEL, "max_batch": 2})})

    assert found[COLUMNS] == Promise(COLUMNS, True, "")
    assert all(promise.kept for promise in found.values()), found
