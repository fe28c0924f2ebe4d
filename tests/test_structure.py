"""The house stays easy to find one's way in: one name for one class, and folders that a glance takes in."""

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
    """Where each class name is defined, nested and private ones included."""
    places = defaultdict(list)
    for path in files:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(f"{path}:{node.lineno}")
    return places


def test_no_class_name_is_defined_twice() -> None:
    """A name that is read somewhere means one thing: whoever searches for it finds it at once."""
    places = classes_by_name(python_files("runtime/hedgerow"))

    assert len(places) > 300
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_a_name_that_is_defined_twice_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("class _Part: ...\n")
    (tmp_path / "b.py").write_text("def f():\n    class _Part: ...\n")

    assert len(classes_by_name(sorted(tmp_path.glob("*.py")))["_Part"]) == 2


@pytest.mark.parametrize("top", ["runtime", "plugins", "benchmarks", "tests"])
def test_no_folder_holds_more_modules_than_a_glance_takes_in(top: str) -> None:
    counts: dict[str, int] = defaultdict(int)
    for path in python_files(top):
        counts[str(path.parent.relative_to(ROOT))] += 1

    assert {folder: count for folder, count in counts.items() if count > MOST_MODULES} == {}
