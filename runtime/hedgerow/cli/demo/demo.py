"""`hedgerow demo`: runs a broker and a node with the three plugins, on real models and frames."""

from __future__ import annotations

import asyncio
import json as jsonlib
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from hedgerow.cli.base.console import echo
from hedgerow.cli.base.tables import print_table
from hedgerow.cli.demo.prepare import Skipped, log_skipped, prepare, reasons
from hedgerow.errors import HedgerowError
from hedgerow.terminal import supports_redraw
from hedgerow.topics import ROOT, Address

if TYPE_CHECKING:
    from hedgerow.cli.frames.message_board import Board, WatchedMessage
    from hedgerow.config import BrokerSection
    from hedgerow.testing import Mosquitto

NODE: Final = Address("demo", "site", "gateway")
_START_S: Final = 120.0
_SETTLE_S: Final = 20.0


def demo(
    what: Annotated[
        Literal["node", "region", "rollout", "life"],
        typer.Argument(
            help="`node`: one broker and one node. `region`: three sites and their region. `rollout`: four versions of a "
            "model for three sites. `life`: nodes enrol, and are cloned, replaced and forgotten."
        ),
    ] = "node",
    seconds: Annotated[
        float | None, typer.Option(min=5, help="Stop after this many seconds; by default on Ctrl-C.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one line of JSON at the end, and no table.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for configurations, pictures and logs; by default demo-out, or demo-WHAT-out."),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the broker; 0 picks a free one.")] = 0,
) -> None:
    """Watch real models process real frames from a real Mosquitto, without any setup.

    Examples:
      hedgerow demo
      hedgerow demo --seconds 20 --json
      hedgerow demo region --seconds 60

    It starts its own broker on a free port and a node with the three plugins, and publishes scanned pages, pictures, a
    street video, recorded speech, readings of a space shuttle, and simulated machine vibration. The node reads the pages,
    finds faces and street objects, and detects speech and anomalies. Annotated pictures go to demo-out/.

    `hedgerow demo region` runs the same at three sites, each with a broker that is bridged over TLS to the region's broker,
    all from one topology. One site is cut off for a quarter of the time (60 s without --seconds). At the end it compares
    what the sites produced with what the region stored.

    `hedgerow demo rollout` rolls out four versions of a model to three sites while sound flows. The first is
    followed by a better one, one that fails only on live frames, and one that was tampered with. It ends by itself, after about two minutes.

    `hedgerow demo life` leads three nodes through their lives. They enrol; the disk of one is copied, and both copies run; one is
    destroyed and replaced while results wait on its disk; one is forgotten, and comes back; then the region loses its disk, and is
    restored from a backup. At the end it compares what was made with what the region has. It ends by itself, after a minute or two.
    """
    from hedgerow.cli.demo.processes import silent
    from hedgerow.config import BrokerSection
    from hedgerow.testing import Mosquitto
    from hedgerow.testing.processes import end

    if what != "node":
        _run_other(what, seconds, out or Path(f"demo-{what}-out"), json=json)
        return
    out = out or Path("demo-out")
    out.mkdir(parents=True, exist_ok=True)
    skipped = prepare(out, "node.yaml")
    quiet = json or not supports_redraw(sys.stdout)
    with Mosquitto(port=port) as mosquitto:
        broker = BrokerSection(url=mosquitto.url)
        log = silent if json else echo
        log_skipped(skipped, log)
        log(f"Broker on {mosquitto.url}. In another terminal:")
        log(f"  mosquitto_sub -p {mosquitto.port} -t 'hedgerow/#' -v")
        log(f"  hedgerow publish YOUR-PHOTO.jpg --topic office/door/image --broker {mosquitto.url}")
        log(f"Loading models… (the node's log is {out / 'node.log'})")
        node = _start_node(out, mosquitto)
        try:
            report = asyncio.run(_run(broker, node, seconds, out, skipped, quiet=quiet))
        finally:
            end(node)
    _finish(report, lambda: _print_report(report, out), json=json)


def _run_other(what: Literal["region", "rollout", "life"], seconds: float | None, out: Path, *, json: bool) -> None:
    """Run a demo of a region."""
    if what == "region":
        from hedgerow.cli.demo import region

        report = region.run(seconds, out, json=json)
        _finish(report, lambda: region.print_report(report, out), json=json)
    elif what == "rollout":
        from hedgerow.cli.demo import rollout

        report = rollout.run(out, json=json)
        _finish(report, lambda: rollout.print_report(report, out), json=json)
    else:
        from hedgerow.cli.demo import life

        report = life.run(out, json=json)
        _finish(report, lambda: life.print_report(report, out), json=json)


def _finish(report: dict[str, Any], print_report: Callable[[], None], *, json: bool) -> None:
    """Print a demo's report. Raises: typer.Exit: the demo failed."""
    if json:
        echo(jsonlib.dumps(report))
    else:
        print_report()
    if not report["ok"]:
        raise typer.Exit(1)


def _start_node(out: Path, mosquitto: Mosquitto) -> subprocess.Popen[bytes]:
    from hedgerow.testing.processes import start

    environment = {**os.environ, "HEDGEROW_BROKER__URL": mosquitto.url}
    with (out / "node.log").open("wb") as log:
        return start(
            [sys.executable, "-m", "hedgerow", "node", "run", "node.yaml"],
            cwd=out,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,  # so that Ctrl-C reaches the node only after the feeds have stopped
        )


async def _run(
    broker: BrokerSection,
    node: subprocess.Popen[bytes],
    seconds: float | None,
    out: Path,
    skipped: Skipped,
    *,
    quiet: bool,
) -> dict[str, Any]:
    from hedgerow import tasks
    from hedgerow.cli.demo.feeds import demo_feeds, run_feeds
    from hedgerow.cli.demo.waiting import stop_on_signals
    from hedgerow.cli.frames.message_board import Board
    from hedgerow.cli.frames.watch import LiveTable, print_outage

    feeds = demo_feeds(skipped)
    totals = _ResultTotals(Board())
    stop = stop_on_signals()
    table = None if quiet else LiveTable(totals.board)
    watching = tasks.start(_watch(broker, totals, print_outage if table is None else table.show_outage), "watching")
    drawing = None
    stopping = asyncio.create_task(stop.wait())
    try:
        ready = asyncio.create_task(_ready(broker, node, out))
        await asyncio.wait((ready, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            raise KeyboardInterrupt  # there are no results to report yet
        ready.result()
        drawing = None if table is None else tasks.start(table.run(), "table")
        started = time.monotonic()
        feeding = asyncio.create_task(run_feeds(broker, feeds))
        await asyncio.wait((feeding, stopping), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        duration = time.monotonic() - started
        stopping.cancel()
        failed = feeding.done()
        feeding.cancel()
        with suppress(asyncio.CancelledError):
            await feeding
        sent = sum(feed.sent for feed in feeds)
        health = await _health_when_idle(broker, sent)
        await asyncio.sleep(0.2)  # until the last results have been received
    finally:
        watching.cancel()
        if drawing is not None:
            drawing.cancel()
        if table is not None:
            table.close()
    report = _report(health, totals, sent, duration, out, failed=failed)
    return report | {"skipped": reasons(skipped)}


class _ResultTotals:
    """Collects what the demo's results contain."""

    def __init__(self, board: Board) -> None:
        self.board = board
        self.texts: Counter[str] = Counter()
        self.labels: Counter[str] = Counter()
        self.speech_s = 0.0
        self.anomalies = 0
        self.labelled = self.correct = 0

    def take(self, message: WatchedMessage) -> None:
        self.board.add(message)
        result = message.body.get("result") if isinstance(message.body, dict) else None
        if not isinstance(result, dict):
            return
        self.texts.update(item["text"] for item in result.get("texts", ()))
        self.labels.update(item["label"] for item in result.get("detections", ()))
        if "start" in result and "end" in result:
            self.speech_s += result["end"] - result["start"]
        self.anomalies += bool(result.get("anomalous"))
        if "label" in result:
            self.labelled += 1
            self.correct += result["anomalous"] == bool(result["label"])


async def _watch(broker: BrokerSection, totals: _ResultTotals, link: Callable[[str], None]) -> None:
    from hedgerow.cli.frames.watch import watched_messages

    filters = [f"{ROOT}/{NODE}/{channel}/#" for channel in ("result", "dead", "health", "event")]
    async for message in watched_messages(broker, filters, link):
        totals.take(message)


async def _ready(broker: BrokerSection, node: subprocess.Popen[bytes], out: Path) -> None:
    """Wait until the node runs all its pipelines."""
    deadline = time.monotonic() + _START_S
    why = "it does not reply"
    while time.monotonic() < deadline:
        if node.poll() is not None:
            why = f"it exited with code {node.returncode}"
            break
        health = await _health(broker, timeout_s=2.0)
        states = {name: each["state"] for name, each in health.get("pipelines", {}).items()}
        if failed := [name for name, state in states.items() if state == "failed"]:
            why = "; ".join(health["reasons"])
            raise HedgerowError(f"Pipelines {', '.join(failed)} cannot run: {why}", remedy=f"See {out / 'node.log'}.")
        if states and "loading" not in states.values():
            return
        await asyncio.sleep(0.2)
    raise HedgerowError(f"The node did not start: {why}", remedy=f"See {out / 'node.log'}.")


async def _health(broker: BrokerSection, timeout_s: float) -> dict[str, Any]:
    """Return the node's health; empty if it does not reply."""
    from hedgerow.cli.frames.command import send_command

    replies = await send_command(broker, NODE, "health", {}, timeout_s)
    return dict(replies[0].value or {}) if replies else {}


async def _health_when_idle(broker: BrokerSection, sent: int) -> dict[str, Any]:
    """Return the node's health once it has received what was sent and no frames are in flight, or after a timeout."""
    deadline = time.monotonic() + _SETTLE_S
    health: dict[str, Any] = {}
    while time.monotonic() < deadline:
        health = await _health(broker, timeout_s=5.0) or health
        pipelines = health.get("pipelines", {}).values()
        if sum(each["received"] for each in pipelines) >= sent and not any(each["in_flight"] for each in pipelines):
            break
        await asyncio.sleep(0.1)
    return health


def _report(
    health: dict[str, Any], totals: _ResultTotals, sent: int, duration: float, out: Path, *, failed: bool
) -> dict[str, Any]:
    pipelines = {
        name: {key: each.get(key) for key in ("received", "out", "results", "dropped", "dead", "in_flight")}
        for name, each in health.get("pipelines", {}).items()
    }
    dropped: Counter[str] = Counter()
    dead: Counter[str] = Counter()
    for each in pipelines.values():
        dropped.update(each["dropped"])
        dead.update(each["dead"])
    frames, results = (sum(each[key] for each in pipelines.values()) for key in ("received", "results"))
    pictures = len(list((out / "pictures").glob("*.jpg")))
    return {
        "ok": not failed and frames >= sent > 0 and results > 0 and bool(totals.texts) and not dead,
        "seconds": round(duration, 1),
        "published": sent,
        "frames": frames,
        "results": results,
        "dropped": dict(dropped),
        "dead": dict(dead),
        "pipelines": pipelines,
        "devices": {
            name: f"{model['backend']} on {model['device']}" for name, model in health.get("models", {}).items()
        },
        "texts": [text for text, _ in totals.texts.most_common() if len(text) > 3][:12],
        "labels": dict(totals.labels.most_common()),
        "speech_s": round(totals.speech_s, 1),
        "anomalies": totals.anomalies,
        "labelled": {"readings": totals.labelled, "judged_right": totals.correct},
        "pictures": pictures,
    }


def _print_report(report: dict[str, Any], out: Path) -> None:
    echo("")
    echo(f"{report['frames']:,} frames in, {report['results']:,} results out in {report['seconds']} s.")
    rows = [
        (
            name,
            f"{each['received']:,}",
            f"{each['results']:,}",
            ", ".join(f"{reason} {count:,}" for reason, count in each["dropped"].items()) or "none",
        )
        for name, each in report["pipelines"].items()
    ]
    print_table(("PIPELINE", ">FRAMES", ">RESULTS", "DROPPED"), rows)
    echo(f"Read: {', '.join(repr(text) for text in report['texts'][:4])}")
    found = ", ".join(f"{count:,} {label}" for label, count in list(report["labels"].items())[:6])
    echo(f"Found: {found}; {report['speech_s']} s of speech; {report['anomalies']:,} anomalous windows.")
    labelled = report["labelled"]
    echo(f"Classified {labelled['judged_right']:,} of {labelled['readings']:,} labelled readings correctly.")
    echo(f"Models ran on: {', '.join(sorted(set(report['devices'].values())))}.")
    echo(f"{report['pictures']} annotated pictures are in {out / 'pictures'}/.")
    if shutil.which("xdg-open"):
        echo(f"  xdg-open {out / 'pictures'}")
