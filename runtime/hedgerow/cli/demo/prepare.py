"""What the demos run on: their configuration, the models that no Python package ships, and what they have to do without."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Collection, Mapping
from importlib.resources import files
from pathlib import Path

from hedgerow import disk
from hedgerow.errors import HedgerowError
from hedgerow.testing.processes import run

Skipped = Mapping[str, HedgerowError]
"""Pipelines that cannot run here, by name, with what is missing."""


def prepare(out: Path, config: str) -> Skipped:
    """Put the configuration, by this name, and the models that no Python package ships into the folder.

    Returns: the pipelines that the configuration lacks, since their model or recordings cannot be had.
    Raises: HedgerowError: a model that is made here cannot be made.
    """
    from hedgerow.models.bundle.model_file import resolve

    models = out / "models"
    models.mkdir(parents=True, exist_ok=True)
    for made in (Path(sys.prefix) / "models").glob("*"):  # set-up has made or fetched some already
        if made.suffix != ".new" and not (models / made.name).exists():
            disk.replace(models / made.name, made.read_bytes())
    _make(models / "vibration.onnx", "hedgerow_signal.train")
    readings = resolve("package:river/datasets/shuttle.csv.gz", out).path
    _make(models / "shuttle.onnx", "hedgerow_signal.train_table", readings)
    skipped = _missing(models)
    text = files("hedgerow.cli.demo.templates").joinpath("demo.yaml").read_text(encoding="utf-8")
    (out / config).write_text(without(text, skipped), encoding="utf-8")
    return skipped


def _make(model: Path, module: str, *arguments: Path) -> None:
    if model.exists():
        return
    done = run([sys.executable, "-m", module, model, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise HedgerowError(
            f"`python -m {module}` failed:\n{done.stderr.strip()[-800:]}",
            remedy="Install what the demo needs: `make demo` does, or `pip install 'hedgerow[demo]'`.",
        )


def _missing(models: Path) -> dict[str, HedgerowError]:
    from hedgerow.cli.demo.feeds import recordings
    from hedgerow_vision.fetch_ssd import fetch_ssd

    needs: dict[str, Callable[[], object]] = {"street": lambda: fetch_ssd(models), "speech": recordings}
    skipped = {}
    for pipeline, get in needs.items():
        try:
            get()
        except HedgerowError as error:
            skipped[pipeline] = error
    return skipped


def without(text: str, names: Collection[str]) -> str:
    """A configuration without the entries of these names in any of its sections, nor the comments above them."""
    for name in names:
        text = re.sub(rf"^(?:  #.*\n)*  {name}:.*\n(?:    .*\n)*\n?", "", text, flags=re.MULTILINE)
    return text


def say_skipped(skipped: Skipped, say: Callable[[str], None]) -> None:
    """A line for each pipeline that is skipped: why, and what to do about it."""
    for pipeline, error in skipped.items():
        say(f"Skipping {pipeline}: {error}. → {error.remedy}")


def reasons(skipped: Skipped) -> dict[str, str]:
    """Why each is skipped, for a report."""
    return {pipeline: str(error) for pipeline, error in skipped.items()}
