"""`hedgerow demo region`: runs three sites and their region, cuts the WAN of one for a while, and counts the results."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from hedgerow.cli.base.console import echo
from hedgerow.cli.base.tables import print_table
from hedgerow.cli.demo.prepare import Skipped, log_skipped, prepare, reasons
from hedgerow.cli.demo.processes import DemoProcesses, Log, SiteProcesses, silent
from hedgerow.cli.demo.results import count_by_site, wait_until_settled
from hedgerow.cli.demo.waiting import stop_on_signals

SITES: Final = ("north", "harbour", "mill")
CUT_SITE: Final = "harbour"

DIAGRAM: Final = """\
  north    sensors ▸ broker ▸ node ▸ outbox ▸ broker ══════════╗
  harbour  sensors ▸ broker ▸ node ▸ outbox ▸ broker ══ ✂ ═════╬═▸ region's broker ▸ collector ▸ store
  mill     sensors ▸ broker ▸ node ▸ outbox ▸ broker ══════════╝
"""


def run(seconds: float | None, folder: Path, *, json: bool) -> dict[str, Any]:
    """Run the demo and return its report."""
    log: Log = silent if json else echo
    log(DIAGRAM)
    folder.mkdir(parents=True, exist_ok=True)
    skipped = prepare(folder, "demo.yaml")
    log_skipped(skipped, log)
    sites = {name: ["gateway"] for name in SITES}
    with DemoProcesses(folder, "demo-region.yaml", sites, log, skipped=skipped) as processes:
        report = asyncio.run(_run(processes, 60.0 if seconds is None else seconds, skipped, log))
    return report | {"skipped": reasons(skipped)}


async def _run(processes: DemoProcesses, seconds: float, skipped: Skipped, log: Log) -> dict[str, Any]:
    from hedgerow.cli.demo.feeds import demo_feeds, run_feeds

    stop = stop_on_signals()
    await processes.ready(stop)
    feeds = {site.name: demo_feeds(skipped) for site in processes.sites}
    feeding = []
    for site in processes.sites:
        for feed in feeds[site.name]:
            if feed.every_s is not None:
                feed.every_s *= len(SITES)  # the sites share one machine
        feeding.append(asyncio.create_task(run_feeds(site.sensors, feeds[site.name])))
    started = time.monotonic()
    log(f"Sensors are sending for {seconds:.0f} s.")
    log(f"{'TIME':>6}  {'SITE':<8}{'PRODUCED':>10}{'STORED':>10}{'WAITING':>10}  WAN")
    outage = _Outage(processes, seconds / 4, seconds / 2)
    while ((elapsed := time.monotonic() - started) < seconds or outage.state != "over") and not stop.is_set():
        processes.check()
        for task in feeding:
            if task.done():
                task.result()
        await outage.step(elapsed)
        await processes.refresh_health()
        _log_counts(processes, outage.state, elapsed, log)
        with suppress(TimeoutError):
            async with asyncio.timeout(min(5.0, max(0.1, seconds - elapsed))):
                await stop.wait()
    outage.site.wan.restore()
    for task in feeding:
        task.cancel()
    await asyncio.gather(*feeding, return_exceptions=True)
    duration = time.monotonic() - started
    log("Sensors have stopped. Waiting for the last results…")
    await wait_until_settled(processes, log)
    counts = count_by_site(processes)
    _log_counts(processes, "over", time.monotonic() - started, log)
    ok = all(
        each["results"] > 0 and not each["lost"] and not each["duplicated"] and not each["waiting"] and not each["gaps"]
        for each in counts.values()
    )
    total = {key: sum(each[key] for each in counts.values()) for key in ("results", "stored", "lost", "duplicated", "gaps", "bytes_in", "bytes_up")}  # fmt: skip
    return {"ok": ok, "seconds": round(duration, 1), "sites": counts, "cut": outage.report, **total}


class _Outage:
    """Cuts the WAN of one site from `start_s` until `end_s`; later on a busy machine, but for as long.

    Attributes:
        state: "before", "cut" or "over".
        report: times, and results stored and waiting at them.
    """

    def __init__(self, processes: DemoProcesses, start_s: float, end_s: float) -> None:
        self._processes = processes
        self._start_s = start_s
        self._duration_s = end_s - start_s
        self.site: SiteProcesses = next(site for site in processes.sites if site.name == CUT_SITE)
        self.state = "before"
        self.report: dict[str, Any] = {"site": CUT_SITE, "from_s": round(start_s, 1), "to_s": round(end_s, 1)}

    async def step(self, elapsed: float) -> None:
        """SplitOptions or restore the WAN if it is time."""
        if self.state == "before" and elapsed >= self._start_s:
            self.site.wan.cut()
            self.state, self.report["from_s"] = "cut", round(elapsed, 1)
            await self._processes.refresh_health()
            self.report["stored_when_cut"] = count_by_site(self._processes)[CUT_SITE]["stored"]
        elif self.state == "cut" and elapsed >= self.report["from_s"] + self._duration_s:
            self.report["to_s"] = round(elapsed, 1)
            await self._processes.refresh_health()
            self.report["waiting_before_it_came_back"] = count_by_site(self._processes)[CUT_SITE]["waiting"]
            self.site.wan.restore()
            self.state = "over"


def _log_counts(processes: DemoProcesses, state: str, elapsed: float, log: Log) -> None:
    for name, each in count_by_site(processes).items():
        wan = "✂ cut" if name == CUT_SITE and state == "cut" else "up"
        log(f"{elapsed:>4.0f} s  {name:<8}{each['results']:>10,}{each['stored']:>10,}{each['waiting']:>10,}  {wan}")


def print_report(report: dict[str, Any], folder: Path) -> None:
    """Print the report for people."""
    echo("")
    rows = [
        (
            name,
            *(f"{each[key]:,}" for key in ("frames", "results", "stored", "lost", "duplicated")),
            f"{each['bytes_in'] / 1e6:.1f} MB",
            f"{each['bytes_up'] / 1e6:.2f} MB",
            f"{each['bytes_in_per_byte_up']:g}",
        )
        for name, each in report["sites"].items()
    ]
    numbers = (">FRAMES", ">PRODUCED", ">STORED", ">LOST", ">DUPLICATED", ">BYTES IN", ">BYTES OUT", ">IN/OUT")
    print_table(("SITE", *numbers), rows)
    cut = report["cut"]
    if "waiting_before_it_came_back" in cut:
        echo(
            f"While {cut['site']} was cut off for {cut['to_s'] - cut['from_s']:.0f} s, "
            f"{cut['waiting_before_it_came_back']:,} results waited on its disk."
        )
    echo(f"To explore: cd {os.path.relpath(folder)}; hedgerow results query; less topology.yaml rendered/")
