"""What the demo of a node's life counts as lost and as duplicated, whatever nodes say; and that its exit status tells."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hedgerow.cli.demo import life
from hedgerow.cli.demo.readings import compare
from hedgerow.cli.main import app

SENT, TWINS = {"a", "b", "twin"}, {"twin"}
EACH_ONCE = [("a", "e1/0/1"), ("b", "e1/0/2"), ("twin", "e2/0/1")]


@pytest.mark.parametrize(
    ("results", "stored", "lost", "duplicated", "by_both"),
    [
        pytest.param(EACH_ONCE, 3, 0, 0, 0, id="each once"),
        pytest.param(EACH_ONCE[1:], 2, 1, 0, 0, id="one is lost"),
        pytest.param([*EACH_ONCE, ("a", "e1/0/3")], 3, 0, 1, 0, id="twice by one run"),
        pytest.param([*EACH_ONCE, ("a", "e2/0/2")], 3, 0, 1, 0, id="twice by two runs of one machine"),
        pytest.param([*EACH_ONCE, ("twin", "e3/0/1")], 3, 0, 0, 1, id="made by both twins"),
        pytest.param([*EACH_ONCE, ("twin", "e2/0/2")], 3, 0, 1, 0, id="twice by one twin"),
        pytest.param([*EACH_ONCE, ("twin", "e2~1/0/1")], 3, 0, 1, 0, id="kept as a clash"),
        pytest.param([*EACH_ONCE, ("stranger", "e1/0/4")], 3, 0, 0, 0, id="nobody counts another's"),
        pytest.param([], 0, 3, 0, 0, id="nothing is stored"),
    ],
)  # fmt: skip
def test_results_are_compared_with_what_was_sent(
    results: list[tuple[str, str]], stored: int, lost: int, duplicated: int, by_both: int
) -> None:
    compared = compare(results, SENT, TWINS)

    assert (compared.made, compared.stored, compared.lost) == (3, stored, lost)
    assert (compared.duplicated, compared.by_both) == (duplicated, by_both)


@pytest.mark.parametrize("ok", [True, False])
def test_the_demo_prints_one_line_of_json_and_fails_unless_all_is_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ok: bool
) -> None:
    monkeypatch.setattr(life, "run", lambda *_, **__: {"ok": ok, "lost": 0 if ok else 1})

    done = CliRunner().invoke(app, ["demo", "life", "--json", "--out", str(tmp_path)], prog_name="hedgerow")

    assert done.exit_code == (0 if ok else 1)
    assert json.loads(done.stdout)["ok"] is ok
