from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from hedgerow import backends
from hedgerow.backends import tuned
from hedgerow.backends.tune import TOLERANCE, Setting, difference, tune
from hedgerow.backends.tuned import Choice
from hedgerow.cli.main import app
from hedgerow.frame import Array
from hedgerow.testing import processes

OnnxFile = Callable[..., Path]

DOUBLE = "(float[N,3] x) => (float[N,3] y) { y = Add(x, x) }"
SWISH = "(float[N,3] x) => (float[N,3] y) { y = org.openvinotoolkit.Swish(x) }"


def ones(rows: int) -> Mapping[str, Array]:
    return {"x": np.ones((rows, 3), np.float32)}


def test_every_backend_stream_count_and_batch_is_measured_and_the_best_chosen(onnx_file: OnnxFile) -> None:
    shares: list[float] = []

    found = tune(onnx_file(DOUBLE), backends.backends(), ones, [1, 4], cores=2, seconds=0.5, progress=shares.append)

    tried = {(setting.backend, setting.streams, setting.threads, setting.batch) for setting in found.settings}
    assert tried == {
        (name, streams, 2 // streams, batch)
        for name in ("onnxruntime", "openvino")
        for streams in (1, 2)
        for batch in (1, 4)
    }
    assert found.refused == {}
    assert found.differences == {"openvino": 0}
    assert found.choice is not None
    assert found.choice.rows_per_s >= 0.95 * max(setting.rows_per_s for setting in found.settings)
    assert shares == sorted(shares)
    assert 0 <= shares[0] <= shares[-1] <= 1


def test_a_backend_that_cannot_open_the_model_is_listed_with_the_reason(onnx_file: OnnxFile) -> None:
    path = onnx_file(SWISH, domains=', "org.openvinotoolkit": 1')

    found = tune(path, backends.backends(), ones, [1], cores=1, seconds=0.2)

    assert found.choice is not None
    assert found.choice.backend == "openvino"
    assert "Swish" in found.refused["onnxruntime"]


def test_a_backend_that_disagrees_is_measured_but_never_chosen(onnx_file: OnnxFile) -> None:
    """OpenVINO's CPU device computes int64 in 32 bits, so the two disagree on large numbers."""
    path = onnx_file("(int64[N] x) => (int64[N] y) { y = Abs(x) }")

    found = tune(path, backends.backends(), lambda rows: {"x": np.full(rows, 2**40)}, [1], cores=1, seconds=0.2)

    assert "differ" in found.refused["openvino"]
    assert found.differences["openvino"] > TOLERANCE
    assert any(setting.rates for setting in found.settings if setting.backend == "openvino")
    assert found.choice is not None
    assert found.choice.backend == "onnxruntime"


def test_a_batch_size_that_fails_does_not_exclude_others(onnx_file: OnnxFile) -> None:
    """Many models claim to take batches, but were exported with a reshape to one frame."""
    path = onnx_file("(float[N,3] x) => (float[M,3] y) <int64[2] shape = {1, 3}> { y = Reshape(x, shape) }")
    found = tune(path, [backends.get("onnxruntime")], ones, [1, 2], cores=1, seconds=0.2)

    assert {setting.batch: setting.failed is None for setting in found.settings} == {1: True, 2: False}
    assert found.choice is not None
    assert found.choice.max_batch == 1


def test_a_backend_that_cannot_open_the_batch_axis_is_measured_with_single_rows(onnx_file: OnnxFile) -> None:
    """The other backend's batches show whether they are worth it."""
    path = onnx_file("(float[1,3] x) => (float[1,3] y) { y = Add(x, x) }")

    tuning = tune(path, backends.backends(), ones, [1, 4], cores=1, open_batch=True, seconds=0.2)

    assert {(each.backend, each.batch) for each in tuning.settings} == {
        ("onnxruntime", 1),
        ("openvino", 1),
        ("openvino", 4),
    }
    assert all(each.rates and each.failed is None for each in tuning.settings)


def test_the_median_of_the_rounds_counts() -> None:
    """A round that another process disturbed is outvoted."""
    setting = Setting("onnxruntime", 1, 1, 1, rates=[100, 3, 98], times_s=[0.01, 0.3, 0.011])

    assert (setting.rows_per_s, setting.time_s) == (98, 0.011)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ([1.0, 100.0], [1.0, 100.0], 0.0),
        ([1.0, 100.0], [2.0, 100.0], 0.01),
        ([1.0, 100.0], [1.0], float("inf")),
        ([np.nan, 1.0], [np.nan, 1.0], 0.0),
        ([np.nan, 1.0], [1.0, 1.0], float("inf")),
        ([np.inf, 1.0], [np.inf, 1.0], 0.0),
        ([2e-7], [1e-7], 1e-4),
        ([1, 2, 3, 4], [1, 2, 3, 5], 0.25),
        ([True], [False], 1.0),
        ([], [], 0.0),
    ],
)
def test_difference_is_relative_to_the_largest_value(one: list[float], other: list[float], expected: float) -> None:
    assert difference({"y": np.array(one)}, {"y": np.array(other)}) == pytest.approx(expected)
    assert difference({"y": np.array(one)}, {"z": np.array(one)}) == float("inf")


@given(
    st.builds(
        Choice,
        st.sampled_from(["onnxruntime", "openvino"]),
        st.integers(1, 64),
        st.integers(1, 64),
        st.integers(1, 512),
        st.floats(0, 1e9),
    )
)
def test_a_stored_choice_is_loaded_again(tmp_path_factory: pytest.TempPathFactory, choice: Choice) -> None:
    folder = tmp_path_factory.mktemp("state")
    tuned.save(folder, "sha256:ab", "CPU", 2, choice, model="door.onnx")

    assert tuned.load(folder, "sha256:ab", "cpu", 2) == choice
    assert tuned.load(folder, "sha256:ab", "CPU", 4) is None  # more cores: measure again
    assert tuned.load(folder, "sha256:ab", "GPU", 2) is None
    assert tuned.load(folder, "sha256:cd", "CPU", 2) is None
    assert [file.suffix for file in (folder / "tuned").iterdir()] == [".json"]  # no draft is left behind


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"choice": {"backend": "openvino", "speed": 9}}'])
def test_a_stored_choice_that_cannot_be_read_counts_as_not_tuned(tmp_path: Path, text: str) -> None:
    file = tuned.save(tmp_path, "sha256:ab", "CPU", 1, Choice("openvino", 1, 1, 1, 1.0))
    file.write_text(text)

    assert tuned.load(tmp_path, "sha256:ab", "CPU", 1) is None


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["tune", *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_the_command_stores_the_choice_where_auto_finds_it(in_folder: Path, onnx_file: OnnxFile) -> None:
    from hedgerow.backends.cores import cores
    from hedgerow.models.bundle.model_file import digest

    path = onnx_file(DOUBLE, name="door.onnx")

    code, out, _ = run("door.onnx", "--seconds", "1", "--max-batch", "2", "--json")

    report = orjson.loads(out)
    assert code == 0
    assert report["choice"]["backend"] in ("onnxruntime", "openvino")
    assert {setting["batch"] for setting in report["settings"]} == {1, 2}
    stored = tuned.load(in_folder / ".hedgerow", digest(path), "CPU", cores())
    assert stored is not None
    assert stored.max_batch == report["choice"]["max_batch"]


def test_the_command_prints_a_table_with_the_choice_marked(in_folder: Path, onnx_file: OnnxFile) -> None:
    onnx_file(DOUBLE, name="door.onnx")

    code, out, err = run("door.onnx", "--seconds", "1", "--max-batch", "1", "--no-save")

    assert code == 0
    assert "FRAMES/S" in out
    assert sum(line.startswith("*") for line in out.splitlines()) == 1
    assert "measuring: 0 %" in err
    assert not (in_folder / ".hedgerow").exists()


def test_the_command_takes_a_models_settings_from_the_configuration(in_folder: Path) -> None:
    """Silero needs the sampling rate as an input, and the batch axis of its state is 1."""
    (in_folder / "node.yaml").write_text(
        """
node: {state_dir: state}
models:
  voice:
    path: package:silero_vad/data/silero_vad_16k_op15.onnx
    constants: {sr: 16000}
    state: {state: stateN}
    batch_axis: {state: 1, stateN: 1}
pipelines: {}
"""
    )
    code, out, _ = run(
        "voice", "-c", "node.yaml", "--shape", "input=1,576", "--seconds", "1", "--max-batch", "2", "--json"
    )

    report = orjson.loads(out)
    assert code == 0
    assert report["choice"]["backend"] == "onnxruntime"
    assert "ReduceMean" in report["refused"]["openvino"]
    assert all(setting["failed"] is None for setting in report["settings"])


def test_the_command_asks_for_the_shape_of_dynamic_inputs(in_folder: Path) -> None:
    code, _, err = run("package:rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx")

    assert code == 1
    assert "--shape x=1,3,320,320" in err


def test_a_model_missing_from_the_configuration_is_a_configuration_error(in_folder: Path) -> None:
    (in_folder / "node.yaml").write_text("models: {door: {path: door.onnx}}\npipelines: {}\n")

    code, _, err = run("window", "-c", "node.yaml")

    assert code == 2
    assert "node.yaml has no model 'window'; it has door" in err


def test_a_terminal_shows_a_progress_bar(in_folder: Path, onnx_file: OnnxFile) -> None:
    onnx_file(DOUBLE, name="door.onnx")
    ours, theirs = os.openpty()
    command = "from hedgerow.cli.main import main; main()"

    child = processes.start(
        [sys.executable, "-c", command, "tune", "door.onnx", "--seconds", "1", "--max-batch", "1", "--no-save"],
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # raised once the other end is closed
        while chunk := os.read(ours, 65536):
            shown += chunk
    os.close(ours)

    assert child.wait(60) == 0
    assert b"Measuring" in shown
    assert b"Fastest:" in shown


@pytest.mark.parametrize("shape", ["x", "x=", "x=1,a", "x=1,0", "z=1,3"])
def test_an_invalid_shape_is_a_usage_error(in_folder: Path, onnx_file: OnnxFile, shape: str) -> None:
    onnx_file(DOUBLE, name="door.onnx")

    code, _, err = run("door.onnx", "--shape", shape)

    assert code == 2
    assert "x" in err


def test_a_model_no_backend_can_run_exits_with_1(in_folder: Path) -> None:
    (in_folder / "broken.onnx").write_bytes(b"nothing")

    code, _, err = run("broken.onnx", "--seconds", "1")

    assert code == 1
    assert "broken.onnx" in err


def test_the_machine_name_includes_its_cores() -> None:
    assert tuned.machine(3).endswith(", 3 cores")
    assert os.uname().machine in tuned.machine(3) or sys.platform != "linux"
