"""The examples in configs/ run unchanged, on frames as described in their comments."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage import data

from hedgerow import configcheck, configfile
from hedgerow.frame import Frame
from hedgerow.region.rollouts.planning.spec import load_plan
from hedgerow.testing import PipelineRun, frame, frames, run_pipeline
from hedgerow_signal.generate import Machine

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("path", [CONFIGS / "plant.yaml", CONFIGS / "shop.yaml"], ids=lambda path: path.name)
def test_an_example_configuration_passes_config_check(path: Path) -> None:
    """Stages, their settings, models: the checks of `hedgerow config check`."""
    assert configcheck.load(path).pipelines


def test_the_rollout_example_is_valid() -> None:
    assert load_plan(CONFIGS / "rollout.yaml").rollout == "faces-2"


def run(file: str, pipeline: str, input_frames: list[Frame]) -> PipelineRun:
    config = configfile.load(CONFIGS / file)
    models = {
        name: model.model_copy(
            update={"path": model.path if model.path.startswith("package:") else str(CONFIGS / model.path)}
        )
        for name, model in config.models.items()
    }
    stages: list[Any] = [{stage.name: stage.config} for stage in config.pipelines[pipeline].stages]
    result = run_pipeline(stages, input_frames, models=models)
    assert result.errors == []
    return result


def jpeg(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=92)
    return file.getvalue()


def test_the_shop_counts_visitors() -> None:
    run_ = run("shop.yaml", "visitors", frames([jpeg(data.astronaut())] * 2, content_type="image/jpeg"))

    assert [found["label"] for found in run_.results[0]["detections"]] == ["face"]
    assert len(run_.results) == 1, "the second picture has no motion"


@pytest.mark.parametrize(("file", "pipeline"), [("shop.yaml", "delivery-notes"), ("plant.yaml", "labels")])
def test_pages_and_labels_are_read(file: str, pipeline: str) -> None:
    run_ = run(file, pipeline, [frame(jpeg(data.page()), content_type="image/jpeg")])

    assert "Region-based segmentation" in [line["text"] for line in run_.results[0]["texts"]]


def test_the_shop_detects_no_speech_in_silence() -> None:
    run_ = run("shop.yaml", "counter", frames([bytes(1024)] * 10, content_type="audio/l16"))

    assert run_.results == []
    assert run_.dropped["no-speech"] > 0


def test_the_plant_detects_a_failing_bearing() -> None:
    def vibrate(condition: str) -> PipelineRun:
        machine = Machine(seed=1)
        machine.condition = condition
        parts = []
        for _ in range(8):
            file = io.BytesIO()
            np.save(file, machine.vibrate(1280).astype(np.float32))
            parts.append(file.getvalue())
        return run("plant.yaml", "vibration", frames(parts, content_type="application/x-npy"))

    assert vibrate("outer-race").results
    assert not vibrate("healthy").results


def test_the_bench_measures_each_rig() -> None:
    wave = np.sin(2 * np.pi * 50 * np.arange(512) / 1000)
    body = json.dumps({"rig": "r4", "samples": wave.tolist(), "rate": 1000})

    run_ = run("plant.yaml", "bench", [frame(body, content_type="application/json")])

    bands = run_.results[0]["features"]
    assert max((name for name in bands if name.startswith("band")), key=lambda name: bands[name]) == "band 20-60 Hz"
