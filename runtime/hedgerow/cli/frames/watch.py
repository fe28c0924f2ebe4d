"""`hedgerow watch`: results as they come: a table on a terminal, lines elsewhere."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from hedgerow import topics
from hedgerow.cli.base.console import on_terminal, print_json_line
from hedgerow.cli.base.options import BrokerConfig, BrokerUrl, Json
from hedgerow.errors import ConfigError
from hedgerow.topics import ROOT, Channel, is_name

if TYPE_CHECKING:
    from hedgerow.cli.frames.message_board import Board, Sighting
    from hedgerow.config import BrokerSection
    from hedgerow.wire.messages import Health, PipelineHealth

_REDRAW_S: Final = 0.5
_MOST_ROWS: Final = 200


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
    seconds. Drops are counted by the nodes and come with their health, every ten seconds.
    """
    from hedgerow.cli.base.connection import broker_section
    from hedgerow.cli.frames.message_board import Board

    filters = [topics.check_filter(pattern) for pattern in filter] if filter else _filters(node, pipeline)
    board = Board()
    table = None if json or lines or not on_terminal() else Table(board)
    show: Callable[[Sighting], None] = _print_json if json else _print_line if table is None else board.take
    watching = _watch(broker_section(broker, config), filters, show, count, raw=bool(filter))
    try:
        asyncio.run(_until(watching, seconds, table))
    finally:
        if table is not None:
            table.close()


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


async def _until(watching: Any, seconds: float | None, table: Table | None) -> None:
    drawing = None if table is None else asyncio.create_task(table.keep_drawing())
    try:
        async with asyncio.timeout(seconds):
            await watching
    except TimeoutError:
        pass
    finally:
        if drawing is not None:
            drawing.cancel()


async def _watch(
    broker: BrokerSection,
    filters: Sequence[str],
    show: Callable[[Sighting], None],
    count: int | None,
    *,
    raw: bool,
) -> None:
    from hedgerow.cli.base.connection import connected, content_type, payload_of, user_properties
    from hedgerow.cli.frames.message_board import sight

    async with connected(broker) as client:
        await client.subscribe([(pattern, 1) for pattern in filters])
        async for message in client.messages:
            received_at = time.time()
            sighting = sight(
                str(message.topic), payload_of(message), content_type(message), user_properties(message), received_at
            )
            if sighting is None:
                continue
            show(sighting)
            if count is not None and (raw or sighting.channel is Channel.RESULT):
                count -= 1
                if count == 0:
                    return


def _print_json(sighting: Sighting) -> None:
    print_json_line(sighting.record())


def _print_line(sighting: Sighting) -> None:
    if sighting.channel is not Channel.HEALTH or sighting.body.get("state") != "ok":
        typer.echo(sighting.line())


class Table:
    """A board, drawn on the terminal."""

    def __init__(self, board: Board) -> None:
        from rich.live import Live

        self._board = board
        self._live = Live(self._drawn(), auto_refresh=False, screen=False)

    async def keep_drawing(self) -> None:
        """Draw it anew, twice a second."""
        self._live.start()
        while True:
            self._live.update(self._drawn(), refresh=True)
            await asyncio.sleep(_REDRAW_S)

    def close(self) -> None:
        """Draw it a last time and leave it there."""
        if self._live.is_started:
            self._live.update(self._drawn(), refresh=True)
            self._live.stop()

    def _drawn(self) -> Any:
        from rich.console import Group
        from rich.table import Table as Grid
        from rich.text import Text

        now = time.time()
        table = Grid(box=None, pad_edge=False, header_style="bold")
        for heading in ("NODE", "PIPELINE", "STREAM"):
            table.add_column(heading, overflow="fold")
        for heading in ("RATE/S", "LATENCY ms p50/p99", "ARRIVAL ms p50/p99", "SEEN", "DEAD"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("LAST", overflow="ellipsis", no_wrap=True)
        for (node, pipeline, stream), count in sorted(self._board.streams.items())[:_MOST_ROWS]:
            rate, latency, arrival = count.rate(now), count.latency(), count.arrival()
            figures = (f"{rate:.1f}", str(latency or ""), str(arrival or ""), f"{count.results:,}", f"{count.dead:,}")
            # Text: a result may hold what rich would take for markup.
            table.add_row(*map(Text, (node, pipeline, stream, *figures, count.last.text)))
        parts: list[Any] = [table if self._board.streams else Text("No results yet…", style="dim")]
        for node, health in sorted(self._board.nodes.items()):
            parts.append(Text(f"{node}: {_health(health)}", style="" if health.state == "ok" else "red"))
        parts += [Text(sighting.line(), style="dim") for sighting in self._board.news]
        return Group(*parts)


def _health(health: Health) -> str:
    told = [f"{name} {_counts(pipeline)}" for name, pipeline in health.pipelines.items()]
    return "; ".join([health.state, *health.reasons, *told])


def _counts(pipeline: PipelineHealth) -> str:
    parts = [f"{pipeline.state}: {pipeline.received:,} in, {pipeline.out:,} out"]
    for word, reasons in (("dropped", pipeline.dropped), ("dead", pipeline.dead)):
        each = ", ".join(f"{reason} {times:,}" for reason, times in reasons.items())
        parts += [f"{sum(reasons.values()):,} {word} ({each})"] if reasons else []
    return ", ".join(parts)
