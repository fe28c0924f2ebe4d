"""What the peers' loops do with a frame: each makes, from its options, the function that answers it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import numpy as np

Answer = Callable[[str, Any, str], bytes | None]
"""From topic, payload and the frame's id to a result; None: there is none."""


def vad(options: dict[str, Any]) -> Answer:
    """Silero VAD on ONNX Runtime; its author's window: 64 samples of the one before and 512 new ones."""
    from benchmarks.harness import silero

    if "model" in options:
        session = silero.session(options["model"])
    else:
        from benchmarks.harness.raw import vad_session

        session = vad_session(threads=1)
    states: dict[str, tuple[Any, Any]] = {}
    nothing = np.zeros((1, 64), np.float32), np.zeros((2, 1, 128), np.float32)

    def answer(topic: str, payload: Any, frame: str) -> bytes:
        context, state = states.get(topic, nothing)
        samples = np.frombuffer(payload, "<i2").astype(np.float32)[np.newaxis] * np.float32(1 / 32768)
        window = np.concatenate((context, samples), axis=1)
        probability, state = session.run(None, {"input": window, "state": state})
        states[topic] = window[:, -64:], state
        return json.dumps({"id": frame, "topic": topic, "probability": float(probability[0, 0])}).encode()

    return answer


def text(options: dict[str, Any]) -> Answer:
    """Text detection on the backend that is the quickest here; what follows the model is the plugin's own code."""
    import simplejpeg

    from benchmarks.harness.raw import text_runner
    from hedgerow_vision.text.detect import find_quads

    run = text_runner(options["backend"], threads=options["threads"])
    mean = np.array([0.485, 0.456, 0.406], np.float32)
    std = np.array([0.229, 0.224, 0.225], np.float32)
    factor, offset = (1 / 255 / std)[:, None, None], (-mean / std)[:, None, None]

    def answer(topic: str, payload: Any, frame: str) -> bytes:
        image = simplejpeg.decode_jpeg(payload, colorspace="BGR")
        tensor = image.transpose(2, 0, 1) * factor + offset
        heat = run(np.ascontiguousarray(tensor[np.newaxis]))[0, 0]
        quads, scores = find_quads(heat, 0.3, 0.5, 1.6, 1000)
        texts = [{"score": s, "box": q} for s, q in zip(scores.tolist(), quads.tolist(), strict=True)]
        return json.dumps({"id": frame, "topic": topic, "texts": texts}).encode()

    return answer


def noop(_: dict[str, Any]) -> Answer:
    """The size of the payload."""
    return lambda _, payload, frame: json.dumps({"id": frame, "bytes": len(payload)}).encode()


def count(options: dict[str, Any]) -> Answer:
    """Nothing, but for every n-th frame a sign of life."""
    numbers, each = itertools.count(1), options["each"]
    return lambda *_: None if next(numbers) % each else b"{}"
