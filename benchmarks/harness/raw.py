"""Measures the backends alone, called in a loop with prepared inputs: the most that this machine can do.

echo '{"seconds": 0.5}' | python -m benchmarks.harness.raw vad
"""

from __future__ import annotations

import itertools
import json
import re
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import silero
from hedgerow.models.bundle.model_file import resolve

VAD = "package:silero_vad/data/silero_vad_openvino_16k.onnx"
"""Of the package's files with the same weights, the fastest one for every contender."""
TEXT = "package:rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx"
SIDE = 320

Run = Callable[[Any], Any]


def path_of(model: str) -> str:
    """Return the path of a model's file."""
    return str(resolve(model, Path()).path)


def vad_session(threads: int, model: str = VAD) -> Any:
    """Load Silero VAD on ONNX Runtime."""
    return silero.session(path_of(model), threads)


def vad_runner(batch: int) -> Run:
    """Load Silero VAD, from feed to next state, on the faster backend: ONNX Runtime for one frame, else OpenVINO."""
    if batch == 1:
        session = vad_session(threads=1)
        return lambda feed: session.run(None, feed)[1]
    request = silero.request(path_of(VAD), batch)
    return lambda feed: request.infer(feed, share_inputs=True).to_tuple()[1]


def text_runner(backend: str, threads: int, static: tuple[int, ...] | None = None) -> Run:
    """Load the text detector: (1, 3, H, W) → (1, 1, H, W). Not thread-safe.

    Args:
        static: the only shape of its input, if it is compiled for one; OpenVINO only.
    """
    path = path_of(TEXT)
    if backend == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the cores are shared
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return lambda tensor: session.run(None, {name: tensor})[0]
    import openvino

    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,
        "INFERENCE_PRECISION_HINT": "f32",  # as the node does; the default may be bfloat16
    }
    core = openvino.Core()
    model = core.read_model(path)
    if static is not None:
        model.reshape(list(static))
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    return lambda tensor: next(iter(request.infer({0: tensor}, share_inputs=True, share_outputs=True).values()))


def timed(runs: list[Callable[[], Any]], rows: int, seconds: float) -> dict[str, Any]:
    """Call each of these in its own thread for this long.

    Returns: `rate` in rows per second, `cpu_us` per row, `call_ms`, the median per call.
    """
    for run in runs:
        run()
    durations: list[list[float]] = [[] for _ in runs]
    until = time.perf_counter() + seconds

    def work(run: Callable[[], Any], durations: list[float]) -> None:
        now = time.perf_counter()
        while now < until:
            run()
            then, now = now, time.perf_counter()
            durations.append(now - then)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(runs, durations, strict=True)]
    began, cpu = time.perf_counter(), time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    count = sum(map(len, durations)) * rows
    each = sorted(itertools.chain(*durations))
    return {
        "rate": count / (time.perf_counter() - began),
        "cpu_us": (time.process_time() - cpu) / count * 1e6,
        "call_ms": each[len(each) // 2] * 1e3,
    }


def vad(seconds: float, batches: list[int]) -> dict[str, Any]:
    """Return rates by batch size, with one and with two callers of one thread each."""

    def run(batch: int) -> Callable[[], Any]:
        runner = vad_runner(batch)
        sound = np.random.default_rng(0).normal(0, 0.05, (batch, 576)).astype(np.float32)
        feed = {"input": sound, "state": np.zeros((2, batch, 128), np.float32)}

        def once() -> None:
            feed["state"] = runner(feed)

        return once

    return {
        f"{batch}x{callers}": timed([run(batch) for _ in range(callers)], batch, seconds)
        for batch in batches
        for callers in (1, 2)
    }


def text(seconds: float, cases: list[str]) -> dict[str, Any]:
    """Return rates by case, such as `openvino, 2 on 1 threads, batch 4` or `openvino, 2 on 1 threads, batch 4, static`."""

    def run(case: str) -> dict[str, Any]:
        pattern = r"(\w+), (\d+) on (\d+) threads, batch (\d+)(, static)?"
        backend, callers, threads, batch, static = re.fullmatch(pattern, case).groups()  # type: ignore[union-attr]
        tensor = np.random.default_rng(0).normal(0, 1, (int(batch), 3, SIDE, SIDE)).astype(np.float32)
        shape = tensor.shape if static else None
        runners = [text_runner(backend, int(threads), shape) for _ in range(int(callers))]
        return timed([partial(runner, tensor) for runner in runners], int(batch), seconds)

    return {case: run(case) for case in cases}


def main() -> None:
    """Measure the model named on the command line."""
    options = json.load(sys.stdin)
    json.dump(vad(**options) if sys.argv[1] == "vad" else text(**options), sys.stdout)


if __name__ == "__main__":
    main()
