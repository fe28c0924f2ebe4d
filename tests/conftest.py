"""What tests of several parts share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import onnx.parser
import pytest

OnnxFile = Callable[..., Path]


@pytest.fixture
def onnx_file(tmp_path: Path) -> OnnxFile:
    """Writes a small ONNX model from its text: `onnx_file("(float[N,3] x) => (float[N,3] y) { y = Add(x, x) }")`."""

    def write(body: str, *, name: str = "model.onnx", domains: str = "", **metadata: str) -> Path:
        model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17{domains}]>\ngraph {body}')
        for key, value in metadata.items():
            model.metadata_props.add(key=key, value=value)
        onnx.save(model, tmp_path / name)
        return tmp_path / name

    return write
