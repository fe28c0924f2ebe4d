"""`hedgerow demo` as a newcomer runs it: with a real broker, a node, real models and real frames."""

from __future__ import annotations

import shutil
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Any

import orjson
import pytest
from tests.cli.terminals import COLOR, REDRAW, terminal

from hedgerow.cli.demo.feeds import demo_feeds
from hedgerow.errors import HedgerowError
from hedgerow.testing import processes

pytestmark = pytest.mark.long

_STREET = Path(sys.prefix) / "models" / "ssd_mobilenetv2_oidv4.tflite"


def skip_if_models_are_missing() -> None:
    if not _STREET.exists():
        pytest.skip(f"the street model is missing; `python -m hedgerow_vision.fetch_ssd {_STREET.parent}` fetches it")
    try:
        demo_feeds()
    except HedgerowError as error:
        pytest.skip(error.explain())


def demo(folder: Path, *arguments: str, timeout_s: float = 580) -> Any:
    """Run the demo and return its report."""
    skip_if_models_are_missing()
    done = processes.run(
        [sys.executable, "-m", "hedgerow", "demo", *arguments, "--json"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return orjson.loads(done.stdout)


@pytest.mark.timeout(600)
def test_the_demo_finds_text_objects_and_speech_and_accounts_for_every_frame(tmp_path: Path) -> None:
    """Every frame ended as a result or as a drop with a reason."""
    report = demo(tmp_path, "--seconds", "8")

    assert report["ok"]
    assert "Region-based segmentation" in report["texts"]
    assert report["labels"].keys() >= {"Car", "face"}
    assert report["speech_s"] > 0
    assert report["pictures"] > 0
    assert report["dead"] == {}
    assert report["frames"] >= report["published"] > 0
    for name, each in report["pipelines"].items():
        assert each["received"] == each["out"] + sum(each["dropped"].values()), name
        assert each["in_flight"] == 0, name


@pytest.mark.timeout(600)
@pytest.mark.parametrize("which", ["node", "region"])
def test_without_npm_a_demo_skips_the_street(tmp_path: Path, which: str) -> None:
    """In an environment without the street model."""
    venv.create(tmp_path / ".venv", symlinks=True, with_pip=False)
    (site,) = tmp_path.glob(".venv/lib/python*/site-packages")
    (site / "here.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")

    (tmp_path / "programs").mkdir()
    for program in (
        "awk",
        "cat",
        "chown",
        "find",
        "id",
        "mkfifo",
        "mv",
        "od",
        "rm",
        "sh",
        "tr",
    ):  # used by a rendered broker.sh
        (tmp_path / "programs" / program).symlink_to(shutil.which(program) or program)

    done = processes.run(
        [tmp_path / ".venv/bin/python", "-m", "hedgerow", "demo", which, "--seconds", "16", "--json"],
        cwd=tmp_path,
        env={"PATH": str(tmp_path / "programs")},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    report = orjson.loads(done.stdout)
    assert report["ok"]
    assert report["skipped"].keys() == {"street"}


@pytest.mark.timeout(600)
def test_the_region_demo_loses_no_results_when_a_site_is_cut_off(tmp_path: Path) -> None:
    report = demo(tmp_path, "region", "--seconds", "16", timeout_s=580)

    assert report["ok"]
    assert report["sites"].keys() == {"north", "harbour", "mill"}
    for name, each in report["sites"].items():
        assert each["results"] == each["stored"] > 0, name
        assert each["lost"] == each["duplicated"] == each["gaps"] == each["waiting"] == 0, name
        assert each["bytes_in"] > 3 * each["bytes_up"] > 0, name
    cut = report["cut"]
    assert cut["waiting_before_it_came_back"] > 0
    assert report["sites"][cut["site"]]["stored"] > cut["stored_when_cut"]


@pytest.mark.timeout(600)
def test_the_rollout_demo_ends_with_all_nodes_on_the_good_version(tmp_path: Path) -> None:
    """A version that fails on live frames only is rolled back by the node; a forged one never serves."""
    report = demo(tmp_path, "rollout", timeout_s=580)

    assert report["ok"]
    good, bad, forged = (report["versions"][version] for version in ("2.0.0", "3.0.0", "4.0.0"))
    assert {one["digest"] for one in report["serving"].values()} == {good["digest"]}
    assert len(report["serving"]) == good["reached"] == 3
    assert (bad["reached"], bad["went_back"], bad["refusal"]["code"]) == (1, 1, "not-finite")
    assert bad["results"] > 0
    assert (forged["reached"], forged["results"], forged["refusal"]["code"]) == (1, 0, "wrong-digest")
    assert report["lost"] == report["duplicated"] == report["disordered"] == 0
    assert report["results"] == report["stored"] > 0
    for version in report["versions"].values():
        assert version["wan_bytes"] <= 1.05 * version["bytes"] * version["reached"]


@pytest.mark.timeout(180)
def test_ctrl_c_while_models_load_stops_it_without_a_report(tmp_path: Path) -> None:
    skip_if_models_are_missing()
    with terminal("demo", "--out", tmp_path, columns=80) as shell:
        shell.until(lambda shown: "Loading models" in shown)
        code, shown = shell.interrupt()

    assert code == 130
    assert "Traceback" not in shown
    assert "frames in" not in shown


@pytest.mark.timeout(600)
def test_with_no_color_the_demo_draws_its_table_without_color(tmp_path: Path) -> None:
    skip_if_models_are_missing()
    with terminal("demo", "--out", tmp_path, "--seconds", "5", NO_COLOR="1") as shell:
        code, output = shell.wait()

    assert code == 0, output
    assert REDRAW in output
    assert COLOR.findall(output) == []
