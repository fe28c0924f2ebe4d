"""The README's pipelines run unchanged."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from hedgerow.config import NodeConfig
from hedgerow.testing import run_pipeline

README = (Path(__file__).parent.parent / "README.md").read_text()
EXAMPLES = [YAML(typ="safe").load(block) for block in re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)]


@pytest.mark.parametrize(("example", "name"), list(zip(EXAMPLES, ["Front_Center.wav", "goforward.raw"], strict=True)))
def test_an_example_finds_speech(example: dict[str, Any], name: str, recording, chunks, vads) -> None:  # type: ignore[no-untyped-def]
    config = NodeConfig.model_validate(example)
    frames = chunks(*recording(name))
    for one in frames:
        one.meta = {}

    run = run_pipeline(example["pipelines"]["speech"]["stages"], frames, models=config.models)

    assert run.results
    assert not run.dead
