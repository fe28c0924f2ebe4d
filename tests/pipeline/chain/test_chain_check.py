"""Chains that work and chains that cannot: what the check before the first frame says, and what a real frame then does."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs
from tests.pipeline.chain.chain_samples import (
    BYTES,
    COLOUR,
    COLOUR_LAST,
    COUNTER,
    DOUBLE,
    DOUBLE_64,
    GREY,
    HALF,
    HEAD,
    INTEGERS,
    JPEG,
    LINES,
    OF_FOUR,
    PAIR,
    PICTURE,
    PIXELS,
    PIXELS_HEAD,
    PLANES,
    PNG,
    SHAKE,
    SOUND,
    SUM,
    THREE,
    TONE,
    TWO,
    VIBRATION,
    VOICE,
    WINDOWS,
    Model,
    npy,
    write_models,
)

from hedgerow import plugins
from hedgerow.config import NodeConfig, PipelineConfig
from hedgerow.errors import StageMismatch
from hedgerow.frame import Frame
from hedgerow.models.serving.pool import ModelPool
from hedgerow.pipeline.chain.build import PipelineContext, set_up
from hedgerow.pipeline.chain.chain import Chain
from hedgerow.pipeline.chain.check import ChainFinding, check_chains
from hedgerow.pipeline.chain.specs import RECEIVED, output_spec
from hedgerow.pipeline.local_pipeline import LocalPipeline
from hedgerow.testing.contract import untrue
from hedgerow.wire.codec import mime, mime_parameters


@dataclass(frozen=True)
class Case:
    """A chain and its models, with the frame that a sensor sends.

    Attributes:
        says: pattern of the error before the first frame; "": the chain is accepted.
        seen: code of the dead letter if it runs all the same.
    """

    name: str
    stages: list[Any]
    sent: tuple[str, bytes]
    models: dict[str, Model] = field(default_factory=dict)
    says: str = ""
    seen: str = ""

    def __str__(self) -> str:
        return self.name.replace(" ", "-")


def colour(model: Model, *, fit: str = "letterbox", size: Any = 64, **settings: Any) -> dict[str, Any]:
    """Return the usual chain for pictures."""
    return {
        "stages": ["decode", {fit: {"size": size, "tensor": "images", **settings}}, {"infer": {"model": "m"}}],
        "sent": JPEG,
        "models": {"m": model},
    }


def numbers(model: Model, sent: tuple[str, bytes] = THREE, **parse: Any) -> dict[str, Any]:
    """Return the usual chain for numbers."""
    return {"stages": [{"parse": parse}, {"infer": {"model": "m"}}], "sent": sent, "models": {"m": model}}


SPEECH = ["pcm16", {"resample": {"rate": 16_000}}, "vad-window", {"infer": {"model": "m"}}]
SHAKING = [
    "parse",
    {"window": {"size": 1024, "rate": 12_800}},
    {"fft-bands": {"model": "m"}},
    {"infer": {"model": "m"}},
]
DETECT = {**colour(HEAD)}

WORKS = [
    Case("colour channels first", **colour(COLOUR)),
    Case("colour channels last", **colour(COLOUR_LAST, layout="nhwc")),
    Case("a picture made grey", **colour(GREY, size=28, channels="grey")),
    Case("a picture stretched and made grey", **colour(GREY, fit="resize", size=28, channels="grey")),
    Case("float32 into float16", **colour(HALF)),
    Case("whole numbers into float32", **numbers(DOUBLE, ("application/json", b"[1,2,3]"), dtype="int64")),
    Case("bytes into bytes", **colour(BYTES, dtype="uint8")),
    Case("a batch axis fixed to four is padded", **colour(OF_FOUR)),
    Case("a png", **{**colour(COLOUR), "sent": PNG}),
    Case("decoded twice", ["decode", "decode", *colour(COLOUR)["stages"][1:]], JPEG, {"m": COLOUR}),
    Case("a picture without a tensor", ["decode", {"infer": {"model": "m"}}], JPEG, {"m": PIXELS}),
    Case("a picture as an array of bytes", ["parse", "motion", *colour(COLOUR)["stages"][1:]], ("application/x-npy", npy(PICTURE)), {"m": COLOUR}),
    Case("any size", **colour(COLOUR.replace("64,64", "h,w"), size=[32, 96])),
    Case("a tensor of another name is mapped", ["decode", {"resize": {"size": 64}}, {"infer": {"model": "m", "inputs": {"images": "image"}}}], JPEG, {"m": COLOUR}),
    Case("numbers", **numbers(DOUBLE)),
    Case("numbers of 64 bits", **numbers(DOUBLE_64, dtype="float64")),
    Case("numbers as raw bytes", **numbers(DOUBLE, ("", np.float32([1, 2, 3]).tobytes()), format="raw")),
    Case("numbers of unknown type that fit", **numbers(DOUBLE, ("application/x-npy", npy(np.float32([1, 2, 3]))))),
    Case("whole numbers", **numbers(INTEGERS, ("application/json", b"[1, 2, 3]"))),
    Case("hidden state", **numbers((COUNTER, {"state": {"total": "next"}}, {}))),
    Case("a constant fills the second input", **numbers((SUM, {"constants": {"y": 1.0}}, {}))),
    Case("two inputs, one from a model", ["parse", {"infer": {"model": "first"}}, {"infer": {"model": "second", "keep": True}}, {"infer": {"model": "m"}}], THREE, {"first": "(float[N,3] v) => (float[N,3] x) { x = Add(v, v) }", "second": DOUBLE, "m": SUM}),
    Case("two inputs from two fields", [{"parse": {"tensors": {"temp": "t", "hum": "h"}, "dtype": "float32"}}, {"infer": {"model": "m"}}], ("application/json", b'{"t": [21.5], "h": [40], "rate": 7}'), {"m": TWO}),
    Case("a rate from a field", [{"parse": {"field": "v", "dtype": "float32", "meta": {"rate": "hz"}}}, *SHAKING[1:]], ("application/json", json.dumps({"v": TONE[:2048].tolist(), "hz": 12_800}).encode()), {"m": VIBRATION}),
    Case("a picture in json, and its other fields", [{"decode": {"json_field": "picture"}}, {"resize": {"size": 64, "tensor": "images"}}, {"infer": {"model": "m"}}, {"parse": {"field": "t"}}], ("application/json", json.dumps({"picture": base64.b64encode(JPEG[1]).decode(), "t": 1}).encode()), {"m": COLOUR}),
    Case("a batch axis that is not the first", **numbers(("(float[3,N] x) => (float[3,N] y) { y = Add(x, x) }", {"batch_axis": {"x": 1, "y": 1}}, {}))),
    Case("speech", [*SPEECH, {"speech": {"every_window": True}}], SOUND, {"m": VOICE}),
    Case("sound at the right rate from the start", ["pcm16", "vad-window", {"infer": {"model": "m"}}, {"speech": {"every_window": True}}], SOUND, {"m": VOICE}),
    Case("vibration", [*SHAKING, {"anomaly": {"model": "m"}}], SHAKE, {"m": VIBRATION}),
    Case("windows of the model's length", ["parse", {"window": {"size": 512}}, {"infer": {"model": "m"}}, {"anomaly": {"threshold": 1}}], SHAKE, {"m": WINDOWS}),
    Case("windows of three channels", ["parse", {"window": {"size": 4, "channels": 3}}, {"fft-bands": {"edges_hz": [10, 50], "rate": 100}}], ("application/x-npy", npy(PICTURE[0, :16].astype(np.float32))), {}),
    Case("a score whose declared shape is wrong", ["parse", {"window": {"size": 512}}, {"infer": {"model": "m"}}, {"anomaly": {"threshold": 1}}], SHAKE, {"m": WINDOWS.replace("float[N,1]", "float[N,2]")}),
    Case("a score whose declared shape is wrong, in openvino", ["parse", {"window": {"size": 512}}, {"infer": {"model": "m"}}, {"anomaly": {"threshold": 1}}], SHAKE, {"m": (WINDOWS.replace("float[N,1]", "float[N,2]"), {"backend": "openvino"}, {})}),
    Case("detections", [*DETECT["stages"], "yolo"], JPEG, {"m": HEAD}),
]  # fmt: skip

REFUSED = [
    Case("grey into colour", **colour(COLOUR, channels="grey"), says=r"images: float32\[\?, 3, 64, 64\] for model m; it gets images: float32\[1, 1, 64, 64\]", seen="shape-mismatch"),
    Case("colour into grey", **colour(GREY, size=28), says=r"float32\[\?, 1, 28, 28\] .* float32\[1, 3, 28, 28\]", seen="shape-mismatch"),
    Case("128 into 64", **colour(COLOUR, size=128), says=r"\[\?, 3, 64, 64\] .* \[1, 3, 128, 128\]|3, 64, 64.*3, 128, 128", seen="shape-mismatch"),
    Case("wide into square", **colour(COLOUR, size=[64, 48]), says=r"3, 64, 64.*3, 48, 64", seen="shape-mismatch"),
    Case("channels last into first", **colour(COLOUR, layout="nhwc"), says=r"3, 64, 64.*64, 64, 3", seen="shape-mismatch"),
    Case("channels first into last", **colour(COLOUR_LAST), says=r"64, 64, 3.*3, 64, 64", seen="shape-mismatch"),
    Case("float into bytes", **colour(BYTES), says=r"uint8.*float32", seen="dtype-mismatch"),
    Case("bytes into float", **colour(COLOUR, dtype="uint8"), says=r"float32.*uint8", seen="dtype-mismatch"),
    Case("bytes into float16", **colour(HALF, dtype="uint8"), says=r"float16.*uint8", seen="dtype-mismatch"),
    Case("float64 into float32", **numbers(DOUBLE, dtype="float64"), says=r"float32\[\?, 3\].*float64", seen="dtype-mismatch"),
    Case("float32 into float64", **numbers(DOUBLE_64, dtype="float32"), says=r"float64\[\?, 3\].*float32", seen="dtype-mismatch"),
    Case("float32 into integers", **numbers(INTEGERS, dtype="float32"), says=r"int64\[\?, 3\].*float32", seen="dtype-mismatch"),
    Case("no stage decodes before letterbox", colour(COLOUR)["stages"][1:], JPEG, {"m": COLOUR}, says="Stage letterbox takes an array.*it gets frames without one", seen="not-decoded"),
    Case("no stage decodes before infer", [{"infer": {"model": "m"}}], THREE, {"m": DOUBLE}, says="Stage infer takes.*it gets frames that are not decoded", seen="not-decoded"),
    Case("no stage decodes sound", ["vad-window", {"infer": {"model": "m"}}], SOUND, {"m": VOICE}, says="Stage vad-window takes an array", seen="not-decoded"),
    Case("no stage parses samples", [{"window": {"size": 512}}], SHAKE, says="Stage window takes an array", seen="not-decoded"),
    Case("a picture parsed as json", ["decode", {"parse": {"format": "json"}}], JPEG, says="Stage parse takes payloads of numbers; it gets image/", seen="bad-json"),
    Case("sound parsed as numbers", ["pcm16", "parse"], SOUND, says="Stage parse takes payloads of numbers; it gets audio/", seen="unknown-content-type"),
    Case("a picture read as sound", ["decode", "pcm16"], JPEG, says="Stage pcm16 takes payloads of sound; it gets image/", seen="unknown-content-type"),
    Case("numbers decoded as a picture", [{"parse": {"dtype": "float32"}}, "decode", *colour(COLOUR)["stages"][1:]], THREE, {"m": COLOUR}, says=r"Stage letterbox takes an array, uint8\[\?, \?, 3\]; it gets float32", seen="not-a-picture"),
    Case("sound as a picture", ["pcm16", {"resize": {"size": 8}}], SOUND, says="Stage resize takes an array", seen="not-a-picture"),
    Case("motion in numbers", [{"parse": {"format": "raw"}}, "motion"], ("", bytes(12)), says="Stage motion takes an array", seen="not-a-picture"),
    Case("an input that nothing fills", ["decode", {"resize": {"size": 64}}, {"infer": {"model": "m"}}], JPEG, {"m": COLOUR}, says=r"images: float32.* it gets image: float32\[1, 3, 64, 64\]", seen="missing-tensor"),
    Case("two inputs from one array", **numbers(TWO, dtype="float32"), says=r"temp: float32\[\?, 1\], hum: float32\[\?, 1\] for model m; it gets one array", seen="missing-tensor"),
    Case("two inputs of which one field is read", [{"parse": {"tensors": {"temp": "t"}}}, {"infer": {"model": "m"}}], ("application/json", b'{"t": [21.5]}'), {"m": TWO}, says=r"temp: .*, hum: .* it gets temp: unknown", seen="missing-tensor"),
    Case("fields of another type", [{"parse": {"tensors": {"temp": "t", "hum": "h"}, "dtype": "float64"}}, {"infer": {"model": "m"}}], ("application/json", b'{"t": [21.5], "h": [40]}'), {"m": TWO}, says=r"temp: float32\[\?, 1\] for model m; it gets temp: float64", seen="dtype-mismatch"),
    Case("two inputs of which one is filled", ["decode", {"resize": {"size": 64}}, {"infer": {"model": "m"}}], JPEG, {"m": PAIR}, says=r"image: .*, mask: .* it gets image: ", seen="missing-tensor"),
    Case("the second model takes other names", ["parse", {"infer": {"model": "m"}}, {"infer": {"model": "m"}}], THREE, {"m": DOUBLE}, says=r"x: float32\[\?, 3\] for model m; it gets y: float32\[\?, 3\]", seen="missing-tensor"),
    Case("raw numbers into pictures", **numbers(COLOUR, ("", bytes(4 * 12_288)), format="raw"), says=r"3, 64, 64.*float32\[\?\]", seen="shape-mismatch"),
    Case("a window into planes", ["parse", {"window": {"size": 512}}, {"infer": {"model": "m"}}], SHAKE, {"m": PLANES}, says=r"1, 512\].*float32\[512\]", seen="shape-mismatch"),
    Case("windows of another length", ["parse", {"window": {"size": 256}}, {"infer": {"model": "m"}}], SHAKE, {"m": WINDOWS}, says=r"512\].*float32\[256\]", seen="shape-mismatch"),
    Case("windows shorter than the model's features need", ["parse", {"window": {"size": 512, "rate": 12_800}}, *SHAKING[2:]], SHAKE, {"m": VIBRATION}, says=r"Stage fft-bands takes an array, any\[1024\].*float32\[512\]", seen="wrong-window"),
    Case("other features than the model takes", ["parse", {"window": {"size": 1024, "rate": 12_800}}, {"fft-bands": {"edges_hz": [100, 200, 500, 1000]}}, {"infer": {"model": "m"}}], SHAKE, {"m": VIBRATION}, says=r"features: float32\[\?, 5\].*float32\[1, 6\]", seen="shape-mismatch"),
    Case("features of two channels for a model of one", ["parse", {"window": {"size": 1024, "channels": 2, "rate": 12_800}}, *SHAKING[2:]], ("application/x-npy", npy(np.float32([TONE[:2048], TONE[:2048]]).T)), {"m": VIBRATION}, says=r"float32\[\?, 5\].*float32\[1, 10\]", seen="shape-mismatch"),
    Case("sound at another rate", ["pcm16", {"resample": {"rate": 8000}}, *SPEECH[2:]], SOUND, {"m": VOICE}, says="sound at 16000 samples a second; it gets sound at 8000", seen="wrong-rate"),
    Case("features at another rate", ["pcm16", {"resample": {"rate": 8000}}, {"window": {"size": 1024}}, *SHAKING[2:]], SOUND, {"m": VIBRATION}, says="at 12800 samples a second; it gets windows at 8000", seen="wrong-rate"),
    Case("bands above half the rate", ["pcm16", {"resample": {"rate": 8000}}, {"window": {"size": 512}}, {"fft-bands": {"edges_hz": [100, 5000]}}], SOUND, says="at least 10000 samples a second", seen="wrong-rate"),
    Case("windows too short for their bands", ["pcm16", {"resample": {"rate": 8000}}, {"window": {"size": 64}}, {"fft-bands": {"edges_hz": [10, 20, 30]}}], SOUND, says="longer windows; it gets windows of 64 at 8000 samples a second", seen="window-too-short"),
    Case("text in a model of odd sides", ["decode", {"detect-text": {"model": "m"}}], JPEG, {"m": "(float[N,3,100,100] x) => (float[N,3,100,100] y) { y = Identity(x) }"}, says="sides are multiples of 32", seen="model-mismatch"),
    Case("a reader of other heights", ["decode", {"read-text": {"model": "m"}}], JPEG, {"m": ("(float[N,3,32,w] x) => (float[N,n,k] y) { z = ReduceMean<axes = [1], keepdims = 0>(x) y = Identity(z) }", {}, {"character": "a\nb"})}, says=r"float32\[\?, 3, 48, \?\].*float32\[\?, 3, 32, \?\]", seen="model-mismatch"),
    Case("sound of one channel in windows of three", ["pcm16", {"window": {"size": 64, "channels": 3}}], SOUND, says=r"Stage window takes an array, any\[\?, 3\]; it gets float32\[\?\]", seen="wrong-shape"),
    Case("speech from sound that is not cut", ["parse", {"infer": {"model": "m"}}, "speech"], ("application/x-npy", npy(np.zeros(576, np.float32))), {"m": VOICE}, says="meta 'position'", seen="no-position"),
    Case("speech with another output", [*SPEECH, {"speech": {"output": "probability"}}], SOUND, {"m": VOICE}, says=r"the tensor 'probability'; it gets output: float32\[\?, 1\]", seen="no-probability"),
    Case("anomaly of pictures", [*DETECT["stages"], {"anomaly": {"threshold": 1, "score": "output0"}}], JPEG, {"m": HEAD}, says=r"one score; it gets output0: float32\[\?, 6, 84\]", seen="no-score"),
    Case("anomaly without a score", [*numbers(DOUBLE)["stages"], {"anomaly": {"threshold": 1}}], THREE, {"m": DOUBLE}, says=r"the tensor 'score'; it gets y: float32\[\?, 3\]", seen="no-score"),
    Case("anomaly without a model", ["parse", {"anomaly": {"threshold": 1}}], THREE, says="it gets frames without tensors", seen="no-score"),
    Case("detections from another output", [*DETECT["stages"], {"yolo": {"output": "output1"}}], JPEG, {"m": HEAD}, says=r"Stage yolo takes the tensor 'output1'; it gets output0: float32\[\?, 6, 84\]", seen="bad-tensor"),
    Case("detections without a fitted picture", ["decode", {"infer": {"model": "m"}}, "yolo"], JPEG, {"m": PIXELS_HEAD}, says="Stage yolo takes meta 'fit'", seen="no-fit"),
    Case("the next state is no output", [*numbers(COUNTER)["stages"], {"anomaly": {"threshold": 1, "score": "next"}}], THREE, {"m": (COUNTER, {"state": {"total": "next"}}, {})}, says="the tensor 'next'", seen="no-score"),
    Case("text in a model that takes channels last", ["decode", {"detect-text": {"model": "m"}}], JPEG, {"m": LINES}, says=r"sides are multiples of 32; it gets x: float32\[\?, \?, \?, 3\]", seen="model-mismatch"),
]  # fmt: skip

STATED = ("audio/l16; rate=16000", SOUND[1])
FUTILE = [
    (Case("sound of 8 kHz", ["pcm16", "vad-window"], STATED, says="it gets sound at 8000, unless the sender states", seen="wrong-rate"), {"stages": [{"pcm16": {"rate": 8000}}, "vad-window"]}),
    (Case("pictures for parse", ["parse"], THREE, says="it gets image/jpeg, unless the sender states", seen="unknown-content-type"), {"content_type": "image/jpeg"}),
    (Case("a content type of 8 kHz", ["pcm16", "vad-window"], STATED, says="it gets sound at 8000.0, unless", seen="wrong-rate"), {"content_type": "audio/l16; rate=8000"}),
    (Case("windows at another rate than the model", SHAKING, ("application/x-npy; rate=12800", SHAKE[1]), {"m": VIBRATION}, says="windows at 1000, unless", seen="wrong-rate"), {"stages": ["parse", {"window": {"size": 1024, "rate": 1000}}, *SHAKING[2:]], "content_type": "application/x-npy"}),
    (Case("features at another rate than the model", SHAKING, ("application/x-npy; rate=12800", SHAKE[1]), {"m": VIBRATION}, says="windows at 1000, unless", seen="wrong-rate"), {"stages": ["parse", {"window": {"size": 1024}}, {"fft-bands": {"model": "m", "rate": 1000}}, SHAKING[3]], "content_type": "application/x-npy"}),
]  # fmt: skip
"""Chains that work, and settings that make each frame die whose sender states nothing."""


installed_once = cache(plugins.installed)


@pytest.fixture(autouse=True)
def plugins_are_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading the entry points of all packages takes longer than the rest of a test."""
    monkeypatch.setattr(plugins, "installed", installed_once)


@pytest.fixture
def node(tmp_path: Path) -> Callable[[Case], NodeConfig]:
    """Return a function that writes a case's models and returns its configuration."""

    def build(case: Case) -> NodeConfig:
        pipeline = {"subscribe": "x", "stages": case.stages}
        return NodeConfig.model_validate({"models": write_models(case.models, tmp_path), "pipelines": {"p": pipeline}})

    return build


def run(config: NodeConfig, folder: Path, sent: tuple[str, bytes], *, declared: bool) -> Iterator[Any]:
    """Run one frame through the stages without the check; yield the outcome of each stage.

    Args:
        declared: assert that each frame is as its stage declared.
    """
    pool = ModelPool(cores=1)
    context = PipelineContext("p", config.models, folder, pool)
    steps, incoming = [], RECEIVED
    meta = mime_parameters(sent[0])  # as the frame maker does
    frames = [Frame(sent[1], id="1", stream="s", topic="s", content_type=mime(sent[0]), meta=meta)]
    try:
        for entry in config.pipelines["p"].stages:
            steps.append(step := set_up(entry, context))
            outcomes = Chain([step]).run(frames).outcomes
            frames = [frame for outcome in outcomes for frame in outcome.results]
            if declared:
                incoming = output_spec(step, incoming)
                assert [untrue(incoming, frame) for frame in frames] == [None] * len(frames), step.name
            yield from outcomes
            if not frames:
                return
    finally:
        Chain(steps).close()
        context.release()
        pool.close()


@pytest.mark.parametrize("case", WORKS, ids=str)
def test_a_chain_that_works_is_accepted_and_declares_what_it_does(case: Case, node: Any, tmp_path: Path) -> None:
    config = node(case)

    assert list(check_chains(config, tmp_path)) == [ChainFinding("p")]

    outcomes = list(run(config, tmp_path, case.sent, declared=True))
    assert [outcome.error for outcome in outcomes if outcome.error is not None] == []
    assert outcomes[-1].results


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_a_chain_that_cannot_work_is_refused_before_its_frames_die(case: Case, node: Any, tmp_path: Path) -> None:
    config = node(case)

    (finding,) = check_chains(config, tmp_path)

    *_, last = run(config, tmp_path, case.sent, declared=False)
    assert last.error is not None
    assert last.error.code == case.seen
    assert finding.error is not None
    assert finding.is_problem
    assert finding.error.code == "stage-mismatch"
    assert re.search(case.says, str(finding.error)), finding.error


@pytest.mark.parametrize(("case", "change"), FUTILE, ids=str)
def test_a_setting_whose_every_frame_dies_is_found_by_the_check_only(
    case: Case, change: dict[str, Any], node: Any, tmp_path: Path
) -> None:
    """A node must still start with it: frames whose sender states otherwise pass."""
    config = node(case)
    assert list(check_chains(config, tmp_path)) == [ChainFinding("p")]
    pipeline = PipelineConfig.model_validate({**config.pipelines["p"].model_dump(), **change})
    changed = config.model_copy(update={"pipelines": {"p": pipeline}})

    (finding,) = check_chains(changed, tmp_path)

    unstated = (pipeline.content_type or "", case.sent[1])
    *_, last = run(changed, tmp_path, unstated, declared=False)
    assert last.error is not None
    assert last.error.code == case.seen
    assert finding.is_problem
    assert re.search(case.says, str(finding.error)), finding.error
    *_, stated = run(changed, tmp_path, case.sent, declared=True)
    assert stated.results


def start(config: NodeConfig, folder: Path) -> list[str]:
    """Build the pipeline as a node does; return the names of what it logs."""
    pool = ModelPool(cores=1)
    try:
        with capture_logs() as logs:
            LocalPipeline(config, "p", folder, pool, 1, lambda *_: None).close()
    finally:
        pool.close()
    return [entry["event"] for entry in logs]


def test_a_node_refuses_at_start_what_the_check_refuses(node: Any, tmp_path: Path) -> None:
    with pytest.raises(StageMismatch, match=REFUSED[0].says):
        start(node(REFUSED[0]), tmp_path)


def test_a_node_starts_with_a_unused_setting_and_logs_it(node: Any, tmp_path: Path) -> None:
    case, change = FUTILE[0]

    assert start(node(case), tmp_path) == []
    assert start(node(replace(case, **change)), tmp_path) == ["unused-setting"]
