"""Recorded speech and a voice activity model."""

from __future__ import annotations

import importlib.util
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hedgerow import Frame
from hedgerow.testing import frame

ALSA = Path("/usr/share/sounds/alsa")
SPHINX = Path("/usr/share/pocketsphinx/test/data")

_STATE = {"state": {"state": "stateN"}, "batch_axis": {"state": 1, "stateN": 1}}
VAD: dict[str, dict[str, Any]] = {
    "onnxruntime": {
        "path": "package:silero_vad/data/silero_vad_16k_op15.onnx",
        "backend": "onnxruntime",
        "constants": {"sr": 16_000},
        **_STATE,
    },
    "openvino": {"path": "package:silero_vad/data/silero_vad_openvino_16k.onnx", "backend": "openvino", **_STATE},
}

Recording = tuple[NDArray[np.int16], int]
"""Samples and their rate."""
Chunks = Callable[..., list[Frame]]


@pytest.fixture(params=sorted(VAD))
def vad(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Silero VAD, on each backend."""
    return _model(request.param)


@pytest.fixture
def vads() -> dict[str, dict[str, Any]]:
    """Silero VAD by backend."""
    return {backend: _model(backend) for backend in VAD}


def _model(backend: str) -> dict[str, Any]:
    for package, remedy in (("silero_vad", "pip install --no-deps silero-vad"), (backend, f"pip install {backend}")):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: `{remedy}`")
    return VAD[backend]


@pytest.fixture
def recording() -> Callable[[str], Recording]:
    """Load a recording by name, followed by a second of silence."""

    def load(name: str) -> Recording:
        folder, package = (ALSA, "alsa-utils") if (ALSA / name).exists() else (SPHINX, "pocketsphinx-testdata")
        path = folder / name
        if not path.exists():
            pytest.skip(f"no {path}: `apt-get install {package}`")
        if path.suffix == ".raw":
            pcm, rate = np.fromfile(path, "<i2"), 16_000
        else:
            with wave.open(str(path)) as file:
                pcm, rate = np.frombuffer(file.readframes(file.getnframes()), "<i2"), file.getframerate()
        return np.concatenate((pcm, np.zeros(rate, "<i2"))), rate

    return load


@pytest.fixture(scope="session")
def chunks() -> Chunks:
    """Cut samples into frames as a microphone sends them."""

    def cut(
        pcm: NDArray[Any],
        rate: int,
        sizes: list[int] | int = 1600,
        *,
        stream: str = "hall/microphone",
        began_at: float = 1_700_000_000.0,
    ) -> list[Frame]:
        """Cut into frames of these sizes, repeating the last."""
        sizes = [sizes] if isinstance(sizes, int) else list(sizes)
        frames, at = [], 0
        while at < len(pcm):
            size = sizes.pop(0) if len(sizes) > 1 else sizes[0]
            part = pcm[at : at + size]
            frames.append(
                frame(
                    part if part.dtype == np.float32 else part.tobytes(),
                    stream=stream,
                    sequence=len(frames),
                    content_type="audio/pcm",
                    captured_at=began_at + at / rate,
                    meta={"rate": rate},
                )
            )
            at += size
        return frames

    return cut
