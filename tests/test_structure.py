"""The code base stays easy to navigate: unique class names, and folders with few modules."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MOST_MODULES = 15


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def classes_by_name(files: list[Path]) -> dict[str, list[str]]:
    """Return where each class name is defined, including nested and private classes."""
    places = defaultdict(list)
    for path in files:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(f"{path}:{node.lineno}")
    return places


def test_no_class_name_is_defined_twice() -> None:
    """A class name has one meaning, and a search for it one result."""
    places = classes_by_name(python_files("runtime/hedgerow"))

    assert len(places) > 300
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_a_duplicate_class_name_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("class _Part: ...\n")
    (tmp_path / "b.py").write_text("def f():\n    class _Part: ...\n")

    assert len(classes_by_name(sorted(tmp_path.glob("*.py")))["_Part"]) == 2


@pytest.mark.parametrize("top", ["runtime", "plugins", "benchmarks", "tests"])
def test_no_folder_has_too_many_modules(top: str) -> None:
    counts: dict[str, int] = defaultdict(int)
    for path in python_files(top):
        counts[str(path.parent.relative_to(ROOT))] += 1

    assert {folder: count for folder, count in counts.items() if count > MOST_MODULES} == {}
