"""What a configuration file says against what is there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hedgerow import configcheck
from hedgerow.configfile import BadConfigFile

Write = Callable[[str], Path]


@pytest.fixture
def file(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        path = tmp_path / "node.yaml"
        path.write_text(text)
        return path

    return write


def problems(path: Path) -> list[tuple[int | None, str, str, str]]:
    """Where, what and the remedy of all that is wrong."""
    with pytest.raises(BadConfigFile) as caught:
        configcheck.load(path)
    return [(one.line, one.field, one.message, one.remedy) for one in caught.value.problems]


def test_a_model_that_comes_from_the_region_need_not_be_there(file: Write) -> None:
    path = file(
        """\
models:
  door: {path: "bundle:door"}
pipelines:
  doors:
    subscribe: a/b
    stages: [parse, infer: {model: door}]
"""
    )

    assert list(configcheck.load(path).models) == ["door"]


def test_each_model_that_is_not_there_is_named_also_after_one_from_the_region(file: Write) -> None:
    path = file(
        """\
models:
  own: {path: own.onnx}
  sent: {path: "bundle:door"}
  other: {path: other.onnx}
pipelines: {}
"""
    )

    assert [(line, field) for line, field, _, _ in problems(path)] == [(2, "models.own.path"), (4, "models.other.path")]


@pytest.mark.parametrize(
    ("wanted", "remedy"),
    [
        ("dor", "Did you mean `door`? Add `models: {dor: {path: …}}`."),
        ("hall", "Add `models: {hall: {path: …}}`."),
    ],
)
def test_a_model_that_no_line_names_is_asked_for_with_the_nearest_one(file: Write, wanted: str, remedy: str) -> None:
    path = file(
        f"""\
models:
  gate: {{path: "bundle:gate"}}
  doors: {{path: "bundle:doors"}}
  door: {{path: "bundle:door"}}
pipelines:
  doors:
    subscribe: a/b
    stages:
      - parse
      - infer: {{model: {wanted}}}
"""
    )

    assert problems(path) == [(10, "pipelines.doors.stages.1.infer.model", f"no model {wanted!r} in this file", remedy)]


def test_of_a_file_with_wrong_parts_the_right_ones_are_checked(file: Write) -> None:
    path = file(
        """\
models:
  door: 7
  gate: {path: 7}
  hall: {path: hall.onnx}
pipelines:
  none: 7
  doors:
    subscribe: a/b
    stages:
      - 7
      - {parse: {}, infer: {}}
      - infer: {model: door}
      - prase
"""
    )
    found = [(line, field) for line, field, _, _ in problems(path)]

    assert (4, "models.hall.path") in found
    assert (13, "pipelines.doors.stages.3.prase") in found
    assert not any(field.startswith("pipelines.doors.stages.2.infer") for _, field in found), (
        "that model is there, if wrong"
    )
    assert (6, "pipelines.none") in found


def test_a_file_whose_sections_are_no_sections_is_wrong_and_that_is_all(file: Write) -> None:
    assert {line for line, *_ in problems(file("models: 7\npipelines: [7]\n"))} == {1, 2}
