"""The README's pipelines run unchanged."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from ruamel.yaml import YAML

from hedgerow.testing import PipelineRun, frame, run_pipeline

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
BLOCKS = [YAML(typ="safe").load(io.StringIO(block)) for block in re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)]


def run_block(number: int, picture: NDArray[np.uint8], **replaced: str) -> PipelineRun:
    """Run a block's pipeline on a picture, with the first part of some paths replaced."""

    def replace(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: replace(item) for key, item in value.items()}
        if isinstance(value, list):
            return [replace(item) for item in value]
        for old, new in replaced.items():
            if isinstance(value, str) and value.startswith(f"{old}/"):
                return value.replace(old, new, 1)
        return value

    block = replace(BLOCKS[number])
    (pipeline,) = block["pipelines"].values()
    photo = simplejpeg.encode_jpeg(np.ascontiguousarray(picture), 95)
    return run_pipeline(pipeline["stages"], [frame(photo)], models=block["models"])


def test_pages_are_read(photo: Callable[[str], NDArray[np.uint8]], tmp_path: Path) -> None:
    run = run_block(0, photo("page.png"), out=str(tmp_path))

    assert "Region-based segmentation" in [text["text"] for text in run.results[0]["texts"]]
    assert len(list(tmp_path.rglob("*.jpg"))) == 1


def test_faces_are_found(astronaut: NDArray[np.uint8], tmp_path: Path) -> None:
    run = run_block(1, astronaut, out=str(tmp_path))

    assert [one["label"] for one in run.results[0]["detections"]] == ["face"]
    assert len(list(tmp_path.rglob("*.jpg"))) == 1


def test_a_street_is_watched(street_model: Path, bikes: list[NDArray[np.uint8]], tmp_path: Path) -> None:
    run = run_block(2, bikes[26], out=str(tmp_path), models=str(street_model.parent))

    assert {"Person", "Bicycle"} <= {one["label"] for one in run.results[0]["detections"]}
    assert len(list(tmp_path.rglob("*.jpg"))) == 1


def test_faces_are_found_by_centerface(centerface_model: Path, astronaut: NDArray[np.uint8]) -> None:
    run = run_block(3, astronaut, models=str(centerface_model.parent))

    assert [one["label"] for one in run.results[0]["detections"]] == ["face"]


def test_every_stage_is_documented() -> None:
    names = [entry.name for entry in distribution("hedgerow-vision").entry_points if entry.group == "hedgerow.stages"]

    assert len(names) == 11
    assert [name for name in names if f"`{name}`" not in README] == []
