"""`collect.py` as cells: what it costs a region to store a result, beside a loop that commits each."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.fleet.collect import LOOP
from benchmarks.harness.cells import Cell, Options, cell, ratio


def run(options: Options) -> list[Cell]:
    """Results a second and processor time a result, into SQLite with an fsync for each commit."""
    flags = ["--smoke"] if options.smoke else ["--repeats", str(options.repeats)]
    command = [sys.executable, str(Path(__file__).with_name("collect.py")), "--json", *flags]
    runs = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    short = {"ours": "ours", LOOP: "loop"}
    cells: list[Cell] = []
    for key, unit in (("rate", "frames/s"), ("cpu_us", "µs")):
        for name, done in runs.items():
            note = "a frame is a result" if key == "rate" else ""
            cells.append(
                cell(f"collect.{key}.{short[name]}", f"stored: {name}", [one[key] for one in done], unit, note)
            )
    ours, loop = ([one["rate"] for one in runs[name]] for name in ("ours", LOOP))
    cells.append(ratio("collect.ours_per_loop", "Results stored: collector ÷ loop: rate", ours, loop))
    return cells
