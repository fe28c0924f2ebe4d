"""`hedgerow broker refusals`: reports the requests a broker refused, from its log."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Final

import typer

from hedgerow.cli.base.console import echo, plural, print_json_line
from hedgerow.cli.base.options import Json
from hedgerow.cli.base.tables import print_table
from hedgerow.errors import ConfigError
from hedgerow.text import visible

if TYPE_CHECKING:
    from hedgerow.topology.refusals import AccessDenial, AccessDenials, What

_REPEAT_AFTER_S: Final = 60
_MOST_REMEMBERED: Final = 10_000
_REQUESTS: Final = {
    "connect": "refused a connection by",
    "publish": "refused a publish by",
    "will": "refused the last will of",
    "subscribe": "refused a subscription by",
    "disconnect": "disconnected",
    "drop": "dropped messages for",
    "expire": "dropped the session of",
}


def refusals(
    log: Annotated[Path, typer.Argument(metavar="LOG", help="The broker's log; - follows stdin.")],
    acl: Annotated[
        Path | None,
        typer.Option("--acl", metavar="FILE", help="Its access list: also report subscriptions that receive nothing."),
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option("--metrics-port", min=0, max=65_535, help="Serve the counts to Prometheus on this port."),
    ] = None,
    json: Json = False,
) -> None:
    """Report which clients a broker refused to let connect, publish or subscribe, and how often.

    Examples:
      docker compose logs -f --no-log-prefix broker | hedgerow broker refusals - --acl acl --metrics-port 9466
      journalctl -f -o cat -u hedgerow-broker | hedgerow broker refusals - --acl /etc/hedgerow/shop-12/acl
      hedgerow broker refusals broker.log --json

    Reads the log of a Mosquitto started by the `broker.sh` from `hedgerow topology render`, or with `mosquitto -v`. A
    refusal repeated within a minute is counted, but not printed again. Mosquitto accepts any subscription and then
    delivers nothing, and drops a last will that is not allowed; with --acl, these are reported too. Whatever a limit of the broker
    ends is reported too: connections, packets, memory, queued messages, sessions. The counts are printed at the end of the
    log or on Ctrl-C. With --json each refusal is a line.
    """
    from hedgerow.topology.refusals import AccessDenials, readable, writable

    rights = None if acl is None else _text(acl)
    reader = AccessDenials() if rights is None else AccessDenials(readable(rights), writable(rights))
    printed: dict[tuple[str, ...], int] = {}
    with _opened(log) as lines, _served(reader, metrics_port):
        try:
            for line in lines:
                refusal = reader.take(line)
                if refusal is None:
                    continue
                if json:
                    print_json_line(refusal._asdict())
                    continue
                key = (refusal.what, refusal.user, refusal.detail)
                if len(printed) >= _MOST_REMEMBERED:  # clients choose the topics
                    printed.clear()
                if refusal.at - printed.get(key, refusal.at - _REPEAT_AFTER_S) >= _REPEAT_AFTER_S:
                    printed[key] = refusal.at
                    echo(visible(_sentence(refusal)))
        except KeyboardInterrupt:
            pass
    if not json:
        _print(reader.counts)


def _sentence(refusal: AccessDenial) -> str:
    from datetime import UTC, datetime

    when = datetime.fromtimestamp(refusal.at, UTC)
    who = refusal.user or "an unknown client"
    client = f" (client {refusal.client})" if refusal.client else ""
    return f"{when:%Y-%m-%d %H:%M:%S}  {_REQUESTS[refusal.what]} {who}{client}: {refusal.detail}"


def _print(counts: Counter[tuple[What, str]]) -> None:
    rows = [(user or "?", what, f"{count:,}") for (what, user), count in counts.most_common()]
    if rows:
        print_table(("USER", "REFUSED", ">TIMES"), rows, names=2)
    echo(f"{plural(sum(counts.values()), 'refusal')}.")


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", remedy="Give the broker's access list, `acl`.") from error


@contextmanager
def _opened(path: Path) -> Iterator[IO[str]]:
    if str(path) == "-":
        sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
        yield sys.stdin
        return
    try:
        with path.open("r", encoding="utf-8", errors="replace") as file:
            yield file
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", remedy="Give the broker's log, or -.") from error


@contextmanager
def _served(reader: AccessDenials, port: int | None) -> Iterator[None]:
    """Serve the counts as metrics while the context lasts."""
    if port is None:
        yield
        return
    from prometheus_client.metrics_core import CounterMetricFamily, Metric
    from prometheus_client.registry import Collector

    from hedgerow.telemetry.metrics import ProbeServer

    class RefusalCounts(Collector):
        def collect(self) -> Iterator[Metric]:
            family = CounterMetricFamily(
                "hedgerow_broker_refused", "Requests that the broker refused.", labels=["what", "user"]
            )
            for (what, user), count in list(reader.counts.items()):
                family.add_metric([what, user], count)
            yield family

    server = ProbeServer("127.0.0.1", port, RefusalCounts(), list, list)
    echo(f"Metrics: http://127.0.0.1:{server.port}/metrics", err=True)
    try:
        yield
    finally:
        server.close()
