"""results.json and REPORT.md."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.cells import OTHERS, Cell, Options
from hedgerow.backends.cores import cores

_PACKAGES = ("hedgerow", "numpy", "onnxruntime", "openvino", "paho-mqtt", "aiomqtt", "gmqtt")
_ALONE_CORES = 0.2
_METHOD = """\
Every contender is a process of its own on one Mosquitto; all are up at once, and one process loads them in turns, so
that whatever else the machine does falls on all alike. Numbers are medians over the repeats, with the least and the
most beside them; a ratio is taken within each repeat, and its median over them. Absolute numbers belong to this
machine at that hour; the ratios are what to compare.

- **Saturating** means a closed loop: a fixed number of frames is under way, and each result lets the next one go. The
  load counts the results itself. **Open loop** (latency) means that frames go when they are due and latency counts from
  then, so that a stall is charged to every frame it delays.
- **Processor time** is user and system time of a process over the measured seconds, divided by results.
- **raw** is the backend called in a loop on inputs made beforehand, on all cores. It is a bound, not a peer: it decodes,
  receives and publishes nothing, and shares the cores with nobody.
- **loop** is paho with the model called in `on_message`, one message at a time, written as well as we know how
  (`benchmarks/peers.py`). It bounds no queue, keeps no lineage and says nothing of its health.
"""


def results(done: Mapping[str, Sequence[Cell]]) -> list[dict[str, Any]]:
    """What stands in results.json."""
    return [each.as_dict() for cells in done.values() for each in cells]


def write(folder: Path, done: Mapping[str, Sequence[Cell]], options: Options) -> None:
    """Write both files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results(done), indent=1, ensure_ascii=False) + "\n")
    (folder / "REPORT.md").write_text("\n".join(_lines(done, options)) + "\n")


def number(value: float) -> str:
    """A number for people: three digits that matter."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _lines(done: Mapping[str, Sequence[Cell]], options: Options) -> list[str]:
    lines = ["# Benchmarks", "", *_machine(), ""]
    lines.append(f"{options.repeats} repeats of {options.seconds:g} s each, after {options.warmup_s:g} s to warm up.")
    if options.smoke:
        lines += ["", "**A smoke run: it shows that the benchmarks work, and nothing else.**"]
    lines += _company(done)
    lines += ["", "## Where we lose", "", *_losses(done), "", "## Method", "", _METHOD]
    for name, cells in done.items():
        lines += [f"## {name}", "", "| | median | low – high | unit | target | |", "|---|--:|--:|---|--:|---|"]
        for each in cells:
            met = "" if each.met is None else "met" if each.met else "**missed**"
            target = "" if each.target is None else f"{each.target:g}"
            spread = f"{number(each.low)} – {number(each.high)}"
            note = "; ".join(part for part in (met, each.note) if part)
            lines.append(f"| {each.name} | {number(each.value)} | {spread} | {each.unit} | {target} | {note} |")
        lines.append("")
    return lines[:-1]


def _company(done: Mapping[str, Sequence[Cell]]) -> list[str]:
    """A warning, if the machine was not ours alone."""
    most = max((each.value for cells in done.values() for each in cells if f".{OTHERS}." in each.id), default=0.0)
    if most < _ALONE_CORES:
        return []
    warning = (
        f"**Other work took up to {most:.1f} of {cores()} cores meanwhile.** Then whoever has more threads gets more of the "
        "rest, so ratios of rates lean towards the node; compare processor time, and measure again on a quiet machine."
    )
    return ["", warning]


def _losses(done: Mapping[str, Sequence[Cell]]) -> list[str]:
    """Every cell that missed its target, and every ratio to a peer that is below one."""
    lines = []
    for cells in done.values():
        for each in cells:
            behind = each.unit == "×" and "raw" not in each.id and each.value < 1
            if each.met is False or behind:
                target = f" (target {each.target:g})" if each.target is not None else ""
                note = f": {each.note}" if each.note else ""
                lines.append(f"- `{each.id}` {number(each.value)} {each.unit}{target}, {each.name}{note}")
    return lines or ["In none of the cells measured."]


def _machine() -> list[str]:
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        model = next(
            (line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line), model
        )
    packages = []
    for name in _PACKAGES:
        try:
            packages.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            packages.append(f"{name} missing")
    machine = (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC · {model}, {cores()} cores · {platform.platform()} · "
        f"Python {platform.python_version()}"
    )
    return [machine, "", ", ".join(packages)]
