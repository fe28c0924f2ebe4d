"""Metadata in model files: keys of Hedgerow and of common exporters, and the keys that a manifest adds for stages.

| key | becomes |
|---|---|
| `hedgerow.name`, `.version`, `.description`, `.licence`, `.author`, `.labels`, `.training_data` | the manifest's field |
| `hedgerow.…` | a parameter of that name |
| `names` (Ultralytics), `character` (PaddleOCR) | labels |
| `description`, `author`, `license` | the manifest's field, if the licence is an SPDX expression |
| `task`, `stride`, `imgsz` (Ultralytics) | parameters |
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from typing import Any, Final

from hedgerow.models.bundle.licences import is_spdx
from hedgerow.models.bundle.manifest import Manifest

PREFIX: Final = "hedgerow."

_OWN: Final = ("name", "version", "description", "licence", "author", "training_data")
_PARAMETERS: Final = ("task", "stride", "imgsz")


def read_metadata(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return the recipe fields that a model's metadata contains."""
    fields: dict[str, Any] = {}
    parameters: dict[str, Any] = {}
    for key in _PARAMETERS:
        if key in metadata:
            parameters[key] = _value(metadata[key])
    for key in ("description", "author"):
        if metadata.get(key):
            fields[key] = metadata[key]
    if is_spdx(metadata.get("license", "")):
        fields["licence"] = metadata["license"]
    for key in ("names", "character"):
        if labels := _labels(metadata.get(key, "")):
            fields["labels"] = labels
    for key, text in metadata.items():
        own = key.removeprefix(PREFIX)
        if own == key:
            continue
        if own in _OWN:
            fields[own] = text
        elif own == "labels":
            fields["labels"] = _labels(text)
        else:
            parameters[own] = _value(text)
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
    """Return a text that `_value` reads back: a string unchanged, unless it would be read as something else."""
    if isinstance(value, str) and _value(value) == value:
        return value
    return json.dumps(value, ensure_ascii=False)


def _labels(text: str) -> tuple[str, ...]:
    """Parse labels: a list or a mapping by index, in JSON or Python syntax, or else lines."""
    value = _value(text)
    if isinstance(value, Mapping):
        try:
            value = [value[key] for key in sorted(value, key=int)]
        except (TypeError, ValueError):
            return ()
    if isinstance(value, list | tuple):
        return tuple(map(str, value))
    return tuple(text.splitlines())


def _value(text: str) -> Any:
    """Parse a text as JSON or as a Python literal, without running code; return it unchanged if it is neither."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return text
