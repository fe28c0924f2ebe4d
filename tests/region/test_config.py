"""Region configuration: deprecated settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from hedgerow.configfile import BadConfigFile, schema
from hedgerow.region.config import RegionConfig, load


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "region.yaml"


@pytest.mark.parametrize(
    "url", ["sqlite:///var/lib/region.db", "sqlite:region.db", "mysql://db/region", "file:region.db"]
)
def test_the_store_is_a_path_or_a_postgresql_address(tmp_path: Path, url: str) -> None:
    (tmp_path / "region.yaml").write_text(f"region: {{name: retail}}\nstore: {{url: '{url}'}}\n")

    with pytest.raises(BadConfigFile, match=r"store\.url: must be a path or begin with postgresql://"):
        load(tmp_path / "region.yaml")


def test_canary_is_read_as_ping_with_a_warning(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text("region: {name: test}\ncanary:\n  every_s: 7\n")
    warnings: list[str] = []

    assert load(file, warnings.append).ping.every_s == 7
    assert warnings == [f"{file}:2: `canary:` is deprecated; rename it to `ping:`."]
    assert capsys.readouterr().err == ""
    assert load(file).ping.every_s == 7
    assert capsys.readouterr() == ("", f"warning: {warnings[0]}\n")


def test_ping_gives_no_warning(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text("ping: {every_s: 7}\n")

    assert load(file).ping.every_s == 7
    assert capsys.readouterr() == ("", "")


def test_ping_and_canary_together_are_refused(file: Path) -> None:
    file.write_text("ping: {every_s: 7}\ncanary: {every_s: 8}\n")

    with pytest.raises(BadConfigFile) as refused:
        load(file)
    (problem,) = refused.value.problems
    assert (problem.line, problem.field) == (2, "canary")
    assert problem.message == "`canary` is the old name of `ping`, and both are set"
    assert problem.remedy == "Keep `ping:`, and remove `canary:`."


@pytest.mark.parametrize("key", ["ping", "canary"])
def test_an_error_in_the_section_names_the_key_as_written(file: Path, key: str) -> None:
    file.write_text(f"region: {{name: test}}\n{key}:\n  every_s: 0\n")

    with pytest.raises(BadConfigFile) as refused:
        load(file, [].append)
    (problem,) = refused.value.problems
    assert (problem.line, problem.field) == (3, f"{key}.every_s")
    assert problem.message == "must be more than 0; got 0"


def test_the_schema_has_only_the_new_name() -> None:
    properties = schema(RegionConfig)["properties"]

    assert "ping" in properties
    assert "canary" not in properties
