"""Prepares a demo's folder: its configuration, and models that no Python package ships; skips pipelines that cannot run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from hedgerow import disk
from hedgerow.errors import HedgerowError
from hedgerow.testing.processes import run

Skipped = Mapping[str, HedgerowError]
"""Errors of pipelines that cannot run here, by name."""


def prepare(out: Path, config: str) -> Skipped:
    """Write a configuration and the models that no Python package ships into a folder.

    Args:
        config: file name of the configuration.
    Returns: pipelines left out of the configuration, because their model or recordings are unavailable.
    Raises: HedgerowError: a model cannot be trained.
    """
    from hedgerow.models.bundle.model_file import resolve

    models = out / "models"
    models.mkdir(parents=True, exist_ok=True)
    for existing in (Path(sys.prefix) / "models").glob("*"):  # trained or fetched by the set-up
        if existing.suffix != ".new" and not (models / existing.name).exists():
            disk.replace(models / existing.name, existing.read_bytes())
    _train(models / "vibration.onnx", "hedgerow_signal.train")
    readings = resolve("package:river/datasets/shuttle.csv.gz", out).path
    _train(models / "shuttle.onnx", "hedgerow_signal.train_table", readings)
    skipped = _unavailable(models)
    text = files("hedgerow.cli.demo.templates").joinpath("demo.yaml").read_text(encoding="utf-8")
    (out / config).write_text(without(text, skipped), encoding="utf-8")
    return skipped


def _train(model: Path, module: str, *arguments: Path) -> None:
    if model.exists():
        return
    done = run([sys.executable, "-m", module, model, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise HedgerowError(
            f"`python -m {module}` failed:\n{done.stderr.strip()[-800:]}",
            remedy="Install the demo's packages with `make demo` or `pip install 'hedgerow[demo]'`.",
        )


def _unavailable(models: Path) -> dict[str, HedgerowError]:
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
    """Return a configuration without the entries of these names in any section, and without the comments above them.

    The parser finds the entries, and their lines are cut from the text: deleted from a parsed document, an entry would
    leave its own comment behind and take the next one's with it.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.comments import CommentedMap

    document = YAML().load(text)
    sections = [
        section for section in document.values() if isinstance(section, CommentedMap) and not section.fa.flow_style()
    ]
    entries = {section.lc.key(key)[0]: key for section in sections for key in section}
    lines = text.splitlines(keepends=True)
    starts = {
        _with_comments(lines, line): entries.get(line, "")
        for line in (*entries, *(document.lc.key(key)[0] for key in document))
    }
    kept, removed = [], False
    for number, line in enumerate(lines):
        if number in starts:
            removed = starts[number] in names
        if not removed:
            kept.append(line)
    return "".join(kept)


def _with_comments(lines: Sequence[str], line: int) -> int:
    """Return the first of the comment lines above a line, or the line itself."""
    while line > 0 and lines[line - 1].lstrip().startswith("#"):
        line -= 1
    return line


def log_skipped(skipped: Skipped, log: Callable[[str], None]) -> None:
    """Log a line for each skipped pipeline: the reason and the remedy."""
    for pipeline, error in skipped.items():
        log(f"Skipping {pipeline}: {error}. → {error.remedy}")


def reasons(skipped: Skipped) -> dict[str, str]:
    """Return the reason for each skipped pipeline, for a report."""
    return {pipeline: str(error) for pipeline, error in skipped.items()}
