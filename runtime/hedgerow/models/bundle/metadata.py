"""Metadata in model files: keys of Hedgerow and of common exporters, and the keys that a manifest adds for stages.

| key | becomes |
|---|---|
| `hedgerow.name`, `.version`, `.description`, `.licence`, `.author`, `.labels`, `.training_data` | the manifest's field |
| `hedgerow.…` | a parameter of that name |
| `names` (Ultralytics), `character` (PaddleOCR) | labels |
| `description`, `author`, `license` | the manifest's field, if the licence is an SPDX expression |
| `task`, `stride`, `imgsz`, `end2end`, `kpt_shape` (Ultralytics) | parameters |
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from hedgerow.models.bundle.class_names import literal, names_in_metadata
from hedgerow.models.bundle.licences import is_spdx
from hedgerow.models.bundle.manifest import Manifest

PREFIX: Final = "hedgerow."

_OWN: Final = ("name", "version", "description", "licence", "author", "training_data")
_PARAMETERS: Final = ("task", "stride", "imgsz", "end2end", "kpt_shape")


def read_metadata(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return the recipe fields that a model's metadata contains."""
    fields: dict[str, Any] = {}
    parameters: dict[str, Any] = {}
    for key in _PARAMETERS:
        if key in metadata:
            parameters[key] = literal(metadata[key])
    for key in ("description", "author"):
        if metadata.get(key):
            fields[key] = metadata[key]
    if is_spdx(metadata.get("license", "")):
        fields["licence"] = metadata["license"]
    for key in ("names", "character"):
        if labels := names_in_metadata(metadata.get(key, "")):
            fields["labels"] = labels
    for key, text in metadata.items():
        own = key.removeprefix(PREFIX)
        if own == key:
            continue
        if own in _OWN:
            fields[own] = text
        elif own == "labels":
            fields["labels"] = names_in_metadata(text)
        else:
            parameters[own] = literal(text)
    if parameters:
        fields["parameters"] = parameters
    return fields


def metadata_of(manifest: Manifest) -> dict[str, str]:
    """Return a manifest's labels and parameters as metadata for stages, by `hedgerow.NAME`.

    They override the file's metadata, which conversion may also have lost.
    """
    fields = {name: _text(value) for name, value in manifest.parameters.items()}
    if manifest.labels:
        fields["labels"] = json.dumps(manifest.labels, ensure_ascii=False)
    return {f"{PREFIX}{name}": text for name, text in fields.items()}


def _text(value: Any) -> str:
    """Return a text that `literal` reads back: a string unchanged, unless it would be read as something else."""
    if isinstance(value, str) and literal(value) == value:
        return value
    return json.dumps(value, ensure_ascii=False)
