"""`hedgerow demo life`: three machines become nodes; one is cloned, one replaced, one forgotten, and their region is restored.

    north    enrolled ▸ forgotten ▸ comes back, and is refused
    harbour  enrolled ▸ its disk copied: two machines of one name
    mill     enrolled ▸ destroyed while results wait ▸ another machine in its place
    region   backed up ▸ its disk fails ▸ restored

It uses only ordinary commands, and prints each of them.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from hedgerow.cli.base.console import echo
from hedgerow.cli.base.tables import print_table
from hedgerow.cli.demo.machines import NODE, Machines
from hedgerow.cli.demo.processes import DemoProcesses, Log, SiteProcesses, silent
from hedgerow.cli.demo.readings import Readings
from hedgerow.cli.demo.waiting import WaitedTooLong, Waiting, run_until_stopped, stop_on_signals
from hedgerow.errors import HedgerowError

SITES: Final = ("north", "harbour", "mill")
DIAGRAM: Final = """\
  north    meter ▸ broker ▸ gateway ▸ outbox ═══╗
  harbour  meter ▸ broker ▸ gateway ▸ outbox ═══╬═▸ region's broker ▸ service ▸ store ▸ backup
  mill     meter ▸ broker ▸ gateway ▸ outbox ═══╝
"""
_BATCH: Final = 10
_RESEND_S: Final = 120.0


def run(folder: Path, *, json: bool) -> dict[str, Any]:
    """Run the demo and return its report. Stopped by Ctrl-C, it deletes the folder if that is new."""
    log: Log = silent if json else echo
    log(DIAGRAM)
    started, is_new = time.monotonic(), not folder.exists()
    folder = folder.absolute()
    try:
        _prepare(folder)
        with DemoProcesses(
            folder,
            "demo-life.yaml",
            {name: [NODE] for name in SITES},
            log,
            region={"enrolment": {"places": "rendered/demo/service/places.json"}},
            enrols=True,
        ) as processes:
            report = run_until_stopped(_run(processes, log))
    except KeyboardInterrupt:
        if is_new:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    return report | {"seconds": round(time.monotonic() - started, 1)}


def _prepare(folder: Path) -> None:
    for old in ("machines", "claims", "backup"):
        shutil.rmtree(folder / old, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    base = files("hedgerow.cli.demo.templates").joinpath("demo-life-node.yaml").read_text("utf-8")
    (folder / "node.yaml").write_text(base, "utf-8")


async def _run(processes: DemoProcesses, log: Log) -> dict[str, Any]:
    demo = _LifeDemo(processes, log, stop_on_signals())
    north, harbour, mill = processes.sites
    try:
        async with demo.step("enrol", "Three machines become nodes"):
            await demo.enrol(processes.sites)
        async with demo.step("clone", "The disk of harbour's machine is copied, and both machines run"):
            await demo.clone(harbour)
        async with demo.step("replace", "Lightning strikes mill; another machine takes the place"):
            await demo.replace(mill)
        async with demo.step("forget", "North's machine is scrapped, and comes back"):
            await demo.forget(north)
        async with demo.step("restore", "The region's disk fails, and a backup is restored"):
            await demo.restore((harbour, mill))
    except HedgerowError as error:
        return demo.report(error)
    return demo.report()


class _LifeDemo:
    """Leads nodes through their lives, and reports what became of their results."""

    def __init__(self, processes: DemoProcesses, log: Log, stop: asyncio.Event) -> None:
        self._processes = processes
        self._log = log
        self._waiting = Waiting(processes, stop)
        self._machines = Machines(processes, self._waiting, log)
        self._readings = Readings(processes.store)
        self._steps: list[dict[str, Any]] = []
        self._twins: list[str] = []
        self._refused = 0

    @asynccontextmanager
    async def step(self, name: str, title: str) -> AsyncIterator[None]:
        """Do a step of the story; note what happens in it, and how long it takes."""
        self._log(f"\n{len(self._steps) + 1}. {title}\n")
        started = time.monotonic()
        self._steps.append({"step": name, "happened": []})
        try:
            yield
        finally:
            self._steps[-1]["seconds"] = round(time.monotonic() - started, 1)

    def _tell(self, text: str) -> None:
        self._steps[-1]["happened"].append(text)
        self._log(f"▸ {text}")

    async def enrol(self, sites: Sequence[SiteProcesses]) -> None:
        """Let a machine of each site become its node; their first results arrive."""
        await self._machines.enrol({site.name: site for site in sites})
        await self._machines.start(*(site.name for site in sites))
        ids = [one for site in sites for one in await self._readings.send(site, _BATCH)]
        await self._arrive(ids)
        self._tell(f"{len(sites)} machines are nodes; no key has left its machine. {len(ids)} results have arrived.")

    async def clone(self, site: SiteProcesses) -> None:
        """Copy a node's disk while results wait on it, and run both."""
        name, copy = site.name, f"{site.name}-copy"
        waiting = await self._fill_outbox(site)
        await self._machines.stop(name)
        self._machines.clone(name, copy)
        site.wan.restore()
        await self._machines.start(name, copy)
        self._log("Sending readings; the machines end each other's connections, since their client ids are the same…")
        ids: list[str] = []

        async def runs() -> set[str]:
            ids.extend(await self._readings.send(site, 1, twins=True))
            return await self._readings.runs(ids)

        await self._waiting.until(runs, lambda runs: len(runs) == 2 and len(ids) >= _BATCH)
        await self._arrive([*waiting, *ids])
        self._tell(f"Results of both have arrived: {len(ids)} new ones, and {_BATCH} that waited on both disks, once.")
        self._log("Waiting for two health reports of each…")
        status = await self._waiting.until(self._status, lambda status: _twins(status, site))
        self._twins = _twins(status, site)
        self._tell(f"The region names both: {'; '.join(self._twins)}.")
        await self._machines.stop(copy)

    async def replace(self, site: SiteProcesses) -> None:
        """Destroy a machine, and the memory of its broker, while results wait; another machine gets its disk, but not its key."""
        name, new = site.name, f"{site.name}-2"
        waiting = await self._fill_outbox(site)
        await self._machines.stop(name, signal.SIGKILL)
        await self._waiting.in_thread(lambda: self._processes.stop(f"broker-{name}", signal.SIGKILL))
        self._tell(f"The machine and its broker are dead. {_BATCH} results wait on the disk.")
        await self._machines.operator("node", "replace", f"{name}/{NODE}", "--why", "board failed", "--pki", "pki")
        await self._waiting.in_thread(lambda: self._processes.start_broker(name))
        site.wan.restore()
        refusal = await self._machines.refusal(name)
        if not refusal:
            raise HedgerowError(f"The broker of {name} accepts a revoked key", remedy="Report it: this is a bug.")
        self._tell(f"The broker refuses the old key: {refusal}.")
        await self._machines.enrol({new: site})
        self._machines.move_state(name, new)
        await self._machines.start(new)
        await self._arrive(waiting)
        self._tell(f"The {_BATCH} results have arrived, from the new machine.")

    async def forget(self, site: SiteProcesses) -> None:
        """Forget a node; it comes back with new results."""
        name = site.name
        await self._machines.stop(name)
        await self._machines.operator("node", "forget", f"{name}/{NODE}", "--why", "scrapped")
        await self._machines.start(name)
        self._refused = len(await self._readings.send(site, _BATCH, withheld=True))
        status = await self._waiting.until(self._status, lambda status: _refusals(status, site))
        await self._waiting.until(lambda: self._entries(site), lambda entries: entries >= self._refused)
        await self._machines.stop(name)
        self._tell(f"The region refuses what it sends: {_refusals(status, site)[0]}.")
        self._tell(f"Its {self._refused} new results are not acknowledged, so they stay on its disk.")

    async def restore(self, sites: Sequence[SiteProcesses]) -> None:
        """Back the region up while it runs; lose its disk after more results have come, and restore it."""
        await self._machines.operator("region", "backup", "backup")
        ids = [one for site in sites for one in await self._readings.send(site, _BATCH)]
        await self._arrive(ids)
        for site in sites:
            await self._acknowledged(site)
        self._tell(f"{len(ids)} more results have arrived since the backup, and are acknowledged.")
        await self._waiting.in_thread(lambda: self._processes.stop("collector", signal.SIGKILL))
        for part in self._processes.store.parent.glob(f"{self._processes.store.name}*"):
            part.unlink()
        self._log("The region's store is gone.")
        await self._machines.operator("region", "restore", "backup")
        await self._waiting.in_thread(self._processes.start_service)
        after = [one for site in sites for one in await self._readings.send(site, _BATCH)]
        await self._arrive(after)
        self._tell(f"The region runs again, and {len(after)} new results have arrived.")
        try:
            await self._arrive(ids, _RESEND_S)
            await self._waiting.until(self._status, lambda status: not _missing(status), timeout_s=_RESEND_S)
            for site in sites:
                await self._acknowledged(site)
        except WaitedTooLong:
            lost = len(await self._readings.missing(ids))
            self._tell(f"Of the {len(ids)} results that the backup did not have, {lost} have not come again.")
        else:
            self._tell(f"The nodes have sent again the {len(ids)} results that the backup did not have.")

    async def _fill_outbox(self, site: SiteProcesses) -> list[str]:
        """Cut a site off, and wait until results wait on its node's disk. Returns: the ids of their readings."""
        await self._acknowledged(site)
        site.wan.cut()
        self._log(f"✂ {site.name} is cut off.")
        ids = await self._readings.send(site, _BATCH)
        await self._waiting.until(lambda: self._entries(site), lambda entries: entries >= len(ids))
        return ids

    async def _acknowledged(self, site: SiteProcesses) -> None:
        await self._waiting.until(lambda: self._entries(site), lambda entries: entries == 0)

    async def _entries(self, site: SiteProcesses) -> int:
        """Return how many results wait in the outbox of a site's node; -1 if it does not say."""
        site.health.clear()
        await self._processes.refresh_health(site)
        return int((site.health.get(NODE, {}).get("outbox") or {}).get("entries", -1))

    async def _arrive(self, ids: Sequence[str], timeout_s: float | None = None) -> None:
        await self._waiting.until(lambda: self._readings.missing(ids), lambda missing: not missing, timeout_s=timeout_s)

    async def _status(self) -> dict[str, Any]:
        return self._region_status()

    def _region_status(self) -> dict[str, Any]:
        """Return what `hedgerow region status --json` prints; little of a store that is gone."""
        from hedgerow.region.store.database.open import open_database
        from hedgerow.region.store.queries import status

        if not self._processes.store.exists():
            return {"nodes": [], "refused": [], "restored": None}
        with closing(open_database(str(self._processes.store), write=False)) as database:
            return status(database, time.time())

    def report(self, error: HedgerowError | None = None) -> dict[str, Any]:
        """Return the demo's report. Args: error: why it ended early."""
        status, compared = self._region_status(), self._readings.compare()
        missing = _missing(status)
        forgotten = f"demo/{SITES[0]}/{NODE}"
        checks = {
            "nothing_lost": compared.made == compared.stored > 0 and not missing,
            "nothing_duplicated": not compared.duplicated,
            "twins_named": bool(self._twins),
            "forgotten_node_refused": bool(self._refused)
            and not self._readings.leaked
            and forgotten not in [node["node"] for node in status["nodes"]],
            "region_restored": status["restored"] is not None,
        }
        return {
            "ok": error is None and all(checks.values()),
            **checks,
            **asdict(compared),
            "missing": missing,
            "refused": self._refused,
            "twins": self._twins,
            "clashes": sum(node["clashes"] for node in status["nodes"]),
            "steps": self._steps,
            "error": None if error is None else f"{error} → {error.remedy}",
        }


def _missing(status: dict[str, Any]) -> int:
    """Return how many results a region's status says are missing or lost, of all nodes."""
    return sum(node["awaited"] + node["lost"] for node in status["nodes"])


def _twins(status: dict[str, Any], site: SiteProcesses) -> list[str]:
    """Return what a region's status says of machines that share the name of a site's node."""
    return [
        f"{node['node']}: {twin['what']}"
        for node in status["nodes"]
        if node["site"] == site.name
        for twin in node["twins"]
    ]


def _refusals(status: dict[str, Any], site: SiteProcesses) -> list[str]:
    """Return why a region refuses what comes from a site, because the node is forgotten."""
    return [one["detail"] for one in status["refused"] if one["site"] == site.name and one["reason"] == "forgotten"]


def print_report(report: dict[str, Any], folder: Path) -> None:
    """Print the report for people."""
    echo("")
    rows = [
        (step["step"], f"{step['seconds']:.1f}", step["happened"][-1]) for step in report["steps"] if step["happened"]
    ]
    print_table(("STEP", ">SECONDS", "OUTCOME"), rows)
    echo(
        f"{report['made']:,} results made, {report['stored']:,} stored in the region: {report['lost']} lost, "
        f"{report['duplicated']} duplicated, {report['missing']} missing. {report['by_both']} went to both machines of one "
        f"name; {report['refused']} results wait on the forgotten machine's disk."
    )
    if report["error"] is not None:
        echo(f"It did not end as it should: {report['error']}")
    echo(
        f"To explore: cd {os.path.relpath(folder)}; hedgerow region status; hedgerow nodes --forgotten; hedgerow audit; "
        "hedgerow results query"
    )
