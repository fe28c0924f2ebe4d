"""`hedgerow config`: every mistake in a file with its line, and the schema for editors."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import jsonschema
import orjson
import pytest
from ruamel.yaml import YAML

from hedgerow import configcheck, configfile
from hedgerow.configfile import BadConfigFile

CONFIGS = Path(__file__).parents[3] / "configs"

GOOD = """\
pipelines:
  pumps:
    subscribe: plant/+/accel
    stages:
      - parse: {format: json}
"""


@pytest.fixture
def file(tmp_path: Path):
    def write(text: str, name: str = "node.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def test_a_good_file_is_ok(hedgerow, file) -> None:
    path = file(GOOD)

    result = hedgerow("config", "check", path)

    assert (result.code, result.out, result.err) == (0, f"{path}: ok (1 pipeline, 0 models)\n", "")


def test_all_problems_are_reported_at_once_with_line_and_remedy(hedgerow, file) -> None:
    path = file(
        """\
models:
  door: {path: door.onnx}
pipelines:
  doors:
    subscribe: plant/+/door
    stages:
      - prase
      - parse: {fromat: json}
      - parse: {max_bytes: 0}
      - infer: {model: dor}
"""
    )

    result = hedgerow("config", "check", path)

    assert result.code == 2
    assert result.out == ""
    assert result.err == (
        f"{path}:2: error: models.door.path: Model file not found: {path.parent}/door.onnx\n"
        "  → Correct `path:`, or add the file.\n"
        f"{path}:7: error: pipelines.doors.stages.0.prase: No installed package provides a stage 'prase'\n"
        "  → Did you mean 'parse'? `hedgerow plugin list` shows installed stages; `pip install` the package that provides it.\n"
        f"{path}:8: error: pipelines.doors.stages.1.parse.fromat: unknown key, did you mean 'format'?\n"
        "  → `hedgerow plugin show parse` lists its settings.\n"
        f"{path}:9: error: pipelines.doors.stages.2.parse.max_bytes: must be at least 1; got 0\n"
        "  → `hedgerow plugin show parse` lists its settings.\n"
        f"{path}:10: error: pipelines.doors.stages.3.infer.model: no model 'dor' in this file\n"
        "  → Did you mean `door`? Add `models: {dor: {path: …}}`.\n"
    )


def test_the_valid_parts_of_an_invalid_file_are_checked_too(file) -> None:
    """One run reports everything: a missing model does not first appear once the file is valid."""
    path = file(
        """\
models:
  door: {path: door.onnx, max_batch: 0}
  gate: {}
pipelines:
  doors:
    subscribe: plant/+/door
    quue: {}
    stages:
      - parse: 3
      - prase
      - infer: {model: gate}
      - infer: {model: dor}
  none: {subscribe: x, stages: 7}
"""
    )

    with pytest.raises(BadConfigFile) as caught:
        configcheck.load(path)

    assert [(problem.line, problem.field) for problem in caught.value.problems] == [
        (2, "models.door.max_batch"),
        (2, "models.door.path"),
        (3, "models.gate.path"),
        (7, "pipelines.doors.quue"),
        (9, "pipelines.doors.stages.0"),
        (10, "pipelines.doors.stages.1.prase"),
        (12, "pipelines.doors.stages.3.infer.model"),
        (13, "pipelines.none.stages"),
    ]


def test_a_chain_whose_frames_would_all_die_is_a_problem_with_its_line(hedgerow, file, onnx_file) -> None:
    onnx_file("(float[N,3] x) => (float[N,3] y) { y = Add(x, x) }", name="door.onnx")
    path = file(
        """\
models:
  door: {path: door.onnx}
pipelines:
  sound:
    subscribe: plant/+/door
    stages:
      - parse: {format: raw, dtype: float64}
      - infer: {model: door}
  doors:
    subscribe: plant/+/door
    stages: [infer: {model: door}]
"""
    )

    result = hedgerow("config", "check", path)

    assert (result.code, result.out) == (2, "")
    assert result.err == (
        f"{path}:8: error: pipelines.sound.stages.1.infer: Stage infer takes x: float32[?, 3] for model door; it gets an "
        "array: float64[?]\n"
        "  → Set `dtype: float32` of the stage that makes it, or use a model that takes float64.\n"
        f"{path}:11: error: pipelines.doors.stages.0.infer: Stage infer takes x: float32[?, 3] for model door; it gets "
        "frames that are not decoded\n"
        "  → Put `decode` or `parse` before it.\n"
    )


def test_a_chain_is_checked_up_to_a_model_that_the_region_chooses(hedgerow, file) -> None:
    """The file may be right; the node checks the rest when it has the model."""
    path = file(
        "models: {door: {path: bundle:door}}\n"
        "pipelines: {doors: {subscribe: a, stages: [parse, infer: {model: door}]}}\n"
    )

    result = hedgerow("config", "check", path)

    assert (result.code, result.out) == (0, f"{path}: ok (1 pipeline, 1 model)\n")
    assert result.err == (
        f"{path}: warning: pipelines.doors.stages.1.infer: not checked from here on: Model door is bundle:door, but the region "
        "has not assigned a version yet\n"
        "  → Nothing to do: the node checks the rest when the region assigns a version.\n"
    )


def test_a_chain_is_checked_on_a_machine_without_the_models_device(hedgerow, file, onnx_file) -> None:
    """On a laptop, for a node with a GPU: its inputs are the same on every device."""
    onnx_file("(float[N,3] x) => (float[N,3] y) { y = Add(x, x) }", name="door.onnx")
    models = "models: {door: {path: door.onnx, backend: openvino, device: GPU}}\n"
    good = file(models + "pipelines: {doors: {subscribe: a, stages: [parse, infer: {model: door}]}}\n")
    bad = file(models + "pipelines: {doors: {subscribe: a, stages: [infer: {model: door}]}}\n", "bad.yaml")

    result = hedgerow("config", "check", good, bad)

    assert (result.code, result.out) == (2, f"{good}: ok (1 pipeline, 1 model)\n")
    assert "Stage infer takes x: float32[?, 3] for model door" in result.err


def test_one_bad_file_of_several_fails_the_check(hedgerow, file) -> None:
    good, bad = file(GOOD), file("nodes: {}\n", "bad.yaml")

    result = hedgerow("config", "check", good, bad)

    assert result.code == 2
    assert result.out == f"{good}: ok (1 pipeline, 0 models)\n"
    assert result.err == f"{bad}:1: error: nodes: unknown key\n  → Did you mean `node`?\n"


def test_json_has_the_same_problems(hedgerow, file) -> None:
    path = file("pipelines:\n  pumps:\n    subscribe: a/#/b\n    stages: [parse]\n")

    result = hedgerow("config", "check", "--json", path)

    assert result.code == 2
    (report,) = result.json
    assert (report["file"], report["ok"]) == (str(path), False)
    (problem,) = report["problems"]
    assert (problem["line"], problem["field"]) == (3, "pipelines.pumps.subscribe")
    assert problem["message"] == "'a/#/b' is not a topic filter: misplaced wildcard in level '#'; got 'a/#/b'"
    assert problem["remedy"].startswith("`+` matches one whole level")


def test_a_missing_file_is_an_error(hedgerow, tmp_path: Path) -> None:
    result = hedgerow("config", "check", tmp_path / "no.yaml")

    assert result.code == 2
    assert "cannot be read: [Errno 2] No such file or directory" in result.err


def test_model_paths_are_relative_to_the_file(file, tmp_path: Path) -> None:
    """So a folder with a configuration and its models can be moved."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "door.onnx").write_bytes(b"any bytes: nothing is loaded")
    path = file("models:\n  door: {path: models/door.onnx}\n")

    assert list(configcheck.load(path).models) == ["door"]


def test_the_committed_schema_is_current() -> None:
    """To update it: `hedgerow config schema > configs/node.schema.json`."""
    assert orjson.loads((CONFIGS / "node.schema.json").read_bytes()) == orjson.loads(orjson.dumps(configfile.schema()))


def test_the_schema_is_printed(hedgerow) -> None:
    assert hedgerow("config", "schema").json == orjson.loads(orjson.dumps(configfile.schema()))


@pytest.fixture(scope="module")
def validator() -> jsonschema.protocols.Validator:
    schema = configfile.schema()
    validator_class = jsonschema.validators.validator_for(schema)
    validator_class.check_schema(schema)
    return validator_class(schema)


def _document(text: str):
    return YAML(typ="safe").load(text)


def test_the_demos_example_is_what_the_demo_runs() -> None:
    """The wheel ships one; readers find the other in configs/. Copies, since not every checkout supports links."""
    shipped = files("hedgerow.cli.demo.templates").joinpath("demo.yaml").read_bytes()
    assert (CONFIGS / "demo.yaml").read_bytes() == shipped, (
        "run: cp runtime/hedgerow/cli/demo/templates/demo.yaml configs/"
    )


_OTHER_KINDS = {CONFIGS / name for name in ("topology.yaml", "region.yaml", "rollout.yaml")}


@pytest.mark.parametrize("path", sorted(set(CONFIGS.rglob("*.yaml")) - _OTHER_KINDS), ids=lambda path: path.name)
def test_every_example_is_valid_for_schema_and_loader(path: Path, validator) -> None:
    validator.validate(_document(path.read_text()))
    configfile.load(path)


PIPELINE = "pipelines:\n  p:\n    subscribe: {subscribe}\n    stages: {stages}\n"


@pytest.mark.parametrize(
    ("subscribe", "stages"),
    [
        ("a/b", "[parse]"),
        ("[a/b, c/+]", "[parse: {format: json}]"),
        ("a/#", "[parse: ]"),
        ("a/#", "[{name: parse, timeout_s: 5}]"),
        ("a/#", "[{name: parse, config: {format: json}, timeout_s: 0.5}]"),
        ("a/#", "[parse, infer: {model: x}]"),
    ],
)
def test_schema_and_loader_accept_the_same_short_forms(validator, subscribe: str, stages: str) -> None:
    text = PIPELINE.format(subscribe=subscribe, stages=stages)

    assert validator.is_valid(_document(text))
    configfile.parse(text)


@pytest.mark.parametrize(
    ("subscribe", "stages"),
    [
        ("[]", "[parse]"),
        ("1", "[parse]"),
        ("a", "[]"),
        ("a", "parse"),
        ("a", "[parse: 1]"),
        ("a", "[{a: , b: }]"),
        ("a", "[1]"),
    ],
)
def test_schema_and_loader_reject_the_same_mistakes(validator, subscribe: str, stages: str) -> None:
    text = PIPELINE.format(subscribe=subscribe, stages=stages)

    assert not validator.is_valid(_document(text))
    with pytest.raises(BadConfigFile):
        configfile.parse(text)


def test_a_model_from_the_region_needs_no_file(hedgerow, file) -> None:
    result = hedgerow("config", "check", file(GOOD + "models: {door: {path: bundle:door}}\n"))

    assert (result.code, result.err) == (0, "")
