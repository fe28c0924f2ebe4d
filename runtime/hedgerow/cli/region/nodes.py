"""`hedgerow nodes` and `hedgerow node`, seen from the region: the inventory, labels, pins; and the audit log."""

from __future__ import annotations

import time
from collections import Counter
from typing import Annotated, Any

import typer

from hedgerow.cli.base.console import plural, print_json, print_json_line, size
from hedgerow.cli.base.options import Newest
from hedgerow.cli.base.tables import AlertCell, print_facts, print_table
from hedgerow.cli.region.options import (
    ServiceOptions,
    StoreOptions,
    on_service,
    on_store,
    short,
    short_digest,
)
from hedgerow.errors import ConfigError

Node = Annotated[
    str, typer.Argument(metavar="NODE", help="REGION/SITE/NODE, SITE/NODE, or its name if no other has it.")
]


@on_store
def nodes(
    options: StoreOptions,
    selector: Annotated[
        str,
        typer.Option("--selector", "-l", metavar="SELECTOR", help="Only nodes with such labels: site=shop-12, !spare."),
    ] = "",
    model: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="MODEL", help="Only nodes that run NAME, NAME@VERSION or a digest's beginning."
        ),
    ] = None,
    health: Annotated[
        str | None,
        typer.Option("--health", metavar="HOW", help="Only nodes that are ok, degraded, one-way, silent, offline."),
    ] = None,
) -> None:
    """List the nodes of a region: how they are, and what they provably run.

    Examples:
      hedgerow nodes
      hedgerow nodes -l 'hardware in (nuc, jetson), ring!=late' --model faces@2.0.0
      hedgerow nodes --health silent --json

    GENERATION is that of the desired state the node has taken in, and the one it should have where that is another. A
    model's version is the one that runs; an arrow leads to the one that should. *: the node's own file.
    """
    from hedgerow.labels import parse_selector
    from hedgerow.region.rollouts.inventory import NodeFilter, inventory, parse_status

    which = NodeFilter(parse_selector(selector), model, None if health is None else parse_status(health))
    with options.open() as database:
        found = inventory(database, time.time(), which)
    if options.json:
        print_json(found)
        return
    headings = ("NODE", "STATUS", "GENERATION", "STATE", "MODELS", "LABELS")
    rows = []
    for node in found:
        labels = {key: value for key, value in node["labels"].items() if key not in ("region", "site", "node")}
        shown = ", ".join(f"{key}={value}" for key, value in labels.items())
        status = node["status"] if node["status"] == "ok" else AlertCell(node["status"])
        rows.append((node["node"], status, _generation(node), _state(node), _models(node), shown))
    print_table(headings, rows, names=2, spare=("LABELS", "GENERATION", "STATE"))
    typer.echo(f"{plural(len(found), 'node')}.")


@on_store
def show(options: StoreOptions, node: Node) -> None:
    """Show all that the region knows of a node.

    Examples:
      hedgerow node show shop-12/gateway
    """
    from hedgerow.region.rollouts.handlers import find_node
    from hedgerow.region.rollouts.inventory import inventory, newest_health
    from hedgerow.region.rollouts.progress import audit
    from hedgerow.topics import Address

    with options.open() as database:
        found = {Address(*one["node"].split("/")): one for one in inventory(database, time.time())}
        address = find_node(found, node)
        said = found[address] | {
            "health": newest_health(database, address),
            "audit": audit(database, newest=10, node=str(address)),
        }
    if options.json:
        print_json(said)
        return
    why = f" ({said['why']})" if said["why"] else ""
    rows = [("node", said["node"]), ("status", f"{said['status']}{why}")]
    rows.append(("generation", f"{_generation(said)}{'' if not _state(said) else ', ' + _state(said)}"))
    for name, one in said["models"].items():
        ref = one.get("model")
        what = short(ref) if ref else f"a file of its own ({short_digest(one['file_digest'])})"
        runs = f"{what}, file {short_digest(one['file_digest'])}, {one['backend']} on {one['device']}, {one.get('stage', 'kept')}"
        seen = _seen(said["health"].get("models", {}).get(name, {}))
        rows.append((f"model {name}", f"{runs}, {one.get('results', 0):,} frames{seen}"))
    for name, ref in said["desired_models"].items():
        pin = said["pins"].get(name)
        rows.append((f"wanted {name}", short(ref) + (f", pinned by {pin['who']}: {pin['why']}" if pin else "")))
    rows += [(f"quarantine {one['name']} {one['version']}", one["reason"]) for one in said["quarantined"]]
    own = said["labels_of_region"]
    rows += [(f"label {key}", f"{value}{' (set here)' if key in own else ''}") for key, value in said["labels"].items()]
    if said["store_max_bytes"]:
        rows.append(("model store", f"{size(said['store_bytes'])} of {size(said['store_max_bytes'])}"))
    rows += [(line["at"][:19] + "Z", f"{line['action']} by {line['who']}: {line['why']}") for line in said["audit"]]
    print_facts(rows)


@on_service
def label(
    options: ServiceOptions,
    node: Node,
    labels: Annotated[list[str], typer.Argument(metavar="KEY=VALUE…", help="Labels to set; KEY- takes one away.")],
) -> None:
    """Set labels of a node, from the region; they go before those of its own file.

    Examples:
      hedgerow node label shop-12/gateway ring=early
      hedgerow node label shop-12/gateway ring- --why "no canary any more"

    Rollouts choose nodes by labels: one that comes to match gets what it would have got.
    """
    changes: dict[str, str | None] = {}
    for text in labels:
        key, equals, value = text.partition("=")
        if not equals and not text.endswith("-"):
            raise ConfigError(f"{text!r} says nothing of a label", remedy="Write KEY=VALUE, or KEY- to take it away.")
        changes[key if equals else text[:-1]] = value if equals else None
    said = options.ask("node-label", {"node": node, "labels": changes})
    if options.store.json:
        print_json(said)
    else:
        typer.echo(f"{said['node']}: " + ", ".join(f"{key}={value}" for key, value in sorted(said["labels"].items())))


@on_service
def pin(
    options: ServiceOptions,
    node: Node,
    model: Annotated[
        str, typer.Argument(metavar="MODEL=VERSION", help="Model's name in the node's file, and the version.")
    ],
    digest: Annotated[str | None, typer.Option("--digest", metavar="DIGEST", help="Of the bundle's manifest.")] = None,
    bundle: Annotated[
        str | None, typer.Option("--bundle", metavar="NAME", help="The bundle's name, if it is another.")
    ] = None,
) -> None:
    """Let a node serve one version of a model, whatever rollouts say.

    Examples:
      hedgerow node pin shop-12/gateway faces=1.4.0 --why "compares with the old cameras"
    """
    name, equals, version = model.partition("=")
    if not equals:
        raise ConfigError(f"{model!r} names no version", remedy="Write MODEL=VERSION: faces=1.4.0.")
    wanted = {"version": version, "digest": digest, "model": bundle}
    said = options.ask("node-pin", {"node": node, "model": name, "version": wanted})
    if options.store.json:
        print_json(said)
    else:
        typer.echo(f"{said['node']} is to serve {short(said['ref'])} as {name}, until it is unpinned.")


@on_service
def unpin(
    options: ServiceOptions,
    node: Node,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Model's name in the node's file.")],
) -> None:
    """Let rollouts decide again what a node serves. If one has passed it by meanwhile, it catches up.

    Examples:
      hedgerow node unpin shop-12/gateway faces
    """
    said = options.ask("node-unpin", {"node": node, "model": model})
    if options.store.json:
        print_json(said)
    else:
        typer.echo(f"{model} of {said['node']} is for rollouts to decide.")


@on_store
def audit(
    options: StoreOptions,
    rollout: Annotated[
        str | None, typer.Option("--rollout", metavar="NAME", help="Only what concerns this rollout.")
    ] = None,
    node: Annotated[
        str | None, typer.Option("--node", metavar="NODE", help="Only what concerns REGION/SITE/NODE.")
    ] = None,
    newest: Newest = 50,
) -> None:
    """Say who did what to the fleet, when and why; what the service did by itself is among it.

    Examples:
      hedgerow audit --rollout faces-2
      hedgerow audit --newest 1000 --json > audit.jsonl

    What was refused is in it, too. --json prints a line each, with the nodes and their generations.
    """
    from hedgerow.region.rollouts.progress import audit as read

    with options.open() as database:
        lines = read(database, newest=newest, rollout=rollout, node=node)
    if options.json:
        for line in lines:
            print_json_line(line)
        return
    rows = [(line["at"][:19] + "Z", line["who"], line["action"], line["rollout"] or "", _told(line)) for line in lines]
    print_table(("AT", "WHO", "ACTION", "ROLLOUT", "WHY"), rows, names=3, spare=("ROLLOUT",))


def _told(line: dict[str, Any]) -> str:
    """Why something was done, and to how many."""
    detail = line["detail"]
    parts = [line["why"], detail.get("reason", "")]
    if "given" in detail:
        parts.append(plural(len(detail["given"]), "node"))
    if line["action"] == "nodes-settled":
        moves = Counter(move[0] for move in detail["nodes"].values())
        parts += [f"{count} {'back' if state == 'proved' else state}" for state, count in sorted(moves.items())]
    return "; ".join(filter(None, parts))


def _generation(node: dict[str, Any]) -> str:
    has, wanted = node["generation"] or 0, node["desired_generation"] or 0
    return str(has) if has >= wanted else f"{has} → {wanted}"


def _state(node: dict[str, Any]) -> str:
    if node["error"]:
        return f"{node['state']}: {node['error']['code']}"
    return f"{node['state'] or ''}{': ' if node['step'] else ''}{node['step']}"


def _models(node: dict[str, Any]) -> str:
    parts = []
    for name, one in node["models"].items():
        ref, wanted = one.get("model"), node["desired_models"].get(name)
        runs = ref["version"] if ref else f"*{short_digest(one['file_digest'])}"
        other = f" → {wanted['version']}" if wanted and (ref or {}).get("digest") != wanted["digest"] else ""
        pinned = " (pinned)" if name in node["pins"] else ""
        parts.append(f"{name} {runs}{other}{pinned}")
    parts += [
        f"{name} → {ref['version']}" for name, ref in node["desired_models"].items() if name not in node["models"]
    ]
    return ", ".join(parts)


def _seen(health: dict[str, Any]) -> str:
    """What a model's health says of the values that it takes and gives."""
    parts = []
    if (drift := health.get("drift")) is not None:
        came = health.get("input_drift")
        parts.append(f"drift {drift:.2f}" + (f" (of what comes in: {came:.2f})" if came is not None else ""))
    if not_finite := health.get("not_finite"):
        parts.append(f"NaN or infinity in {not_finite:,} of {health.get('looked_at', 0):,}")
    return "".join(f", {part}" for part in parts)
