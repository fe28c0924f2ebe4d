"""Run the benchmarks side by side: `python -m benchmarks --quick --only vad,noop`."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import structlog
import typer
from rich.console import Console
from rich.table import Table

from benchmarks import (
    batching,
    latency,
    memory,
    noop,
    overload,
    received,
    report,
    sharing,
    streams,
    text,
    vad,
    workers,
)
from benchmarks.cells import Cell, Options

SUITES: dict[str, Callable[[Options], list[Cell]]] = {
    "vad": vad.run,
    "text": text.run,
    "latency": latency.run,
    "noop": noop.run,
    "receive": received.run,
    "streams": streams.run,
    "batching": batching.run,
    "overload": overload.run,
    "fairness": overload.fairness,
    "memory": memory.run,
    "sharing": sharing.run,
    "workers": workers.run,
}
HERE = Path(__file__).parent
FULL, QUICK, SMOKE = Options(5, 5.0, 2.0), Options(3, 2.0, 1.0), Options(1, 0.4, 0.3, smoke=True)


def main(
    only: Annotated[str, typer.Option(help=f"Which, with commas between: {', '.join(SUITES)}.")] = ",".join(SUITES),
    quick: Annotated[bool, typer.Option("--quick", help="Three short repeats: about two minutes.")] = False,
    smoke: Annotated[bool, typer.Option("--smoke", help="See that it works; the numbers say nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print results.json instead of tables.")] = False,
    repeats: Annotated[int | None, typer.Option(min=1, help="Repeats of every contender.")] = None,
    folder: Annotated[Path, typer.Option(help="Where results.json and REPORT.md go.")] = HERE,
) -> None:
    """Measure the node beside its peers; write results.json and REPORT.md."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    names = ["text" if name.strip() == "ocr" else name.strip() for name in only.split(",")]
    if unknown := set(names) - SUITES.keys():
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: there are {', '.join(SUITES)}")
    options = SMOKE if smoke else QUICK if quick else FULL
    if repeats is not None:
        options = Options(repeats, options.seconds, options.warmup_s, smoke)
    console = Console(stderr=as_json)
    done: dict[str, list[Cell]] = {}
    for name in names:
        with console.status(f"{name}: {SUITES[name].__module__.removeprefix('benchmarks.')} …"):
            done[name] = SUITES[name](options)
        console.print(_table(name, done[name]))
        report.write(folder, done, options)  # after each, so that a run cut short leaves what it had
    if as_json:
        json.dump(report.results(done), sys.stdout, indent=1)


def _table(name: str, cells: list[Cell]) -> Table:
    table = Table(title=name, title_justify="left")
    table.add_column("")
    for head in ("median", "low", "high", "unit", "target"):
        table.add_column(head, justify="left" if head == "unit" else "right")
    for each in cells:
        mark = "" if each.met is None else " [green]✓[/]" if each.met else " [red]✗[/]"
        target = "" if each.target is None else f"{each.target:g}{mark}"
        numbers = [report.number(value) for value in (each.value, each.low, each.high)]
        table.add_row(each.name, *numbers, each.unit, target)
    return table


if __name__ == "__main__":
    try:
        typer.run(main)
    except KeyboardInterrupt:
        sys.exit(130)
