"""Recognition of model files, the variants they allow, and samples from array files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from hedgerow.backends import convert
from hedgerow.backends.base import TensorSpec
from hedgerow.config import ModelConfig
from hedgerow.errors import ConfigError, HedgerowError, ModelMismatch, ModelUnreadable
from hedgerow.models.build import formats
from hedgerow.models.build import samples as sampling
from hedgerow.models.bundle import model_file
from hedgerow.models.bundle.arrays import write_arrays
from hedgerow.models.session.signature import Signature

SCALED = "(float[N,3] x) => (float[N,3] y) <float[3] w = {1, 2, 3}> { y = Mul(x, w) }"


def test_a_form_is_named_by_its_format_and_the_precision_of_most_weights(
    onnx_file: Callable[..., Path], tmp_path: Path
) -> None:
    path = onnx_file(SCALED)
    convert.to_fp16(path, tmp_path / "half.onnx")
    convert.to_openvino(path, tmp_path / "half.xml", half=True)

    assert formats.form_of(path).name == "onnx-fp32"
    assert formats.form_of(tmp_path / "half.onnx").name == "onnx-fp16"
    assert [file.name for file in formats.form_of(tmp_path / "half.xml").files] == ["half.xml", "half.bin"]


@pytest.mark.parametrize(
    ("content", "name"),
    [(b"", "door.pt"), (b"no model", "door.onnx"), (b"<net/>", "door.xml"), (b"TFL3", "door.tflite")],
)
def test_a_file_that_is_not_a_model_is_refused(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(content)

    with pytest.raises(ModelUnreadable, match=name) as refused:
        formats.form_of(tmp_path / name)
    assert refused.value.remedy


@pytest.mark.parametrize("location", ["elsewhere.bin", "parts/1.bin"])
def test_weights_in_further_files_are_copied_with_the_model(
    onnx_file: Callable[..., Path], tmp_path: Path, location: str
) -> None:
    path = onnx_file(SCALED)
    model = onnx.load(path)
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.ones(3, np.float32), "w"))
    (tmp_path / location).parent.mkdir(exist_ok=True)
    onnx.save(model, path, save_as_external_data=True, location=location, size_threshold=0)

    original = formats.form_of(path)
    copy = formats.make(original, "onnx-fp32", tmp_path / "variant", [])

    assert [file.relative_to(tmp_path / "variant").as_posix() for file in copy.files] == ["model.onnx", location]
    assert model_file.digest(copy.files[0]) == model_file.digest(path)


def test_an_impossible_variant_is_refused_and_possible_ones_are_listed(onnx_file: Callable[..., Path]) -> None:
    original = formats.form_of(onnx_file(SCALED))

    assert formats.check(original, ()) == ("onnx-fp32",)
    assert formats.check(original, ("openvino-fp16", "onnx-fp32")) == ("openvino-fp16", "onnx-fp32")
    with pytest.raises(ConfigError, match="tflite-fp32") as refused:
        formats.check(original, ("tflite-fp32",))
    assert "openvino-int8" in refused.value.remedy


# Samples

FLOAT = np.dtype(np.float32)
X, STATE, Y, NEXT = (
    TensorSpec("x", (None, 3), FLOAT),
    TensorSpec("h", (None, 2), FLOAT),
    TensorSpec("y", (None, 3), FLOAT),
    TensorSpec("g", (None, 2), FLOAT),
)


def signature_of(*inputs: TensorSpec, **config: object) -> Signature:
    return Signature("door", ModelConfig.model_validate({"path": "door.onnx", **config}), inputs, (Y, NEXT))


@pytest.mark.parametrize("shape", [(3,), (1, 3), (5, 3)])
def test_an_array_is_one_sample_or_several(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "x.npy", np.ones(shape, np.float32))

    samples = sampling.from_files([tmp_path], signature_of(X), 100)

    assert len(samples) == (5 if shape[0] == 5 else 1)
    assert all(sample["x"].shape == (1, 3) for sample in samples)


def test_samples_get_hidden_state_and_their_number_is_limited(tmp_path: Path) -> None:
    write_arrays(tmp_path / "a.npz", {"x": np.ones((5, 3), np.float32)})
    write_arrays(tmp_path / "b.npz", {"x": np.ones((5, 3), np.float32)})

    samples = sampling.from_files([tmp_path / "a.npz", tmp_path / "b.npz"], signature_of(X, STATE, state={"h": "g"}), 7)

    assert len(samples) == 7
    assert all(sample["h"].tolist() == [[0, 0]] for sample in samples)


@pytest.mark.parametrize(
    ("name", "arrays", "message"),
    [
        ("a.npz", {"z": np.ones((1, 3), np.float32)}, "'z', which is not an input"),
        ("a.npz", {"x": np.ones((1, 4), np.float32)}, "does not fit"),
        ("a.npz", {"x": np.ones((1, 3))}, "does not fit"),
        ("a.npz", {}, "has no x"),
        ("a.txt", None, "is not an array file"),
        ("a.npy", None, "has no readable arrays"),
    ],
    ids=["name", "shape", "dtype", "nothing", "text", "damaged"],
)
def test_samples_that_do_not_fit_are_refused_and_the_file_is_named(
    tmp_path: Path, name: str, arrays: object, message: str
) -> None:
    path = tmp_path / name
    if isinstance(arrays, dict):
        write_arrays(path, arrays)
    else:
        path.write_bytes(b"\x93NUMPY damaged")

    with pytest.raises(HedgerowError, match=message) as refused:
        sampling.from_files([path], signature_of(X), 10)
    assert name in str(refused.value)


def test_noise_needs_the_sizes_of_dynamic_axes() -> None:
    dynamic = signature_of(TensorSpec("x", (None, None, 3), FLOAT))

    with pytest.raises(ModelMismatch, match="with dynamic axes besides the batch"):
        sampling.noise(dynamic, {}, 2)
    assert [sample["x"].shape for sample in sampling.noise(dynamic, {"x": (1, 7, 3)}, 2)] == [(1, 7, 3)] * 2
