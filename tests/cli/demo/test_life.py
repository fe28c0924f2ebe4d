"""`hedgerow demo life`: enrolment, clones, replacement, forgetting and restoring, all as real processes together."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import orjson
import pytest
from tests.cli.terminals import terminal

from hedgerow.testing import processes

pytestmark = pytest.mark.long


@pytest.mark.timeout(600)
def test_nodes_are_enrolled_cloned_replaced_forgotten_and_their_region_restored_without_a_loss(tmp_path: Path) -> None:
    done = processes.run(
        [sys.executable, "-m", "hedgerow", "demo", "life", "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )
    report = orjson.loads(done.stdout)

    assert (done.returncode, report["ok"], report["error"]) == (0, True, None), done.stdout + done.stderr
    assert [step["step"] for step in report["steps"]] == ["enrol", "clone", "replace", "forget", "restore"]
    assert report["made"] == report["stored"] > 90
    assert report["lost"] == report["duplicated"] == report["missing"] == report["clashes"] == 0
    assert report["refused"] == 10
    assert "another machine or process uses this name too" in report["twins"][0]
    told = [text for step in report["steps"] for text in step["happened"]]
    assert any(re.search("refuses the old key: .* revoked", text) for text in told), told
    assert any("was forgotten on" in text and "scrapped" in text for text in told), told
    assert any("The nodes have sent again the 20 results" in text for text in told), told


@pytest.mark.timeout(180)
def test_ctrl_c_stops_it_and_leaves_no_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with terminal("demo", "life", "--out", out, columns=80) as shell:
        shell.until(lambda shown: "$ hedgerow claim create" in shown)  # for three machines at once
        assert out.exists()
        code, shown = shell.interrupt()

    assert code == 130, shown
    assert "Traceback" not in shown
    assert not out.exists()
