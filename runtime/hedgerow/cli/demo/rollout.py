"""`hedgerow demo rollout`: a region and three sites, and four versions of a model on their way to them.

    1.0.0  the first                                    ─▶ everybody
    2.0.0  smaller                                      ─▶ one node, then everybody
    3.0.0  divides by zero where a microphone is muted  ─▶ one node, which takes it back by itself
    4.0.0  changed in the repository, without a key     ─▶ one node, which refuses it

Everything is made by the commands that people use, which are shown; sound flows all the while.
"""

from __future__ import annotations

import asyncio
import json as jsonlib
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import typer

from hedgerow.cli.base.tables import print_table
from hedgerow.cli.demo.account import account_of, settled
from hedgerow.cli.demo.models import BAD, BETTER, FIRST, MODEL, RECIPES, TAMPERED, Version, Workshop, lay_out
from hedgerow.cli.demo.processes import DemoProcesses, Say, model_bytes, silent
from hedgerow.errors import HedgerowError

if TYPE_CHECKING:
    from hedgerow.cli.demo.feeds import Feed
    from hedgerow.region.store.database.database import Database

GATE: Final = {"min_frames": 50, "max_slowdown": None}
SWAP: Final = {"probation_s": 3, "min_frames": 50, "max_slowdown": 10, "max_shift": 5}
"""Short, for a demo: seconds of speech say little of how it is spread. And all share this machine, so slower is not worse."""
SITES: Final = ("north", "harbour", "mill")
PICTURE: Final = """\
  a laptop   model build ▸ bundle ▸ model publish (signed) ▸ the region's repository
  region     rollout ▸ waves ▸ gate ▸ what each node should run ══╗        ╔══ what each node provably runs
  3 sites    sound ▸ broker ▸ node ▸ voice activity ▸ results     ╚═▸ node ╝
"""
_ENDS_S: Final = 180.0


def run(folder: Path, *, json: bool) -> dict[str, Any]:
    """Run the demo. Returns: its account."""
    say: Say = silent if json else typer.echo
    say(PICTURE)
    began = time.monotonic()
    folder = folder.absolute()
    lay_out(folder)
    workshop = Workshop(folder, say)
    workshop.open()
    versions = {version: workshop.build(f"model-{version}.yaml") for version in RECIPES}
    with DemoProcesses(
        folder,
        "demo-rollout.yaml",
        {name: ["gateway"] for name in SITES},
        say,
        node={"fleet": {"root_file": str(folder / "root.json")}},
        region={"models": {"repository": "models"}},
    ) as estate:
        account = asyncio.run(_run(estate, workshop, versions, say))
    return account | {"seconds": round(time.monotonic() - began, 1)}


async def _run(estate: DemoProcesses, workshop: Workshop, versions: dict[str, Version], say: Say) -> dict[str, Any]:
    from hedgerow.cli.demo.feeds import microphones, muted, run_feeds

    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    tale = _Tale(estate, workshop, versions, say, stop)
    await tale.known()
    await tale.roll_out(FIRST, "the first", waves=[], gate={**GATE, "min_frames": 0})
    await estate.ready(stop)
    feeds: dict[str, list[Feed]] = {}
    for site in estate.sites:
        feeds[site.name] = microphones(2)
        feeds[site.name][0].pieces = muted(feeds[site.name][0].pieces, every=20, frames=5)
    silence = asyncio.Event()
    feeding = [asyncio.create_task(run_feeds(site.sensors, feeds[site.name], silence)) for site in estate.sites]
    try:
        await tale.pause(3.0)
        await tale.roll_out(BETTER, "half the bytes", waves=[1], swap={**SWAP, "shadow_s": 1})
        await tale.roll_out(BAD, "loud halls; no time for a shadow", waves=[1])
        workshop.tamper()
        await tale.roll_out(TAMPERED, "nobody knows", waves=[1])
        await tale.pause(2.0)
    finally:
        silence.set()
        for ended in await asyncio.gather(*feeding, return_exceptions=True):
            if isinstance(ended, BaseException):
                say(f"A site's microphones failed: {ended}")
    say("The microphones have stopped. What is still on its way arrives…")
    await settled(estate, say)
    sent = {name: sum(feed.sent for feed in there) for name, there in feeds.items()}
    return tale.account(sent)


class _Tale:
    """What happens, version after version, and the account of it."""

    def __init__(
        self, estate: DemoProcesses, workshop: Workshop, versions: dict[str, Version], say: Say, stop: asyncio.Event
    ) -> None:
        self._estate = estate
        self._workshop = workshop
        self._versions = versions
        self._say = say
        self._stop = stop

    async def known(self) -> None:
        """Wait until the region knows what each node runs."""
        await self._until(
            lambda: [node["reported_at"] for node in self._inventory()],
            lambda said: len(said) == len(SITES) and all(said),
        )

    async def pause(self, seconds: float) -> None:
        """Let things go on for a while. Raises: KeyboardInterrupt: told to stop."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stop.wait()
            raise KeyboardInterrupt

    async def roll_out(self, version: str, why: str, **plan: Any) -> None:
        """Take a version through the fleet, and tell of it until that has ended."""
        which, name = self._versions[version], f"{MODEL}-{version}"
        before = self._wan_bytes()
        plan = {"soak_s": 2, "gate": GATE, "swap": SWAP, **plan}
        await asyncio.to_thread(self._workshop.start, name, which, why, **plan)
        await self._until(lambda: self._progress(name), lambda said: bool(said["ended"]))
        which.rollout = self._progress(name)
        which.wan_bytes = self._wan_bytes() - before

    async def _until(self, look: Callable[[], Any], enough: Callable[[Any], bool]) -> None:
        deadline = time.monotonic() + _ENDS_S
        told = ""
        while not enough(said := look()):
            self._estate.check()
            if isinstance(said, dict) and (line := _line(said)) != told:
                self._say(f"  {line}")
                told = line
            if time.monotonic() > deadline:
                raise HedgerowError(
                    f"This did not end within {_ENDS_S:.0f} s: {said}", remedy=f"See {self._estate.folder}/logs/."
                )
            await self.pause(0.3)
        if isinstance(said, dict):
            self._say(f"  {_line(said)}")

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

        return open_database(str(self._estate.store), write=False)

    def _wan_bytes(self) -> int:
        """Bytes of models that the region has sent to sites."""
        port = jsonlib.loads(self._estate.region_file.read_text("utf-8"))["metrics"]["port"]
        return model_bytes(port)

    def account(self, sent: dict[str, int]) -> dict[str, Any]:
        """All of it, in numbers.

        Args:
            sent: frames, by site.
        """
        from hedgerow.region.store.queries import ResultQuery, results

        by_version: Counter[str] = Counter()
        made: dict[tuple[str, str], list[tuple[int, float]]] = {}
        with closing(self._open()) as database:
            for result in results(database, ResultQuery()):
                frame, (model,) = result.body["frame"], result.body["lineage"]["models"]
                by_version[f"{model['version']} {model['digest']}"] += 1
                number = int((result.number or "").rpartition("/")[2])
                made.setdefault((result.site, frame["stream"]), []).append((number, frame["captured_at"]))
        disordered = sum(
            later < earlier for numbered in made.values() for (_, earlier), (_, later) in pairwise(sorted(numbered))
        )
        sites = account_of(self._estate)
        for site in self._estate.sites:
            each = sites[site.name]
            each["sent"] = sent[site.name]
            for what in ("dropped", "dead"):
                each[what] = sum(sum(flow[what].values()) for flow in site.pipelines())
            # A frame that fills no window on its own is part of the next; it is counted and not lost.
            each["absorbed"] = sum(flow["dropped"].get("absorbed", 0) for flow in site.pipelines())
            each["lost"] += each["sent"] - each["frames"] + each["dropped"] + each["dead"] - each["absorbed"]
        serving = {node["node"]: node["models"][MODEL] for node in self._inventory()}
        versions = {version: _told(which, by_version) for version, which in self._versions.items()}
        total = {what: sum(each[what] for each in sites.values()) for what in ("sent", "results", "stored", "lost", "duplicated")}  # fmt: skip
        proofs = {
            "good_version_reached_all": versions[BETTER]["phase"] == "succeeded"
            and {one["model"]["digest"] for one in serving.values()} == {versions[BETTER]["digest"]},
            "bad_version_stopped_at_the_canary": versions[BAD]["phase"] == "failed" and versions[BAD]["reached"] == 1,
            "canary_took_it_back_by_itself": versions[BAD]["went_back"] == 1,
            "tampered_version_refused": versions[TAMPERED]["phase"] == "failed" and versions[TAMPERED]["results"] == 0,
            "nothing_lost": not total["lost"] and not total["duplicated"] and not disordered and total["stored"] > 0,
        }
        return {
            "ok": all(proofs.values()),
            **proofs,
            "versions": versions,
            "serving": {
                node: {"version": one["model"]["version"], "digest": one["model"]["digest"], "file": one["file_digest"]}
                for node, one in serving.items()
            },
            **total,
            "disordered": disordered,
            "sites": sites,
        }


def _line(said: dict[str, Any]) -> str:
    from hedgerow.cli.region.rollout_progress import line

    return line(said)


def _told(which: Version, by_version: Counter[str]) -> dict[str, Any]:
    """A version, as the account has it."""
    reached = [task for task in which.rollout["tasks"] if task["generation"]]
    bad = next((task for task in reached if task["code"]), None)
    return {
        "digest": which.digest,
        "bytes": which.bytes,
        "wan_bytes": which.wan_bytes,
        "phase": which.rollout["phase"],
        "because": which.rollout["because"],
        "waves": [{"nodes": wave["nodes"], "begun": wave["begun"]} for wave in which.rollout["waves"]],
        "reached": len(reached),
        "went_back": sum(task["back"] == "proved" for task in reached),
        "refusal": None if bad is None else {key: bad[key] for key in ("node", "code", "reason")},
        "results": sum(count for name, count in by_version.items() if name.startswith(f"{which.version} ")),
    }


def print_account(account: dict[str, Any], folder: Path) -> None:
    """The account in words."""
    typer.echo("")
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
        for version, each in account["versions"].items()
    ]
    print_table(("VERSION", "STATUS", "DIGEST", ">NODES", ">RESULTS", ">OVER THE WAN", "REASON"), rows, names=2)
    for node, one in account["serving"].items():
        typer.echo(f"{node} serves {one['version']} ({one['digest'][7:19]}), file {one['file'][7:19]}.")
    typer.echo(
        f"{account['sent']:,} frames of sound, {account['results']:,} results produced, {account['stored']:,} stored in the region: "
        f"{account['lost']} lost, {account['duplicated']} duplicated, {account['disordered']} out of order."
    )
    where = os.path.relpath(folder)
    typer.echo(
        f"Look around: cd {where}; hedgerow rollout history --config region.yaml; hedgerow audit --config region.yaml"
    )
