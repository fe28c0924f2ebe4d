"""`hedgerow demo region`: three sites and their region with certificates, a WAN that is cut, and the account of it.

    feeds ──▶ site broker ──▶ node ──▶ outbox ──▶ site broker ══ bridge, TLS ══▶ WAN ══▶ region's broker ──▶ collector ──▶ store

All are processes of their own on this machine, from files rendered from one topology. The WAN is simulated: a TCP proxy
between each site's bridge and the region's broker.
"""

from __future__ import annotations

import asyncio
import getpass
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any, Final

import typer

from hedgerow.cli.demo import prepare
from hedgerow.errors import HedgerowError
from hedgerow.topics import Address

if TYPE_CHECKING:
    from hedgerow.config import BrokerSection
    from hedgerow.testing.faults import FaultProxy

SITES: Final = ("north", "harbour", "mill")
CUT: Final = "harbour"
_REGION: Final = "demo"
_NODE: Final = "gateway"
_PIPELINES: Final = ("pages", "door", "street", "speech", "machines", "shuttle")
_START_S: Final = 240.0
_SETTLE_S: Final = 120.0

PICTURE: Final = """\
  north    sensors ▸ broker ▸ node ▸ outbox ▸ broker ══════════╗
  harbour  sensors ▸ broker ▸ node ▸ outbox ▸ broker ══ ✂ ═════╬═▸ region's broker ▸ collector ▸ store
  mill     sensors ▸ broker ▸ node ▸ outbox ▸ broker ══════════╝
"""


Say = Callable[[str], None]


def _nothing(text: str) -> None:
    pass


@dataclass
class Site:
    """One site of the demo.

    Attributes:
        broker: how an operator of the site reaches its broker, by certificate.
        sensors: how sensors on the broker's machine do.
        health: the node's last report of itself.
        sent: frames published there.
    """

    name: str
    broker: BrokerSection
    sensors: BrokerSection
    wan: FaultProxy
    health: dict[str, Any] = field(default_factory=dict)
    sent: int = 0

    @property
    def address(self) -> Address:
        """Of its node."""
        return Address(_REGION, self.name, _NODE)


class Estate:
    """Region and sites as processes. `with` starts and stops them.

    Args:
        folder: where all files go; what an earlier demo left there is removed.
        say: tells what is going on.
    """

    def __init__(self, folder: Path, say: Say) -> None:
        self.folder = folder.absolute()
        self._say = say
        self._stack = ExitStack()
        self._processes: list[tuple[str, subprocess.Popen[bytes]]] = []
        self.sites: list[Site] = []
        self.store = self.folder / "region.db"
        self._metrics_port = 0

    def __enter__(self) -> Estate:
        try:
            self._begin()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _begin(self) -> None:
        from hedgerow.config import BrokerSection
        from hedgerow.testing.faults import FaultProxy
        from hedgerow.testing.mosquitto import free_port

        for old in ("rendered", "pki", "state", "nodes"):
            shutil.rmtree(self.folder / old, ignore_errors=True)
        for old_file in self.folder.glob("region.db*"):
            old_file.unlink()
        self._metrics_port = free_port()
        self._say("Rendering brokers, nodes and access lists from topology.yaml…")
        region_port, loopback = free_port(), {name: free_port() for name in SITES}
        self._render(region_port, loopback)
        self._say("Making certificates: a root, an authority for each site, one for everybody…")
        self._certify()
        self._broker(_REGION)
        self._run("collector", "region", "run", str(self._region_config(region_port)), until="region-started")
        for name in SITES:
            wan = self._stack.enter_context(FaultProxy("127.0.0.1", region_port))
            conf = self.folder / "rendered" / name / "mosquitto.conf"
            text = conf.read_text("utf-8")
            conf.write_text(text.replace(f"address localhost:{region_port}", f"address localhost:{wan.port}"), "utf-8")
            self._broker(name)
            port = re.findall(r"^listener (\d+)", text, re.MULTILINE)[0]
            tls = self._tls(name, f"operator@{name}")
            operator = BrokerSection.model_validate({"url": f"mqtts://localhost:{port}", "tls": tls})
            sensors = BrokerSection(url=f"mqtt://127.0.0.1:{loopback[name]}")
            self.sites.append(Site(name, operator, sensors, wan))
        self._say(f"Starting three nodes, each with the models of `hedgerow demo`… (logs: {self.folder / 'logs'})")
        for name in SITES:
            self._run(f"node-{name}", "node", "run", f"rendered/{name}/nodes/{_NODE}.yaml")
        self._say(f"The region's metrics: http://127.0.0.1:{self._metrics_port}/metrics")

    def _render(self, region_port: int, loopback: dict[str, int]) -> None:
        from hedgerow.testing.mosquitto import free_port
        from hedgerow.topology import files as rendered_files
        from hedgerow.topology.load import load
        from hedgerow.topology.render import render

        templates = files("hedgerow.cli.templates")
        sites = "\n".join(
            f"  {name}:\n    broker: mqtts://localhost:{free_port()}\n    loopback_port: {loopback[name]}\n"
            f"    roles: {{operator: [operator]}}\n    nodes: {{{_NODE}: {{override: {{metrics: {{port: 0}}}}}}}}"
            for name in SITES
        )
        text = Template(templates.joinpath("demo-region.yaml").read_text("utf-8")).substitute(
            REGION_PORT=region_port, SITES=sites, USER=getpass.getuser()
        )
        (self.folder / "topology.yaml").write_text(text, "utf-8")
        described = load(self.folder / "topology.yaml")
        out = self.folder / "rendered"
        rendered_files.write(render(described), described.source, out)
        rendered_files.copy_models(described.models, out)

    def _certify(self) -> None:
        from hedgerow.pki.folder import Pki
        from hedgerow.pki.names import parse

        pki = Pki(self.folder / "pki", lambda: datetime.now(UTC))
        pki.init(_REGION, SITES, lambda: None, ["localhost"])
        day = timedelta(days=1)
        pki.issue(parse("region/broker"), day, hosts=["localhost"])
        pki.issue(parse("collector@region"), day, role="collector")
        for name in SITES:
            pki.issue(parse(f"{name}/broker"), day, hosts=["localhost"])
            for who in (name, f"{name}/{_NODE}", f"operator@{name}"):
                pki.issue(parse(who), day)

    def _tls(self, authority: str, user: str) -> dict[str, str]:
        own = self.folder / "pki" / authority / "issued" / user.split("@", 1)[0]
        return {
            "ca_file": str(own / "trust.crt"),
            "cert_file": str(own / "tls.crt"),
            "key_file": str(own / "tls.key"),
        }

    def _region_config(self, port: int) -> Path:
        from hedgerow.wire.messages import encode_json

        path = self.folder / "region.yaml"
        config = {
            "region": {"name": _REGION},
            "broker": {"url": f"mqtts://localhost:{port}", "tls": self._tls("region", "collector@region")},
            "store": {"url": str(self.store)},
            "canary": {"every_s": 2},
            "metrics": {"port": self._metrics_port},
        }
        path.write_bytes(encode_json(config))  # which is YAML
        return path

    def _broker(self, name: str) -> None:
        from hedgerow.testing.mosquitto import find_mosquitto

        (self.folder / "state" / name / "broker").mkdir(parents=True, exist_ok=True)
        conf = self.folder / "rendered" / name / "mosquitto.conf"
        self._start(f"broker-{name}", [find_mosquitto(), "-c", str(conf)], until=" running")

    def _run(self, name: str, *arguments: str, until: str | None = None) -> None:
        self._start(name, [sys.executable, "-m", "hedgerow", *arguments], until=until)

    def _start(self, name: str, command: Sequence[str], until: str | None) -> None:
        path = self.folder / "logs" / f"{name}.log"
        path.parent.mkdir(exist_ok=True)
        with path.open("wb") as log:
            process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log, start_new_session=True)  # noqa: S603 - our own
        self._processes.append((name, process))
        self._stack.callback(_end, process)
        deadline = time.monotonic() + 30
        while until is not None and until not in path.read_text("utf-8", errors="replace"):
            self.check()
            if time.monotonic() > deadline:
                raise HedgerowError(f"{name} does not start", remedy=f"See {path}.")
            time.sleep(0.02)

    def check(self) -> None:
        """Raises: HedgerowError: a process has ended."""
        for name, process in self._processes:
            if process.poll() is not None:
                path = self.folder / "logs" / f"{name}.log"
                last = path.read_text("utf-8", errors="replace")[-600:]
                raise HedgerowError(f"{name} ended with code {process.returncode}:\n{last}", remedy=f"See {path}.")

    # The account

    async def ask_all(self) -> None:
        """Get all nodes' health, from their own sites: that needs no WAN."""
        from hedgerow.cli.command import ask

        async def ask_one(site: Site) -> None:
            with suppress(HedgerowError):
                for reply in await ask(site.broker, site.address, "health", {}, 5.0):
                    site.health = reply.value or site.health

        await asyncio.gather(*map(ask_one, self.sites))

    def stored(self) -> dict[str, dict[str, int]]:
        """What is in the region's store, by site: results, how many of them are repeats of another, gaps, lost, bytes up."""
        query = (
            "SELECT n.site, count(r.ingest), count(r.ingest) - count(DISTINCT r.pipeline || '/' || r.said_id), n.bytes_up"
            " FROM node n LEFT JOIN result r ON r.node = n.id GROUP BY n.id"
        )
        gaps = (
            "SELECT n.site, count(*), sum(g.lost) FROM gap g JOIN ledger l ON l.id = g.ledger"
            " JOIN node n ON n.id = l.node GROUP BY n.site"
        )
        with closing(sqlite3.connect(f"file:{self.store}?mode=ro", uri=True, timeout=10)) as database:
            found = {
                site: {"stored": stored, "duplicated": twice, "bytes_up": size, "gaps": 0, "declared_lost": 0}
                for site, stored, twice, size in database.execute(query)
            }
            for site, count, lost in database.execute(gaps):
                found[site].update(gaps=count, declared_lost=lost)
        return found

    def account(self) -> dict[str, dict[str, Any]]:
        """What was made at each site, and what of it the region has."""
        stored = self.stored()
        account = {}
        for site in self.sites:
            pipelines = site.health.get("pipelines", {})
            made, frames, size = (
                sum(each.get(key, 0) for each in pipelines.values()) for key in ("results", "received", "bytes_in")
            )
            kept = stored.get(site.name, {"stored": 0, "duplicated": 0, "bytes_up": 0, "gaps": 0, "declared_lost": 0})
            account[site.name] = {
                "frames": frames,
                "results": made,
                **kept,
                "lost": made - (kept["stored"] - kept["duplicated"]),
                "waiting": (site.health.get("outbox") or {}).get("entries", 0),
                "bytes_in": size,
                "bytes_in_per_byte_up": round(size / max(1, kept["bytes_up"]), 1),
            }
        return account


def run(seconds: float | None, folder: Path, *, json: bool) -> dict[str, Any]:
    """Run the demo. Returns: its account."""
    say: Say = _nothing if json else typer.echo
    say(PICTURE)
    folder.mkdir(parents=True, exist_ok=True)
    prepare(folder, "demo.yaml")
    with Estate(folder, say) as estate:
        return asyncio.run(_run(estate, 60.0 if seconds is None else seconds, say))


async def _run(estate: Estate, seconds: float, say: Say) -> dict[str, Any]:
    from hedgerow.cli.feeds import demo_feeds, run_feeds

    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await _ready(estate, stop)
    feeds = {site.name: demo_feeds() for site in estate.sites}
    feeding = []
    for site in estate.sites:
        for feed in feeds[site.name]:
            if feed.every_s is not None:
                feed.every_s *= len(SITES)  # they share this machine
        feeding.append(asyncio.create_task(run_feeds(site.sensors, feeds[site.name])))
    began, cut_at, back_at = time.monotonic(), seconds / 4, seconds / 2
    cut: dict[str, Any] = {"site": CUT, "from_s": round(cut_at, 1), "to_s": round(back_at, 1)}
    (harbour,) = (site for site in estate.sites if site.name == CUT)
    say(f"Sensors are sending for {seconds:.0f} s. {'SITE':<10}{'MADE':>8}{'IN THE REGION':>16}{'WAITING':>10}   WAN")
    state = "up"
    while (passed := time.monotonic() - began) < seconds and not stop.is_set():
        estate.check()
        for task in feeding:
            if task.done():
                task.result()
        if state == "up" and cut_at <= passed < back_at:
            harbour.wan.cut()
            state = "cut"
            await estate.ask_all()
            cut["stored_when_cut"] = estate.account()[CUT]["stored"]
        elif state == "cut" and passed >= back_at:
            await estate.ask_all()
            cut["waiting_before_it_came_back"] = estate.account()[CUT]["waiting"]
            harbour.wan.restore()
            state = "back"
        await estate.ask_all()
        _show(estate, state, passed, say)
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), min(5.0, max(0.1, seconds - passed)))
    harbour.wan.restore()
    for task in feeding:
        task.cancel()
    await asyncio.gather(*feeding, return_exceptions=True)
    lasted = time.monotonic() - began
    say("Sensors have stopped. What is still on its way arrives…")
    await _settled(estate, say)
    account = estate.account()
    _show(estate, "up", time.monotonic() - began, say)
    ok = all(
        each["results"] > 0 and not each["lost"] and not each["duplicated"] and not each["waiting"] and not each["gaps"]
        for each in account.values()
    )
    total = {key: sum(each[key] for each in account.values()) for key in ("results", "stored", "lost", "duplicated", "gaps", "bytes_in", "bytes_up")}  # fmt: skip
    return {"ok": ok, "seconds": round(lasted, 1), "sites": account, "cut": cut, **total}


async def _ready(estate: Estate, stop: asyncio.Event) -> None:
    """Wait until all nodes run all their pipelines, and the region has heard of them."""
    deadline = time.monotonic() + _START_S
    why = "nobody answers"
    while time.monotonic() < deadline and not stop.is_set():
        estate.check()
        await estate.ask_all()
        states = {
            site.name: {name: each["state"] for name, each in site.health.get("pipelines", {}).items()}
            for site in estate.sites
        }
        for site in estate.sites:
            if "failed" in states[site.name].values():
                raise HedgerowError(
                    f"{site.name}: {'; '.join(site.health['reasons'])}", remedy="See the logs of the nodes."
                )
        why = f"{states}"
        running = all(set(each.values()) == {"running"} for each in states.values())
        if running and len(estate.stored()) == len(SITES):
            return
        await asyncio.sleep(0.3)
    if not stop.is_set():
        raise HedgerowError(f"Not all started within {_START_S:.0f} s: {why}", remedy="See the logs of the nodes.")


async def _settled(estate: Estate, say: Say) -> None:
    """Wait until nothing is on its way any more."""
    deadline = time.monotonic() + _SETTLE_S
    while time.monotonic() < deadline:
        estate.check()
        await estate.ask_all()
        in_flight = sum(
            each["in_flight"] for site in estate.sites for each in site.health.get("pipelines", {}).values()
        )
        waiting = sum(each["waiting"] for each in estate.account().values())
        if not in_flight and not waiting:
            return
        await asyncio.sleep(0.3)
    say(f"After {_SETTLE_S:.0f} s there is still something on its way.")


def _show(estate: Estate, state: str, passed: float, say: Say) -> None:
    for name, each in estate.account().items():
        wan = "✂ cut" if name == CUT and state == "cut" else "up"
        say(
            f"{passed:>5.0f} s {'':<19} {name:<10}{each['results']:>8,}{each['stored']:>16,}{each['waiting']:>10,}   {wan}"
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def print_account(account: dict[str, Any], folder: Path) -> None:
    """The account in words."""
    typer.echo("")
    for name, each in account["sites"].items():
        typer.echo(
            f"{name:<8} {each['frames']:>6,} frames in ({each['bytes_in'] / 1e6:.1f} MB), {each['results']:,} results made, "
            f"{each['stored']:,} in the region: {each['lost']} lost, {each['duplicated']} twice. "
            f"{each['bytes_up'] / 1e6:.2f} MB went up: 1 byte for {each['bytes_in_per_byte_up']:g}."
        )
    cut = account["cut"]
    if "waiting_before_it_came_back" in cut:
        typer.echo(
            f"While {cut['site']} was cut off for {cut['to_s'] - cut['from_s']:.0f} s, "
            f"{cut['waiting_before_it_came_back']:,} results waited on its disk."
        )
    typer.echo(f"Look around: cd {os.path.relpath(folder)}; hedgerow results query; less topology.yaml rendered/")
