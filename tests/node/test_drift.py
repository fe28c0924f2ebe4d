"""A node says how far what a version gives is from its author's samples, and when that is no number any more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from trial_site import Site

from hedgerow.models.bundle.version import ModelVersion
from hedgerow.node.probes import gauges
from hedgerow.wire.fleet import SwapPolicy

TWICE = "(float[N,3] x) => (float[N,3] y) { y = Add(x, x) }"
# Right for the author's samples, which lie between 0 and 1, and no number above.
NAN_ABOVE_ONE = """(float[N,3] x) => (float[N,3] y)
    <float one = {1.0}> { d = Sub(one, x) r = Sqrt(d) z = Sub(r, r) w = Add(x, x) y = Add(w, z) }"""
AT_ONCE = SwapPolicy(probation_s=0, min_frames=0, max_slowdown=1000)
DRAW = np.random.default_rng(1)


async def test_health_tells_a_drift_and_outputs_that_are_no_numbers_long_after_a_version_was_kept(
    site: Site,
    make_candidate: Callable[..., ModelVersion],
    onnx_file: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("hedgerow.models.monitor.drift.WINDOW_S", 0.01)
    monkeypatch.setattr("hedgerow.models.monitor.drift.MIN_FRAMES", 30)
    monkeypatch.setattr(
        "hedgerow.models.monitor.drift._SHARE", 1.0
    )  # or it would take seconds until so many have been looked at
    samples = {"x": DRAW.random((500, 3), np.float32)}
    candidate = make_candidate(NAN_ABOVE_ONE, samples=samples, baseline=True)
    pipeline = site.pipeline({"parse": {"format": "raw", "dtype": "float32"}}, {"infer": {"model": "door"}})

    async with site.node({"p": pipeline}, models={"door": {"path": str(onnx_file(TWICE))}}) as node:

        async def frames(scale: float = 1.0, offset: float = 0.0) -> None:
            values = (scale * DRAW.random((20, 3)) + offset).astype(np.float32)
            await asyncio.gather(*(site.publish(row.tobytes()) for row in values))

        async def seen(what: Callable[[], bool], scale: float = 1.0, offset: float = 0.0) -> None:
            for _ in range(100):
                await frames(scale, offset)
                if what():
                    return
            raise AssertionError(node.health())

        def door():  # type: ignore[no-untyped-def]
            return node.health().models["door"]

        await frames()
        assert door().looked_at == 0, "a file of the node's own has no statistics"
        assert (await node.swaps.swap_to(candidate, AT_ONCE, lambda *_: None)).kept

        await seen(lambda: door().drift is not None)
        health = node.health()
        assert max(door().drift, door().input_drift) < 0.5
        assert (health.state, health.reasons, door().not_finite) == ("ok", [], 0)

        await seen(lambda: door().drift > 2, scale=0.1)
        assert door().input_drift > 2, "it is what comes in that has changed"
        assert node.health().state == "ok", "what drifts need not be wrong"

        await seen(lambda: door().not_finite > 0, offset=0.99)
        assert node.health().state in ("degraded", "failing")
        assert "NaN" in node.health().reasons[0]
        await seen(lambda: node.health().state == "failing", offset=2.0)
        shown = {name: value for name, _, _, value in gauges(node.runners, node._link)}
        assert shown["hedgerow_model_not_finite_share"] > 0.5
        assert {"hedgerow_model_drift", "hedgerow_model_input_drift"} <= shown.keys()

        await seen(lambda: door().not_finite == 0)
        assert node.health().state == "ok"
