"""A sensor's own words have no effect on any stage, whatever they are called and whatever they say."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hedgerow.config import ModelConfig
from hedgerow.frame import Frame
from hedgerow.testing import frame, run_pipeline

WORDS = [
    "begins", "features", "window_at", "rate", "channels", "position", "sampled_at", "fit", "quads", "motion", "annotated",
    "captured_at", "stream", "sequence", "id", "topic", "meta", "fields", "tensors", "array", "result", "payload", "score", "x",
]  # fmt: skip
VALUES: list[Any] = [5, -1, True, "morning", None, [1, 2], {"a": 1}, 1e300]

SIGNAL = [
    {"parse": {"field": "v", "dtype": "float32"}},
    {"window": {"size": 4, "hop": 2, "rate": 10}},
    {"fft-bands": {"edges_hz": [1, 5], "scale": "linear", "tensor": "x"}},
    {"infer": {"model": "m"}},
    {"anomaly": {"threshold": 1e-9, "score": "y"}},
]
STATEFUL = [{"parse": {"field": "v", "dtype": "float32"}}, {"infer": {"model": "m"}}]


def messages(values: list[float], extra: dict[str, Any], stream: str = "test/stream") -> list[Frame]:
    return [
        frame(
            json.dumps({"v": [value + number for value in values], **extra}),
            content_type="application/json",
            stream=stream,
            sequence=number,
            captured_at=1000 + 0.4 * number,
        )
        for number in range(4)
    ]


def outcomes(stages: list[Any], model: Any, values: list[float]) -> dict[str, list[Any]]:
    """Run a stream for each word and value, and one without; return what became of them, by stream."""
    words = {f"{word}: {value}": {word: value} for word in WORDS for value in VALUES}
    streams = [messages(values, extra, stream) for stream, extra in {"plain": {}, **words}.items()]
    run = run_pipeline(stages, [each for frames in zip(*streams, strict=True) for each in frames], models={"m": model})
    assert run.errors == []
    found: dict[str, list[Any]] = {}
    for out in run.out:
        tensors = [tensor.tolist() for tensor in out.tensors.values()]
        found.setdefault(out.stream, []).append((out.sequence, out.captured_at, dict(out.meta), out.result, tensors))
    return found


@pytest.fixture(scope="module", params=["signal", "stateful"])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    parser = pytest.importorskip("onnx.parser")
    graphs = {
        "signal": "(float[N,4] x) => (float[N,1] y) { y = ReduceMean<axes = [1]>(x) }",
        "stateful": "(float[N,1] x, float[N,1] total) => (float[N,1] y, float[N,1] next) "
        "{ next = Add(total, x) y = Identity(next) }",
    }
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 13]> g {graphs[request.param]}')
    path = tmp_path_factory.mktemp("models") / "model.onnx"
    path.write_bytes(model.SerializeToString())
    if request.param == "signal":
        return outcomes(SIGNAL, str(path), [1.0, 2.5, -1.0, 0.5])
    return outcomes(STATEFUL, ModelConfig(path=str(path), state={"total": "next"}), [1.0])


@pytest.mark.parametrize("word", WORDS)
def test_a_word_changes_no_window_no_state_and_no_result(word: str, found: dict[str, list[Any]]) -> None:
    assert found["plain"]
    for value in VALUES:
        assert found[f"{word}: {value}"] == found["plain"]


def test_the_words_themselves_arrive_in_fields() -> None:
    (out,) = run_pipeline([STATEFUL[0]], messages([1], {"features": 5, "begins": True})[:1]).out

    assert out.fields == {"features": 5, "begins": True}
    assert out.meta == {}


def test_a_word_that_the_configuration_names_becomes_meta() -> None:
    """For a sensor that states its sampling rate, or that it starts over."""
    stages = [{"parse": {"field": "v", "meta": {"rate": "fs", "begins": "restarted"}}}, {"window": {"size": 4}}]

    (out,) = run_pipeline(stages, messages([1, 2, 3, 4], {"fs": 50, "restarted": True})[:1]).out

    assert out.meta["rate"] == 50


@pytest.mark.parametrize("change", [Frame.with_meta, lambda f: f.with_result(1), lambda f: f.with_array(np.ones(1))])
def test_copies_of_a_frame_keep_its_fields(change: Callable[[Frame], Frame]) -> None:
    assert change(Frame(fields={"unit": "mm"})).fields == {"unit": "mm"}
