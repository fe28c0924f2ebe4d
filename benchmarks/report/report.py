"""Writes results.json, cells.json, report.svg and REPORT.md.

- `results.json` has one entry per target with a row; its `id` is the row.
- `cells.json` has all measurements, by suite, with time and options.
- A run of some suites keeps the folder's results of the others, if they were measured on the same machine with the same
  versions; each entry has its time.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from benchmarks.harness.cells import TARGETS, Cell, Options
from benchmarks.report import picture
from hedgerow.backends.cores import cores

_PACKAGES: Final = ("hedgerow", "numpy", "onnxruntime", "openvino", "paho-mqtt", "aiomqtt", "gmqtt")
_MAX_BACKGROUND_CORES: Final = 0.1
_METHOD: Final = """\
Each contender is a separate process on one Mosquitto. All run at the same time, and one process loads them in turns, so
other work on the machine affects all alike. Numbers are medians over the repeats, with minimum and maximum. Ratios are
taken within each repeat, then their median. Absolute numbers depend on this machine at that time; compare the ratios.

- **Saturating** load is a closed loop: a fixed number of frames is in flight, and each result releases the next frame.
  The load counts the results. In an **open loop** (latency, overload, reload), frames are sent when due and latency
  counts from then, so a stall is charged to every frame it delays. Frames due within the measured time count however
  late their result arrives.
- **CPU time** is user and system time of a process over the measured seconds, divided by results.
- **loop** is paho with the model called in `on_message`, one message at a time, written as well as we can
  (`benchmarks/peers/`). It has no bounded queue, no lineage and no health reports.
- **peers** are listed in `docs/contributor/performance.md`, with their settings and the sources of these. A run takes
  one second. LitServe and MLServer are loaded natively, bypassing the broker, by 64 clients with one frame in flight
  each; and through the broker by one adapter (`benchmarks/peers/adapter.py`), whose CPU time is included.
- **The bound** of text detection is the number of cores ÷ the least CPU time that a frame costs: in the backend alone
  at its best setting (from a sweep over backends, threads and batches, in float32), in the broker and in the load. The
  node also decodes, finds boxes, encodes and publishes.
- **Added latency** is the node's p50 or p99 minus that of a control: one thread on a raw socket that passes each frame
  to the same model, batch 1, and publishes a reply encoded beforehand. The control has the same inference and the same
  two broker hops at the same rate on the same cores, and does nothing else.
- **mosquitto_sub** prints the length of each frame. It and the node get the same frames as fast as the broker accepts
  them; time runs from the first frame sent to the last one received (mosquitto_sub) or answered (the node).
- **Copies** are counted in the node: the peak of Python's memory per frame of 1 MB, in frames. The receive buffer
  counts as one; a copy of it would make two.
- **Age** of a result in overload is the time from when its frame was due until the load received the result.
"""


@dataclass(frozen=True, slots=True)
class Record:
    """One run of one suite.

    Attributes:
        measured: time, UTC.
        repeats, seconds, warmup_s, smoke: options of the run.
        others_cores: cores used by unrelated processes during the run.
        cells: results.
    """

    measured: str
    repeats: int
    seconds: float
    warmup_s: float
    smoke: bool
    others_cores: float
    cells: tuple[Cell, ...]

    @classmethod
    def of(cls, measured: str, options: Options, others_cores: float, cells: Iterable[Cell]) -> Record:
        """Make a record of a suite's cells."""
        rounded = (each.rounded() for each in cells)
        how = (options.repeats, options.seconds, options.warmup_s, options.smoke)
        return cls(measured, *how, round(others_cores, 3), tuple(rounded))


Records = Mapping[str, Record]
"""By suite."""


def earlier(folder: Path) -> Records:
    """Read the folder's records, if they were measured on this machine with these versions."""
    path = folder / "cells.json"
    if not path.exists():
        return {}
    stored = json.loads(path.read_text())
    if stored["machine"] != _machine():
        return {}
    return {
        name: Record(**{**record, "cells": tuple(Cell(**each) for each in record["cells"])})
        for name, record in stored["suites"].items()
    }


def write(folder: Path, records: Records) -> None:
    """Write all four files."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"machine": _machine(), "suites": {name: asdict(record) for name, record in records.items()}}
    (folder / "cells.json").write_text(_json(content))
    (folder / "results.json").write_text(_json(rows(records)))
    (folder / "report.svg").write_text(picture.draw(_targeted(records)))
    (folder / "REPORT.md").write_text("\n".join(_lines(records)) + "\n")


def rows(records: Records) -> list[dict[str, Any]]:
    """Return the entries of results.json."""
    return [
        {
            "id": TARGETS[each.id].row,
            "name": each.name,
            "value": each.value,
            "target": each.target,
            "met": each.met,
            "unit": each.unit,
            "low": each.low,
            "high": each.high,
            "key": each.id,
            "measured": record.measured,
            "repeats": record.repeats,
        }
        for each, record in _with_records(records)
        if TARGETS[each.id].row
    ]


def number(value: float) -> str:
    """Format a number with about three significant digits."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.3f}"


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def _with_records(records: Records) -> list[tuple[Cell, Record]]:
    """Return the cells with a target, in the order of TARGETS."""
    order = list(TARGETS)
    found = [(each, record) for record in records.values() for each in record.cells if each.id in TARGETS]
    return sorted(found, key=lambda pair: order.index(pair[0].id))


def _targeted(records: Records) -> list[Cell]:
    return [each for each, _ in _with_records(records)]


def _lines(records: Records) -> list[str]:
    lines = ["# Benchmarks", "", *_heading(), "", "## Where we lose", "", *_losses(records), "", *_warnings(records)]
    lines += [
        "## Targets",
        "",
        "![Each target as a bar: how far the measured value is above or below it](report.svg)",
        "",
    ]
    lines += ["| row | | median | low – high | unit | target | |", "|--:|---|--:|--:|---|--:|---|"]
    for each in _targeted(records):
        row = TARGETS[each.id].row or ""
        lines.append(f"| {row} | {each.name} | {' | '.join(_numbers(each))} | {'met' if each.met else '**missed**'} |")
    lines += ["", "## Method", "", _METHOD]
    for name, record in records.items():
        lines += [f"## {name}", ""]
        lines += [
            f"{record.measured} UTC, {record.repeats} repeats of {record.seconds:g} s, {record.warmup_s:g} s warm-up.",
            "",
        ]
        lines += ["| | median | low – high | unit | target | |", "|---|--:|--:|---|--:|---|"]
        for each in record.cells:
            met = "" if each.met is None else "met" if each.met else "**missed**"
            note = "; ".join(part for part in (met, each.note) if part)
            lines.append(f"| {each.name} | {' | '.join(_numbers(each))} | {note} |")
        lines.append("")
    return lines[:-1]


def _numbers(each: Cell) -> list[str]:
    sign = "≤" if each.less_is_better else "≥"
    target = "" if each.target is None else f"{sign} {each.target:g}"
    return [number(each.value), f"{number(each.low)} – {number(each.high)}", each.unit, target]


def _losses(records: Records) -> list[str]:
    """List the cells that missed their targets, and the ratios to a peer below one."""
    lines = []
    for each in (each for record in records.values() for each in record.cells):
        behind = each.target is None and each.unit == "×" and each.value < 1
        if each.met is False or behind:
            of_target = f", target {each.target:g}" if each.target is not None else ""
            note = f" ({each.note})" if each.note else ""
            lines.append(f"- {each.name}: **{number(each.value)} {each.unit}**{of_target}{note}")
    return lines or ["None of the measured cells."]


def _warnings(records: Records) -> list[str]:
    """List the reasons to distrust the numbers."""
    lines: list[str] = []
    if smoke := [name for name, record in records.items() if record.smoke]:
        lines += [f"**Smoke runs, whose numbers mean nothing:** {', '.join(smoke)}.", ""]
    if few := [name for name, record in records.items() if record.repeats < 5 and not record.smoke]:
        lines += [f"**Fewer than five repeats:** {', '.join(few)}.", ""]
    busy = {name: each.others_cores for name, each in records.items() if each.others_cores > _MAX_BACKGROUND_CORES}
    if busy:
        used = ", ".join(f"{name} {cores:.2f}" for name, cores in busy.items())
        lines += [
            (
                f"**Other work used more than {_MAX_BACKGROUND_CORES:.0%} of a core** (average cores, by suite): {used}. "
                "Contenders with more threads then get a larger share of the rest, so ratios of rates favour the node; "
                "compare CPU time, and measure again on an idle machine."
            ),
            "",
        ]
    return lines


def _machine() -> dict[str, Any]:
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        named = (line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line)
        model = next(named, model)
    return {
        "processor": model,
        "cores": cores(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _heading() -> Sequence[str]:
    machine = _machine()
    packages = ", ".join(f"{name} {number}" for name, number in machine["packages"].items())
    return (
        f"{machine['processor']}, {machine['cores']} cores · {machine['system']} · Python {machine['python']}",
        "",
        packages,
    )
