"""The contract tests: accept stages that keep the contract, and detect each broken promise."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

from hedgerow.config import ModelConfig, StageEntry
from hedgerow.errors import FrameError, PluginError
from hedgerow.testing import frames
from hedgerow.testing.contract import try_stage

# Each breaks one promise with a typical bug.
STAGES = '''
import numpy as np
from hedgerow import ArraySpec, Frame, FrameError, PerStream, Stage

class Refusing(Stage):
    """Refuses valid frames."""
    def process(self, frame):
        raise FrameError("no", code="no")

class Crashing(Stage):
    """Does not validate its input."""
    def process(self, frame):
        return frame.with_result(frame.payload[0] * frame.payload[2] // (1 + len(frame.payload) % 2))

class Hasty(Stage):
    """Changes its state before validating the frame."""
    def setup(self, context):
        self.seen = context.per_stream(lambda: [0])
    def process(self, frame):
        self.seen[frame.stream][0] += 1
        if not frame.payload.startswith(b"["):
            raise FrameError("no list", code="no-list")
        return frame.with_result(self.seen[frame.stream][0])

class Mixing(Stage):
    """Has one state for all streams."""
    count = 0
    def setup(self, context):
        self.count = 0
    def process(self, frame):
        if not frame.payload.startswith(b"["):
            raise FrameError("no list", code="no-list")
        self.count += 1
        return frame.with_result(self.count)

class Batching(Stage):
    """Lets a result depend on other frames of the list."""
    def process_many(self, frames):
        longest = max(len(frame.payload) for frame in frames)
        return [frame.with_result(longest) for frame in frames]

class Sharing(Stage):
    """Shares its state with other instances."""
    seen = []
    def process(self, frame):
        if not frame.payload.startswith(b"["):
            raise FrameError("no list", code="no-list")
        self.seen.append(frame.id)
        return frame.with_result(len(self.seen))

class Shrinking(Stage):
    """Declares another shape than it gives."""
    def output_spec(self, incoming):
        return incoming.with_tensors({"x": ArraySpec("float32", (4,))})
    def process(self, frame):
        return frame.with_tensors({"x": np.zeros(3, np.float32)})

class Fussy(Stage):
    """Declares that it takes a picture, and takes anything."""
    def output_spec(self, incoming):
        incoming.expect_meta("picture", remedy="Send a picture.")
        return incoming
    def process(self, frame):
        return frame

class Noting(Stage):
    """Adds a tensor and meta that it does not declare."""
    def output_spec(self, incoming):
        return incoming
    def process(self, frame):
        return frame.with_meta(note=1) if frame.payload == b"[6]" else frame

class Writing(Stage):
    """Modifies the array in place."""
    def process(self, frame):
        frame.array[...] += 1
        return frame.with_result(float(frame.array.sum()))
'''


@pytest.fixture(autouse=True)
def broken_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "acme_broken_promises-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-broken-promises\nVersion: 1.0\n")
    names = [line.split()[1].partition("(")[0] for line in STAGES.splitlines() if line.startswith("class ")]
    entries = [f"{name.lower()} = acme_broken_promises:{name}" for name in names]
    (info / "entry_points.txt").write_text("\n".join(["[hedgerow.stages]", *entries]))
    (tmp_path / "acme_broken_promises.py").write_text(STAGES)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "acme_broken_promises", raising=False)
    importlib.invalidate_caches()


LISTS = frames(["[1, 2]", "[3, 4, 5]", "[6]"], content_type="application/json")


def broken(*stages: StageEntry, samples=LISTS, **options) -> dict[str, str]:
    return {promise.name: promise.detail for promise in try_stage(stages, samples, **options) if not promise.kept}


def test_a_valid_stage_keeps_every_promise() -> None:
    assert broken(StageEntry(name="parse")) == {}


@pytest.mark.parametrize(
    ("stage", "promise", "detail"),
    [
        ("refusing", "valid frames are accepted", "no (no)"),
        (
            "crashing",
            "invalid frames raise FrameError",
            "a frame of 0 bytes (application/json) crashes it: Stage crashing raised IndexError",
        ),
        ("hasty", "an invalid frame does not affect other frames", "result of frame 0 differs: "),
        ("mixing", "streams are independent", "result of frame 1 differs: 3 instead of 2"),
        (
            "batching",
            "a list of frames gives the same results as single frames",
            "result of frame 0 differs: 9 instead of 6",
        ),
        ("sharing", "a new instance starts without state", "result of frame 0 differs: "),
        (
            "shrinking",
            "what it declares is true",
            "it declares x: float32[4]; a frame has float32[3]",
        ),
        (
            "fussy",
            "what it declares is true",
            "it accepts a frame of 6 bytes (application/json), but declares that it does not: Stage fussy takes meta 'picture'",
        ),
        ("noting", "what it declares is true", "it declares no meta 'note'; a frame has it"),
    ],
)
def test_each_broken_promise_is_reported_with_evidence(stage: str, promise: str, detail: str) -> None:
    found = broken(StageEntry(name=stage))

    assert found[promise].startswith(detail)


def test_modifying_the_input_is_detected() -> None:
    """The array may be a view of the receive buffer, which other pipelines use too."""
    found = broken(StageEntry(name="writing"), samples=frames([np.ones(4), np.ones(4)]))

    assert found["input data is not modified"] == (
        "it modified a frame of 0 bytes (no content type, array float64[4]); other frames may share that memory"
    )


def test_a_stage_is_tested_with_the_output_of_the_stages_before_it(onnx_file) -> None:
    """A real model after a real parser."""
    path = onnx_file("(float[N,3] x) => (float[N,3] y) { y = Add(x, x) }")
    stages = [StageEntry(name="parse"), StageEntry(name="infer", config={"model": "door"})]

    promises = try_stage(
        stages,
        frames(["[1.0, 2.0, 3.0]", "[4.0, 5.0, 6.0]"], content_type="application/json"),
        models={"door": ModelConfig(path=path.name)},
        base_dir=path.parent,
    )

    assert [promise.name for promise in promises if not promise.kept] == []


def test_samples_that_do_not_reach_the_stage_are_an_error() -> None:
    stages = [StageEntry(name="parse"), StageEntry(name="parse")]

    with pytest.raises(FrameError, match=r"^No sample reaches parse: Not JSON"):
        try_stage(stages, frames(["{"], content_type="application/json"))


def test_a_stage_that_cannot_be_created_is_an_error_of_the_caller() -> None:
    with pytest.raises(PluginError):
        try_stage([StageEntry(name="no-such-stage")], LISTS)
