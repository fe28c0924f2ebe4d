"""Run the benchmarks side by side: `python -m benchmarks --quick --only vad,5`."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import structlog
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.data_path import (
    compared,
    durable,
    large,
    latency,
    noop,
    overload,
    received,
    streams,
    telemetry,
    text,
    vad,
    workers,
)
from benchmarks.fleet import acknowledged, collected, distribution, enrolled, messages, rollout
from benchmarks.harness.cells import TARGETS, Cell, Options
from benchmarks.harness.process import BackgroundLoad
from benchmarks.models import batching, memory, reload, sharing, swap
from benchmarks.report import report


@dataclass(frozen=True, slots=True)
class Suite:
    """One benchmark.

    Attributes:
        run: measures it.
        loads: runs of the load per repeat; with `each_s` and `once_s`, gives the estimated duration.
        each_s, once_s: further seconds per repeat, and once per suite, on two cores.
        most: limits repeats, for suites without a numbered target.
        explicit_only: run only if named, because it takes minutes.
    """

    run: Callable[[Options], list[Cell]]
    loads: int
    each_s: float = 0.0
    once_s: float = 4.0
    most: int = 100
    explicit_only: bool = False

    def of(self, options: Options) -> Options:
        """Return the options with repeats limited to `most`."""
        return replace(options, repeats=min(options.repeats, self.most))

    def planned_s(self, options: Options) -> float:
        """Return the estimated duration in seconds."""
        one_s = options.seconds + options.warmup_s + _START_S
        return self.once_s + self.of(options).repeats * (self.loads * one_s + self.each_s)


_START_S = 0.3
"""Time to start the load's process."""
SUITES: dict[str, Suite] = {
    "vad": Suite(vad.run, 2, 5),
    "peers": Suite(compared.run, 9, -6, 14, most=2),  # its loads are shorter
    "text": Suite(text.run, 2, 3, 15),
    "latency": Suite(latency.run, 4, 1, 12),
    "noop": Suite(noop.run, 5),
    "large": Suite(large.run, 0, 6, 9),
    "receive": Suite(received.run, 0, 16, most=2),
    "collect": Suite(collected.run, 0, 8, most=2),
    "acks": Suite(acknowledged.run, 0, 6, most=5),
    "enrolment": Suite(enrolled.run, 0, 30, most=2),
    "durable": Suite(durable.run, 2, 1, most=2),
    "fleet": Suite(messages.run, 0, 8, 38, most=2),
    "streams": Suite(streams.run, 3, 0, 14),
    "telemetry": Suite(telemetry.run, 2),
    "batching": Suite(batching.run, 0, 15),
    "overload": Suite(overload.run, 3, 6),
    "fairness": Suite(overload.fairness, 2, 3),
    "memory": Suite(memory.run, 1, 6, 0),
    "sharing": Suite(sharing.run, 2),
    "workers": Suite(workers.run, 2),
    "reload": Suite(reload.run, 1, 3, most=2),
    "rollout": Suite(rollout.run, 0, 600, most=1, explicit_only=True),
    "distribution": Suite(distribution.run, 0, 180, most=2, explicit_only=True),
    "swap": Suite(swap.run, 2, 18, 9, most=2),
}
HERE = Path(__file__).parent
FULL, QUICK, SMOKE = Options(5, 1.75, 0.5), Options(3, 1.5, 0.5), Options(1, 0.4, 0.3, smoke=True)


def main(
    only: Annotated[
        str, typer.Option(help=f"Suites or rows of targets, separated by commas: {', '.join(SUITES)}.")
    ] = "",
    quick: Annotated[bool, typer.Option("--quick", help="Three short repeats.")] = False,
    smoke: Annotated[bool, typer.Option("--smoke", help="Only check that it works; the numbers mean nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the cells as JSON instead of tables.")] = False,
    repeats: Annotated[int | None, typer.Option(min=1, help="Repeats per contender.")] = None,
    folder: Annotated[Path, typer.Option(help="Folder for the report; results of other suites there are kept.")] = HERE,
) -> None:
    """Measure the node beside its peers; write REPORT.md, report.svg, results.json and cells.json."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    names = select_suites(only)
    options = SMOKE if smoke else QUICK if quick else FULL
    if repeats is not None:
        options = Options(repeats, options.seconds, options.warmup_s, smoke)
    console = Console(stderr=as_json)
    records = dict(report.earlier(folder))
    began = time.monotonic()
    for done, name in enumerate(names):
        console.print(
            f"[{done + 1}/{len(names)}] {name}: {_left(names, done, began, options)}", highlight=False, markup=False
        )
        measured = f"{datetime.now(UTC):%Y-%m-%d %H:%M}"
        with console.status(name), BackgroundLoad() as background:
            cells = SUITES[name].run(SUITES[name].of(options))
        records[name] = report.Record.of(measured, SUITES[name].of(options), background.cores, cells)
        console.print(_table(name, cells))
        # After each suite, so that an interrupted run keeps its results.
        report.write(folder, {suite: records[suite] for suite in SUITES if suite in records})
    console.print(f"{(time.monotonic() - began) / 60:.1f} min. Report: {folder / 'REPORT.md'}", highlight=False)
    if as_json:
        json.dump([asdict(each) for name in names for each in records[name].cells], sys.stdout, indent=1)


def select_suites(only: str) -> list[str]:
    """Return the suites with these names or rows, in their order. Raises: typer.BadParameter: one does not exist."""
    rows: dict[str, set[str]] = {}
    for key, target in TARGETS.items():
        rows.setdefault(str(target.row), set()).add(key.split(".")[0])
    selected: set[str] = set()
    for name in filter(None, (part.strip() for part in only.split(","))):
        if name not in SUITES and (name == "0" or name not in rows):
            raise typer.BadParameter(
                f"no suite or row {name!r}; suites are {', '.join(SUITES)}, and rows 1 to {max(map(int, rows))}"
            )
        selected |= {name} if name in SUITES else rows[name]
    return [name for name, suite in SUITES.items() if name in selected or not (selected or suite.explicit_only)]


def _left(names: Sequence[str], done: int, began: float, options: Options) -> str:
    """Return the estimated time for this suite and in total, corrected by the duration of the previous suites."""
    planned = [SUITES[name].planned_s(options) for name in names]
    pace = (time.monotonic() - began) / sum(planned[:done]) if done else 1.0
    return f"about {planned[done] * pace:.0f} s; {sum(planned[done:]) * pace / 60:.1f} min left in total"


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
