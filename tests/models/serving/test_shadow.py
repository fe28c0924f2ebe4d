"""Shadows: a version on copies of live batches."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hedgerow.config import ModelConfig
from hedgerow.models.serving.pool import ModelPool
from hedgerow.models.serving.shadow import Shadow


@pytest.mark.parametrize(
    ("candidate", "disagreed"),
    [
        ("{ y = Add(x, x) }", 0),
        ("<int64[2] one = {1, 3}> { r = Reshape(x, one) y = Add(r, r) }", 0),
        ("{ m = ReduceMean<axes=[0]>(x) d = Sub(x, m) s = Add(m, m) t = Add(d, d) y = Add(s, t) }", 0),
        ("<float[1] c = {0.5}> { d = Add(x, x) y = Add(d, c) }", 5),
    ],
    ids=["the same", "fixed to one frame inside", "the same alone, not in a batch", "different"],
)
def test_a_version_that_takes_no_batches_is_compared_frame_by_frame(
    onnx_file: Callable[..., Path], candidate: str, disagreed: int
) -> None:
    """It would serve them one by one, so a batch would compare what never happens."""
    pool = ModelPool(cores=1)
    head = "(float[N,3] x) => (float[N,3] y)"
    paths = [onnx_file(f"{head} {{ y = Add(x, x) }}", name="a.onnx"), onnx_file(f"{head} {candidate}", name="b.onnx")]
    serving, other = (pool.open("m", ModelConfig(path=str(path)), Path(), None) for path in paths)
    shadow = Shadow(serving, other)

    serving.infer_each([{"x": np.full((1, 3), value, np.float32)} for value in range(5)])
    while shadow.compared < 5:
        time.sleep(0.01)
    shadow.stop()

    assert (shadow.disagreed, shadow.failed) == (disagreed, 0)
    serving.close()
    other.close()
