"""Checking a configuration file against installed stages and existing models."""

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
    """Line, field, message and remedy of every problem."""
    with pytest.raises(BadConfigFile) as caught:
        configcheck.load(path)
    return [(problem.line, problem.field, problem.message, problem.remedy) for problem in caught.value.problems]


def test_a_model_from_the_region_needs_no_file(file: Write) -> None:
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


def test_every_missing_model_file_is_named(file: Write) -> None:
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
    ("model", "remedy"),
    [
        ("dor", "Did you mean `door`? Add `models: {dor: {path: …}}`."),
        ("hall", "Add `models: {hall: {path: …}}`."),
    ],
)
def test_for_an_unknown_model_the_nearest_one_is_suggested(file: Write, model: str, remedy: str) -> None:
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
      - infer: {{model: {model}}}
"""
    )

    assert problems(path) == [(10, "pipelines.doors.stages.1.infer.model", f"no model {model!r} in this file", remedy)]


def test_the_valid_parts_of_an_invalid_file_are_checked(file: Write) -> None:
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
        "the model exists, although it is invalid"
    )
    assert (6, "pipelines.none") in found


def test_sections_of_the_wrong_type_are_the_only_problems_reported(file: Write) -> None:
    assert {line for line, *_ in problems(file("models: 7\npipelines: [7]\n"))} == {1, 2}


def test_a_filter_that_matches_the_nodes_own_topics_is_reported_with_its_line(file: Write) -> None:
    path = file(
        """\
node: {region: north, site: mill, name: press}
pipelines:
  doors:
    subscribe: a/b
    stages: [parse]
  all:
    subscribe: [a/c, $share/group/#]
    stages: [parse]
"""
    )

    ((line, field, message, remedy),) = problems(path)

    assert (line, field) == (7, "pipelines.all.subscribe")
    assert message == (
        "'$share/group/#' also matches what this node publishes, for example hedgerow/v1/north/mill/press/status"
    )
    assert "sensors" in remedy


@pytest.mark.parametrize(
    ("remote", "field", "message"),
    [
        ("keep_running: [alarm]", "remote.keep_running.0", "there is no pipeline 'alarm'"),
        ("thresholds: {alarm: {parse.x: fixed}}", "remote.thresholds.alarm", "there is no pipeline 'alarm'"),
        ("thresholds: {alarms: {yolo.min_score: fixed}}", "remote.thresholds.alarms.yolo.min_score", "names no stage"),
        (
            "thresholds: {alarms: {parse.max_bytes: fixed}}",
            "remote.thresholds.alarms.parse.max_bytes",
            "not a threshold",
        ),
    ],
)
def test_a_limit_that_would_protect_nothing_is_found(file: Write, remote: str, field: str, message: str) -> None:
    path = file(f"pipelines:\n  alarms: {{subscribe: a, stages: [parse]}}\nremote:\n  {remote}\n")

    ((line, found, said, remedy),) = problems(path)

    assert (line, found, message in said, bool(remedy)) == (4, field, True, True)
