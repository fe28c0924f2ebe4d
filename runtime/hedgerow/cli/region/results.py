"""`hedgerow results`: query a region's store."""

from __future__ import annotations

import time
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from hedgerow.cli.base.console import echo, plural, print_json_line
from hedgerow.cli.base.tables import print_table
from hedgerow.cli.region.options import StoreOptions, on_store, parse_time
from hedgerow.errors import ConfigError
from hedgerow.topics import is_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hedgerow.region.store.queries import StoredResult

_ROWS: Final = 50
"""Rows of a table without --newest."""
_MOST_ROWS: Final = 10_000


@on_store
def query(
    options: StoreOptions,
    site: Annotated[str | None, typer.Option(metavar="SITE", help="Only this site.")] = None,
    node: Annotated[str | None, typer.Option(metavar="NODE", help="Only nodes of this name.")] = None,
    pipeline: Annotated[str | None, typer.Option(metavar="NAME", help="Only this pipeline.")] = None,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="Captured since: 90s, 15m, 1h or 7d ago, or 2026-11-23T08:00Z.")
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="Captured before; same form as --since.")] = None,
    newest: Annotated[
        int | None,
        typer.Option("--newest", min=1, metavar="N", help=f"Only the newest N; in a table {_ROWS} by default."),
    ] = None,
    parquet: Annotated[
        Path | None, typer.Option("--parquet", metavar="FILE", help="Write a Parquet file instead.")
    ] = None,
) -> None:
    """Query results in a region's store, in order of capture.

    Examples:
      hedgerow results query --since 1h
      hedgerow results query --site shop-12 --pipeline visitors --newest 10
      hedgerow results query --since 2026-11-01 --until 2026-12-01 --json > november.jsonl
      hedgerow results query --since 7d --parquet week.parquet

    Times without a zone are UTC. Results can be read while the service runs. --json prints one line per result.
    Results that were not durable have no number.
    """
    from hedgerow.region.store import queries

    for name in (site, node, pipeline):
        if name is not None and not is_name(name):
            raise ConfigError(
                f"{name!r} is not a valid name", remedy="Write the name as `hedgerow region status` shows it."
            )
    if parquet is not None and options.json:
        raise ConfigError("--parquet and --json exclude each other", remedy="Use only one of them.")
    now = time.time()
    table = parquet is None and not options.json
    if table and newest is None:
        newest = _ROWS
    if table and newest is not None and newest > _MOST_ROWS:
        raise ConfigError(
            f"A table of {newest:,} results is too long", remedy=f"Ask for at most {_MOST_ROWS:,}, or use --json."
        )
    selection = queries.ResultQuery(site, node, pipeline, parse_time(since, now), parse_time(until, now), newest)
    with options.open() as database:
        found = queries.results(database, selection)
        if parquet is not None:
            from hedgerow.region.store.parquet import write

            count = write(found, parquet)
            echo(f"{plural(count, 'result')} in {parquet}")
        elif options.json:
            for result in found:
                print_json_line(result.record())
        else:
            _print(found, newest or _ROWS)


def _print(found: Iterator[StoredResult], limit: int) -> None:
    from hedgerow.cli.frames.message_board import summarise
    from hedgerow.region.store.queries import iso

    rows = []
    for result in islice(found, limit):
        body = result.body
        content = body.get("result") if isinstance(body, dict) else body
        text = summarise(content) if body is not None else f"{result.content_type}, {len(result.payload):,} bytes"
        number = "not durable" if result.number is None else result.number.partition("/")[2]
        rows.append((iso(result.captured_at), f"{result.site}/{result.node}", result.pipeline, number, text))
    if rows:
        headings = ("CAPTURED", "NODE", "PIPELINE", ">NUMBER", "RESULT")
        print_table(headings, rows, names=3, omit_first=("NUMBER",))
    echo(f"{plural(len(rows), 'result')}.")
