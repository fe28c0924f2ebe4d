"""`hedgerow demo` as a newcomer runs it: a broker, a node, real models on real frames."""

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


def skip_where_it_cannot_run() -> None:
    if not _STREET.exists():
        pytest.skip(f"the street model is missing; `python -m hedgerow_vision.fetch_ssd {_STREET.parent}` fetches it")
    try:
        demo_feeds()
    except HedgerowError as error:
        pytest.skip(error.explain())


def demo(folder: Path, *arguments: str, timeout_s: float = 580) -> Any:
    """Run the demo. Returns: what it printed at the end."""
    skip_where_it_cannot_run()
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
def test_the_demo_reads_sees_and_hears_and_accounts_for_every_frame(tmp_path: Path) -> None:
    """What came in went out, or was dropped for a reason; none died, and none is left."""
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
def test_without_npm_a_demo_shows_all_but_the_street(tmp_path: Path, which: str) -> None:
    """In an environment that has no detector."""
    venv.create(tmp_path / ".venv", symlinks=True, with_pip=False)
    (site,) = tmp_path.glob(".venv/lib/python*/site-packages")
    (site / "here.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")

    (tmp_path / "programs").mkdir()
    for program in ("awk", "mkfifo", "rm", "sh"):  # what a region's broker is started with
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
def test_the_demo_of_a_region_loses_nothing_though_a_site_is_cut_off(tmp_path: Path) -> None:
    """Three sites and their region with certificates, from one topology."""
    account = demo(tmp_path, "region", "--seconds", "16", timeout_s=580)

    assert account["ok"]
    assert account["sites"].keys() == {"north", "harbour", "mill"}
    for name, each in account["sites"].items():
        assert each["results"] == each["stored"] > 0, name
        assert each["lost"] == each["duplicated"] == each["gaps"] == each["waiting"] == 0, name
        assert each["bytes_in"] > 3 * each["bytes_up"] > 0, name
    cut = account["cut"]
    assert cut["waiting_before_it_came_back"] > 0
    assert account["sites"][cut["site"]]["stored"] > cut["stored_when_cut"]


@pytest.mark.timeout(600)
def test_the_demo_of_rollouts_takes_the_good_version_everywhere_and_no_other(tmp_path: Path) -> None:
    """Real signatures, nodes and sound: what errs on live frames only goes back by itself, what is forged never serves."""
    account = demo(tmp_path, "rollout", timeout_s=580)

    assert account["ok"]
    good, bad, forged = (account["versions"][version] for version in ("2.0.0", "3.0.0", "4.0.0"))
    assert {one["digest"] for one in account["serving"].values()} == {good["digest"]}
    assert len(account["serving"]) == good["reached"] == 3
    assert (bad["reached"], bad["went_back"], bad["refusal"]["code"]) == (1, 1, "not-finite")
    assert bad["results"] > 0
    assert (forged["reached"], forged["results"], forged["refusal"]["code"]) == (1, 0, "wrong-digest")
    assert account["lost"] == account["duplicated"] == account["disordered"] == 0
    assert account["results"] == account["stored"] > 0
    for version in account["versions"].values():
        assert version["wan_bytes"] <= 1.05 * version["bytes"] * version["reached"]


@pytest.mark.timeout(180)
def test_ctrl_c_ends_it_while_models_load(tmp_path: Path) -> None:
    """There is nothing to tell of yet."""
    skip_where_it_cannot_run()
    with terminal("demo", "--out", tmp_path, columns=80) as shell:
        shell.until(lambda shown: "Loading models" in shown)
        code, shown = shell.interrupt()

    assert code == 130
    assert "Traceback" not in shown
    assert "frames in" not in shown


@pytest.mark.timeout(600)
def test_with_no_color_the_demo_draws_its_table_without_color(tmp_path: Path) -> None:
    skip_where_it_cannot_run()
    with terminal("demo", "--out", tmp_path, "--seconds", "5", NO_COLOR="1") as shell:
        code, output = shell.wait()

    assert code == 0, output
    assert REDRAW in output
    assert COLOR.findall(output) == []
