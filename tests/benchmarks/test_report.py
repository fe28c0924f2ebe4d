"""What a run leaves: the numbers by row of the targets, everything measured, a picture, and the losses first."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree as Xml

import pytest
import typer
from benchmarks.__main__ import SUITES, chosen
from benchmarks.harness.cells import TARGETS, Cell, Options, cell, percentile, ratio
from benchmarks.report import picture, report
from benchmarks.report.report import Record

FULL = Options(5, 3.0, 1.0)


def record(*cells: Cell, measured: str = "2026-01-02 03:04", others_cores: float = 0.0) -> Record:
    return Record.of(measured, FULL, others_cores, cells)


def every_target() -> list[Cell]:
    """A cell for each target, some met, some missed, with a spread."""
    return [
        cell(key, f"<{key}> & more", [target.value * each for each in (0.5, 0.9, 3.0)], unit)
        for key, target in TARGETS.items()
        for unit in (["ms"] if "p99" in key or "lost" in key else ["×"])
    ]


def test_each_row_of_the_table_has_its_numbers_and_a_bench_that_gives_them(tmp_path: Path) -> None:
    assert {target.row for target in TARGETS.values()} - {0} == set(range(1, 14))
    assert {key.split(".")[0] for key in TARGETS} <= SUITES.keys()

    report.write(tmp_path, {"all": record(*every_target())})

    rows = json.loads((tmp_path / "results.json").read_text())
    assert [row["id"] for row in rows] == sorted(target.row for target in TARGETS.values() if target.row)
    assert {"id", "name", "value", "target", "met"} <= rows[0].keys()
    assert all(row["low"] <= row["value"] <= row["high"] for row in rows)


def test_what_misses_its_target_comes_first_in_the_report(tmp_path: Path) -> None:
    missed = cell("noop.received.node_per_paho", "received, node ÷ paho", [2.0, 2.1, 2.2], "×")
    met = cell("vad.node_per_loop", "node ÷ loop", [3.5], "×")
    report.write(tmp_path, {"vad": record(met), "noop": record(missed)})

    text = (tmp_path / "REPORT.md").read_text()
    lost = text.index("- received, node ÷ paho: **2.10 ×**, target 2.5")
    assert text.index("## Where we lose") < lost < text.index("](report.svg)") < text.index("## Method")
    assert "- node ÷ loop" not in text


def test_company_of_more_than_a_tenth_of_a_core_is_in_the_report(tmp_path: Path) -> None:
    quiet, loud = record(others_cores=0.05), record(others_cores=0.4)
    report.write(tmp_path, {"vad": quiet, "noop": loud})

    (line,) = (line for line in (tmp_path / "REPORT.md").read_text().splitlines() if "Other work" in line)
    assert "noop 0.40" in line
    assert "vad" not in line


def test_a_run_of_some_suites_leaves_the_others_of_the_same_machine(tmp_path: Path) -> None:
    one = cell("vad.node_per_loop", "node ÷ loop", [3.5, 3.6], "×")
    report.write(tmp_path, {"vad": record(one)})

    assert report.earlier(tmp_path) == {"vad": record(one)}


def test_results_of_another_machine_are_not_mixed_in(tmp_path: Path) -> None:
    report.write(tmp_path, {"vad": record()})
    held = json.loads((tmp_path / "cells.json").read_text())
    held["machine"]["cores"] = 4096
    (tmp_path / "cells.json").write_text(json.dumps(held))

    assert report.earlier(tmp_path) == {}


def test_the_picture_is_valid_and_always_the_same() -> None:
    cells = every_target()
    drawn = picture.draw(cells)
    root = Xml.fromstring(drawn)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    shown = [each for each in cells if each.target]
    bars = [each for each in root if each.get("class") in ("met", "missed")]
    assert len(bars) == len(shown)
    assert drawn == picture.draw(cells)


def test_the_picture_tells_met_from_missed_without_colour() -> None:
    met = cell("vad.node_per_loop", "", [4.0], "×")
    missed = cell("latency.vad.added_p99", "", [3.0], "ms")
    texts = [each.text for each in Xml.fromstring(picture.draw([met, missed])).iter("{http://www.w3.org/2000/svg}text")]
    assert "✓ 4 (≥ 3)" in texts
    assert "✗ 3 ms (≤ 1)" in texts


def test_less_than_nothing_is_as_good_as_it_gets_where_less_is_better() -> None:
    """Latency that a node adds is a difference; it may fall below zero."""
    less = cell("latency.vad.added_p50", "", [-0.1], "ms")
    assert picture.score(less, less.value) == float("inf")
    Xml.fromstring(picture.draw([less]))


def test_rows_and_names_choose_suites_in_their_own_order() -> None:
    assert chosen("9,1") == ["vad", "overload"]
    assert chosen("5") == chosen("6") == ["noop"]
    assert chosen(" text , 7") == ["text", "large"]
    assert chosen("") == [name for name, suite in SUITES.items() if not suite.only_asked]
    with pytest.raises(typer.BadParameter, match="rows 1 to 13"):
        chosen("14")


def test_a_ratio_is_taken_within_each_repeat() -> None:
    """A repeat during which the machine was busy slows both, and so says as much as the others."""
    both = ratio("vad.node_per_loop", "", [100.0, 10.0, 90.0], [50.0, 5.0, 30.0])

    assert (both.value, both.low, both.high) == (2.0, 2.0, 3.0)


def test_a_target_is_a_floor_for_ratios_and_a_ceiling_for_times() -> None:
    """Which of the two it is, its unit says."""
    assert cell("vad.node_per_loop", "", [9.0], "×").met is True
    assert cell("latency.vad.added_p99", "", [9e9], "ms").met is False
    assert cell("vad.rate.node", "", [9.0], "frames/s").met is None


def test_a_percentile_is_one_of_the_values() -> None:
    """Never interpolated: a p99 is a latency that some frame had."""
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([3.0, 1.0, 2.0], 0.99) == 3.0
