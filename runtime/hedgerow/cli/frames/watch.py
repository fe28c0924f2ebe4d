"""`hedgerow watch`: shows results as they arrive, in a live table on a terminal and as lines elsewhere."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, Final

import typer

from hedgerow import topics
from hedgerow.cli.base.console import echo, print_json_line, style
from hedgerow.cli.base.options import BrokerConfig, BrokerUrl, Json
from hedgerow.cli.base.tables import AlertCell, ansi_text, elided, table
from hedgerow.errors import ConfigError
from hedgerow.terminal import supports_redraw
from hedgerow.text import visible
from hedgerow.topics import ROOT, Channel, is_name

if TYPE_CHECKING:
    from hedgerow.cli.frames.message_board import Board, StreamCount, WatchedMessage
    from hedgerow.config import BrokerSection
    from hedgerow.wire.messages import Health, PipelineHealth

_REDRAW_S: Final = 0.5
_MIN_ROWS: Final = 3
_MAX_ROWS: Final = 200
_LONGEST_LINE: Final = 2000
_HEADINGS: Final = (
    *("NODE", "PIPELINE", "STREAM"),
    *(">RATE/S", ">LATENCY ms p50/p99", ">ARRIVAL ms p50/p99", ">COUNT", ">DEAD"),
    "LAST",
)
_OMIT_FIRST: Final = ("ARRIVAL ms p50/p99", "DEAD", "COUNT", "LATENCY ms p50/p99")


def watch(
    node: Annotated[str, typer.Option(metavar="NODE", help="REGION/SITE/NODE; `+` matches any.")] = "+/+/+",
    pipeline: Annotated[str, typer.Option(metavar="NAME", help="Only this pipeline.")] = "+",
    filter: Annotated[
        list[str] | None,
        typer.Option("--filter", metavar="FILTER", help="Watch these topics instead, for example those of sensors."),
    ] = None,
    seconds: Annotated[float | None, typer.Option(min=0.01, help="Stop after this many seconds.")] = None,
    count: Annotated[
        int | None, typer.Option(min=1, help="Stop after this many results; with --filter, messages.")
    ] = None,
    lines: Annotated[bool, typer.Option("--lines", help="Print a line per message on a terminal too.")] = False,
    broker: BrokerUrl = None,
    config: BrokerConfig = None,
    json: Json = False,
) -> None:
    """Watch results arrive: how many, how fast, their content, and what went wrong.

    Examples:
      hedgerow watch
      hedgerow watch --node north/plant-7/+ --pipeline doors
      hedgerow watch --json --count 100 > results.jsonl
      hedgerow watch --filter 'plant/+/image'

    On a terminal it draws a live table until Ctrl-C; elsewhere, and with --lines or --json, it prints a line per message.
    Latency is the time from a frame's capture to its result, arrival the time from capture to reception here. Rates cover
    the last ten seconds. Nodes report their drops with their health, every ten seconds. A narrow terminal omits columns,
    but never names and rates. If the broker becomes unavailable, the watch reconnects.
    """
    from hedgerow.cli.base.connection import broker_section
    from hedgerow.cli.frames.message_board import Board

    filters = [topics.check_filter(pattern) for pattern in filter] if filter else _filters(node, pipeline)
    board = Board()
    live = None if json or lines or not supports_redraw(sys.stdout) else LiveTable(board)
    show: Callable[[WatchedMessage], None] = _print_json if json else _print_line if live is None else board.add
    show_outage = print_outage if live is None else live.show_outage
    received = watched_messages(broker_section(broker, config), filters, show_outage)
    try:
        asyncio.run(_run_for(seconds, _watch(received, show, count, raw=bool(filter)), live))
    finally:
        if live is not None:
            live.close()


def _filters(node: str, pipeline: str) -> list[str]:
    parts = node.split("/")
    if len(parts) != 3 or not all(part == "+" or is_name(part) for part in parts):
        raise ConfigError(
            f"{node!r} is not a node pattern", remedy="Write REGION/SITE/NODE, with `+` for any: local/+/+."
        )
    if pipeline != "+" and not is_name(pipeline):
        raise ConfigError(f"{pipeline!r} is not a pipeline name", remedy="Write it as in the node's configuration.")
    base = f"{ROOT}/{node}"
    return [
        *(f"{base}/{channel}/{pipeline}" for channel in (Channel.RESULT, Channel.DEAD)),
        *(f"{base}/{channel}" for channel in (Channel.HEALTH, Channel.STATUS)),
        f"{base}/{Channel.EVENT}/#",
    ]


async def _run_for(seconds: float | None, watching: Awaitable[None], table: LiveTable | None) -> None:
    from hedgerow import tasks

    drawing = None if table is None else tasks.start(table.run(), "table")
    try:
        async with asyncio.timeout(seconds):
            await watching
    except TimeoutError:
        pass
    finally:
        if drawing is not None:
            drawing.cancel()


async def _watch(
    received: AsyncGenerator[WatchedMessage, None],
    show: Callable[[WatchedMessage], None],
    count: int | None,
    *,
    raw: bool,
) -> None:
    async with aclosing(received):
        async for message in received:
            show(message)
            if count is not None and (raw or message.channel is Channel.RESULT):
                count -= 1
                if count == 0:
                    return


async def watched_messages(
    broker: BrokerSection, filters: Sequence[str], on_link_change: Callable[[str], None]
) -> AsyncGenerator[WatchedMessage, None]:
    """Yield the messages on topics without end; arguments and errors are those of `connection.receive_messages`."""
    from hedgerow.cli.base.client import content_type, payload_of, user_properties
    from hedgerow.cli.base.connection import receive_messages
    from hedgerow.cli.frames.message_board import parse_message

    async with aclosing(receive_messages(broker, filters, on_link_change)) as received:
        async for message in received:
            topic, payload, properties = str(message.topic), payload_of(message), user_properties(message)
            parsed = parse_message(topic, payload, content_type(message), properties, time.time())
            if parsed is not None:
                yield parsed


def print_outage(reason: str) -> None:
    """Print on stderr that the connection was lost and why, or with "" that it is back."""
    echo(f"broker unavailable, reconnecting… ({visible(reason)})" if reason else "reconnected", err=True)


def _print_json(message: WatchedMessage) -> None:
    print_json_line(message.record())


def _print_line(message: WatchedMessage) -> None:
    if message.channel is not Channel.HEALTH or message.body.get("state") != "ok":
        echo(elided(visible(message.line()[:_LONGEST_LINE]), _LONGEST_LINE))


class LiveTable:
    """Draws a board on the terminal, again and again."""

    def __init__(self, board: Board) -> None:
        from rich.live import Live

        self._board = board
        self._outage = ""
        self._live = Live(auto_refresh=False, screen=False)

    def show_outage(self, reason: str) -> None:
        """Show below the table why the connection was lost; "" removes it."""
        self._outage = reason

    async def run(self) -> None:
        """Redraw twice a second, until cancelled."""
        self._live.start()
        while True:
            self._draw(self._live.console.height)
            await asyncio.sleep(_REDRAW_S)

    def close(self) -> None:
        """Draw the whole table a last time, and leave it on the screen."""
        if self._live.is_started:
            self._draw(None)
            self._live.stop()

    def _draw(self, height: int | None) -> None:
        lines = board_lines(self._board, self._live.console.width, height, time.time(), self._outage)
        self._live.update(ansi_text(lines), refresh=True)


def board_lines(board: Board, width: int, height: int | None, now: float, outage: str = "") -> list[str]:
    """Return a board as lines for a terminal: streams, then the nodes' health, then news.

    Args:
        width: columns of the terminal.
        height: lines of the terminal, beyond which streams are only counted; None: show all streams.
        now: Unix seconds.
        outage: why the connection was lost; "": it was not.
    """
    nodes = sorted({node for node, _, _ in board.streams} | board.nodes.keys())
    below = _health_lines({node: board.nodes.get(node) for node in nodes if node}, width, height)
    below += [style(elided(visible(each.line()), width), dim=True) for each in board.news]
    if outage:
        below.append(style(elided(f"Broker unavailable, reconnecting… ({visible(outage)})", width), fg="red"))
    if not board.streams:
        return [style("No results yet…", dim=True), *below]
    most = len(board.streams) if height is None else max(_MIN_ROWS, height - len(below) - 2)
    shown = sorted(board.streams.items())[: min(most, _MAX_ROWS)]
    rows = [_row(*key, count, now) for key, count in shown]
    skipped = 1 if len(nodes) == 1 else 0  # a single node needs no column
    lines = table(
        _HEADINGS[skipped:], [row[skipped:] for row in rows], width, names=3 - skipped, omit_first=_OMIT_FIRST
    )
    if more := len(board.streams) - len(shown):
        lines.append(f"… and {more} more")
    return [*lines, *below]


def _row(node: str, pipeline: str, stream: str, count: StreamCount, now: float) -> tuple[str, ...]:
    rate, latency, arrival = count.rate(now), count.latency(), count.arrival()
    dead = AlertCell(f"{count.dead:,}") if count.dead else "0"
    numbers = (f"{rate:.1f}", str(latency or ""), str(arrival or ""), f"{count.results:,}", dead)
    return node, pipeline, stream, *numbers, count.last.text


def _health_lines(nodes: Mapping[str, Health | None], width: int, height: int | None) -> list[str]:
    """Return a line per node and pipeline; if these are too many, a line per node, unhealthy nodes first."""
    most = None if height is None else max(_MIN_ROWS, height // 2)
    heads = {node: _health_line(node, health, width) for node, health in nodes.items()}
    lines = []
    for node, health in nodes.items():
        pipelines = health.pipelines if health is not None else {}
        lines += [
            heads[node],
            *(elided(visible(f"  {name} {_counts(each)}"), width) for name, each in pipelines.items()),
        ]
    if most is None or len(lines) <= most:
        return lines
    unhealthy_first = sorted(nodes, key=lambda node: (health := nodes[node]) is not None and health.state == "ok")
    rest = [f"… and {len(nodes) - most + 1} more"] if len(nodes) > most else []
    return [heads[node] for node in unhealthy_first[: most - len(rest)]] + rest


def _health_line(node: str, health: Health | None, width: int) -> str:
    if health is None:
        return elided(f"{node}: no health report yet", width)
    line = elided(visible(f"{node}: {'; '.join([health.state, *health.reasons])}"), width)
    return line if health.state == "ok" else style(line, fg="red")


def _counts(pipeline: PipelineHealth) -> str:
    parts = [f"{pipeline.state}: {pipeline.received:,} in, {pipeline.out:,} out"]
    for word, reasons in (("dropped", pipeline.dropped), ("dead", pipeline.dead)):
        listed = ", ".join(f"{reason} {count:,}" for reason, count in reasons.items())
        parts += [f"{sum(reasons.values()):,} {word} ({listed})"] if reasons else []
    return ", ".join(parts)
