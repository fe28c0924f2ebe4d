"""`hedgerow plugin`: list and show stages, test them, and create a plugin that works."""

from __future__ import annotations

import os
import subprocess
import sys
import wave
from pathlib import Path

import pytest

from hedgerow import configcheck
from hedgerow.cli.frames.sources import SplitOptions
from hedgerow.cli.node.plugin import _frames
from hedgerow.stages.parse import ParseConfig


def test_the_list_shows_each_stages_package_and_summary(hedgerow) -> None:
    result = hedgerow("plugin", "list")

    (line,) = [line for line in result.out.splitlines() if line.startswith("parse ")]
    assert line.split(maxsplit=3)[1:3] == ["hedgerow", "0.1.0"]
    assert line.endswith("Parse the payload into the frame's array; other fields of a map become the frame's `fields`.")


def test_the_list_includes_a_broken_stage_with_the_reason(
    hedgerow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_show_lists_every_setting_with_type_default_limits_and_description(hedgerow) -> None:
    result = hedgerow("plugin", "show", "parse")

    assert result.out.startswith("parse: Parse the payload into the frame")
    for name, field in ParseConfig.model_fields.items():
        (line,) = [line for line in result.out.splitlines() if line.startswith(f"  {name} ")]
        assert field.description in line
    assert "max_bytes  integer" in result.out
    assert "A larger array is refused. (≥ 1) [default 67108864]" in result.out
    assert "auto | npy | json | msgpack | csv | raw" in result.out


def test_show_ends_with_an_example_for_a_pipeline(hedgerow) -> None:
    assert hedgerow("plugin", "show", "infer").out.rstrip().endswith("stages:\n    - infer: {model: …}")


def test_show_prints_the_schema_as_json(hedgerow) -> None:
    about = hedgerow("plugin", "show", "parse", "--json").json

    assert about["schema"]["properties"]["max_bytes"]["minimum"] == 1
    assert {setting["name"] for setting in about["settings"]} == set(ParseConfig.model_fields)


def test_show_suggests_the_nearest_name_for_an_unknown_stage(hedgerow) -> None:
    result = hedgerow("plugin", "show", "prase")

    assert result.code == 1
    assert "Did you mean 'parse'?" in result.err


INVALID = "is not a stage name: use lower-case letters, digits and hyphens, starting with a letter"


@pytest.mark.parametrize(
    ("name", "problem", "remedy"),
    [
        ("Dim Light", f"'Dim Light' {INVALID}", "Try `hedgerow plugin new dim-light`."),
        ("../up", f"'../up' {INVALID}", "Try `hedgerow plugin new up`."),
        ("42", f"'42' {INVALID}", "Try `hedgerow plugin new my-stage`."),
        ("frame", "A class named Frame would shadow a name that stages need", "Try `hedgerow plugin new my-frame`."),
        ("none", "A class named None would shadow a name that stages need", "Try `hedgerow plugin new my-none`."),
        (
            "parse",
            "hedgerow 0.1.0 already offers a stage 'parse'",
            "Choose another name. `hedgerow plugin show parse` describes that stage.",
        ),
    ],
)
def test_an_invalid_name_is_refused_with_a_suggestion(
    hedgerow, tmp_path: Path, name: str, problem: str, remedy: str
) -> None:
    result = hedgerow("plugin", "new", name, "--dir", tmp_path)

    assert (result.code, result.err) == (2, f"error: {problem}\n  → {remedy}\n")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_not_overwritten(hedgerow, tmp_path: Path) -> None:
    (tmp_path / "hedgerow-dim-light").mkdir()

    result = hedgerow("plugin", "new", "dim-light", "--dir", tmp_path)

    assert result.code == 2
    assert result.err == (
        f"error: {tmp_path}/hedgerow-dim-light exists already\n  → Choose another name, or another folder with --dir.\n"
    )
    assert list((tmp_path / "hedgerow-dim-light").iterdir()) == []


@pytest.mark.long
def test_a_new_plugin_installs_passes_its_tests_is_listed_and_runs(hedgerow, tmp_path: Path) -> None:
    """An author's first five minutes."""
    assert hedgerow("plugin", "new", "dim-light", "--dir", tmp_path).code == 0
    package, site = tmp_path / "hedgerow-dim-light", tmp_path / "site"
    environment = os.environ | {"PYTHONPATH": str(site)}

    def python(*args: str) -> str:
        command = [sys.executable, *args]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    install = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
    python("-m", "pip", "install", *install, "--target", str(site), str(package))

    assert "3 passed" in python("-m", "pytest", "-p", "no:cacheprovider", str(package))
    assert "dim-light" in python("-m", "hedgerow", "plugin", "list")
    assert "ceiling" in python("-m", "hedgerow", "plugin", "show", "dim-light")
    python("-m", "hedgerow", "config", "check", str(package / "pipeline.yaml"))
    (tmp_path / "sample.json").write_text("[3, 5.5]")
    sample = (str(tmp_path / "sample.json"), "--config", str(package / "pipeline.yaml"))
    assert "failed" not in python("-m", "hedgerow", "plugin", "test", "dim-light", *sample)
    run = (
        "from hedgerow.testing import frame, run_pipeline; "
        "run = run_pipeline(['parse', {'dim-light': {'ceiling': 5}}], [frame('[3, 5.5]', content_type='application/json')]); "
        "print(run.results)"
    )
    assert python("-c", run) == "[{'peak': 5.5, 'above': 0.5}]\n"


def test_the_example_pipeline_of_a_new_plugin_uses_its_stage(hedgerow, tmp_path: Path) -> None:
    """Until the plugin is installed, the check reports the stage as missing."""
    hedgerow("plugin", "new", "dim-light", "--dir", tmp_path)

    with pytest.raises(configcheck.BadConfigFile, match="No installed package provides a stage 'dim-light'"):
        configcheck.load(tmp_path / "hedgerow-dim-light" / "pipeline.yaml")


def test_a_stage_that_keeps_the_contract_passes(hedgerow, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("1,2\n3,4\n5,6\n")

    result = hedgerow("plugin", "test", "parse", tmp_path / "rows.csv")

    assert (result.code, result.err) == (0, "")
    assert all(line.startswith("passed") for line in result.out.splitlines())


def test_the_frames_of_a_recording_have_its_rate(tmp_path: Path) -> None:
    """As in a node: without the rate, sound of 8 kHz would be tested as sound of 16 kHz."""
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(1000))

    first, *_ = _frames([str(tmp_path / "a.wav")], SplitOptions(), "", 1)

    assert (first.content_type, first.meta) == ("audio/l16", {"rate": "8000", "channels": "1"})


def test_a_stage_is_tested_as_configured_in_a_pipeline(hedgerow, tmp_path: Path) -> None:
    """With its settings from the file, and after the stages that precede it there."""
    (tmp_path / "rows.csv").write_text("".join(f"{number},0\n" for number in range(12)))
    (tmp_path / "node.yaml").write_text(
        "pipelines: {pumps: {subscribe: a, stages: [parse, window: {size: 4, hop: 2, rate: 8}]}}\n"
    )

    result = hedgerow("plugin", "test", "window", tmp_path / "rows.csv", "--config", tmp_path / "node.yaml", "--json")

    assert (result.code, result.json["ok"]) == (0, True)
    unused = hedgerow("plugin", "test", "infer", tmp_path / "rows.csv", "--config", tmp_path / "node.yaml")
    assert unused.code == 2
    assert unused.err.startswith(f"error: {tmp_path}/node.yaml has no pipeline with a stage 'infer'")


def test_samples_that_a_stage_cannot_process_fail_the_test(hedgerow, tmp_path: Path) -> None:
    (tmp_path / "noise.json").write_text("{not json")

    result = hedgerow("plugin", "test", "parse", tmp_path / "noise.json")

    assert result.code == 1
    assert result.out.startswith("failed  valid frames are accepted: Not JSON")
