"""Manifest fields that are stated rather than measured: names, licence, labels, parameters, provenance.

A recipe overrides the metadata in the model's file.
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
from hedgerow.models.build.recipe import Recipe
from hedgerow.models.bundle.class_names import read_class_names
from hedgerow.models.bundle.licences import check_spdx
from hedgerow.models.bundle.manifest import Origin, Provenance, digest_of
from hedgerow.models.bundle.metadata import read_metadata

_OWN: Final = {"name", "version", "description", "licence", "author", "training_data", "labels"}


def manifest_fields(
    recipe: Recipe, stem: str, metadata: Mapping[str, str], gguf_metadata: Mapping[str, Any]
) -> dict[str, Any]:
    """Return fields of a manifest and of its provenance, by name.

    Args:
        stem: name of the model's file without its suffix; the model's name, unless stated otherwise.
        metadata: the file's metadata, as read by a backend.
        gguf_metadata: metadata of a GGUF file's header.
    Raises: ConfigError: the version is missing, the licence is not an SPDX expression, or the labels cannot be read.
    """
    fields = {"name": stem, **read_metadata(metadata), **_of_gguf(gguf_metadata)}
    fields |= {key: value for key, value in recipe.model_dump(include=_OWN).items() if value}
    if recipe.labels_file is not None:
        fields["labels"] = read_class_names(recipe.labels_file)
    fields["parameters"] = {**fields.get("parameters", {}), **recipe.parameters}
    check_spdx(fields.get("licence", ""))
    if not fields.get("version"):
        raise ConfigError(
            f"{recipe.model} has no version",
            remedy="Set one: `--version 1.0.0`, `version:` in model.yaml, or `hedgerow.version` in the model's metadata.",
        )
    return fields


def provenance(fields: Mapping[str, Any], recipe: Recipe, files: tuple[Path, ...]) -> Provenance:
    """Return where a model comes from.

    Args:
        fields: see `manifest_fields`.
        files: the files it is made from; the first is the one that backends open.
    Raises: ConfigError: SOURCE_DATE_EPOCH is not a number.
    """
    return Provenance(
        author=fields.get("author", ""),
        training_data=fields.get("training_data", ""),
        metrics=recipe.metrics,
        made_from=tuple(Origin(file=file.name, digest=digest_of(file.read_bytes())) for file in files),
        made_by=tools(),
        made_at=recipe.made_at or _time(files[0]),
    )


def _of_gguf(gguf_metadata: Mapping[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for key, value in gguf_metadata.items():
        section, _, name = key.partition(".")
        if key in ("general.author", "general.description"):
            fields[name] = str(value)
        elif key == "general.architecture" or (
            section != "general" and name in ("context_length", "embedding_length", "block_count")
        ):
            fields.setdefault("parameters", {})[name] = value
    return fields


def _time(path: Path) -> str:
    """Return a reproducible time of the build: SOURCE_DATE_EPOCH, else the file's modification time."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    try:
        at = int(epoch) if epoch else int(path.stat().st_mtime)
    except ValueError as error:
        raise ConfigError(
            f"SOURCE_DATE_EPOCH is {epoch!r}, not a number of seconds",
            remedy="Set it to seconds since 1970, or unset it.",
        ) from error
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def tools() -> str:
    """Return the tools that build and measure bundles, with their versions."""
    packages = [f"{name} {found}" for name in ("onnxruntime", "openvino") if (found := package_version(name))]
    return ", ".join([f"hedgerow {__version__}", *packages])
