"""Every combination of settings and models: a chain is refused before its first frame if, and only if, that frame dies."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
from tests.pipeline.chain import chain_samples as samples

from hedgerow import plugins
from hedgerow.config import NodeConfig, PipelineConfig
from hedgerow.errors import StageMismatch
from hedgerow.frame import Frame
from hedgerow.models.serving.pool import ModelPool
from hedgerow.pipeline.chain.build import PipelineContext, set_up
from hedgerow.pipeline.chain.chain import Chain
from hedgerow.pipeline.chain.specs import RECEIVED, output_spec
from hedgerow.testing.contract import untrue

MODELS: dict[str, samples.Model] = {
    "colour": samples.COLOUR,
    "last": samples.COLOUR_LAST,
    "grey": samples.GREY,
    "half": samples.HALF,
    "bytes": samples.BYTES,
    "pixels": samples.PIXELS,
    "four": samples.OF_FOUR,
    "any": samples.COLOUR.replace("float[N,3,64,64]", "float[N,c,h,w]"),
    "three": samples.DOUBLE,
    "three64": samples.DOUBLE_64,
    "integers": samples.INTEGERS,
    "bytes3": "(uint8[N,3] x) => (uint8[N,3] y) { y = Identity(x) }",
    "half3": "(float16[N,3] x) => (float16[N,3] y) { y = Add(x, x) }",
    "windows": samples.WINDOWS,
    "planes": samples.PLANES,
    "columns": "(float[N,512,3] x) => (float[N] y) { y = ReduceMean<axes = [1, 2], keepdims = 0>(x) }",
    "vibration": samples.VIBRATION,
}
PICTURE_MODELS = ("colour", "last", "grey", "half", "bytes", "pixels", "four", "any")
NUMBER_MODELS = ("three", "three64", "integers", "bytes3", "half3")
WINDOW_MODELS = ("three", "windows", "planes", "columns", "vibration")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PipelineContext]:
    """Return a context that keeps all models loaded."""
    folder = tmp_path_factory.mktemp("models")
    config = NodeConfig.model_validate({"models": samples.write_models(MODELS, folder)})
    pool = ModelPool(cores=1)
    context = PipelineContext("p", config.models, folder, pool)
    for name in MODELS:
        context.model(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plugins, "installed", cache(plugins.installed))  # reads the metadata of all packages
        yield context
    context.release()
    pool.close()


def verdicts(stages: list[Any], sent: tuple[str, bytes], node: PipelineContext) -> tuple[str, str]:
    """Return what the check says ("" if nothing), and why the frame dies if it runs all the same ("" if it does not)."""
    context = PipelineContext("p", node._models, node._base_dir, node._pool)
    steps, refused, died, incoming = [], "", "", RECEIVED
    frames = [Frame(sent[1], id="1", stream="s", content_type=sent[0])]
    try:
        for entry in PipelineConfig.model_validate({"subscribe": "x", "stages": stages}).stages:
            steps.append(step := set_up(entry, context))
            outcomes = Chain([step]).run(frames).outcomes if frames else []
            frames = [frame for outcome in outcomes for frame in outcome.results]
            died = died or next((str(outcome.error) for outcome in outcomes if outcome.error is not None), "")
            try:
                incoming = incoming if refused else output_spec(step, incoming)
            except StageMismatch as error:
                refused = str(error)
            if not refused:
                assert {untrue(incoming, frame) for frame in frames} <= {None}
    finally:
        Chain(steps).close()
        context.release()
    return refused, died


@pytest.mark.parametrize("model", PICTURE_MODELS)
@pytest.mark.parametrize("stage", ["letterbox", "resize"])
def test_pictures(model: str, stage: str, node: PipelineContext) -> None:
    """Everything is known of them, so the check says exactly what will happen."""
    wrong = []
    worked = 0
    for size, layout, channels, dtype, tensor in itertools.product(
        (64, 28, (64, 48)), ("nchw", "nhwc"), ("rgb", "grey"), ("float32", "uint8"), ("images", "image")
    ):
        settings = {"size": size, "layout": layout, "channels": channels, "dtype": dtype, "tensor": tensor}
        refused, died = verdicts(["decode", {stage: settings}, {"infer": {"model": model}}], samples.JPEG, node)
        worked += not died
        if bool(refused) != bool(died):
            wrong.append((settings, refused, died))
    assert wrong == []
    assert worked


@pytest.mark.parametrize("model", NUMBER_MODELS)
@pytest.mark.parametrize("dtype", [None, "float32", "float64", "int16", "int32", "uint8"])
@pytest.mark.parametrize(
    "sent",
    [
        ("application/json", b"[1, 2, 3]"),
        ("application/json", b"[1.5, 2.5, 3.5]"),
        ("text/csv", b"1,2,3"),
        *[("application/x-npy", samples.npy(np.arange(3).astype(kind))) for kind in ("float32", "float64", "uint8")],
    ],
    ids=lambda sent: f"{sent[0]}-{len(sent[1])}",
)
def test_numbers(model: str, dtype: str | None, sent: tuple[str, bytes], node: PipelineContext) -> None:
    """Their type is known if it is configured; their count is not."""
    parse = {} if dtype is None else {"dtype": dtype}

    refused, died = verdicts([{"parse": parse}, {"infer": {"model": model}}], sent, node)

    assert died or not refused
    if dtype is None:
        assert not refused
    elif not verdicts([{"parse": parse}], sent, node)[1]:  # else `parse` refuses these numbers
        assert bool(refused) == bool(died)


@pytest.mark.parametrize("model", WINDOW_MODELS)
@pytest.mark.parametrize("size", [3, 256, 512, 1024])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("features", [False, True])
def test_windows(model: str, size: int, channels: int, features: bool, node: PipelineContext) -> None:
    """A window's size is known, and so are its features."""
    tone = samples.TONE[:1024].astype(np.float32)
    sent = ("application/x-npy", samples.npy(tone if channels == 1 else np.stack([tone] * channels, axis=1)))
    bands = [{"fft-bands": {"model": "vibration"}}] if features else []

    refused, died = verdicts(
        ["parse", {"window": {"size": size, "channels": channels}}, *bands, {"infer": {"model": model}}], sent, node
    )

    assert bool(refused) == bool(died), (refused, died)
