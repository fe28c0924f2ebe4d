"""`hedgerow watch`: results as they come: a table on a terminal, lines elsewhere."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from hedgerow import topics
from hedgerow.cli.base.console import print_json_line, printable
from hedgerow.cli.base.options import BrokerConfig, BrokerUrl, Json
from hedgerow.cli.base.tables import AlertCell, ansi_text, elided, table
from hedgerow.errors import ConfigError
from hedgerow.terminal import supports_redraw
from hedgerow.topics import ROOT, Channel, is_name

if TYPE_CHECKING:
    from hedgerow.cli.frames.message_board import Board, StreamCount, WatchedMessage
    from hedgerow.config import BrokerSection
    from hedgerow.wire.messages import Health, PipelineHealth

_REDRAW_S: Final = 0.5
_FEWEST_ROWS: Final = 3
_MOST_ROWS: Final = 200
_HEADINGS: Final = (
    *("NODE", "PIPELINE", "STREAM"),
    *(">RATE/S", ">LATENCY ms p50/p99", ">ARRIVAL ms p50/p99", ">COUNT", ">DEAD"),
    "LAST",
)
_SPARE: Final = ("ARRIVAL ms p50/p99", "DEAD", "COUNT", "LATENCY ms p50/p99")


def watch(
    node: Annotated[str, typer.Option(metavar="NODE", help="REGION/SITE/NODE; `+` stands for any.")] = "+/+/+",
    pipeline: Annotated[str, typer.Option(metavar="NAME", help="Only this pipeline.")] = "+",
    filter: Annotated[
        list[str] | None,
        typer.Option("--filter", metavar="FILTER", help="Watch any other topics instead, sensors' own for example."),
    ] = None,
    seconds: Annotated[float | None, typer.Option(min=0.01, help="End after so long.")] = None,
    count: Annotated[
        int | None, typer.Option(min=1, help="End after so many results (messages, with --filter).")
    ] = None,
    lines: Annotated[bool, typer.Option("--lines", help="A line a message, on a terminal too.")] = False,
    broker: BrokerUrl = None,
    config: BrokerConfig = None,
    json: Json = False,
) -> None:
    """Watch results come in: how many, how fast, what was found, what went wrong.

    Examples:
      hedgerow watch
      hedgerow watch --node north/plant-7/+ --pipeline doors
      hedgerow watch --json --count 100 > results.jsonl
      hedgerow watch --filter 'plant/+/image'

    On a terminal it draws a table until Ctrl-C; elsewhere, and with --lines or --json, it prints a line a message.
    Latency runs from a frame's capture to its result, arrival from capture to here; rates are those of the last ten
    seconds. Drops are counted by the nodes and come with their health, every ten seconds. On a narrow terminal, columns
    that do not fit are left out; names and rates are not. If the broker goes away, the watch waits for it and goes on.
    """
    from hedgerow.cli.base.connection import broker_section
    from hedgerow.cli.frames.message_board import Board

    filters = [topics.check_filter(pattern) for pattern in filter] if filter else _filters(node, pipeline)
    board = Board()
    drawn = None if json or lines or not supports_redraw(sys.stdout) else LiveTable(board)
    show: Callable[[WatchedMessage], None] = _print_json if json else _print_line if drawn is None else board.add
    link = print_outage if drawn is None else drawn.show_outage
    coming = watched_messages(broker_section(broker, config), filters, link)
    try:
        asyncio.run(_until(_watch(coming, show, count, raw=bool(filter)), seconds, drawn))
    finally:
        if drawn is not None:
            drawn.close()


def _filters(node: str, pipeline: str) -> list[str]:
    parts = node.split("/")
    if len(parts) != 3 or not all(part == "+" or is_name(part) for part in parts):
        raise ConfigError(f"{node!r} names no nodes", remedy="Write REGION/SITE/NODE, with `+` for any: local/+/+.")
    if pipeline != "+" and not is_name(pipeline):
        raise ConfigError(f"{pipeline!r} names no pipeline", remedy="Write its name as in the node's configuration.")
    base = f"{ROOT}/{node}"
    return [
        *(f"{base}/{channel}/{pipeline}" for channel in (Channel.RESULT, Channel.DEAD)),
        *(f"{base}/{channel}" for channel in (Channel.HEALTH, Channel.STATUS)),
        f"{base}/{Channel.EVENT}/#",
    ]


async def _until(watching: Any, seconds: float | None, table: LiveTable | None) -> None:
    drawing = None if table is None else asyncio.create_task(table.run())
    try:
        async with asyncio.timeout(seconds):
            await watching
    except TimeoutError:
        pass
    finally:
        if drawing is not None:
            drawing.cancel()


async def _watch(
    coming: AsyncIterator[WatchedMessage], show: Callable[[WatchedMessage], None], count: int | None, *, raw: bool
) -> None:
    async for sighting in coming:
        show(sighting)
        if count is not None and (raw or sighting.channel is Channel.RESULT):
            count -= 1
            if count == 0:
                return


async def watched_messages(
    broker: BrokerSection, filters: Sequence[str], link: Callable[[str], None]
) -> AsyncGenerator[WatchedMessage, None]:
    """What comes on topics, for as long as it is asked for; arguments and errors are those of `broker.messages`."""
    from hedgerow.cli.base.client import content_type, payload_of, user_properties
    from hedgerow.cli.base.connection import receive_messages
    from hedgerow.cli.frames.message_board import parse_message

    async with aclosing(receive_messages(broker, filters, link)) as coming:
        async for message in coming:
            said = user_properties(message)
            sighting = parse_message(str(message.topic), payload_of(message), content_type(message), said, time.time())
            if sighting is not None:
                yield sighting


def print_outage(why: str) -> None:
    """Say on stderr that the connection was lost, or is back."""
    typer.echo(f"broker away, trying again… ({printable(why)})" if why else "broker back", err=True)


def _print_json(sighting: WatchedMessage) -> None:
    print_json_line(sighting.record())


def _print_line(sighting: WatchedMessage) -> None:
    if sighting.channel is not Channel.HEALTH or sighting.body.get("state") != "ok":
        typer.echo(sighting.line())


class LiveTable:
    """A board, drawn on the terminal."""

    def __init__(self, board: Board) -> None:
        from rich.live import Live

        self._board = board
        self._link = ""
        self._live = Live(auto_refresh=False, screen=False)

    def show_outage(self, why: str) -> None:
        """Show below the table why the connection was lost; "": it is back."""
        self._link = why

    async def run(self) -> None:
        """Draw it anew, twice a second."""
        self._live.start()
        while True:
            self._draw(self._live.console.height)
            await asyncio.sleep(_REDRAW_S)

    def close(self) -> None:
        """Draw all of it a last time and leave it there."""
        if self._live.is_started:
            self._draw(None)
            self._live.stop()

    def _draw(self, height: int | None) -> None:
        lines = board_lines(self._board, self._live.console.width, height, time.time(), self._link)
        self._live.update(ansi_text(lines), refresh=True)


def board_lines(board: Board, width: int, height: int | None, now: float, link: str = "") -> list[str]:
    """A board as lines for a terminal: streams, below them the nodes' health and what is new.

    Args:
        width, height: of the terminal; streams that it has no room for are only counted. None: all are shown.
        now: Unix seconds.
        link: why the connection was lost.
    """
    nodes = sorted({node for node, _, _ in board.streams} | board.nodes.keys())
    below = _health_lines({node: board.nodes.get(node) for node in nodes if node}, width, height)
    below += [typer.style(elided(printable(each.line()), width), dim=True) for each in board.news]
    if link:
        below.append(typer.style(elided(f"Broker away, trying again… ({printable(link)})", width), fg="red"))
    if not board.streams:
        return [typer.style("No results yet…", dim=True), *below]
    most = len(board.streams) if height is None else max(_FEWEST_ROWS, height - len(below) - 2)
    shown = sorted(board.streams.items())[: min(most, _MOST_ROWS)]
    rows = [_row(*key, count, now) for key, count in shown]
    left = 1 if len(nodes) == 1 else 0
    lines = table(_HEADINGS[left:], [row[left:] for row in rows], width, names=3 - left, spare=_SPARE)
    if more := len(board.streams) - len(shown):
        lines.append(f"… and {more} more")
    return [*lines, *below]


def _row(node: str, pipeline: str, stream: str, count: StreamCount, now: float) -> tuple[str, ...]:
    rate, latency, arrival = count.rate(now), count.latency(), count.arrival()
    dead = AlertCell(f"{count.dead:,}") if count.dead else "0"
    numbers = (f"{rate:.1f}", str(latency or ""), str(arrival or ""), f"{count.results:,}", dead)
    return node, pipeline, stream, *numbers, count.last.text


def _health_lines(nodes: Mapping[str, Health | None], width: int, height: int | None) -> list[str]:
    """A line for each node and each of its pipelines; where that is too much, for some nodes, the ill ones first."""
    most = None if height is None else max(_FEWEST_ROWS, height // 2)
    heads = {node: _health_line(node, health, width) for node, health in nodes.items()}
    lines = []
    for node, health in nodes.items():
        told = health.pipelines if health is not None else {}
        lines += [heads[node], *(elided(f"  {name} {_counts(each)}", width) for name, each in told.items())]
    if most is None or len(lines) <= most:
        return lines
    ill_first = sorted(nodes, key=lambda node: (health := nodes[node]) is not None and health.state == "ok")
    left = [f"… and {len(nodes) - most + 1} more"] if len(nodes) > most else []
    return [heads[node] for node in ill_first[: most - len(left)]] + left


def _health_line(node: str, health: Health | None, width: int) -> str:
    if health is None:
        return elided(f"{node}: no health report yet", width)
    line = elided(printable(f"{node}: {'; '.join([health.state, *health.reasons])}"), width)
    return line if health.state == "ok" else typer.style(line, fg="red")


def _counts(pipeline: PipelineHealth) -> str:
    parts = [f"{pipeline.state}: {pipeline.received:,} in, {pipeline.out:,} out"]
    for word, reasons in (("dropped", pipeline.dropped), ("dead", pipeline.dead)):
        each = ", ".join(f"{reason} {times:,}" for reason, times in reasons.items())
        parts += [f"{sum(reasons.values()):,} {word} ({each})"] if reasons else []
    return ", ".join(parts)
