"""The files of a benchmark run: results.json, cells.json, report.svg and REPORT.md."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree as Xml

import pytest
import typer
from benchmarks.__main__ import SUITES, select_suites
from benchmarks.harness.cells import TARGETS, Cell, Options, cell, percentile, ratio
from benchmarks.report import picture, report
from benchmarks.report.report import Record

FULL = Options(5, 3.0, 1.0)


def record(*cells: Cell, measured: str = "2026-01-02 03:04", others_cores: float = 0.0) -> Record:
    return Record.of(measured, FULL, others_cores, cells)


def every_target() -> list[Cell]:
    """Return a cell for each target, some met, some missed, with a spread."""
    return [
        cell(key, f"<{key}> & more", [target.value * each for each in (0.5, 0.9, 3.0)], unit)
        for key, target in TARGETS.items()
        for unit in (["ms"] if "p99" in key or "lost" in key else ["×"])
    ]


def test_every_target_row_has_a_suite_and_results(tmp_path: Path) -> None:
    assert {target.row for target in TARGETS.values()} - {0} == set(range(1, 15))
    assert {key.split(".")[0] for key in TARGETS} <= SUITES.keys()

    report.write(tmp_path, {"all": record(*every_target())})

    rows = json.loads((tmp_path / "results.json").read_text())
    assert [row["id"] for row in rows] == sorted(target.row for target in TARGETS.values() if target.row)
    assert {"id", "name", "value", "target", "met"} <= rows[0].keys()
    assert all(row["low"] <= row["value"] <= row["high"] for row in rows)


def test_missed_targets_come_first_in_the_report(tmp_path: Path) -> None:
    missed = cell("noop.received.node_per_paho", "received, node ÷ paho", [3.0, 3.1, 3.2], "×")
    met = cell("vad.node_per_loop", "node ÷ loop", [6.5], "×")
    report.write(tmp_path, {"vad": record(met), "noop": record(missed)})

    text = (tmp_path / "REPORT.md").read_text()
    lost = text.index("- received, node ÷ paho: **3.10 ×**, target 4")
    assert text.index("## Where we lose") < lost < text.index("](report.svg)") < text.index("## Method")
    assert "- node ÷ loop" not in text


def test_background_load_above_a_tenth_of_a_core_is_reported(tmp_path: Path) -> None:
    quiet, loud = record(others_cores=0.05), record(others_cores=0.4)
    report.write(tmp_path, {"vad": quiet, "noop": loud})

    (line,) = (line for line in (tmp_path / "REPORT.md").read_text().splitlines() if "Other work" in line)
    assert "noop 0.40" in line
    assert "vad" not in line


def test_results_of_other_suites_on_the_same_machine_are_kept(tmp_path: Path) -> None:
    one = cell("vad.node_per_loop", "node ÷ loop", [3.5, 3.6], "×")
    report.write(tmp_path, {"vad": record(one)})

    assert report.earlier(tmp_path) == {"vad": record(one)}


def test_results_of_another_machine_are_discarded(tmp_path: Path) -> None:
    report.write(tmp_path, {"vad": record()})
    stored = json.loads((tmp_path / "cells.json").read_text())
    stored["machine"]["cores"] = 4096
    (tmp_path / "cells.json").write_text(json.dumps(stored))

    assert report.earlier(tmp_path) == {}


def test_the_picture_is_valid_and_reproducible() -> None:
    cells = every_target()
    drawn = picture.draw(cells)
    root = Xml.fromstring(drawn)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    shown = [each for each in cells if each.target]
    bars = [each for each in root if each.get("class") in ("met", "missed")]
    assert len(bars) == len(shown)
    assert drawn == picture.draw(cells)


def test_the_picture_distinguishes_met_from_missed_without_colour() -> None:
    met = cell("vad.node_per_loop", "", [6.0], "×")
    missed = cell("latency.vad.added_p50", "", [0.5], "ms")
    texts = [each.text for each in Xml.fromstring(picture.draw([met, missed])).iter("{http://www.w3.org/2000/svg}text")]
    assert "✓ 6 (≥ 5.5)" in texts
    assert "✗ 0.5 ms (≤ 0.28)" in texts


def test_a_negative_value_scores_best_if_less_is_better() -> None:
    """Added latency is a difference and may be negative."""
    less = cell("latency.vad.added_p50", "", [-0.1], "ms")
    assert picture.score(less, less.value) == float("inf")
    Xml.fromstring(picture.draw([less]))


def test_rows_and_names_select_suites_in_order() -> None:
    assert select_suites("9,1") == ["vad", "overload"]
    assert select_suites("5") == select_suites("6") == ["noop"]
    assert select_suites(" text , 7") == ["text", "large"]
    assert select_suites("") == [name for name, suite in SUITES.items() if not suite.explicit_only]
    with pytest.raises(typer.BadParameter, match=r"no suite or row '15'.*rows 1 to 14"):
        select_suites("15")


def test_a_ratio_is_taken_within_each_repeat() -> None:
    """A busy machine slows both sides of a repeat, so its ratio is as good as the others."""
    both = ratio("vad.node_per_loop", "", [100.0, 10.0, 90.0], [50.0, 5.0, 30.0])

    assert (both.value, both.low, both.high) == (2.0, 2.0, 3.0)


def test_a_target_is_a_lower_limit_for_ratios_and_an_upper_limit_for_times() -> None:
    """The unit decides which."""
    assert cell("vad.node_per_loop", "", [9.0], "×").met is True
    assert cell("latency.vad.added_p50", "", [9e9], "ms").met is False
    assert cell("vad.rate.node", "", [9.0], "frames/s").met is None


def test_a_percentile_is_not_interpolated() -> None:
    """A p99 is a latency that some frame had."""
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([3.0, 1.0, 2.0], 0.99) == 3.0
