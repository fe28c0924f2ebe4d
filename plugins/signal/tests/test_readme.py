"""The README's pipelines run unchanged."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
from ruamel.yaml import YAML

from hedgerow import Frame
from hedgerow.config import NodeConfig
from hedgerow.testing import frame, run_pipeline
from hedgerow_signal.generate import RATE, Machine

README = (Path(__file__).parent.parent / "README.md").read_text()
VIBRATION, LEVELS = [YAML(typ="safe").load(block) for block in re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)]


def npy(samples: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, samples)
    return file.getvalue()


def frames_of(payloads: list[bytes], **fields: Any) -> list[Frame]:
    return [
        frame(payload, sequence=number, captured_at=1000 + number / 10, **fields)
        for number, payload in enumerate(payloads)
    ]


def test_the_vibration_example_detects_a_bad_bearing(model_file: Path) -> None:
    NodeConfig.model_validate(VIBRATION)
    machine = Machine(11, "outer-race")
    frames = frames_of([npy(machine.vibrate(RATE // 10)) for _ in range(10)], content_type="application/x-npy")

    run = run_pipeline(VIBRATION["pipelines"]["vibration"]["stages"], frames, models={"vibration": model_file})

    assert not run.dead
    assert len(run.results) == 11
    assert all(one["anomalous"] for one in run.results)


def test_the_example_without_a_model_gives_features() -> None:
    NodeConfig.model_validate(LEVELS)
    counts = (Machine(12).vibrate(RATE) * 1000).astype("<i2")

    run = run_pipeline(LEVELS["pipelines"]["levels"]["stages"], frames_of([counts.tobytes()]))

    assert [one["at"] for one in run.results] == [1000, 1000 + 4096 / RATE, 1000 + 8192 / RATE]
    assert set(run.results[0]["features"]) > {"band 10-100 Hz", "kurtosis"}
