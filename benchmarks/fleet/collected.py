"""`collect.py` as cells: the cost of storing a result, beside a loop that commits each."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.fleet.collect import LOOP
from benchmarks.harness.cells import Cell, Options, cell, ratio


def run(options: Options) -> list[Cell]:
    """Results per second and CPU time per result, into SQLite with an fsync per commit."""
    flags = ["--smoke"] if options.smoke else ["--repeats", str(options.repeats)]
    command = [sys.executable, str(Path(__file__).with_name("collect.py")), "--json", *flags]
    runs = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    short = {"ours": "ours", LOOP: "loop"}
    cells: list[Cell] = []
    for key, unit, quantity in (("rate", "frames/s", "results stored"), ("cpu_us", "µs", "CPU time per result")):
        for name, measured in runs.items():
            note = "one result per frame" if key == "rate" else ""
            values = [one[key] for one in measured]
            cells.append(cell(f"collect.{key}.{short[name]}", f"{name}: {quantity}", values, unit, note))
    ours, loop = ([one["rate"] for one in runs[name]] for name in ("ours", LOOP))
    cells.append(ratio("collect.ours_per_loop", "results stored, collector ÷ loop", ours, loop))
    return cells
