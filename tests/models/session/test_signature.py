"""A model's configuration is checked against the model when it is loaded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hedgerow.backends.base import TensorSpec
from hedgerow.config import ModelConfig
from hedgerow.errors import ConfigError, ModelMismatch
from hedgerow.models.session.random_inputs import random_batch
from hedgerow.models.session.signature import Signature


def spec(name: str, *shape: int | None, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name, shape, np.dtype(dtype))


VAD_IN = (spec("input", None, 576), spec("state", 2, None, 128), spec("sr", dtype="int64"))
VAD_OUT = (spec("output", None, 1), spec("stateN", None, None, None))
VAD: dict[str, Any] = {
    "constants": {"sr": 16000},
    "state": {"state": "stateN"},
    "batch_axis": {"state": 1, "stateN": 1},
}


def signature_of(
    inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...] = (spec("y", None),), **config: Any
) -> Signature:
    return Signature("door", ModelConfig(path="door.onnx", **config), inputs, outputs)


def test_a_stateful_model_fits_its_configuration() -> None:
    vad = signature_of(VAD_IN, VAD_OUT, **VAD)

    assert [str(one) for one in vad.inputs] == ["input: float32[?, 576]", "state: float32[2, ?, 128]"]
    assert vad.constants["sr"].dtype == np.int64
    assert vad.constants["sr"].shape == ()
    assert vad.zero_state()["state"].shape == (2, 1, 128)
    assert vad.limit(16) == 16


def test_a_states_next_value_has_the_states_batch_axis() -> None:
    vad = signature_of(VAD_IN, VAD_OUT, **{**VAD, "batch_axis": {"state": 1}})

    assert vad.output_axes == {"output": 0, "stateN": 1}


@pytest.mark.parametrize(
    ("config", "wrong", "near"),
    [
        ({"constants": {"srr": 16000}}, "srr", "'sr'"),
        ({"state": {"stat": "stateN"}}, "stat", "'state'"),
        ({"state": {"state": "staten"}}, "staten", "'stateN'"),
        ({"batch_axis": {"inputs": 1}}, "inputs", "'input'"),
    ],
)
def test_the_remedy_for_an_unknown_name_is_the_nearest(config: dict[str, Any], wrong: str, near: str) -> None:
    with pytest.raises(ConfigError, match=wrong) as raised:
        signature_of(VAD_IN, VAD_OUT, **config)
    assert near in raised.value.remedy


def test_an_input_cannot_be_both_constant_and_state() -> None:
    with pytest.raises(ConfigError, match="state is in both `constants` and `state`"):
        signature_of(VAD_IN, VAD_OUT, constants={"state": 0}, state={"state": "stateN"})


@pytest.mark.parametrize(("value", "dtype"), [(0.5, "int64"), (300, "uint8"), (-1, "uint8")])
def test_a_constant_that_its_type_cannot_represent_is_refused(value: float, dtype: str) -> None:
    """If it was cast silently, a rate of 0.5 would become 0."""
    with pytest.raises(ConfigError, match=dtype):
        signature_of((spec("x", None), spec("c", dtype=dtype)), constants={"c": value})


@pytest.mark.parametrize(
    ("value", "dtype", "shape"),
    [(0.1, "float32", ()), (1, "bool", ()), (True, "bool", (1,)), (7, "float16", (None, 2))],
)
def test_a_constant_takes_its_inputs_type_and_shape(value: float, dtype: str, shape: tuple[int | None, ...]) -> None:
    constant = signature_of((spec("x", None), spec("c", *shape, dtype=dtype)), constants={"c": value}).constants["c"]

    assert constant.dtype == dtype
    assert constant.shape == tuple(dim or 1 for dim in shape)
    assert np.all(constant == np.asarray(value, dtype))


def test_a_state_and_its_next_value_must_have_the_same_shape() -> None:
    with pytest.raises(ModelMismatch, match=r"hidden state h: .* cannot take its next value from y"):
        signature_of((spec("x", None), spec("h", None, 8)), (spec("y", None, 9),), state={"h": "y"})
    with pytest.raises(ModelMismatch):
        signature_of((spec("h", None, 8),), (spec("y", None, 8, dtype="float64"),), state={"h": "y"})


@pytest.mark.parametrize(("axis", "shape"), [(2, (None, 3)), (-1, (None, 3)), (0, ())])
def test_a_batch_axis_that_does_not_exist_is_refused(axis: int, shape: tuple[int | None, ...]) -> None:
    with pytest.raises(ConfigError, match="`batch_axis` is"):
        signature_of((spec("x", *shape),), batch_axis={"x": axis})


def test_the_batch_axis_of_a_state_must_be_configured_if_it_is_not_0() -> None:
    """Otherwise two layers of state would be taken for a batch of two."""
    with pytest.raises(ModelMismatch, match="different batch sizes") as raised:
        signature_of(VAD_IN, VAD_OUT, constants={"sr": 16000}, state={"state": "stateN"})
    assert "batch_axis: {state: 1}" in raised.value.remedy


def test_a_model_fixed_to_one_takes_no_batches() -> None:
    one = signature_of((spec("x", 1, 3),))

    assert one.limit(16) == 1
    assert one.admit({"x": np.zeros((1, 3), np.float32)}) == (None, 1)


def test_a_model_fixed_to_several_rows_takes_up_to_that_many() -> None:
    four = signature_of((spec("x", 4, 3),))

    assert (four.fixed, four.limit(16), four.limit(2)) == (4, 4, 2)
    assert four.admit({"x": np.zeros((3, 3), np.float32)})[1] == 3
    with pytest.raises(ModelMismatch, match=r"x: float32\[4, 3\]; got float32\[5, 3\]"):
        four.admit({"x": np.zeros((5, 3), np.float32)})


def test_requests_of_the_same_shapes_share_a_key_whatever_their_rows() -> None:
    images = signature_of((spec("x", None, 3, None, None),))

    def admit(*shape: int) -> tuple[object, int]:
        return images.admit({"x": np.zeros(shape, np.float32)})

    assert admit(1, 3, 8, 8) == (admit(5, 3, 8, 8)[0], 1)
    assert admit(5, 3, 8, 8)[1] == 5
    assert admit(1, 3, 8, 8)[0] != admit(1, 3, 8, 9)[0]


def test_scalar_inputs_must_be_equal_to_share_a_key() -> None:
    scaled = signature_of((spec("x", None), spec("scale")))

    def key(scale: float) -> object:
        return scaled.admit({"x": np.zeros(1, np.float32), "scale": np.array(scale, np.float32)})[0]

    assert key(1) == key(1)
    assert key(1) != key(2)


def test_requests_whose_inputs_differ_in_rows_run_alone() -> None:
    """The first axis of such a model is not a batch axis; the backend reports an error if the request is wrong."""
    pair = signature_of((spec("x", None), spec("y", None)))

    assert pair.admit({"x": np.zeros(2, np.float32), "y": np.zeros(3, np.float32)})[0] is None


@pytest.mark.parametrize(
    ("request_", "message", "remedy"),
    [
        ({}, "takes x; got nothing", "Add x"),
        ({"x": np.zeros((1, 3), np.float32), "z": np.zeros(1)}, "got x, z", "Remove z"),
        ({"x": np.zeros((1, 4), np.float32)}, r"x: float32\[\?, 3\]; got float32\[1, 4\]", "2 dimensions"),
        ({"x": np.zeros(3, np.float32)}, r"got float32\[3\]", "2 dimensions"),
        ({"x": np.zeros((1, 3))}, r"got float64\[1, 3\]", "float32"),
        ({"x": [[1, 2, 3]]}, "got list", "float32"),
    ],
)
def test_the_error_for_a_request_names_the_expected_and_the_actual_arrays(
    request_: dict[str, Any], message: str, remedy: str
) -> None:
    door = signature_of((spec("x", None, 3),))

    for _ in range(2):  # valid shapes are cached; invalid ones must not be
        with pytest.raises(ModelMismatch, match=message) as raised:
            door.admit(request_)
        assert remedy in raised.value.remedy


def test_the_cache_of_shapes_is_bounded() -> None:
    """A sensor may send new shapes all the time."""
    images = signature_of((spec("x", None, None),))
    for width in range(2000):
        images.admit({"x": np.zeros((1, width), np.float32)})

    assert len(images._admitted) <= 512


def test_random_inputs_fit_the_model() -> None:
    vad = signature_of(VAD_IN, VAD_OUT, **VAD)

    batch = random_batch(vad, 5, {"input": (1, 576)})

    assert {name: array.shape for name, array in batch.items()} == {"input": (5, 576), "state": (2, 5, 128), "sr": ()}
    assert batch["sr"] == 16000
    assert not batch["state"].any()
    assert batch["input"].std() > 0.1


def test_random_inputs_of_a_model_fixed_to_four_have_four_rows() -> None:
    assert random_batch(signature_of((spec("x", 4, 3),)), 1, {})["x"].shape == (4, 3)


def test_the_size_of_a_dynamic_axis_must_be_set() -> None:
    images = signature_of((spec("x", None, 3, None, None),))

    with pytest.raises(ModelMismatch) as raised:
        random_batch(images, 1, {})
    assert "--shape x=1,3,320,320" in raised.value.remedy
    assert random_batch(images, 2, {"x": (1, 3, 8, 9)})["x"].shape == (2, 3, 8, 9)
    for shape in [(1, 4, 8, 9), (1, 3, 8)]:
        with pytest.raises(ModelMismatch, match="--shape"):
            random_batch(images, 1, {"x": shape})
