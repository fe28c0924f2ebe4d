"""What a manifest says that nobody measures: names, licence, labels, parameters, provenance.

A recipe goes over what the model's file says of itself.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from hedgerow import __version__
from hedgerow.errors import ConfigError
from hedgerow.models.build.memory_footprint import package_version
from hedgerow.models.build.recipe import Recipe, read_labels
from hedgerow.models.bundle.licences import check_spdx
from hedgerow.models.bundle.manifest import Origin, Provenance, digest_of
from hedgerow.models.bundle.metadata import read_metadata

_OWN: Final = {"name", "version", "description", "licence", "author", "training_data", "labels"}


def statement(recipe: Recipe, stem: str, metadata: Mapping[str, str], head: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a manifest, and of its provenance, by name.

    Args:
        stem: name of the model's file, without its ending; the model's own, if nobody gives one.
        metadata: what the file says of itself, by the backend that has read it.
        head: likewise of a GGUF file, by its head.
    Raises: ConfigError: there is no version, the licence is no SPDX expression, or the file of labels cannot be read.
    """
    said = {"name": stem, **read_metadata(metadata), **_of_gguf(head)}
    said |= {key: value for key, value in recipe.model_dump(include=_OWN).items() if value}
    if recipe.labels_file is not None:
        said["labels"] = read_labels(recipe.labels_file)
    said["parameters"] = {**said.get("parameters", {}), **recipe.parameters}
    check_spdx(said.get("licence", ""))
    if not said.get("version"):
        raise ConfigError(
            f"{recipe.model} has no version",
            remedy="Give one: `--version 1.0.0`, `version:` in model.yaml, or `hedgerow.version` in the model's metadata.",
        )
    return said


def provenance(said: Mapping[str, Any], recipe: Recipe, files: tuple[Path, ...]) -> Provenance:
    """Where a model comes from.

    Args:
        said: see `statement`.
        files: what it is made from, the one that is opened first.
    Raises: ConfigError: SOURCE_DATE_EPOCH is no number.
    """
    return Provenance(
        author=said.get("author", ""),
        training_data=said.get("training_data", ""),
        metrics=recipe.metrics,
        made_from=tuple(Origin(file=file.name, digest=digest_of(file.read_bytes())) for file in files),
        made_by=tools(),
        made_at=recipe.made_at or _time(files[0]),
    )


def _of_gguf(head: Mapping[str, Any]) -> dict[str, Any]:
    said: dict[str, Any] = {}
    for key, value in head.items():
        section, _, name = key.partition(".")
        if key in ("general.author", "general.description"):
            said[name] = str(value)
        elif key == "general.architecture" or (
            section != "general" and name in ("context_length", "embedding_length", "block_count")
        ):
            said.setdefault("parameters", {})[name] = value
    return said


def _time(path: Path) -> str:
    """When it was made, as far as that is the same each time."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    try:
        at = int(epoch) if epoch else int(path.stat().st_mtime)
    except ValueError as error:
        raise ConfigError(
            f"SOURCE_DATE_EPOCH is {epoch!r}, which is no number of seconds", remedy="Set it right, or not at all."
        ) from error
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def tools() -> str:
    """What bundles are made and measured by, with versions."""
    packages = [f"{name} {found}" for name in ("onnxruntime", "openvino") if (found := package_version(name))]
    return ", ".join([f"hedgerow {__version__}", *packages])
