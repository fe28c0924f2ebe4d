"""`hedgerow nodes`, `hedgerow node show|label|pin|unpin` and `hedgerow audit`: inventory, labels, pins and audit log."""

from __future__ import annotations

import time
from collections import Counter
from typing import Annotated, Any

import typer

from hedgerow.cli.base.console import echo, plural, print_json, print_json_line, size
from hedgerow.cli.base.options import Newest
from hedgerow.cli.base.tables import AlertCell, print_facts, print_table
from hedgerow.cli.region.options import (
    ServiceOptions,
    StoreOptions,
    author,
    on_service,
    on_store,
    parse_time,
    short_digest,
    short_ref,
)
from hedgerow.errors import ConfigError

Node = Annotated[
    str, typer.Argument(metavar="NODE", help="REGION/SITE/NODE, SITE/NODE, or NODE if that is unambiguous.")
]


@on_store
def nodes(
    options: StoreOptions,
    selector: Annotated[
        str,
        typer.Option(
            "--selector", "-l", metavar="SELECTOR", help="Only nodes with these labels: site=shop-12, !omit_first."
        ),
    ] = "",
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="Only nodes that run NAME, NAME@VERSION, or a model by its digest's prefix.",
        ),
    ] = None,
    health: Annotated[
        str | None,
        typer.Option(
            "--health",
            metavar="STATUS",
            help="Only nodes that are ok, degraded, one-way, silent, offline, stopped or unknown.",
        ),
    ] = None,
    forgotten: Annotated[
        bool, typer.Option("--forgotten", help="List forgotten nodes instead: when, by whom and why.")
    ] = False,
) -> None:
    """List a region's nodes, their status, and the models they run.

    Examples:
      hedgerow nodes
      hedgerow nodes -l 'hardware in (nuc, jetson), ring!=late' --model faces@2.0.0
      hedgerow nodes --health silent --json

    GENERATION is that of the desired state a node has accepted; an arrow points to a newer one that it has not. MODELS shows
    the versions that run; an arrow points to the desired version, and * marks a file of the node's own.
    """
    from hedgerow.labels import parse_selector
    from hedgerow.region.rollouts.inventory import NodeFilter, inventory, parse_status

    if forgotten:
        _list_forgotten(options)
        return
    filter_ = NodeFilter(parse_selector(selector), model, None if health is None else parse_status(health))
    with options.open() as database:
        found = inventory(database, time.time(), filter_)
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
    print_table(headings, rows, names=2, omit_first=("LABELS", "GENERATION", "STATE"))
    echo(f"{plural(len(found), 'node')}.")


def _list_forgotten(options: StoreOptions) -> None:
    from hedgerow.region.store.life.identity import forgotten_nodes
    from hedgerow.region.store.queries import iso

    with options.open() as database:
        gone = {node.address: node for node in forgotten_nodes(database).values()}
    if options.json:
        print_json(
            [{"node": str(node), "at": iso(one.at), "because": one.because} for node, one in sorted(gone.items())]
        )
        return
    print_table(("NODE", "FORGOTTEN"), [(str(node), one.because) for node, one in sorted(gone.items())], names=1)
    echo(f"{plural(len(gone), 'forgotten node')}.")


@on_store
def show(options: StoreOptions, node: Node) -> None:
    """Show everything the region knows about a node.

    Examples:
      hedgerow node show shop-12/gateway
    """
    from hedgerow.region.rollouts.inventory import inventory, newest_health
    from hedgerow.region.rollouts.operation import find_node
    from hedgerow.region.rollouts.progress import AuditFilter, audit
    from hedgerow.topics import Address

    with options.open() as database:
        found = {Address(*one["node"].split("/")): one for one in inventory(database, time.time())}
        former = {
            Address(*one["node"].split("/")): address
            for address, known in found.items()
            for one in known["formerly"]
            if not one["taken"]
        }
        address = find_node(found, node, former=former)
        details = found[address] | {
            "health": newest_health(database, address),
            "audit": audit(database, newest=10, which=AuditFilter(node=str(address), former=_former(found[address]))),
        }
    if options.json:
        print_json(details)
    else:
        print_facts(_facts(details))


def _facts(node: dict[str, Any]) -> list[tuple[str, str]]:
    from hedgerow.region.store.queries import iso

    why = f" ({node['why']})" if node["why"] else ""
    rows = [("node", node["node"]), ("status", f"{node['status']}{why}")]
    rows += [
        ("formerly", f"{one['node']}, {'left' if one['seen'] else 'still, until it reports under its new name'}")
        for one in node["formerly"]
    ]
    rows += [("twin", f"{twin['what']}. {twin['remedy']}") for twin in node["twins"] if twin["kind"] != "name"]
    for run in node["runs"]:
        here = f"{run['host'] or 'host not known'}, {run['address'] or 'address not known'}"
        rows.append(("run", f"{here}, since {iso(run['first_at'])[:19]}Z, last seen {iso(run['last_at'])[:19]}Z"))
    rows.append(("generation", f"{_generation(node)}{'' if not _state(node) else ', ' + _state(node)}"))
    for name, one in node["models"].items():
        ref, file = one.get("model"), short_digest(one["file_digest"])
        model = f"{short_ref(ref)}, file {file}" if ref else f"its own file {file}"
        runs = f"{model}, {one['backend']} on {one['device']}, {one.get('stage', 'kept')}"
        statistics = _statistics(node["health"].get("models", {}).get(name, {}))
        rows.append((f"model {name}", f"{runs}, {one.get('results', 0):,} frames{statistics}"))
    for name, ref in node["desired_models"].items():
        pin = node["pins"].get(name)
        rows.append((f"desired {name}", short_ref(ref) + (f", pinned by {pin['who']}: {pin['why']}" if pin else "")))
    rows += [(f"desired {name}", "none: it is withdrawn") for name in node["withdrawn_models"]]
    rows += [(f"quarantine {one['name']} {one['version']}", one["reason"]) for one in node["quarantined"]]
    of_region = node["labels_of_region"]
    rows += [
        (f"label {key}", f"{value}{' (set by the region)' if of_region.get(key) == value else ''}")
        for key, value in node["labels"].items()
    ]
    if node["store_max_bytes"]:
        rows.append(("model store", f"{size(node['store_bytes'])} of {size(node['store_max_bytes'])}"))
    rows += [(line["at"][:19] + "Z", f"{line['action']} by {author(line)}: {line['why']}") for line in node["audit"]]
    return rows


@on_service
def label(
    options: ServiceOptions,
    node: Node,
    labels: Annotated[list[str], typer.Argument(metavar="KEY=VALUE…", help="Labels to set; KEY- removes one.")],
) -> None:
    """Set a node's labels from the region, to select it for rollouts.

    Examples:
      hedgerow node label shop-12/gateway ring=early
      hedgerow node label shop-12/gateway ring- --why "no canary any more"

    Rollouts select nodes by labels: a node that now matches a rollout gets its models. Signatures count only the labels in
    the node's own file and those of its machine, and a label of the same name there cannot be set to another value.
    """
    changes: dict[str, str | None] = {}
    for text in labels:
        key, equals, value = text.partition("=")
        if not equals and not text.endswith("-"):
            raise ConfigError(f"{text!r} is not a label", remedy="Use KEY=VALUE, or KEY- to remove a label.")
        changes[key if equals else text[:-1]] = value if equals else None
    reply = options.request("node-label", {"node": node, "labels": changes})
    if options.store.json:
        print_json(reply)
    else:
        echo(f"{reply['node']}: " + ", ".join(f"{key}={value}" for key, value in sorted(reply["labels"].items())))


@on_service
def pipelines(
    options: ServiceOptions,
    node: Node,
    version: Annotated[
        str | None, typer.Argument(metavar="NAME=VERSION", help="The signed pipelines; leave out with --none.")
    ] = None,
    none: Annotated[bool, typer.Option("--none", help="Run only what the node's own file has.")] = False,
) -> None:
    """Have a node run pipelines that an owner has signed, beside or instead of those in its file.

    Examples:
      hedgerow node pipelines shop-12/gateway doors=1.0.0 --why "a second door"
      hedgerow node pipelines shop-12/gateway --none --why "the door is closed"

    The owner publishes them with `hedgerow trust publish-pipelines`. The node accepts them only if its own file has
    `remote: {signed_pipelines: true}`.
    """
    name, equals, number = (version or "").partition("=")
    if bool(equals) == none:
        raise ConfigError(
            f"{version or 'Nothing'!r} names no version", remedy="Use NAME=VERSION, such as doors=1.0.0, or --none."
        )
    reply = options.request("node-pipelines", {"node": node, "name": name or None, "version": number or None})
    if options.store.json:
        print_json(reply)
    elif reply["ref"] is None:
        echo(f"{reply['node']} runs only the pipelines of its own file.")
    else:
        echo(f"{reply['node']} gets {short_ref(reply['ref'])}; `hedgerow node show` tells whether it runs them.")


@on_service
def pin(
    options: ServiceOptions,
    node: Node,
    model: Annotated[
        str, typer.Argument(metavar="MODEL=VERSION", help="Name of the model in the node's file, and the version.")
    ],
    digest: Annotated[
        str | None, typer.Option("--digest", metavar="DIGEST", help="Digest that the bundle's manifest must have.")
    ] = None,
    bundle: Annotated[
        str | None, typer.Option("--bundle", metavar="NAME", help="Name of the bundle, if it differs from MODEL.")
    ] = None,
) -> None:
    """Pin a node to one version of a model; rollouts leave it alone.

    Examples:
      hedgerow node pin shop-12/gateway faces=1.4.0 --why "compares with the old cameras"
    """
    name, equals, version = model.partition("=")
    if not equals:
        raise ConfigError(f"{model!r} names no version", remedy="Use MODEL=VERSION, such as faces=1.4.0.")
    pinned = {"version": version, "digest": digest, "model": bundle}
    reply = options.request("node-pin", {"node": node, "model": name, "version": pinned})
    if options.store.json:
        print_json(reply)
    else:
        echo(f"Pinned {name} of {reply['node']} to {short_ref(reply['ref'])}.")


@on_service
def unpin(
    options: ServiceOptions,
    node: Node,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Name of the model in the node's file.")],
) -> None:
    """Remove a pin, so that rollouts apply to the node again. It catches up with any it missed.

    Examples:
      hedgerow node unpin shop-12/gateway faces
    """
    reply = options.request("node-unpin", {"node": node, "model": model})
    if options.store.json:
        print_json(reply)
    else:
        echo(f"Unpinned {model} of {reply['node']}; rollouts apply to it again.")


@on_store
def audit(
    options: StoreOptions,
    rollout: Annotated[
        str | None, typer.Option("--rollout", metavar="NAME", help="Only entries about this rollout.")
    ] = None,
    node: Annotated[
        str | None,
        typer.Option("--node", metavar="NODE", help="Only entries about a node: REGION/SITE/NODE, SITE/NODE or NODE."),
    ] = None,
    who: Annotated[
        str | None,
        typer.Option(
            "--who",
            metavar="NAME",
            help="Only what this user, or `service`, did, and what was done under this name by `--as`.",
        ),
    ] = None,
    action: Annotated[
        str | None,
        typer.Option("--action", metavar="ACTION", help="Only this action: rollout-started, node-pinned, refused …"),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="TIME", help="Since then: 90s, 15m, 1h or 7d ago, or 2026-11-23T08:00Z."),
    ] = None,
    until: Annotated[
        str | None, typer.Option("--until", metavar="TIME", help="Before then; same form as --since.")
    ] = None,
    newest: Newest = 50,
) -> None:
    """Show the audit log of the fleet: who did what, when and why, including the service's own actions.

    Examples:
      hedgerow audit --rollout faces-2
      hedgerow audit --since 7d --who eve@ops --action rollout-aborted
      hedgerow audit --newest 1000 --json > audit.jsonl

    WHO is the operating system's user, or the role in PostgreSQL; a name given with --as is shown as claimed.
    Refused requests are included. --json prints one line per entry, with the nodes and their generations.
    """
    from hedgerow.region.rollouts.inventory import inventory
    from hedgerow.region.rollouts.operation import find_node
    from hedgerow.region.rollouts.progress import AuditFilter
    from hedgerow.region.rollouts.progress import audit as read
    from hedgerow.region.store.life.identity import forgotten_nodes
    from hedgerow.topics import Address

    now = time.time()
    former: tuple[tuple[str, float], ...] = ()
    with options.open() as database:
        if node is not None:
            known = {Address(*one["node"].split("/")): one for one in inventory(database, now)}
            gone: dict[Address, dict[str, Any]] = {address: {"formerly": []} for address in forgotten_nodes(database)}
            address = find_node({**gone, **known}, node)
            node, former = str(address), _former({**gone, **known}[address])
        which = AuditFilter(rollout, node, who, action, parse_time(since, now), parse_time(until, now), former)
        lines = read(database, newest=newest, which=which)
    if options.json:
        for line in lines:
            print_json_line(line)
        return
    rows = [(line["at"][:19] + "Z", author(line), line["action"], line["rollout"] or "", _why(line)) for line in lines]
    if not rows:
        echo("No entries.")
        return
    print_table(("AT", "WHO", "ACTION", "ROLLOUT", "WHY"), rows, names=3, omit_first=("ROLLOUT",))


def _why(line: dict[str, Any]) -> str:
    """Describe an entry's reasons and how many nodes it affects."""
    detail = line["detail"]
    parts = [line["why"], detail.get("reason", "")]
    if "given" in detail:
        parts.append(plural(len(detail["given"]), "node"))
    if line["action"] == "nodes-settled":
        states = Counter(change[0] for change in detail["nodes"].values())
        parts += [f"{count} {'rolled back' if state == 'proved' else state}" for state, count in sorted(states.items())]
    return "; ".join(filter(None, parts))


def _former(node: dict[str, Any]) -> tuple[tuple[str, float], ...]:
    """Return the addresses that a node had before, and until when, for its part of the audit log."""
    return tuple((one["node"], one["until"]) for one in node["formerly"])


def _generation(node: dict[str, Any]) -> str:
    accepted, desired = node["generation"] or 0, node["desired_generation"] or 0
    return str(accepted) if accepted >= desired else f"{accepted} → {desired}"


def _state(node: dict[str, Any]) -> str:
    if node["error"]:
        return f"{node['state']}: {node['error']['code']}"
    return f"{node['state'] or ''}{': ' if node['step'] else ''}{node['step']}"


def _models(node: dict[str, Any]) -> str:
    parts = []
    for name, one in node["models"].items():
        ref, desired = one.get("model"), node["desired_models"].get(name)
        running = ref["version"] if ref else f"*{short_digest(one['file_digest'])}"
        change = f" → {desired['version']}" if desired and (ref or {}).get("digest") != desired["digest"] else ""
        pinned = " (pinned)" if name in node["pins"] else ""
        parts.append(f"{name} {running}{change}{pinned}")
    parts += [
        f"{name} → {ref['version']}" for name, ref in node["desired_models"].items() if name not in node["models"]
    ]
    return ", ".join(parts)


def _statistics(health: dict[str, Any]) -> str:
    """Describe drift and non-finite outputs from a model's health."""
    parts = []
    if (drift := health.get("drift")) is not None:
        input_drift = health.get("input_drift")
        parts.append(f"drift {drift:.2f}" + (f" (inputs {input_drift:.2f})" if input_drift is not None else ""))
    if not_finite := health.get("not_finite"):
        parts.append(f"NaN or infinity in {not_finite:,} of {health.get('looked_at', 0):,} frames checked")
    return "".join(f", {part}" for part in parts)
