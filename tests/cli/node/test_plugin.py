"""`hedgerow plugin`: list, show, and begin one that works as it stands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hedgerow import configcheck
from hedgerow.stages.parse import ParseConfig


def test_the_list_says_what_each_stage_does_and_whose_it_is(hedgerow) -> None:
    said = hedgerow("plugin", "list")

    (line,) = [line for line in said.out.splitlines() if line.startswith("parse ")]
    assert line.split(maxsplit=3)[1:3] == ["hedgerow", "0.1.0"]
    assert line.endswith("Parse the payload into the frame's array; other fields of a map become meta.")


def test_the_list_marks_a_broken_stage_and_goes_on(hedgerow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "acme_broken-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-broken\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[hedgerow.stages]\ncrash = acme_broken_module:Crash\n")
    monkeypatch.syspath_prepend(tmp_path)

    listed = {item["name"]: item for item in hedgerow("plugin", "list", "--json").json}

    assert listed["crash"]["error"] == (
        "Stage crash of acme-broken 1.2 cannot be imported from acme_broken_module:Crash: "
        "ModuleNotFoundError: No module named 'acme_broken_module'"
    )
    assert listed["parse"]["error"] is None
    assert "broken: Stage crash" in hedgerow("plugin", "list").out


def test_show_tells_every_setting_with_type_default_limits_and_meaning(hedgerow) -> None:
    said = hedgerow("plugin", "show", "parse")

    assert said.out.startswith("parse: Parse the payload into the frame's array")
    for name, field in ParseConfig.model_fields.items():
        (line,) = [line for line in said.out.splitlines() if line.startswith(f"  {name} ")]
        assert field.description in line
    assert "max_bytes  integer" in said.out
    assert "A larger array is refused. (≥ 1) [default 67108864]" in said.out
    assert "auto | npy | json | msgpack | csv | raw" in said.out


def test_show_ends_with_a_line_for_a_pipeline(hedgerow) -> None:
    assert hedgerow("plugin", "show", "infer").out.rstrip().endswith("stages:\n    - infer: {model: …}")


def test_show_has_the_schema_as_json(hedgerow) -> None:
    about = hedgerow("plugin", "show", "parse", "--json").json

    assert about["schema"]["properties"]["max_bytes"]["minimum"] == 1
    assert {setting["name"] for setting in about["settings"]} == set(ParseConfig.model_fields)


def test_show_of_a_stage_that_is_not_there_names_the_nearest(hedgerow) -> None:
    said = hedgerow("plugin", "show", "prase")

    assert said.code == 1
    assert "Did you mean 'parse'?" in said.err


SIGNS = "cannot name a stage: use lower-case letters, digits and hyphens, a letter first"


@pytest.mark.parametrize(
    ("name", "problem", "remedy"),
    [
        ("Dim Light", f"'Dim Light' {SIGNS}", "Try `hedgerow plugin new dim-light`."),
        ("../up", f"'../up' {SIGNS}", "Try `hedgerow plugin new up`."),
        ("42", f"'42' {SIGNS}", "Try `hedgerow plugin new my-stage`."),
        ("frame", "A class called Frame would hide a name that stages need", "Try `hedgerow plugin new my-frame`."),
        ("none", "A class called None would hide a name that stages need", "Try `hedgerow plugin new my-none`."),
        (
            "parse",
            "hedgerow 0.1.0 already offers a stage 'parse'",
            "Take another name; `hedgerow plugin show parse` says what that one does.",
        ),
    ],
)
def test_a_name_that_cannot_work_is_refused_with_one_that_can(
    hedgerow, tmp_path: Path, name: str, problem: str, remedy: str
) -> None:
    said = hedgerow("plugin", "new", name, "--dir", tmp_path)

    assert (said.code, said.err) == (2, f"error: {problem}\n  → {remedy}\n")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_is_left_alone(hedgerow, tmp_path: Path) -> None:
    (tmp_path / "hedgerow-dim-light").mkdir()

    said = hedgerow("plugin", "new", "dim-light", "--dir", tmp_path)

    assert said.code == 2
    assert said.err == (
        f"error: {tmp_path}/hedgerow-dim-light is there already\n  → Take another name, or another folder with --dir.\n"
    )
    assert list((tmp_path / "hedgerow-dim-light").iterdir()) == []


@pytest.mark.long
def test_a_new_plugin_installs_passes_its_tests_is_listed_and_runs(hedgerow, tmp_path: Path) -> None:
    """The whole of an author's first five minutes."""
    assert hedgerow("plugin", "new", "dim-light", "--dir", tmp_path).code == 0
    package, site = tmp_path / "hedgerow-dim-light", tmp_path / "site"
    environment = os.environ | {"PYTHONPATH": str(site)}

    def python(*args: str) -> str:
        command = [sys.executable, *args]
        ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    install = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
    python("-m", "pip", "install", *install, "--target", str(site), str(package))

    assert "3 passed" in python("-m", "pytest", "-p", "no:cacheprovider", str(package))
    assert "dim-light" in python("-m", "hedgerow", "plugin", "list")
    assert "ceiling" in python("-m", "hedgerow", "plugin", "show", "dim-light")
    python("-m", "hedgerow", "config", "check", str(package / "pipeline.yaml"))
    (tmp_path / "sample.json").write_text("[3, 5.5]")
    sample = (str(tmp_path / "sample.json"), "--config", str(package / "pipeline.yaml"))
    assert "broken" not in python("-m", "hedgerow", "plugin", "test", "dim-light", *sample)
    run = (
        "from hedgerow.testing import frame, run_pipeline; "
        "run = run_pipeline(['parse', {'dim-light': {'ceiling': 5}}], [frame('[3, 5.5]', content_type='application/json')]); "
        "print(run.results)"
    )
    assert python("-c", run) == "[{'peak': 5.5, 'above': 0.5}]\n"


def test_the_example_pipeline_of_a_new_plugin_names_its_stage(hedgerow, tmp_path: Path) -> None:
    """Before it is installed, the check says what is missing."""
    hedgerow("plugin", "new", "dim-light", "--dir", tmp_path)

    with pytest.raises(configcheck.BadConfigFile, match="No installed package provides a stage 'dim-light'"):
        configcheck.load(tmp_path / "hedgerow-dim-light" / "pipeline.yaml")


def test_a_stage_that_keeps_its_promises_passes(hedgerow, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("1,2\n3,4\n5,6\n")

    said = hedgerow("plugin", "test", "parse", tmp_path / "rows.csv")

    assert (said.code, said.err) == (0, "")
    assert all(line.startswith("kept") for line in said.out.splitlines())


def test_a_stage_is_tried_as_a_pipeline_uses_it(hedgerow, tmp_path: Path) -> None:
    """With the settings of the file, behind the stages that stand before it there."""
    (tmp_path / "rows.csv").write_text("".join(f"{number},0\n" for number in range(12)))
    (tmp_path / "node.yaml").write_text(
        "pipelines: {pumps: {subscribe: a, stages: [parse, window: {size: 4, hop: 2, rate: 8}]}}\n"
    )

    said = hedgerow("plugin", "test", "window", tmp_path / "rows.csv", "--config", tmp_path / "node.yaml", "--json")

    assert (said.code, said.json["ok"]) == (0, True)
    elsewhere = hedgerow("plugin", "test", "infer", tmp_path / "rows.csv", "--config", tmp_path / "node.yaml")
    assert elsewhere.code == 2
    assert elsewhere.err.startswith(f"error: {tmp_path}/node.yaml has no pipeline with a stage 'infer'")


def test_samples_a_stage_cannot_take_fail_the_test(hedgerow, tmp_path: Path) -> None:
    (tmp_path / "noise.json").write_text("{not json")

    said = hedgerow("plugin", "test", "parse", tmp_path / "noise.json")

    assert said.code == 1
    assert said.out.startswith("broken  valid frames are accepted: Not JSON")
