"""A model trained on generated vibration."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def trained() -> bytes:
    """The model that `python -m hedgerow_signal.train` writes."""
    pytest.importorskip("onnx", reason="training needs onnx: `pip install hedgerow-signal[train]`")
    from hedgerow_signal.train import train

    return train(seed=7)


@pytest.fixture
def model_file(trained: bytes, tmp_path: Path) -> Path:
    """The trained model as a file."""
    path = tmp_path / "vibration.onnx"
    path.write_bytes(trained)
    return path
