"""A node reports a version's drift from its baseline, and outputs that are NaN."""

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
# Correct for the author's samples, which are between 0 and 1; NaN above 1.
NAN_ABOVE_ONE = """(float[N,3] x) => (float[N,3] y)
    <float one = {1.0}> { d = Sub(one, x) r = Sqrt(d) z = Sub(r, r) w = Add(x, x) y = Add(w, z) }"""
IMMEDIATE = SwapPolicy(probation_s=0, min_frames=0, max_slowdown=1000)
RANDOM = np.random.default_rng(1)


async def test_health_reports_drift_and_nan_of_a_kept_version(
    site: Site,
    make_version: Callable[..., ModelVersion],
    onnx_file: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("hedgerow.models.monitor.drift.WINDOW_S", 0.01)
    monkeypatch.setattr("hedgerow.models.monitor.drift.MIN_FRAMES", 30)
    monkeypatch.setattr("hedgerow.models.monitor.drift._SHARE", 1.0)  # sampling fewer frames would take seconds
    samples = {"x": RANDOM.random((500, 3), np.float32)}
    candidate = make_version(NAN_ABOVE_ONE, samples=samples, baseline=True)
    pipeline = site.pipeline({"parse": {"format": "raw", "dtype": "float32"}}, {"infer": {"model": "door"}})

    async with site.node({"p": pipeline}, models={"door": {"path": str(onnx_file(TWICE))}}) as node:

        async def frames(scale: float = 1.0, offset: float = 0.0) -> None:
            values = (scale * RANDOM.random((20, 3)) + offset).astype(np.float32)
            await asyncio.gather(*(site.publish(row.tobytes()) for row in values))

        async def send_until(condition: Callable[[], bool], scale: float = 1.0, offset: float = 0.0) -> None:
            for _ in range(100):
                await frames(scale, offset)
                if condition():
                    return
            raise AssertionError(node.health())

        def door():  # type: ignore[no-untyped-def]
            return node.health().models["door"]

        await frames()
        assert door().looked_at == 0, "the node's own file has no baseline"
        assert (await node.swaps.swap_to(candidate, IMMEDIATE, lambda *_: None)).kept

        await send_until(lambda: door().drift is not None)
        health = node.health()
        assert max(door().drift, door().input_drift) < 0.5
        assert (health.state, health.reasons, door().not_finite) == ("ok", [], 0)

        await send_until(lambda: door().drift > 2, scale=0.1)
        assert door().input_drift > 2, "the input has changed"
        assert node.health().state == "ok", "drift alone does not degrade the node"

        await send_until(lambda: door().not_finite > 0, offset=0.99)
        health = node.health()
        assert health.state in ("degraded", "failing")
        assert any("NaN" in reason for reason in health.reasons), health.reasons  # its frames are dead letters, too
        await send_until(lambda: node.health().state == "failing", offset=2.0)
        shown = {name: value for name, _, _, value in gauges(node.runners, node._link)}
        assert shown["hedgerow_model_not_finite_share"] > 0.5
        assert {"hedgerow_model_drift", "hedgerow_model_input_drift"} <= shown.keys()

        await send_until(lambda: door().not_finite == 0)
        health = node.health()
        assert health.state != "failing"
        assert not any("NaN" in reason for reason in health.reasons), health.reasons  # the dead letters still count
