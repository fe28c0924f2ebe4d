"""`receive.py` as cells: the bus's CPU time to receive a message, beside other clients."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.harness.cells import Cell, Options, cell, ratio

_CASES = ("64 B, QoS 0, busy", "100 kB, QoS 0")
"""`receive.py` also covers idle links; `large.py` covers 1 MB, and `noop.py` QoS 1."""


def run(options: Options) -> list[Cell]:
    """CPU time per message, by client and case. Each repeat is a separate run of `receive.py`."""
    flags = ["--smoke"] if options.smoke else ["--repeats", "1"]
    runs = []
    for _ in range(options.repeats):
        command = [sys.executable, str(Path(__file__).with_name("receive.py")), "--json", *flags, "--cases", *_CASES]
        runs.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))
    cells: list[Cell] = []
    for case, clients in runs[0].items():
        key = case.lower().replace(",", "").replace("qos ", "qos").replace(" ", "_").replace("_b_", "b_")
        cost = {client: [each[case][client]["cpu_us"] for each in runs] for client in clients}
        for client, values in cost.items():
            short = client.split(",")[0] + ("_uvloop" if "uvloop" in client else "")
            cells.append(cell(f"receive.{key}.cpu.{short}", f"{case}: {client}", values, "µs"))
            if client not in ("ours", "ours, uvloop"):
                name = f"{case}: {client} ÷ ours"
                cells.append(ratio(f"receive.{key}.{short}_per_ours", name, values, cost["ours"]))
    return cells
