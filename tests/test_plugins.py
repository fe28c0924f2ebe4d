"""Stages by name: what is found, and what a user is told when it is missing, broken, doubled or wrongly configured."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import Field

from hedgerow import Frame, Stage, StageConfig, plugins
from hedgerow.errors import ConfigError, PluginError
from hedgerow.plugins import BadStageConfig
from hedgerow.stages.parse import Parse
from hedgerow.testing import frame, run_pipeline

Install = Callable[..., None]

STAGE = """
from hedgerow import Frame, Stage

class Echo(Stage):
    "Publish the payload as it came."
    def process(self, frame: Frame) -> Frame:
        return frame.with_result(bytes(frame.payload).decode())
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts a package with one stage on the path, as an installer would: code, metadata, entry point."""

    def put(package: str, stage: str, target: str, code: str = STAGE) -> None:
        folder = tmp_path / package
        info = folder / f"{package.replace('-', '_')}-1.2.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[{plugins.GROUP}]\n{stage} = {target}\n")
        module = target.partition(":")[0]
        (folder / f"{module}.py").write_text(code)
        monkeypatch.syspath_prepend(folder)
        monkeypatch.delitem(sys.modules, module, raising=False)
        importlib.invalidate_caches()

    return put


def test_the_stages_of_hedgerow_itself_are_found() -> None:
    plugin = plugins.find("parse")

    assert (plugin.package, plugin.target) == ("hedgerow", "hedgerow.stages.parse:Parse")
    assert plugin.load() is Parse


def test_every_stage_of_ours_can_be_loaded_and_says_what_it_does() -> None:
    ours = [name for name in plugins.installed() if plugins.find(name).package.startswith("hedgerow")]
    assert {"infer", "decode", "speech", "anomaly"} <= set(ours)
    for name in ours:
        stage = plugins.find(name).load()
        assert stage.__doc__, name
        for setting, field in stage.config_type.model_fields.items():
            assert field.description, f"{name}.{setting}"


def test_an_installed_package_is_found_and_runs(install: Install) -> None:
    install("acme-echo", "echo", "acme_echo:Echo")

    assert plugins.find("echo").version == "1.2"
    assert run_pipeline(["echo"], [frame("hello")]).results == ["hello"]


def test_a_misspelt_stage_is_met_with_the_nearest_one() -> None:
    with pytest.raises(PluginError) as caught:
        plugins.find("prase")

    assert caught.value.explain() == (
        "No installed package offers a stage 'prase'\n"
        "  → Did you mean 'parse'? `hedgerow plugin list` shows what is installed; "
        "`pip install` the package that ships it."
    )


def test_a_stage_like_none_is_met_without_a_guess() -> None:
    with pytest.raises(PluginError) as caught:
        plugins.find("zzzzzz")

    assert caught.value.remedy.startswith("`hedgerow plugin list` shows")


def test_a_stage_whose_import_fails_says_why_and_whose_it_is(install: Install) -> None:
    install("acme-broken", "crash", "acme_broken:Crash", "import no_such_library\n")

    with pytest.raises(PluginError) as caught:
        plugins.find("crash").load()

    assert caught.value.explain() == (
        "Stage crash of acme-broken 1.2 cannot be imported from acme_broken:Crash: "
        "ModuleNotFoundError: No module named 'no_such_library'\n"
        "  → Try `python -c 'import acme_broken'`; reinstall acme-broken with what it needs."
    )


def test_a_broken_stage_harms_nobody_who_does_not_use_it(install: Install) -> None:
    install("acme-broken", "crash", "acme_broken:Crash", "raise SystemError('at import')\n")

    assert "crash" in plugins.installed()
    assert run_pipeline(["parse"], [frame("1", content_type="application/json")]).out


def test_an_entry_point_to_what_is_not_there_says_so(install: Install) -> None:
    install("acme-empty", "gone", "acme_empty:Gone", "")

    with pytest.raises(PluginError, match="has no attribute 'Gone'"):
        plugins.find("gone").load()


@pytest.mark.parametrize("code", ["Thing = 1", "def Thing(config): ...", "class Thing: ..."])
def test_what_is_no_stage_is_refused(install: Install, code: str) -> None:
    install("acme-thing", "thing", "acme_thing:Thing", code)

    with pytest.raises(PluginError) as caught:
        plugins.find("thing").load()

    assert caught.value.explain() == (
        "Stage thing of acme-thing 1.2: acme_thing:Thing is not a subclass of hedgerow.Stage\n"
        "  → Point the entry point 'thing' in acme-thing's pyproject.toml at a Stage class."
    )


def test_two_packages_that_offer_one_name_are_both_named(install: Install) -> None:
    """Neither wins silently: which one runs must not hang on the order of a path."""
    install("acme-one", "twin", "acme_one:Echo")
    install("acme-two", "twin", "acme_two:Echo")

    with pytest.raises(PluginError) as caught:
        plugins.find("twin")

    assert str(caught.value) == "Stage 'twin' is offered by acme-one and acme-two"


def test_the_same_package_found_twice_is_no_conflict(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    """An editable install may be on the path two times."""
    install("acme-echo", "echo", "acme_echo:Echo")
    monkeypatch.syspath_prepend(f"{sys.path[0]}/../acme-echo")

    assert plugins.find("echo").package == "acme-echo"


class ZoneConfig(StageConfig):
    """A section within."""

    border: float = Field(1.0, description="Where it ends.")


class LimitConfig(StageConfig):
    """For a stage of a test."""

    ceiling: float = Field(gt=0, description="Highest value.")
    label: str = Field("x", description="What to call it.")
    zones: tuple[ZoneConfig, ...] = Field((), description="Parts of it.")


class Limit(Stage[LimitConfig]):
    """For tests."""

    def process(self, frame: Frame) -> Frame:
        return frame


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({}, "Stage limit: ceiling: is required"),
        ({"ceiling": 1, "lable": "y"}, "Stage limit: lable: unknown key, did you mean 'label'?"),
        (
            {"ceiling": 1, "zones": [{}, {"boarder": 2}]},
            "Stage limit: zones.1.boarder: unknown key, did you mean 'border'?",
        ),
        ({"ceiling": 1, "zzz": "y"}, "Stage limit: zzz: unknown key"),
        ({"ceiling": 0}, "Stage limit: ceiling: must be more than 0; got 0"),
        (
            {"ceiling": -1, "label": 3},
            "Stage limit: ceiling: must be more than 0; got -1; label: must be text; got 3",
        ),
    ],
)
def test_a_wrong_setting_is_explained(config: dict, told: str) -> None:
    with pytest.raises(BadStageConfig) as caught:
        plugins.configure(Limit, config, "limit")

    assert str(caught.value) == told
    assert caught.value.remedy == "`hedgerow plugin show limit` lists what it takes."
    assert isinstance(caught.value, ConfigError)


def test_each_wrong_setting_is_located() -> None:
    with pytest.raises(BadStageConfig) as caught:
        plugins.configure(Limit, {"ceiling": 0, "lable": 1}, "limit")

    assert [where for where, _ in caught.value.problems] == [("ceiling",), ("lable",)]


def test_a_right_setting_arrives_typed() -> None:
    stage = plugins.configure(Limit, {"ceiling": 2}, "limit")

    assert stage.config == LimitConfig(ceiling=2.0)


class Angry(Stage[StageConfig]):
    """For tests."""

    def __init__(self, config: StageConfig) -> None:
        raise RuntimeError("no luck")


def test_a_stage_that_cannot_be_made_is_the_plugins_fault() -> None:
    with pytest.raises(PluginError) as caught:
        plugins.configure(Angry, {}, "angry")

    assert caught.value.explain() == (
        "Stage angry cannot be made: RuntimeError: no luck\n"
        "  → Mend the stage's __init__, or leave it out and use setup()."
    )
