"""Models, and payloads of sensors, for tests of chains."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import simplejpeg
from PIL import Image

PICTURE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)


def png() -> bytes:
    out = io.BytesIO()
    Image.fromarray(PICTURE).save(out, "PNG")
    return out.getvalue()


def npy(array: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


JPEG = ("image/jpeg", simplejpeg.encode_jpeg(PICTURE))
PNG = ("image/png", png())
THREE = ("application/json", b"[0.5, 1.5, 2.5]")
TONE = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
SOUND = ("audio/l16", (TONE * 20_000).astype("<i2").tobytes())
SHAKE = ("application/x-npy", npy(TONE[:4096].astype(np.float32)))

MEAN = "{ y = ReduceMean<axes = [1, 2, 3], keepdims = 0>(images) }"
COLOUR = f"(float[N,3,64,64] images) => (float[N] y) {MEAN}"
COLOUR_LAST = f"(float[N,64,64,3] images) => (float[N] y) {MEAN}"
GREY = f"(float[N,1,28,28] images) => (float[N] y) {MEAN}"
HALF = f"(float16[N,3,64,64] images) => (float16[N] y) {MEAN}"
BYTES = """(uint8[N,3,64,64] images) => (float[N] y)
    { f = Cast<to = 1>(images) y = ReduceMean<axes = [1, 2, 3], keepdims = 0>(f) }"""
PIXELS = """(uint8[N,h,w,3] images) => (float[N] y)
    { f = Cast<to = 1>(images) y = ReduceMean<axes = [1, 2, 3], keepdims = 0>(f) }"""
OF_FOUR = "(float[4,3,64,64] images) => (float[4] y) " + MEAN
DOUBLE = "(float[N,3] x) => (float[N,3] y) { y = Add(x, x) }"
DOUBLE_64 = "(double[N,3] x) => (double[N,3] y) { y = Add(x, x) }"
INTEGERS = "(int64[N,3] x) => (int64[N,3] y) { y = Add(x, x) }"
TWO = "(float[N,1] temp, float[N,1] hum) => (float[N,2] y) { y = Concat<axis = 1>(temp, hum) }"
PAIR = """(float[N,3,64,64] image, float[N,3,64,64] mask) => (float[N,3,64,64] y) { y = Mul(image, mask) }"""
SUM = "(float[N,3] x, float[N,3] y) => (float[N,3] z) { z = Add(x, y) }"
COUNTER = """(float[N,3] x, float[N,3] total) => (float[N,3] y, float[N,3] next)
    { next = Add(total, x) y = Identity(next) }"""
HEAD = f"""(float[1,3,64,64] images) => (float[1,6,84] output0)
    <float[1] zero = {{0}}, float[1,6,84] boxes = {{{", ".join(["0"] * 504)}}}>
    {{ m = ReduceMean<axes = [1, 2, 3], keepdims = 0>(images) z = Mul(m, zero) output0 = Add(boxes, z) }}"""
PIXELS_HEAD = f"""(uint8[1,h,w,3] images) => (float[1,6,84] output0)
    <float[1] zero = {{0}}, float[1,6,84] boxes = {{{", ".join(["0"] * 504)}}}>
    {{ f = Cast<to = 1>(images) m = ReduceMean<axes = [1, 2, 3], keepdims = 0>(f) z = Mul(m, zero)
       output0 = Add(boxes, z) }}"""
VOICE = "(float[N,576] input) => (float[N,1] output) { m = ReduceMean<axes = [1], keepdims = 1>(input) output = Sigmoid(m) }"
WINDOWS = "(float[N,512] x) => (float[N,1] score) { score = ReduceMean<axes = [1], keepdims = 1>(x) }"
FEATURES = "(float[N,5] features) => (float[N,1] score) { score = ReduceMean<axes = [1], keepdims = 1>(features) }"
PLANES = "(float[N,1,512] x) => (float[N] y) { y = ReduceMean<axes = [1, 2], keepdims = 0>(x) }"
LINES = "(float[N,h,w,3] x) => (float[N,h,w,3] y) { y = Identity(x) }"
TRAINED = {
    "hedgerow.edges_hz": "[100, 500, 1000]",
    "hedgerow.scale": "db",
    "hedgerow.rate": "12800",
    "hedgerow.window": "1024",
    "hedgerow.threshold": "0.5",
}

Model = str | tuple[str, Mapping[str, Any], Mapping[str, str]]
"""The text of an ONNX graph; or with its settings and its metadata."""

VIBRATION: Model = (FEATURES, {}, TRAINED)


def write_models(models: Mapping[str, Model], folder: Path) -> dict[str, dict[str, Any]]:
    """Write the files, and return the section `models` of a configuration."""
    section = {}
    for name, model in models.items():
        body, settings, metadata = (model, {}, {}) if isinstance(model, str) else model
        parsed = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]>\ngraph {body}')
        onnx.helper.set_model_props(parsed, dict(metadata))
        onnx.save(parsed, folder / f"{name}.onnx")
        section[name] = {"path": f"{name}.onnx", "backend": "onnxruntime", **settings}  # opens them in milliseconds
    return section
