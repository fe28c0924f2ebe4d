"""Finding stages by name, and the errors if one is missing, broken, ambiguous or misconfigured."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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
    "Publish the payload unchanged."
    def process(self, frame: Frame) -> Frame:
        return frame.with_result(bytes(frame.payload).decode())
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Return a function that installs a package with one stage: code, metadata, entry point."""

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


def test_a_package_that_is_installed_upgraded_or_removed_meanwhile_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that is told to reload after `pip install`."""
    monkeypatch.syspath_prepend(tmp_path)
    versions = []
    for version in ("1.0", "2.0", None):
        for info in tmp_path.glob("*.dist-info"):
            shutil.rmtree(info)
        if version is not None:
            info = tmp_path / f"acme_late-{version}.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: acme-late\nVersion: {version}\n")
            (info / "entry_points.txt").write_text(f"[{plugins.GROUP}]\nlate = late:Late\n")
        os.utime(tmp_path, ns=(0, len(versions) + 1))  # the clock of a file system may be too coarse for a test
        versions.append([each.version for each in plugins.installed().get("late", [])])

    assert versions == [["1.0"], ["2.0"], []]


def test_built_in_stages_are_found() -> None:
    plugin = plugins.find("parse")

    assert (plugin.package, plugin.target) == ("hedgerow", "hedgerow.stages.parse:Parse")
    assert plugin.load() is Parse


def test_every_stage_of_hedgerow_can_be_loaded_and_is_documented() -> None:
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


def test_for_a_misspelt_stage_the_nearest_one_is_suggested() -> None:
    with pytest.raises(PluginError) as caught:
        plugins.find("prase")

    assert caught.value.explain() == (
        "No installed package provides a stage 'prase'\n"
        "  → Did you mean 'parse'? `hedgerow plugin list` shows installed stages; "
        "`pip install` the package that provides it."
    )


def test_for_an_unknown_stage_nothing_is_suggested() -> None:
    with pytest.raises(PluginError) as caught:
        plugins.find("zzzzzz")

    assert caught.value.remedy.startswith("`hedgerow plugin list` shows")


def test_an_import_error_names_the_cause_and_the_package(install: Install) -> None:
    install("acme-broken", "crash", "acme_broken:Crash", "import no_such_library\n")

    with pytest.raises(PluginError) as caught:
        plugins.find("crash").load()

    assert caught.value.explain() == (
        "Stage crash of acme-broken 1.2 cannot be imported from acme_broken:Crash: "
        "ModuleNotFoundError: No module named 'no_such_library'\n"
        "  → Try `python -c 'import acme_broken'`; reinstall acme-broken with its dependencies."
    )


def test_a_broken_stage_does_not_affect_pipelines_without_it(install: Install) -> None:
    install("acme-broken", "crash", "acme_broken:Crash", "raise SystemError('at import')\n")

    assert "crash" in plugins.installed()
    assert run_pipeline(["parse"], [frame("1", content_type="application/json")]).out


def test_an_entry_point_to_a_missing_attribute_is_an_error(install: Install) -> None:
    install("acme-empty", "gone", "acme_empty:Gone", "")

    with pytest.raises(PluginError, match="has no attribute 'Gone'"):
        plugins.find("gone").load()


@pytest.mark.parametrize("code", ["Thing = 1", "def Thing(config): ...", "class Thing: ..."])
def test_a_target_that_is_not_a_stage_is_refused(install: Install, code: str) -> None:
    install("acme-thing", "thing", "acme_thing:Thing", code)

    with pytest.raises(PluginError) as caught:
        plugins.find("thing").load()

    assert caught.value.explain() == (
        "Stage thing of acme-thing 1.2: acme_thing:Thing is not a subclass of hedgerow.Stage\n"
        "  → Point the entry point 'thing' in acme-thing's pyproject.toml at a Stage class."
    )


def test_two_packages_that_provide_one_stage_are_both_named(install: Install) -> None:
    """Neither wins silently: the order of the path must not decide."""
    install("acme-one", "twin", "acme_one:Echo")
    install("acme-two", "twin", "acme_two:Echo")

    with pytest.raises(PluginError) as caught:
        plugins.find("twin")

    assert str(caught.value) == "Stage 'twin' is provided by acme-one and acme-two"


def test_the_same_package_found_twice_is_not_a_conflict(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    """An editable install can be on the path twice."""
    install("acme-echo", "echo", "acme_echo:Echo")
    monkeypatch.syspath_prepend(f"{sys.path[0]}/../acme-echo")

    assert plugins.find("echo").package == "acme-echo"


class ZoneConfig(StageConfig):
    """A nested section."""

    border: float = Field(1.0, description="Width of the border.")


class LimitConfig(StageConfig):
    """Configuration of a test stage."""

    ceiling: float = Field(gt=0, description="Highest value.")
    label: str = Field("x", description="Name to show.")
    zones: tuple[ZoneConfig, ...] = Field((), description="Zones.")


class Limit(Stage[LimitConfig]):
    """A test stage."""

    def process(self, frame: Frame) -> Frame:
        return frame


@pytest.mark.parametrize(
    ("config", "message"),
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
def test_an_invalid_setting_is_explained(config: dict, message: str) -> None:
    with pytest.raises(BadStageConfig) as caught:
        plugins.configure(Limit, config, "limit")

    assert str(caught.value) == message
    assert caught.value.remedy == "`hedgerow plugin show limit` lists its settings."
    assert isinstance(caught.value, ConfigError)


def test_each_invalid_setting_is_located() -> None:
    with pytest.raises(BadStageConfig) as caught:
        plugins.configure(Limit, {"ceiling": 0, "lable": 1}, "limit")

    assert [where for where, _ in caught.value.problems] == [("ceiling",), ("lable",)]


def test_a_valid_setting_is_converted_to_its_type() -> None:
    stage = plugins.configure(Limit, {"ceiling": 2}, "limit")

    assert stage.config == LimitConfig(ceiling=2.0)


class Failing(Stage[StageConfig]):
    """A test stage."""

    def __init__(self, config: StageConfig) -> None:
        raise RuntimeError("no luck")


def test_a_failing_constructor_is_a_plugin_error() -> None:
    with pytest.raises(PluginError) as caught:
        plugins.configure(Failing, {}, "failing")

    assert caught.value.explain() == (
        "Stage failing cannot be created: RuntimeError: no luck\n"
        "  → Fix the stage's __init__, or remove it and use setup()."
    )


RAISED = {
    "a panic": "class Panic(BaseException): pass\nraise Panic('at import')",
    "a cancellation": "import asyncio\nraise asyncio.CancelledError('at import')",
    "an interrupt": "raise KeyboardInterrupt('at import')",
    "an exit": "raise SystemExit('at import')",
}


@pytest.mark.parametrize("what", RAISED)
@pytest.mark.parametrize("where", ["import", "__init__", "setup"])
def test_whatever_a_plugin_raises_before_the_first_frame_is_an_error_of_the_plugin(
    install: Install, what: str, where: str
) -> None:
    """In a thread, as a node builds its pipelines: the event loop would take it for its own, and end."""
    body = RAISED[what]
    if where != "import":
        lines = [f"    def {where}(self, _):", *(f"        {line}" for line in body.splitlines())]
        body = "\n".join(["from hedgerow import Stage, StageConfig", "class Crash(Stage[StageConfig]):", *lines])
    install("acme-panics", "crash", f"acme_panics_{where.strip('_')}:Crash", body)

    with ThreadPoolExecutor(1) as thread, pytest.raises(PluginError, match="at import"):
        thread.submit(run_pipeline, ["crash"], [frame("1")]).result()
