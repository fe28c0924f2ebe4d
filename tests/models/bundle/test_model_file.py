from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import openvino
import pytest

from hedgerow import backends
from hedgerow.backends.base import Backend, Session, SessionOptions
from hedgerow.config import ModelConfig
from hedgerow.errors import ModelNotFound, ModelUnreadable
from hedgerow.models.bundle.model_file import digest, files_of, resolve
from hedgerow.models.serving.pool import ModelPool


def test_a_relative_path_is_relative_to_the_configuration_file(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models/door.onnx").write_bytes(b"door")

    assert resolve("models/door.onnx", tmp_path).path == tmp_path / "models/door.onnx"
    assert resolve(str(tmp_path / "models/door.onnx"), Path("/nowhere")).path == tmp_path / "models/door.onnx"


def test_the_remedy_for_a_missing_file_names_similar_files(tmp_path: Path) -> None:
    (tmp_path / "door.onnx").write_bytes(b"")
    (tmp_path / "notes.txt").write_bytes(b"")

    with pytest.raises(ModelNotFound, match=r"dor\.onnx") as raised:
        resolve("dor.onnx", tmp_path)
    assert "door.onnx" in raised.value.remedy
    assert "notes" not in raised.value.remedy


def test_the_remedy_for_a_missing_file_without_similar_ones_names_existing_models(tmp_path: Path) -> None:
    (tmp_path / "window.tflite").write_bytes(b"")

    with pytest.raises(ModelNotFound) as raised:
        resolve("quux.onnx", tmp_path)
    assert "window.tflite" in raised.value.remedy


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound) as raised:
        resolve("modles/door.onnx", tmp_path)
    assert str(tmp_path / "modles") in raised.value.remedy


def test_a_folder_is_not_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        resolve(".", tmp_path)


def test_a_model_in_a_package_is_found_without_importing_the_package() -> None:
    """silero_vad imports torch, which is too large for a gateway."""
    found = resolve("package:silero_vad/data/silero_vad_16k_op15.onnx", Path("/nowhere"))

    assert found.path.is_file()
    assert "silero_vad" not in sys.modules


def test_a_model_in_a_package_that_fails_to_import_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "grumpy").mkdir()
    (tmp_path / "grumpy/__init__.py").write_text("raise SystemExit('imported')")
    (tmp_path / "grumpy/door.onnx").write_bytes(b"door")
    monkeypatch.syspath_prepend(str(tmp_path))

    assert resolve("package:grumpy/door.onnx", Path()).path == tmp_path / "grumpy/door.onnx"


def test_the_remedy_for_a_missing_package_is_to_install_it(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="lapwing_models") as raised:
        resolve("package:lapwing_models/door.onnx", tmp_path)
    assert "pip install lapwing-models" in raised.value.remedy


def test_the_remedy_for_a_file_missing_in_a_package_names_similar_files(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="has no file") as raised:
        resolve("package:silero_vad/data/silero_vad_16k_op51.onnx", tmp_path)
    assert "silero_vad_16k_op15.onnx" in raised.value.remedy


@pytest.mark.parametrize("path", ["package:", "package:silero_vad", "package:silero_vad/", "package:silero_vad/../x"])
def test_a_package_path_that_names_no_file_inside_is_refused(path: str) -> None:
    with pytest.raises(ModelNotFound) as raised:
        resolve(path, Path())
    assert "package:NAME/path/inside" in raised.value.remedy


def test_the_digest_is_the_files_sha256_and_changes_with_its_content(tmp_path: Path) -> None:
    file = tmp_path / "door.onnx"
    file.write_bytes(b"abc")
    before = digest(file)
    file.write_bytes(b"abcd")

    assert before == "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert digest(file) != before


@pytest.mark.parametrize(
    ("main", "beside"), [("ir.xml", "ir.bin"), ("a.onnx", "a.onnx.data"), ("a.onnx", "a.onnx_data")]
)
def test_the_digest_covers_the_weights_beside_the_graph(tmp_path: Path, main: str, beside: str) -> None:
    (tmp_path / main).write_bytes(b"graph")
    alone = digest(tmp_path / main)
    (tmp_path / beside).write_bytes(b"weights")
    before = digest(tmp_path / main)
    (tmp_path / beside).write_bytes(b"other weights")

    assert len({alone, before, digest(tmp_path / main)}) == 3


# Weights in further files


def scale_by(path: Path, factor: float, location: str, *, inside: str = "main") -> Path:
    """Write a model that multiplies by a factor in a file of its own.

    Args:
        inside: where the model holds it: as an initializer of the `main` graph, of a `branch`, or in a `node`.
    """
    factors = {
        "main": "(float[N,3] x) => (float[N,3] y) <float[3] w = {1, 1, 1}> { y = Mul(x, w) }",
        "node": "(float[N,3] x) => (float[N,3] y) { w = Constant<value = float[3] {1, 1, 1}>() y = Mul(x, w) }",
        "branch": """(float[N,3] x) => (float[N,3] y) <bool b = {1}> { y = If(b) <
            then_branch = one () => (float[N,3] a) <float[3] w = {1, 1, 1}> { a = Mul(x, w) },
            else_branch = two () => (float[N,3] c) { c = Neg(x) }> }""",
    }
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]>\ngraph {factors[inside]}')
    node = model.graph.node[0]
    if inside == "main":
        tensor = model.graph.initializer[0]
    else:
        tensor = node.attribute[0].t if inside == "node" else node.attribute[0].g.initializer[0]
    for field in ("float_data", "raw_data"):
        tensor.ClearField(field)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())
    weights = path.parent / location
    weights.parent.mkdir(parents=True, exist_ok=True)
    weights.write_bytes(np.full(3, factor, np.float32).tobytes())
    return path


def result_of(path: Path) -> float:
    pool = ModelPool(cores=1)
    slot = pool.acquire("m", ModelConfig(path=str(path)), Path())
    value = float(slot.infer([{"x": np.ones((1, 3), np.float32)}])[0]["y"][0, 0])
    pool.close()
    return value


@pytest.mark.parametrize("inside", ["main", "node", "branch"])
@pytest.mark.parametrize("location", ["weights.bin", "model.onnx.data", "parts/1.bin", "parts/../w", "däta_0"])
def test_the_digest_covers_weights_of_any_name(tmp_path: Path, location: str, inside: str) -> None:
    (tmp_path / "parts").mkdir()
    path = scale_by(tmp_path / "model.onnx", 2, location, inside=inside)
    before = resolve(str(path), Path())
    scale_by(path, 3, location, inside=inside)

    assert resolve(str(path), Path()).digest != before.digest
    if inside == "main":
        assert result_of(path) == 3


def test_the_digest_changes_though_size_and_time_stay_the_same(tmp_path: Path) -> None:
    """Images and archives that are built reproducibly give all files one time."""
    path = scale_by(tmp_path / "model.onnx", 2, "weights.bin")
    times = {one: one.stat().st_mtime_ns for one in files_of(path)}
    before = digest(path)
    scale_by(path, 3, "weights.bin")
    for one, time_ns in times.items():
        os.utime(one, ns=(time_ns, time_ns))

    assert digest(path) != before


@pytest.mark.parametrize("location", ["../weights.bin", "parts/../../weights.bin", "{folder}/weights.bin"])
def test_weights_outside_the_models_folder_are_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "models/parts").mkdir(parents=True)
    location = location.format(folder=tmp_path)
    path = scale_by(tmp_path / "models/model.onnx", 2, location)

    with pytest.raises(ModelUnreadable, match=r"weights\.bin, outside its folder") as raised:
        resolve(str(path), Path())
    assert 'location="model.onnx.data"' in raised.value.remedy


@pytest.mark.parametrize("location", ["weights.bin", "*/_ORT_MEM_ADDR_/*", "nul\0", "parts"])
def test_missing_weights_are_named(tmp_path: Path, location: str) -> None:
    path = scale_by(tmp_path / "model.onnx", 2, "weights.bin")
    (tmp_path / "weights.bin").unlink()
    (tmp_path / "parts").mkdir()
    path.write_bytes(path.read_bytes())
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].external_data[0].value = location
    path.write_bytes(model.SerializeToString())

    with pytest.raises(ModelNotFound, match="which is missing"):
        resolve(str(path), Path())


def cache_of_a_hub(folder: Path, files: Sequence[Path]) -> Path:
    """Lay files out as huggingface_hub does. Returns: the folder of the snapshot."""
    snapshot, blobs = folder / "models--owner--door/snapshots/0a1b", folder / "models--owner--door/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in files:
        blob = blobs / digest(file).removeprefix("sha256:")
        file.rename(blob)
        (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)
    return snapshot


@pytest.mark.parametrize("location", ["model.onnx_data", "weights.bin"])
def test_a_link_into_a_hubs_cache_keeps_its_name_and_finds_its_weights(tmp_path: Path, location: str) -> None:
    path = scale_by(tmp_path / "model.onnx", 2, location)
    expected = digest(path)
    snapshot = cache_of_a_hub(tmp_path, files_of(path))

    found = resolve("model.onnx", snapshot)

    assert (found.path, found.digest) == (snapshot / "model.onnx", expected)
    assert result_of(found.path) == 2
    with pytest.raises(ModelUnreadable, match="outside the base directory") as raised:
        backends.get("openvino").open(found.path, SessionOptions())
    assert "cp -L" in raised.value.remedy


@pytest.mark.parametrize("backend", backends.backends(), ids=lambda one: one.name)
def test_the_remedy_for_weights_behind_a_link_is_a_copy(tmp_path: Path, backend: Backend) -> None:
    """Backends read no weights outside the model's folder, whatever their name."""
    path = scale_by(tmp_path / "models/model.onnx", 2, "weights.bin")
    (tmp_path / "models/weights.bin").rename(tmp_path / "elsewhere")
    (tmp_path / "models/weights.bin").symlink_to("../elsewhere")

    with pytest.raises(ModelUnreadable) as raised:
        backend.open(resolve(str(path), Path()).path, SessionOptions())
    assert "cp -L" in raised.value.remedy


def test_an_ir_in_a_hubs_cache_is_loaded_with_its_weights(tmp_path: Path) -> None:
    scaled = openvino.Core().read_model(scale_by(tmp_path / "model.onnx", 2, "weights.bin"))
    openvino.save_model(scaled, tmp_path / "ir.xml", compress_to_fp16=False)
    expected = digest(tmp_path / "ir.xml")
    snapshot = cache_of_a_hub(tmp_path, files_of(tmp_path / "ir.xml"))

    found = resolve("ir.xml", snapshot)

    assert (found.path.name, found.digest) == ("ir.xml", expected)
    assert result_of(found.path) == 2


@pytest.mark.parametrize("link", ["current.onnx", "current", "current.v2"])
def test_a_link_to_a_version_finds_the_weights_beside_its_target(tmp_path: Path, link: str) -> None:
    path = scale_by(tmp_path / "v2/model.onnx", 2, "weights.bin")
    (tmp_path / link).symlink_to("v2/model.onnx")

    found = resolve(link, tmp_path)

    assert (found.path, found.digest) == (path, digest(path))
    assert result_of(found.path) == 2


def test_a_link_to_a_model_in_one_file_keeps_its_name(tmp_path: Path) -> None:
    (tmp_path / "v2.onnx").write_bytes(b"door")
    (tmp_path / "current.onnx").symlink_to("v2.onnx")

    assert resolve("current.onnx", tmp_path).path == tmp_path / "current.onnx"


@pytest.mark.parametrize(
    ("content", "what", "remedy"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0a1b\nsize 12345\n",
            "Git LFS pointer",
            "git lfs pull",
        ),
        (b"\n<!DOCTYPE html>\n<html><body>Sign in</body></html>", "web page", "Download"),
        (b"PK\x03\x04archive/data.pkl", "ZIP archive", "export the model to ONNX"),
        (b"", "empty file", "Copy"),
    ],
)
def test_what_a_download_leaves_in_a_models_place_is_named(
    tmp_path: Path, content: bytes, what: str, remedy: str
) -> None:
    (tmp_path / "door.onnx").write_bytes(content)

    with pytest.raises(ModelUnreadable, match=what) as raised:
        resolve("door.onnx", tmp_path)
    assert remedy in raised.value.remedy


def test_weights_missing_in_a_hubs_cache_are_named(tmp_path: Path) -> None:
    """The hub's own name of the model has no suffix, and says nothing of its weights."""
    snapshot = cache_of_a_hub(tmp_path, files_of(scale_by(tmp_path / "model.onnx", 2, "model.onnx_data")))
    (snapshot / "model.onnx_data").unlink()

    with pytest.raises(ModelNotFound, match=r"weights in model\.onnx_data, which is missing"):
        resolve("model.onnx", snapshot)


def test_a_damaged_file_is_left_to_the_backend(tmp_path: Path) -> None:
    path = scale_by(tmp_path / "model.onnx", 2, "weights.bin")
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        assert files_of(path)[0] == path


def test_weights_that_change_while_a_model_loads_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its results would name another model's digest."""
    path = scale_by(tmp_path / "model.onnx", 2, "weights.bin")
    backend = backends.get("onnxruntime")
    open_ = backend.open

    def open_late(path: Path, options: SessionOptions) -> Session:
        scale_by(path, 3, "weights.bin")
        return open_(path, options)

    monkeypatch.setattr(backend, "open", open_late)
    with pytest.raises(ModelUnreadable, match="changed while it was loaded"):
        result_of(path)
