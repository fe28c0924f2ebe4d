"""Stored outcomes of batch trials."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hedgerow.backends.onnxruntime import OnnxRuntimeSession
from hedgerow.config import ModelConfig
from hedgerow.models.bundle.version import ModelVersion
from hedgerow.models.serving.pool import ModelPool
from hedgerow.models.serving.served_model import ServedModel
from hedgerow.models.session import batch_verdicts

OnnxFile = Callable[..., Path]

BODIES = {
    "batched": "(float[N,3] x) => (float[N,3] y) { y = Add(x, x) }",
    "alone": "(float[N,3] x) => (float[N,3] y) { y = Softmax<axis=0>(x) }",
    "all rows": "(float[4,3] x) => (float[1,3] y) { y = ReduceMean<axes=[0]>(x) }",
}


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The runs of ONNX Runtime; every trial counts as slow."""
    seen: list[int] = []
    run = OnnxRuntimeSession.run
    monkeypatch.setattr(
        OnnxRuntimeSession, "run", lambda self, inputs: (seen.append(len(inputs)), run(self, inputs))[1]
    )
    monkeypatch.setattr(batch_verdicts, "SLOW_S", 0.0)
    return seen


def load(path: Path, state_dir: Path, **config: Any) -> tuple[ServedModel, int | None]:
    """Load a model. Returns: what serves, and the rows that every request must have."""
    engine = ModelPool(1, state_dir).open("m", ModelConfig(path=str(path), **config), Path(), None)
    rows = engine.inputs[0].shape[0] if not engine.signature.batches else None
    engine.close()
    return engine.info(), rows


@pytest.mark.parametrize("kind", BODIES)
def test_a_model_is_tried_once(onnx_file: OnnxFile, tmp_path: Path, runs: list[int], kind: str) -> None:
    path = onnx_file(BODIES[kind])
    first, count = load(path, tmp_path / "state"), len(runs)
    second = load(path, tmp_path / "state")

    assert len(runs) == count > 0
    for one, rows in (first, second):
        assert (one.max_batch, one.unbatched) == (first[0].max_batch, first[0].unbatched)
        assert rows == (4 if kind == "all rows" else None)
    assert (first[0].max_batch > 1) == (kind == "batched")


def test_another_file_or_configuration_is_tried_again(onnx_file: OnnxFile, tmp_path: Path, runs: list[int]) -> None:
    path = onnx_file(BODIES["batched"])
    load(path, tmp_path / "state")
    counts = [len(runs)]
    load(path, tmp_path / "state", options={"session.disable_prepacking": True})
    counts.append(len(runs))
    onnx_file(BODIES["alone"])
    info, _ = load(path, tmp_path / "state")
    counts.append(len(runs))

    assert counts[0] < counts[1] < counts[2]
    assert info.max_batch == 1


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"unbatched": 3, "all_rows": false}', b'{"unbatched": null}'])
def test_a_damaged_outcome_is_ignored(onnx_file: OnnxFile, tmp_path: Path, runs: list[int], content: bytes) -> None:
    path = onnx_file(BODIES["alone"])
    load(path, tmp_path / "state")
    count = len(runs)
    (stored,) = (tmp_path / "state/batching").iterdir()
    stored.write_bytes(content)

    info, _ = load(path, tmp_path / "state")

    assert len(runs) > count
    assert info.max_batch == 1


def test_quick_trials_leave_no_file_and_old_outcomes_are_deleted(
    onnx_file: OnnxFile, tmp_path: Path, runs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = onnx_file(BODIES["batched"])
    monkeypatch.setattr(batch_verdicts, "MOST", 2)
    for size in (2, 3, 4, 5):
        load(path, tmp_path / "state", max_batch=size)
    assert len(list((tmp_path / "state/batching").iterdir())) == 2

    monkeypatch.setattr(batch_verdicts, "SLOW_S", 1e9)
    load(path, tmp_path / "other")
    assert not (tmp_path / "other/batching").exists()


RARE = (
    "(float[N,3] x) => (float[N,3] y) <float c = {5000.5}> { d = Sub(x, c) a = Abs(d) f = Floor(a) b = Cast<to=9>(f) "
)


@pytest.mark.parametrize(
    ("rest", "why"),
    [
        ("n = Not(b) y = Cast<to=1>(n) }", None),
        ("n = Not(b) g = Cast<to=1>(n) m = ReduceMax<axes=[0]>(g) y = Add(g, m) }", "depends on the other frames"),
    ],
    ids=["frame by frame", "mixed"],
)
def test_golden_inputs_decide_where_noise_shows_nothing(
    make_version: Callable[..., ModelVersion], rest: str, why: str | None
) -> None:
    """Only values from 4999.5 to 5001.5 show."""
    version = make_version(RARE + rest, samples={"x": np.array([[5000.5, 0, 0], [0, 5001, 0]], np.float32)})

    alone = ModelPool(1).open("door", ModelConfig(path=str(version.path)), Path(), None).info()
    in_bundle = ModelPool(1).open("door", ModelConfig(path="bundle:door"), Path(), version).info()

    assert "does not show" in (alone.unbatched or "")
    assert (in_bundle.unbatched is None) if why is None else (why in (in_bundle.unbatched or ""))
