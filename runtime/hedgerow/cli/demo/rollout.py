"""`hedgerow demo rollout`: rolls out four versions of a model to three sites while sound flows.

    1.0.0  first version                                ─▶ all nodes
    2.0.0  smaller                                      ─▶ one node, then all nodes
    3.0.0  divides by zero when a microphone is muted   ─▶ one node, which rolls it back by itself
    4.0.0  changed in the repository, without a key     ─▶ one node, which refuses it

It uses only ordinary commands, and prints each of them.
"""

from __future__ import annotations

import asyncio
import json as jsonlib
import os
import time
from collections import Counter
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hedgerow.cli.base.console import echo
from hedgerow.cli.base.tables import print_table
from hedgerow.cli.demo.models import (
    BAD,
    BETTER,
    FIRST,
    MODEL,
    RECIPES,
    TAMPERED,
    ModelPublisher,
    PublishedVersion,
    write_recipes,
)
from hedgerow.cli.demo.processes import DemoProcesses, Log, silent
from hedgerow.cli.demo.results import count_by_site, model_bytes, wait_until_settled
from hedgerow.cli.demo.waiting import Waiting, run_until_stopped, stop_on_signals

if TYPE_CHECKING:
    from hedgerow.cli.demo.feeds import Feed
    from hedgerow.region.store.database.database import Database

GATE: Final = {"min_frames": 50, "max_slowdown": None}
SWAP: Final = {"probation_s": 3, "min_frames": 50, "max_slowdown": 10, "max_shift": 5}
"""Lenient, for a demo: the statistics of a few seconds of speech vary widely, and all nodes share one machine, so latency
does too."""
SITES: Final = ("north", "harbour", "mill")
DIAGRAM: Final = """\
  a laptop   model build ▸ bundle ▸ model publish (signed) ▸ the region's repository
  region     rollout ▸ waves ▸ gate ▸ desired version per node ═══╗        ╔═══ verified version per node
  3 sites    sound ▸ broker ▸ node ▸ voice activity ▸ results     ╚═▸ node ╝
"""


def run(folder: Path, *, json: bool) -> dict[str, Any]:
    """Run the demo and return its report."""
    log: Log = silent if json else echo
    log(DIAGRAM)
    started = time.monotonic()
    folder = folder.absolute()
    write_recipes(folder)
    publisher = ModelPublisher(folder, log)
    publisher.create_repository()
    versions = {version: publisher.build(f"model-{version}.yaml") for version in RECIPES}
    with DemoProcesses(
        folder,
        "demo-rollout.yaml",
        {name: ["gateway"] for name in SITES},
        log,
        node={"fleet": {"root_file": str(folder / "root.json")}},
        region={"models": {"repository": "models"}},
    ) as processes:
        report = run_until_stopped(_run(processes, publisher, versions, log))
    return report | {"seconds": round(time.monotonic() - started, 1)}


async def _run(
    processes: DemoProcesses, publisher: ModelPublisher, versions: dict[str, PublishedVersion], log: Log
) -> dict[str, Any]:
    from hedgerow.cli.demo.feeds import microphones, muted, run_feeds

    stop = stop_on_signals()
    demo = _RolloutDemo(processes, publisher, versions, log, stop)
    await demo.wait_for_reports()
    await demo.roll_out(FIRST, "first version", waves=[], gate={**GATE, "min_frames": 0})
    await processes.ready(stop)
    feeds: dict[str, list[Feed]] = {}
    for site in processes.sites:
        feeds[site.name] = microphones(2)
        feeds[site.name][0].pieces = muted(feeds[site.name][0].pieces, every=20, frames=5)
    stop_feeds = asyncio.Event()
    feeding = [asyncio.create_task(run_feeds(site.sensors, feeds[site.name], stop_feeds)) for site in processes.sites]
    try:
        await demo.waiting.pause(3.0)
        await demo.roll_out(BETTER, "half the bytes", waves=[1], swap={**SWAP, "shadow_s": 1})
        await demo.roll_out(BAD, "loud halls; no time for a shadow", waves=[1])
        publisher.tamper()
        await demo.roll_out(TAMPERED, "no reason given", waves=[1])
        await demo.waiting.pause(2.0)
    finally:
        stop_feeds.set()
        for result in await asyncio.gather(*feeding, return_exceptions=True):
            if isinstance(result, BaseException):
                log(f"A site's microphones failed: {result}")
    log("The microphones have stopped. Waiting for the last results…")
    await wait_until_settled(processes, log)
    sent = {name: sum(feed.sent for feed in site_feeds) for name, site_feeds in feeds.items()}
    return demo.report(sent)


class _RolloutDemo:
    """Rolls out one version after another, and reports the outcome."""

    def __init__(
        self,
        processes: DemoProcesses,
        publisher: ModelPublisher,
        versions: dict[str, PublishedVersion],
        log: Log,
        stop: asyncio.Event,
    ) -> None:
        self._processes = processes
        self._publisher = publisher
        self._versions = versions
        self._log = log
        self.waiting = Waiting(processes, stop)

    async def wait_for_reports(self) -> None:
        """Wait until the region has a report of each node."""

        async def reported() -> list[Any]:
            return [node["reported_at"] for node in self._inventory()]

        await self.waiting.until(reported, lambda reported: len(reported) == len(SITES) and all(reported))

    async def roll_out(self, version: str, why: str, **plan: Any) -> None:
        """Roll out a version, and print the progress until the rollout ends."""
        from hedgerow.cli.region.rollout_progress import summary

        published, name = self._versions[version], f"{MODEL}-{version}"
        before = self._wan_bytes()
        plan = {"soak_s": 2, "gate": GATE, "swap": SWAP, **plan}
        await asyncio.to_thread(self._publisher.start_rollout, name, published, why, **plan)
        shown = ""

        async def progress() -> dict[str, Any]:
            nonlocal shown
            state = self._progress(name)
            if (line := summary(state)) != shown:
                self._log(f"  {line}")
                shown = line
            return state

        await self.waiting.until(progress, lambda state: state["ended"])
        published.rollout = self._progress(name)
        published.wan_bytes = self._wan_bytes() - before

    def _progress(self, name: str) -> dict[str, Any]:
        from hedgerow.region.rollouts.progress import progress

        with closing(self._open()) as database:
            return progress(database, name, every_node=True) or {}

    def _inventory(self) -> list[dict[str, Any]]:
        from hedgerow.region.rollouts.inventory import inventory

        with closing(self._open()) as database:
            return inventory(database, time.time())

    def _open(self) -> Database:
        from hedgerow.region.store.database.open import open_database

        return open_database(str(self._processes.store), write=False)

    def _wan_bytes(self) -> int:
        """Return the bytes of models that the region has sent to sites."""
        port = jsonlib.loads(self._processes.region_file.read_text("utf-8"))["metrics"]["port"]
        return model_bytes(port)

    def report(self, sent: dict[str, int]) -> dict[str, Any]:
        """Return the demo's report.

        Args:
            sent: frames sent, by site.
        """
        by_version, disordered = self._stored_results()
        sites = self._sites(sent)
        serving = {node["node"]: node["models"][MODEL] for node in self._inventory()}
        versions = {version: _version_report(published, by_version) for version, published in self._versions.items()}
        total = {what: sum(each[what] for each in sites.values()) for what in ("sent", "results", "stored", "lost", "duplicated", "not_finite")}  # fmt: skip
        refusal = versions[BAD]["refusal"]
        canary = refusal["node"].split("/")[1] if refusal else ""
        checks = {
            "good_version_reached_all": versions[BETTER]["phase"] == "succeeded"
            and {one["model"]["digest"] for one in serving.values()} == {versions[BETTER]["digest"]},
            "bad_version_stopped_at_the_canary": versions[BAD]["phase"] == "failed" and versions[BAD]["reached"] == 1,
            "canary_took_it_back_by_itself": versions[BAD]["went_back"] == 1,
            "only_the_canary_had_bad_results": not any(
                each["not_finite"] for site, each in sites.items() if site != canary
            ),
            "tampered_version_refused": versions[TAMPERED]["phase"] == "failed" and versions[TAMPERED]["results"] == 0,
            "nothing_lost": not total["lost"] and not total["duplicated"] and not disordered and total["stored"] > 0,
        }
        return {
            "ok": all(checks.values()),
            **checks,
            "versions": versions,
            "serving": {
                node: {"version": one["model"]["version"], "digest": one["model"]["digest"], "file": one["file_digest"]}
                for node, one in serving.items()
            },
            **total,
            "disordered": disordered,
            "sites": sites,
        }

    def _stored_results(self) -> tuple[Counter[str], int]:
        """Count stored results by `VERSION DIGEST`, and results out of capture order."""
        from hedgerow.region.store.queries import ResultQuery, results

        by_version: Counter[str] = Counter()
        numbered: dict[tuple[str, str], list[tuple[int, float]]] = {}
        with closing(self._open()) as database:
            for result in results(database, ResultQuery()):
                frame, (model,) = result.body["frame"], result.body["lineage"]["models"]
                by_version[f"{model['version']} {model['digest']}"] += 1
                number = int((result.number or "").rpartition("/")[2])
                numbered.setdefault((result.site, frame["stream"]), []).append((number, frame["captured_at"]))
        disordered = sum(
            later < earlier for stream in numbered.values() for (_, earlier), (_, later) in pairwise(sorted(stream))
        )
        return by_version, disordered

    def _sites(self, sent: dict[str, int]) -> dict[str, dict[str, Any]]:
        """Count frames and results by site."""
        sites = count_by_site(self._processes)
        for site in self._processes.sites:
            each = sites[site.name]
            each["sent"] = sent[site.name]
            for what in ("dropped", "dead"):
                each[what] = sum(sum(flow[what].values()) for flow in site.pipelines())
            # An absorbed frame has filled no window by itself and is part of the next; it is not lost.
            each["absorbed"] = sum(flow["dropped"].get("absorbed", 0) for flow in site.pipelines())
            # The bad version's outputs have NaN, which no result may have: such frames are dead-lettered, which is no loss.
            each["not_finite"] = sum(flow["dead"].get("unserialisable-result", 0) for flow in site.pipelines())
            absorbed = each["absorbed"] + each["not_finite"]
            each["lost"] += each["sent"] - each["frames"] + each["dropped"] + each["dead"] - absorbed
        return sites


def _version_report(published: PublishedVersion, by_version: Counter[str]) -> dict[str, Any]:
    rollout = published.rollout
    reached = [task for task in rollout["tasks"] if task["generation"]]
    failed = next((task for task in reached if task["code"]), None)
    return {
        "digest": published.digest,
        "bytes": published.bytes,
        "wan_bytes": published.wan_bytes,
        "phase": rollout["phase"],
        "because": rollout["because"],
        "waves": [{"nodes": wave["nodes"], "begun": wave["begun"]} for wave in rollout["waves"]],
        "reached": len(reached),
        "went_back": sum(task["back"] == "proved" for task in reached),
        "refusal": None if failed is None else {key: failed[key] for key in ("node", "code", "reason")},
        "results": sum(count for name, count in by_version.items() if name.startswith(f"{published.version} ")),
    }


def print_report(report: dict[str, Any], folder: Path) -> None:
    """Print the report for people."""
    echo("")
    rows = [
        (
            version,
            each["phase"],
            each["digest"][7:19],
            f"{each['reached']} of {len(SITES)}",
            f"{each['results']:,}",
            f"{each['wan_bytes'] / 1e6:.2f} MB",
            "" if each["refusal"] is None else f"{each['refusal']['code']}: {each['refusal']['reason']}",
        )
        for version, each in report["versions"].items()
    ]
    print_table(("VERSION", "STATUS", "DIGEST", ">NODES", ">RESULTS", ">OVER THE WAN", "REASON"), rows, names=2)
    for node, one in report["serving"].items():
        echo(f"{node} serves {one['version']} ({one['digest'][7:19]}), file {one['file'][7:19]}.")
    echo(
        f"{report['sent']:,} frames of sound, {report['results']:,} results produced, {report['stored']:,} stored in the region: "
        f"{report['lost']} lost, {report['duplicated']} duplicated, {report['disordered']} out of order; "
        f"{report['not_finite']} dead-lettered, as {BAD} gave NaN."
    )
    echo(
        f"To explore: cd {os.path.relpath(folder)}; hedgerow rollout history --config region.yaml; "
        "hedgerow audit --config region.yaml"
    )
