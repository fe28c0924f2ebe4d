"""Names of a model's classes, by index: from a file, or from the metadata of a model.

A class without a name has an empty one, so that the classes after it keep their index.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from hedgerow.errors import ConfigError

# Text from a model's file is no code of ours: `ast` would print a line for each `0a` in it.
warnings.filterwarnings("ignore", category=SyntaxWarning, module="<unknown>")

_MOST_CLASSES: Final = 100_000
_NUMBERED: Final = re.compile(r"\[?(\d{1,9})(?:\]\s*|[.)]\s+|\s*[:;,]\s*|\s+|$)(.*)")
_UNNAMED: Final = frozenset({"???", "n/a", "none", "unused", "unknown"})
_STRUCTURED: Final = re.compile(r"^(names\s*:|item\s*\{|<!DOCTYPE|<html|version https://git-lfs)|\A\s*#", re.M | re.I)
"""Lines of YAML, of a protocol buffer's text, of a page, of a pointer to a file, or a comment: not one name per line."""


def read_class_names(path: Path) -> tuple[str, ...]:
    """Read class names, one per line: `person`, or with its index, `0 person`, `0: person`, `0,person`; or as JSON.

    A blank line is a class without a name, except at the end. A name with an index is put there, whatever its line.

    Raises: ConfigError: the file cannot be read, or a name may be of one of two classes: its numbers begin at 1, or repeat.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"Class names cannot be read from {path}: {error}", remedy="Use a text file in UTF-8, one name per line."
        ) from error
    structured = isinstance(literal(text), Mapping | list)
    if structured and (names := names_in_metadata(text)):
        return names
    if structured or (found := _STRUCTURED.search(text)):
        line = text.strip() if structured or found is None else text[found.start() :].strip()
        raise ConfigError(
            f"{path} is not a list of lines with one name each: it has {line.partition(chr(10))[0][:40]!r}",
            remedy="Write one name per line, in the model's order; or list the names under `labels`.",
        )
    lines = [line.strip() for line in text.rstrip().split("\n")] if text.strip() else []
    return _numbered(lines, path) or tuple(lines)


def names_in_metadata(text: str) -> tuple[str, ...]:
    """Parse names: a list or a mapping by index, in JSON or Python syntax, or else lines; empty: it is neither."""
    value = literal(text)
    if isinstance(value, Mapping):
        try:
            return _by_index({int(key): str(name) for key, name in value.items()})
        except (TypeError, ValueError, OverflowError):
            return ()
    if isinstance(value, list | tuple):
        return () if any(isinstance(name, Mapping | list | tuple) for name in value) else tuple(map(str, value))
    return tuple(line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")) if text else ()


def class_names(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Return the class names in a model's metadata; empty: it has none.

    They are those of its manifest, or Ultralytics' `names`, or OpenVINO's `model_info`, which separates them by spaces.
    """
    if text := metadata.get("hedgerow.labels") or metadata.get("names"):
        return names_in_metadata(text)
    return tuple(metadata.get("model_info.labels", "").split())


def literal(text: str) -> Any:
    """Parse a text as JSON or as a Python literal, without running code; return it unchanged if it is neither."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):  # TypeError: a set of lists
            continue
    return text


def _numbered(lines: Sequence[str], path: Path) -> tuple[str, ...]:
    """Return the names of lines that begin with their index; empty: they do not."""
    found = [_NUMBERED.fullmatch(line) for line in lines if line]
    if found and found[0] is None:  # a header, `id,name`
        found = found[1:]
    pairs = [(int(match[1]), match[2]) for match in found if match]
    names = [name for _, name in pairs if name and name.lower() not in _UNNAMED]
    if len(pairs) < len(found) or not names or len(set(names)) < len(names):
        return ()  # of equal names are sizes and prices: `20 km/h`, `30 km/h`, `50 km/h`
    indices = [index for index, _ in pairs]
    ordered = sorted(set(indices))
    whole = len(ordered) == len(indices) and (indices == ordered or ordered[-1] == len(ordered) - 1)
    if whole and ordered[0] == 0 and ordered[-1] < _MOST_CLASSES:
        return _by_index(dict(pairs))
    remedy = "Number the lines from 0, or remove the numbers; or list the names under `labels`."
    if indices == ordered and indices[0] == 1:
        raise ConfigError(
            f"{path} numbers its lines from 1, but a model counts its classes from 0: {pairs[0][1]!r} may be class 0 or 1",
            remedy=remedy,
        )
    if ordered[0] == 0:
        raise ConfigError(
            f"{path} numbers its lines, but some numbers repeat, or are neither in order nor complete", remedy=remedy
        )
    return ()  # `7 up`, `80 proof`


def _by_index(names: Mapping[int, str]) -> tuple[str, ...]:
    """Raises: ValueError: an index is negative or too large."""
    if not names:
        return ()
    if min(names) < 0 or max(names) >= _MOST_CLASSES:
        raise ValueError("an index is out of range")
    return tuple(names.get(index, "") for index in range(max(names) + 1))
