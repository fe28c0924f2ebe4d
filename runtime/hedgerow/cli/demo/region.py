"""`hedgerow demo region`: three sites and their region (`estate.py`), a WAN that is cut, and the account of it."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import typer

from hedgerow.cli.base.tables import print_table
from hedgerow.cli.demo.account import account_of, settled
from hedgerow.cli.demo.prepare import Skipped, prepare, reasons, say_skipped
from hedgerow.cli.demo.processes import DemoProcesses, Say, silent

SITES: Final = ("north", "harbour", "mill")
CUT: Final = "harbour"


PICTURE: Final = """\
  north    sensors ▸ broker ▸ node ▸ outbox ▸ broker ══════════╗
  harbour  sensors ▸ broker ▸ node ▸ outbox ▸ broker ══ ✂ ═════╬═▸ region's broker ▸ collector ▸ store
  mill     sensors ▸ broker ▸ node ▸ outbox ▸ broker ══════════╝
"""


def run(seconds: float | None, folder: Path, *, json: bool) -> dict[str, Any]:
    """Run the demo. Returns: its account."""
    say: Say = silent if json else typer.echo
    say(PICTURE)
    folder.mkdir(parents=True, exist_ok=True)
    skipped = prepare(folder, "demo.yaml")
    say_skipped(skipped, say)
    sites = {name: ["gateway"] for name in SITES}
    with DemoProcesses(folder, "demo-region.yaml", sites, say, skipped=skipped) as estate:
        account = asyncio.run(_run(estate, 60.0 if seconds is None else seconds, skipped, say))
    return account | {"skipped": reasons(skipped)}


async def _run(estate: DemoProcesses, seconds: float, skipped: Skipped, say: Say) -> dict[str, Any]:
    from hedgerow.cli.demo.feeds import demo_feeds, run_feeds

    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await estate.ready(stop)
    feeds = {site.name: demo_feeds(skipped) for site in estate.sites}
    feeding = []
    for site in estate.sites:
        for feed in feeds[site.name]:
            if feed.every_s is not None:
                feed.every_s *= len(SITES)  # they share this machine
        feeding.append(asyncio.create_task(run_feeds(site.sensors, feeds[site.name])))
    began, cut_at, back_at = time.monotonic(), seconds / 4, seconds / 2
    cut: dict[str, Any] = {"site": CUT, "from_s": round(cut_at, 1), "to_s": round(back_at, 1)}
    (harbour,) = (site for site in estate.sites if site.name == CUT)
    say(f"Sensors are sending for {seconds:.0f} s.")
    say(f"{'TIME':>6}  {'SITE':<8}{'PRODUCED':>10}{'STORED':>10}{'WAITING':>10}  WAN")
    state = "up"
    while ((passed := time.monotonic() - began) < seconds or state != "back") and not stop.is_set():
        estate.check()
        for task in feeding:
            if task.done():
                task.result()
        if state == "up" and passed >= cut_at:  # a busy machine may be late for it
            harbour.wan.cut()
            state, cut["from_s"] = "cut", round(passed, 1)
            await estate.ask_all()
            cut["stored_when_cut"] = account_of(estate)[CUT]["stored"]
        elif state == "cut" and passed >= cut["from_s"] + back_at - cut_at:
            cut["to_s"] = round(passed, 1)
            await estate.ask_all()
            cut["waiting_before_it_came_back"] = account_of(estate)[CUT]["waiting"]
            harbour.wan.restore()
            state = "back"
        await estate.ask_all()
        _show(estate, state, passed, say)
        with suppress(TimeoutError):
            async with asyncio.timeout(min(5.0, max(0.1, seconds - passed))):
                await stop.wait()
    harbour.wan.restore()
    for task in feeding:
        task.cancel()
    await asyncio.gather(*feeding, return_exceptions=True)
    lasted = time.monotonic() - began
    say("Sensors have stopped. What is still on its way arrives…")
    await settled(estate, say)
    account = account_of(estate)
    _show(estate, "up", time.monotonic() - began, say)
    ok = all(
        each["results"] > 0 and not each["lost"] and not each["duplicated"] and not each["waiting"] and not each["gaps"]
        for each in account.values()
    )
    total = {key: sum(each[key] for each in account.values()) for key in ("results", "stored", "lost", "duplicated", "gaps", "bytes_in", "bytes_up")}  # fmt: skip
    return {"ok": ok, "seconds": round(lasted, 1), "sites": account, "cut": cut, **total}


def _show(estate: DemoProcesses, state: str, passed: float, say: Say) -> None:
    for name, each in account_of(estate).items():
        wan = "✂ cut" if name == CUT and state == "cut" else "up"
        say(f"{passed:>4.0f} s  {name:<8}{each['results']:>10,}{each['stored']:>10,}{each['waiting']:>10,}  {wan}")


def print_account(account: dict[str, Any], folder: Path) -> None:
    """The account in words."""
    typer.echo("")
    rows = [
        (
            name,
            *(f"{each[key]:,}" for key in ("frames", "results", "stored", "lost", "duplicated")),
            f"{each['bytes_in'] / 1e6:.1f} MB",
            f"{each['bytes_up'] / 1e6:.2f} MB",
            f"{each['bytes_in_per_byte_up']:g}",
        )
        for name, each in account["sites"].items()
    ]
    numbers = (">FRAMES", ">PRODUCED", ">STORED", ">LOST", ">DUPLICATED", ">BYTES IN", ">BYTES OUT", ">IN/OUT")
    print_table(("SITE", *numbers), rows)
    cut = account["cut"]
    if "waiting_before_it_came_back" in cut:
        typer.echo(
            f"While {cut['site']} was cut off for {cut['to_s'] - cut['from_s']:.0f} s, "
            f"{cut['waiting_before_it_came_back']:,} results waited on its disk."
        )
    typer.echo(f"Look around: cd {os.path.relpath(folder)}; hedgerow results query; less topology.yaml rendered/")
