from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hedgerow.errors import ModelNotFound
from hedgerow.models.bundle.model_file import digest, resolve


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
