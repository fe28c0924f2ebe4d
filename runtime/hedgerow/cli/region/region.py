"""`hedgerow region`: run the region's service, check its configuration, show the status of sites and nodes."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from hedgerow.cli.base.console import echo, plural, print_json, read_checked, size, style
from hedgerow.cli.base.options import Json
from hedgerow.cli.base.tables import AlertCell, hanging_indent, print_facts, print_table, terminal_width
from hedgerow.cli.region.options import StoreOptions, on_store
from hedgerow.text import visible

if TYPE_CHECKING:
    from hedgerow.cli.diagnose.checks import CheckResult
    from hedgerow.region.config import RegionConfig

_MOST_LINES: Final = 50
_LONGEST_WHY: Final = 600
_COUNTS: Final = (">RESULTS", ">LOST", ">MISSING")
File = Annotated[Path, typer.Argument(help="The region's configuration (YAML). `configs/region.yaml` is one.")]


def run(
    config: File,
    metrics_host: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Address of metrics and probes, instead of the file's `metrics: {host}`."),
    ] = None,
) -> None:
    """Run a region's service until Ctrl-C or SIGTERM; then store pending messages and stop.

    Examples:
      hedgerow region run region.yaml
      hedgerow region run region.yaml --metrics-host 10.42.0.7

    It stores what nodes send (results, events, health, status), each durable result exactly once, and acknowledges results
    to the nodes' outboxes. Of several services that use one store, one leads; the others stand by, and take over within seconds
    when it ends. If the broker or database is unavailable, it retries.
    """
    from hedgerow.region.config import load
    from hedgerow.telemetry.structlog_import import import_structlog

    deprecations: list[str] = []
    settings = load(config, deprecations.append)
    if metrics_host is not None:
        settings = settings.model_copy(update={"metrics": settings.metrics.model_copy(update={"host": metrics_host})})
    import_structlog(settings.log.format)
    import structlog

    from hedgerow.region.collector.service import RegionService
    from hedgerow.telemetry import logs

    logs.configure(settings.log.level, settings.log.format)
    for message in deprecations:
        structlog.get_logger(__name__).warning("deprecated-setting", detail=message)

    async def main() -> None:
        service = RegionService(settings)
        service.handle_signals()
        await service.run()

    try:
        asyncio.run(main())
    finally:
        logs.report_repeats(final=True)


def check(
    file: File,
    connect: Annotated[
        bool, typer.Option("--connect", help="Also test whether the broker has the required features.")
    ] = False,
    packet_bytes: Annotated[
        int, typer.Option(min=1024, help="With --connect: `limits.bridge_packet_bytes` of the topology.")
    ] = 2**20,
    json: Json = False,
) -> None:
    """Check a region's configuration; connects to the broker only with --connect.

    Examples:
      hedgerow region check region.yaml
      hedgerow region check region.yaml --connect

    --connect is for a broker whose configuration was not rendered from a topology: any MQTT 5 broker or cluster. It tests
    every feature that bridges, nodes and the service need, with the service's own certificate, on a private topic. Exits
    with 2 if the file is invalid, with 1 if the broker lacks a feature, with 3 if it cannot be reached.
    """
    from hedgerow.region.config import load

    config = read_checked(load, file, json=json)
    if not json:
        echo(f"{file}: {style('ok', fg='green')} (region {config.region.name})")
    findings = asyncio.run(_test_broker(config, packet_bytes, json=json)) if connect else []
    failed = [finding for finding in findings if finding.state == "failed"]
    if json:
        print_json({"file": str(file), "ok": not failed, "problems": [], **({"broker": findings} if connect else {})})
    if failed:
        raise typer.Exit(1)


async def _test_broker(config: RegionConfig, packet_bytes: int, *, json: bool) -> list[CheckResult]:
    from hedgerow.cli.diagnose.broker_conformance import check_conformance
    from hedgerow.cli.diagnose.doctor import print_finding

    findings = []
    async for finding in check_conformance(config.broker, config.region.name, packet_bytes):
        findings.append(finding)
        if not json:
            print_finding(finding)
    return findings


@on_store
def status(options: StoreOptions) -> None:
    """Show the status of a region: silent and one-way nodes, lag, round trips, missing and lost results.

    Examples:
      hedgerow region status
      hedgerow region status --store /var/lib/hedgerow/region.db
      hedgerow region status --store postgresql://hedgerow@db.example/hedgerow --json

    It reads the store, whether the service runs or not. LAG is the time from capture to storage of the newest
    result; RTT is the time that a ping takes through all bridges to the node and back. A node is `ok`, `degraded` (by its own health
    report), `one-way` (its reports arrive, but pings stay unanswered), `silent`, `offline` (its broker lost the connection to it: it
    crashed, lost power, or its network failed), `stopped` (it said so) or `unknown`. MISSING counts sequence numbers not received
    although later ones were; LOST counts results that a node has declared lost. What was refused is shown by site and reason:
    what nobody can use, and what exceeds the `quotas` of the region's configuration.

    Exits with 1 if somebody should look: a node is neither ok nor stopped, or the service is not collecting.
    """
    from hedgerow.region.store.queries import status as status_of

    with options.open() as database:
        current = status_of(database, time.time())
    if options.json:
        print_json(current)
    else:
        _print(current)
    if current["needs_help"]:
        raise typer.Exit(1)


def _print(current: dict[str, Any]) -> None:
    print_facts([(_summary(current),)])
    for problem in _problems(current):
        for line in hanging_indent("", visible(problem), terminal_width()):
            echo(style(line, fg="red"))
    if not current["nodes"]:
        echo("No node has been seen yet.")
        return
    sites = [
        (
            site["site"],
            str(site["nodes"]),
            str(site["ok"]),
            *_counts(site),
            _duration(site["heard_s"]),
            size(site["bytes_in"]),
            size(site["bytes_up"]),
        )
        for site in current["sites"]
    ]
    print_table(
        ("SITE", ">NODES", ">OK", *_COUNTS, ">LAST SEEN", ">BYTES IN", ">BYTES OUT"), sites, omit_first=("MISSING",)
    )
    echo()
    nodes = []
    for node in current["nodes"]:
        status = AlertCell(node["status"]) if node["needs_help"] else node["status"]
        rtt = "" if node["round_trip_s"] is None else f"{node['round_trip_s'] * 1e3:.1f} ms"
        times = (_duration(node["heard_s"]), _duration(node["lag_s"]), rtt, _duration(node["answered_s"]))
        nodes.append((node["node"], status, *_counts(node), *times))
    headings = ("NODE", "STATUS", *_COUNTS, ">LAST SEEN", ">LAG", ">RTT", ">LAST REPLY")
    print_table(headings, nodes, names=2, omit_first=("LAST REPLY", "RTT", "LAG", "MISSING"))


def _counts(row: dict[str, Any]) -> list[str]:
    """Return the cells below `_COUNTS`."""
    return [f"{row[name]:,}" for name in ("results", "lost", "awaited")]


def _summary(current: dict[str, Any]) -> str:
    collector = current["collector"]
    if collector is None:
        return "The store is empty: no collector has used it yet."
    state = "collecting" if collector["connected"] else "running, but not connected to its broker"
    if not collector["running"]:
        state = f"not running, last seen {_duration(collector['last_seen_s'])} ago; the status below is as of then"
    stored = f"{size(current['stored_bytes'])} of results are stored."
    return f"Region {current['region']}: {state}. {stored} {_lease(current['lease'])}".rstrip()


def _lease(lease: dict[str, Any] | None) -> str:
    if lease is None:
        return ""
    waiting = ", ".join(visible(standby["host"]) for standby in lease["standbys"])
    waiting = f"standby: {waiting}" if waiting else "no standby"
    if lease["leader"] is None:
        return f"No service leads; {waiting}."
    return f"{visible(lease['leader'])} leads since {lease['since']}; {waiting}."


def _clash(node: dict[str, Any]) -> str:
    return (
        f"{node['node']} runs, or ran, twice with one outbox: {node['clashes']:,} results had the number of another one. All "
        "are stored. Stop the copy, or give it a name of its own."
    )


def _problems(current: dict[str, Any]) -> list[str]:
    """Describe the problems that need an operator's attention."""
    help_needed = [node for node in current["nodes"] if node["needs_help"]]
    lines = [f"{node['node']} is {node['status']}: {node['why'][:_LONGEST_WHY]}" for node in help_needed[:_MOST_LINES]]
    lines += _more(len(help_needed), "node")
    lines += [
        f"another service of this region collects too, {'with a copy of this store' if one['is_copy'] else 'with a store of its own'}: "
        f"host {one['host'] or 'not known'}, address {one['address'] or 'not known'}, last seen {_duration(one['last_s'])} ago. Each has "
        "only a part of the results. Stop one of them, or give both one store."
        for one in current["other_services"]
    ]
    shared = [
        f"{node['node']}: {twin['what']}. {twin['remedy']}"
        for node in current["nodes"]
        for twin in node["twins"]
        if twin["kind"] != "name"  # that one is why the node is degraded
    ]
    lines += shared[:_MOST_LINES] + _more(len(shared), "shared key and state folder")
    lines += _restore_losses(current)
    clashing = [node for node in current["nodes"] if node["clashes"]]
    lines += [_clash(node) for node in clashing[:_MOST_LINES]] + _more(len(clashing), "node")
    if current["rejected"]:
        each = ", ".join(f"{reason} {count:,}" for reason, count in current["rejected"].items())
        lines.append(f"{plural(sum(current['rejected'].values()), 'message')} rejected: {each}")
    lines += [
        f"site {one['site'] or '(none named)'}: {plural(one['count'], 'message')} refused as {one['reason']}, the last one "
        f"{_duration(one['last_s'])} ago: {one['detail'][:_LONGEST_WHY]}"
        for one in current["refused"][:_MOST_LINES]
    ]
    lines += _more(len(current["refused"]), "refusal")
    lines += [
        f"{node['node']}: its clock is {abs(node['clock_offset_s']):.1f} s "
        f"{'ahead' if node['clock_offset_s'] > 0 else 'behind'}, so its lag is wrong by as much"
        for node in current["nodes"]
        if node["clock_offset_s"] is not None and abs(node["clock_offset_s"]) > 2
    ]
    return lines


def _restore_losses(current: dict[str, Any]) -> list[str]:
    """Say what a store has lost that was put back from a backup: what nodes got from the region, and what it had acknowledged."""
    restored = current["restored"]
    if restored is None:
        return []
    since = f"the store was put back at {restored['at']} to a backup of {restored['backup_at']}"
    ahead, again = restored["ahead"], restored["resent"]
    missing = sum(node["awaited"] for node in current["nodes"])
    lines = [
        f"{since}: {plural(again['nodes'], 'node')} sent again {plural(again['results'], 'result')} that it had lost"
    ]
    if again["not_heard"]:
        lines.append(f"not heard of since, or of a version that keeps nothing: {_named(again['not_heard'])}")
    if again["incomplete"]:
        lines.append(
            f"{_named(again['incomplete'])}: kept less than the store has lost (`outbox: {{keep_acknowledged_s}}`), so not all of it comes again"
        )
    if missing:
        lines.append(f"{plural(missing, 'result')} missing since then, or still on the way")
    if ahead:
        nodes = plural(len(ahead), "node")
        lines.append(
            f"{since}: {nodes} ahead of it; what they run or are labelled, it does not know until it is set anew"
        )
    lines += [
        f"{node['node']} has generation {node['generation']} of its desired document; this store knows {node['known']}"
        for node in ahead[:_MOST_LINES]
    ]
    return lines + _more(len(ahead), "node")


def _named(nodes: list[str]) -> str:
    more = f" and {len(nodes) - _MOST_LINES} more" if len(nodes) > _MOST_LINES else ""
    return ", ".join(nodes[:_MOST_LINES]) + more


def _more(count: int, noun: str) -> list[str]:
    return [f"… and {plural(count - _MOST_LINES, noun)} more; --json shows all"] if count > _MOST_LINES else []


def _duration(seconds: float | None) -> str:
    from hedgerow.region.store.liveness import format_duration

    return "" if seconds is None else format_duration(seconds) if abs(seconds) >= 0.1 else f"{seconds * 1e3:.0f} ms"
