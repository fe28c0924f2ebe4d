"""Anomaly detection on generated vibration, with the model that the training script writes, on both backends."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hedgerow import Frame
from hedgerow.errors import ConfigError, ModelMismatch
from hedgerow.testing import frame, processes, run_pipeline, run_stage
from hedgerow_signal.anomaly import Anomaly
from hedgerow_signal.generate import CONDITIONS, RATE, Condition, Machine
from hedgerow_signal.train import WINDOW, fit, generated, to_onnx, train

STAGES: list[Any] = [
    {"window": {"size": WINDOW, "hop": WINDOW // 2, "rate": RATE}},
    {"fft-bands": {"model": "vibration"}},
    {"infer": {"model": "vibration"}},
    {"anomaly": {"model": "vibration"}},
]
FAULTS = [condition for condition in CONDITIONS if condition != "healthy"]


def series(machine: Machine, seconds: float = 4.0, stream: str = "pump/1") -> list[Frame]:
    """Return frames of a tenth of a second, as a machine's sensor sends them."""
    step = RATE // 10
    return [
        frame(machine.vibrate(step), stream=stream, sequence=number, captured_at=1000 + number / 10)
        for number in range(round(seconds * 10))
    ]


def judged(frames: list[Frame], model_file: Path, backend: str = "onnxruntime") -> list[dict[str, Any]]:
    run = run_pipeline(STAGES, frames, models={"vibration": {"path": str(model_file), "backend": backend}})
    assert not run.dead, run.errors
    return run.results


def auc(healthy: np.ndarray[Any, Any], faulty: np.ndarray[Any, Any]) -> float:
    """Return the area under the ROC curve: how often a faulty window scores above a healthy one."""
    return float(np.mean(faulty[:, np.newaxis] > healthy))


@pytest.fixture(scope="module")
def model() -> Any:
    return fit(generated(7, machines=48, windows=40), generated(8, machines=24, windows=40))


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_unseen_machines_are_detected(fault: Condition, model: Any) -> None:
    healthy = model.score(generated(90, machines=20, windows=25))
    faulty = model.score(generated(91, machines=20, windows=25, condition=fault, severity=0.6))

    assert auc(healthy, faulty) > 0.95
    assert np.mean(healthy > model.threshold) < 0.005


def test_varying_speed_and_load_are_not_a_fault(model: Any) -> None:
    """Speed and load vary in the training data."""
    assert 0.7 < np.median(model.score(generated(92, machines=20, windows=25))) < 1.3


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("condition", CONDITIONS)
def test_healthy_machines_are_normal_and_faulty_ones_anomalous(
    condition: Condition, backend: str, model_file: Path
) -> None:
    pytest.importorskip(backend, reason=f"`pip install {backend}`")

    results = judged(series(Machine(12_345, condition)), model_file, backend)
    share = np.mean([one["anomalous"] for one in results])

    assert len(results) == 49
    assert share < 0.05 if condition == "healthy" else share > 0.8
    assert results[3]["at"] == pytest.approx(1000 + 3 * 1024 / RATE)


def test_a_bad_bearing_shows_in_the_bands_of_its_resonance(model_file: Path) -> None:
    """`because` must point the technician to the fault."""
    results = judged(series(Machine(4, "outer-race")), model_file)

    reasons = {name for one in results for name in one["because"]}
    assert "band 2560-3840 Hz" in reasons
    assert all(len(one["because"]) == 3 for one in results)
    assert set(results[0]["because"]) < set(results[0]["features"])


def test_a_new_fault_is_detected_within_a_second(model_file: Path) -> None:
    machine = Machine(5)
    frames = series(machine, seconds=3)
    machine.condition = "outer-race"
    for frame_ in series(machine, seconds=2):
        frame_.sequence += 30
        frame_.captured_at += 3
        frames.append(frame_)

    alarms = [one["at"] for one in judged(frames, model_file) if one["anomalous"]]

    assert 1003 - WINDOW / RATE < alarms[0] < 1004


def test_both_backends_give_the_same_scores(model_file: Path) -> None:
    pytest.importorskip("openvino", reason="`pip install openvino`")
    frames = series(Machine(6, "looseness"))

    one, two = (judged(frames, model_file, backend) for backend in ("onnxruntime", "openvino"))

    assert [item["score"] for item in one] == pytest.approx([item["score"] for item in two], rel=1e-4)
    assert one[0]["threshold"] == two[0]["threshold"]


def test_the_onnx_model_scores_like_the_numpy_model(model: Any, model_file: Path) -> None:
    windows = generated(93, machines=4, windows=10, condition="imbalance")
    frames = [frame(b"", tensors={"features": row[np.newaxis]}, sequence=number) for number, row in enumerate(windows)]

    run = run_pipeline([{"infer": {"model": "vibration"}}], frames, models={"vibration": model_file})

    scores = [float(one.tensors["score"][0, 0]) for one in run.out]
    assert scores == pytest.approx(model.score(windows).tolist(), rel=1e-4)


def test_many_machines_share_a_batch_without_mixing(model_file: Path) -> None:
    streams = [series(Machine(number), seconds=1, stream=f"pump/{number}") for number in range(8)]
    models = {"vibration": model_file}

    together = run_pipeline(STAGES, [one for turn in zip(*streams, strict=True) for one in turn], models=models)

    for number in (0, 7):
        alone = run_pipeline(STAGES, streams[number], models=models).results
        shared = [one.result["score"] for one in together.out if one.stream == f"pump/{number}"]
        assert shared == pytest.approx([one["score"] for one in alone], rel=1e-5)


def test_a_window_or_rate_unlike_the_models_is_refused(model_file: Path) -> None:
    models = {"vibration": model_file}
    samples = Machine(1).vibrate(WINDOW)
    frames = [
        frame(samples[:1000], meta={"rate": RATE}),
        frame(samples, meta={"rate": 10_000}),
        frame(samples, meta={"rate": RATE * 1.001}),
        frame(samples, meta={"rate": RATE * 0.999}),
        frame(samples),
    ]

    run = run_stage("fft-bands", frames, models=models, model="vibration")

    assert run.dead == {"wrong-window": 1, "wrong-rate": 1}
    assert str(WINDOW) in run.errors[0].remedy
    assert len(run.out) == 3


@pytest.mark.long
def test_training_is_reproducible_by_seed(trained: bytes) -> None:
    assert train(seed=7) == trained
    assert train(seed=8) != trained


def test_the_script_writes_a_model_with_metadata(trained: bytes, tmp_path: Path) -> None:
    import onnx

    path = tmp_path / "models" / "vibration.onnx"
    output = processes.run(
        [sys.executable, "-m", "hedgerow_signal.train", str(path)], check=True, capture_output=True, text=True
    ).stdout

    assert path.read_bytes() == trained
    assert "generated" in output
    metadata = {prop.key: prop.value for prop in onnx.load(path).metadata_props}
    assert "not recorded" in metadata["hedgerow.trained_on"]
    assert float(metadata["hedgerow.threshold"]) > 1
    assert len(json.loads(metadata["hedgerow.features"])) == 12
    assert metadata["hedgerow.seed"] == "7"


def test_a_model_without_metadata_is_refused(model: Any, tmp_path: Path) -> None:
    path = tmp_path / "bare.onnx"
    path.write_bytes(to_onnx(model, {"hedgerow.edges_hz": "[1, 2"}))

    with pytest.raises(ModelMismatch, match="no valid features"):
        run_stage("fft-bands", [], models={"bare": path}, model="bare")
    with pytest.raises(ModelMismatch, match="no valid threshold"):
        run_stage("anomaly", [], models={"bare": path}, model="bare")


def test_generated_machines_are_reproducible_and_differ() -> None:
    one, again, other = (Machine(seed).vibrate(5000) for seed in (1, 1, 2))

    np.testing.assert_array_equal(one, again)
    assert np.corrcoef(one, other)[0, 1] < 0.9


def test_bearing_impacts_occur_at_the_ball_pass_frequency() -> None:
    """The envelope of the resonance repeats 3.585 times a turn (envelope analysis: Randall and Antoni, 2011)."""
    machine = Machine(3, "outer-race")
    signal = machine.vibrate(8 * RATE).astype(np.float64)
    spectrum = np.fft.rfft(signal)
    frequencies = np.fft.rfftfreq(len(signal), 1 / RATE)
    spectrum[(frequencies < 2600) | (frequencies > 3800)] = 0
    envelope = np.abs(np.fft.irfft(spectrum, len(signal)))
    lines = np.abs(np.fft.rfft((envelope - envelope.mean()) * np.hanning(len(envelope))))
    below = frequencies < 140

    assert frequencies[below][np.argmax(lines[below])] == pytest.approx(25 * 3.585, rel=0.08)


def scored(score: float) -> Frame:
    return frame(b"", captured_at=5.0, tensors={"score": np.array([[score]], np.float32)})


def test_a_score_above_the_threshold_is_anomalous() -> None:
    run = run_stage(Anomaly, [scored(2.0), scored(2.5)], threshold=2.0)

    assert [one["anomalous"] for one in run.results] == [False, True]
    assert run.results[1] == {"at": 5.0, "score": 2.5, "threshold": 2.0, "anomalous": True, "features": {}}


def test_normal_windows_can_be_dropped() -> None:
    run = run_stage(Anomaly, [scored(1.0), scored(3.0)], threshold=2.0, only_anomalous=True)

    assert [one["score"] for one in run.results] == [3.0]
    assert run.dropped == {"normal": 1}


def test_a_frame_without_a_score_is_refused() -> None:
    bad = [frame(b""), scored(float("nan")), frame(b"", tensors={"score": np.zeros(3, np.float32)})]

    assert run_stage(Anomaly, bad, threshold=2.0).dead == {"no-score": 3}


def test_a_threshold_is_required() -> None:
    with pytest.raises(ConfigError, match="threshold"):
        run_stage(Anomaly, [])
