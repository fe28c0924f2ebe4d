"""Frame handlers of the peers' loops; each function makes a handler from its options."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import numpy as np

Handler = Callable[[str, Any, str], bytes | None]
"""Takes topic, payload and frame id; returns a result, or None."""


def vad(options: dict[str, Any]) -> Handler:
    """Silero VAD on ONNX Runtime, with the published window: 64 samples of the previous one and 512 new ones."""
    from benchmarks.harness import silero

    if "model" in options:
        session = silero.session(options["model"])
    else:
        from benchmarks.harness.raw import vad_session

        session = vad_session(threads=1)
    states: dict[str, tuple[Any, Any]] = {}
    nothing = np.zeros((1, 64), np.float32), np.zeros((2, 1, 128), np.float32)

    def handle(topic: str, payload: Any, frame: str) -> bytes:
        context, state = states.get(topic, nothing)
        samples = np.frombuffer(payload, "<i2").astype(np.float32)[np.newaxis] * np.float32(1 / 32768)
        window = np.concatenate((context, samples), axis=1)
        probability, state = session.run(None, {"input": window, "state": state})
        states[topic] = window[:, -64:], state
        return json.dumps({"id": frame, "topic": topic, "probability": float(probability[0, 0])}).encode()

    return handle


def text(options: dict[str, Any]) -> Handler:
    """Text detection on the given backend; postprocessing is the plugin's code."""
    import simplejpeg

    from benchmarks.harness.raw import text_runner
    from hedgerow_vision.text.detect import find_quads

    run = text_runner(options["backend"], threads=options["threads"])
    mean = np.array([0.485, 0.456, 0.406], np.float32)
    std = np.array([0.229, 0.224, 0.225], np.float32)
    factor, offset = (1 / 255 / std)[:, None, None], (-mean / std)[:, None, None]

    def handle(topic: str, payload: Any, frame: str) -> bytes:
        image = simplejpeg.decode_jpeg(payload, colorspace="BGR")
        tensor = image.transpose(2, 0, 1) * factor + offset
        heat = run(np.ascontiguousarray(tensor[np.newaxis]))[0, 0]
        quads, scores = find_quads(heat, 0.3, 0.5, 1.6, 1000)
        texts = [{"score": s, "box": q} for s, q in zip(scores.tolist(), quads.tolist(), strict=True)]
        return json.dumps({"id": frame, "topic": topic, "texts": texts}).encode()

    return handle


def telemetry(options: dict[str, Any]) -> Handler:
    """Compare the fields of a JSON message with their limits."""
    import orjson

    limits: dict[str, float] = options["limits"]

    def handle(topic: str, payload: Any, frame: str) -> bytes:
        body = orjson.loads(payload)
        values = [float(body[name]) for name in limits]
        above = any(value > limit for value, limit in zip(values, limits.values(), strict=True))
        return orjson.dumps({"id": frame, "topic": topic, "values": values, "above": above})

    return handle


def noop(_: dict[str, Any]) -> Handler:
    """Return the size of the payload."""
    return lambda _, payload, frame: json.dumps({"id": frame, "bytes": len(payload)}).encode()


def count(options: dict[str, Any]) -> Handler:
    """Return an empty result for each n-th frame only."""
    numbers, each = itertools.count(1), options["each"]
    return lambda *_: None if next(numbers) % each else b"{}"
