"""What a model's file says about itself: `hedgerow.*`, and what others write. And what a manifest says in its place.

| key | becomes |
|---|---|
| `hedgerow.name`, `.version`, `.description`, `.licence`, `.author`, `.labels`, `.training_data` | the manifest's own |
| `hedgerow.…` | a parameter of that name |
| `names` (Ultralytics), `character` (PaddleOCR) | labels |
| `description`, `author`, `license` | the manifest's own, if the licence is an SPDX expression |
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
    """Fields of a recipe that a model's metadata has something to say about."""
    said: dict[str, Any] = {}
    parameters: dict[str, Any] = {}
    for key in _PARAMETERS:
        if key in metadata:
            parameters[key] = _value(metadata[key])
    for key in ("description", "author"):
        if metadata.get(key):
            said[key] = metadata[key]
    if is_spdx(metadata.get("license", "")):
        said["licence"] = metadata["license"]
    for key in ("names", "character"):
        if labels := _labels(metadata.get(key, "")):
            said["labels"] = labels
    for key, text in metadata.items():
        own = key.removeprefix(PREFIX)
        if own == key:
            continue
        if own in _OWN:
            said[own] = text
        elif own == "labels":
            said["labels"] = _labels(text)
        else:
            parameters[own] = _value(text)
    if parameters:
        said["parameters"] = parameters
    return said


def metadata_of(manifest: Manifest) -> dict[str, str]:
    """What a manifest says to stages, as a model's file would: labels and parameters, by `hedgerow.NAME`.

    An author's word goes over the file's, and a form that was converted may have lost what the file said.
    """
    said = {name: _text(value) for name, value in manifest.parameters.items()}
    if manifest.labels:
        said["labels"] = json.dumps(manifest.labels, ensure_ascii=False)
    return {f"{PREFIX}{name}": text for name, text in said.items()}


def _text(value: Any) -> str:
    """What `_value` reads again as that: a text as it is, if it does not look like something else."""
    if isinstance(value, str) and _value(value) == value:
        return value
    return json.dumps(value, ensure_ascii=False)


def _labels(text: str) -> tuple[str, ...]:
    """A list or a mapping by index, as JSON or as Python writes it; else lines."""
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
    """What a text stands for: JSON, a Python literal, or itself. Nothing in it is run."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return text
