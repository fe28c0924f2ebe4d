"""What a run leaves: results.json, cells.json, report.svg and REPORT.md.

- `results.json` has a number for each line of the table of targets; its `id` is the row.
- `cells.json` has everything that was measured, by suite, with when and how thoroughly.
- A run of some suites leaves what the folder holds of the others, if it was measured on the same machine with the same
  versions; each entry says when that was.
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
_ALONE_CORES: Final = 0.1
_METHOD: Final = """\
Every contender is a process of its own on one Mosquitto; all are up at once, and one process loads them in turns, so
that whatever else the machine does falls on all alike. Numbers are medians over the repeats, with the least and the
most beside them; a ratio is taken within each repeat, and its median over them. Absolute numbers belong to this
machine at that hour; the ratios are what to compare.

- **Saturating** means a closed loop: a fixed number of frames is under way, and each result lets the next one go. The
  load counts the results itself. **Open loop** (latency, overload, reload) means that frames go when they are due and
  latency counts from then, so that a stall is charged to every frame it delays; frames due within the measured time
  count however late their result comes.
- **Processor time** is user and system time of a process over the measured seconds, divided by results.
- **loop** is paho with the model called in `on_message`, one message at a time, written as well as we know how
  (`benchmarks/peers/`). It bounds no queue, keeps no lineage and says nothing of its health.
- **peers** are listed in `docs/contributor/performance.md`, with their settings and where those come from. What they
  measure takes a second a run. LitServe and MLServer are loaded natively, past the broker, by 64 clients with one frame
  each under way, and through the broker by way of one adapter (`benchmarks/peers/adapter.py`), whose processor time
  counts as theirs.
- **The bound** of text detection is the number of cores ÷ the processor seconds that a frame costs at least: in the
  backend alone at its best setting (found by a sweep over backends, threads and batches, in float32), in the broker and
  in the load. The node decodes, finds boxes, encodes and publishes on top of that.
- **Added latency** is the node's p50 or p99 less that of a control: one thread on a raw socket that gives each frame to
  the same model, batch 1, and publishes an answer that was encoded beforehand. So the control has the same inference and the
  same two passes through the same broker at the same rate, waits for the same cores, and does nothing else.
- **mosquitto_sub** prints the length of each frame. Both it and the node get the same frames as fast as the broker
  takes them, and time runs from the first frame sent to the last one received (mosquitto_sub) or answered (the node).
- **Copies** are counted in the node: the most memory that Python had under way for a frame of 1 MB, in frames. The buffer
  that the kernel reads into is one; what was copied and its copy would be two.
- **Age** of a result in overload runs from when its frame was due to when the load heard it.
"""


@dataclass(frozen=True, slots=True)
class Record:
    """One run of one suite.

    Attributes:
        measured: when, UTC.
        repeats, seconds, warmup_s, smoke: how thoroughly.
        others_cores: cores that work which is none of ours took meanwhile.
        cells: what came of it.
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
        """What a suite has just measured."""
        rounded = (each.rounded() for each in cells)
        how = (options.repeats, options.seconds, options.warmup_s, options.smoke)
        return cls(measured, *how, round(others_cores, 3), tuple(rounded))


Records = Mapping[str, Record]
"""By suite."""


def earlier(folder: Path) -> Records:
    """What the folder holds, if it was measured on this machine with these versions."""
    path = folder / "cells.json"
    if not path.exists():
        return {}
    held = json.loads(path.read_text())
    if held["machine"] != _machine():
        return {}
    return {
        name: Record(**{**record, "cells": tuple(Cell(**each) for each in record["cells"])})
        for name, record in held["suites"].items()
    }


def write(folder: Path, records: Records) -> None:
    """Write all four files."""
    folder.mkdir(parents=True, exist_ok=True)
    held = {"machine": _machine(), "suites": {name: asdict(record) for name, record in records.items()}}
    (folder / "cells.json").write_text(_json(held))
    (folder / "results.json").write_text(_json(rows(records)))
    (folder / "report.svg").write_text(picture.draw(_targeted(records)))
    (folder / "REPORT.md").write_text("\n".join(_lines(records)) + "\n")


def rows(records: Records) -> list[dict[str, Any]]:
    """What stands in results.json."""
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
    """A number for people: three digits that matter."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.3f}"


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def _with_records(records: Records) -> list[tuple[Cell, Record]]:
    """Cells with a target, in the order of the table; those beside it last."""
    order = list(TARGETS)
    found = [(each, record) for record in records.values() for each in record.cells if each.id in TARGETS]
    return sorted(found, key=lambda pair: order.index(pair[0].id))


def _targeted(records: Records) -> list[Cell]:
    return [each for each, _ in _with_records(records)]


def _lines(records: Records) -> list[str]:
    lines = ["# Benchmarks", "", *_described(), "", "## Where we lose", "", *_losses(records), "", *_warnings(records)]
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
            f"{record.measured} UTC, {record.repeats} repeats of {record.seconds:g} s, {record.warmup_s:g} s to warm up.",
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
    """Every cell that missed its target, and every ratio to a peer that is below one."""
    lines = []
    for each in (each for record in records.values() for each in record.cells):
        behind = each.target is None and each.unit == "×" and each.value < 1
        if each.met is False or behind:
            of_target = f", target {each.target:g}" if each.target is not None else ""
            note = f" ({each.note})" if each.note else ""
            lines.append(f"- {each.name}: **{number(each.value)} {each.unit}**{of_target}{note}")
    return lines or ["In none of the cells measured."]


def _warnings(records: Records) -> list[str]:
    """What makes numbers worth less than they look."""
    lines: list[str] = []
    if smoke := [name for name, record in records.items() if record.smoke]:
        lines += [f"**Smoke runs, which show that the benchmarks work and nothing else:** {', '.join(smoke)}.", ""]
    if few := [name for name, record in records.items() if record.repeats < 5 and not record.smoke]:
        lines += [f"**Fewer than five repeats:** {', '.join(few)}.", ""]
    company = {name: each.others_cores for name, each in records.items() if each.others_cores > _ALONE_CORES}
    if company:
        took = ", ".join(f"{name} {taken:.2f}" for name, taken in company.items())
        lines += [
            (
                f"**Other work took more than {_ALONE_CORES:.0%} of a core** (cores on average, by suite): {took}. Whoever has "
                "more threads then gets more of the rest, so ratios of rates lean towards the node; compare processor time, "
                "and measure again on a quiet machine."
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


def _described() -> Sequence[str]:
    of = _machine()
    packages = ", ".join(f"{name} {number}" for name, number in of["packages"].items())
    return f"{of['processor']}, {of['cores']} cores · {of['system']} · Python {of['python']}", "", packages
