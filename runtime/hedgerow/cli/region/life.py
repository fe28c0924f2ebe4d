"""`hedgerow node forget|admit|rename|move|replace`: what becomes of a node, its certificate, and its place in the topology."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hedgerow.cli.base.console import echo, plural, print_json
from hedgerow.cli.base.tables import print_facts
from hedgerow.cli.region.life_steps import LifeSteps
from hedgerow.cli.region.nodes import Node
from hedgerow.cli.region.options import ServiceOptions, on_service

DryRun = Annotated[bool, typer.Option("--dry-run", help="Only show what it would do.")]
PkiFolder = Annotated[
    Path | None,
    typer.Option("--pki", metavar="DIR", help="Folder of certificates and keys: issue and revoke there, too."),
]
TopologyFile = Annotated[
    Path | None, typer.Option("--topology", metavar="FILE", help="Change this topology, too; its comments stay.")
]


@on_service
def forget(
    options: ServiceOptions, node: Node, dry_run: DryRun = False, pki: PkiFolder = None, topology: TopologyFile = None
) -> None:
    """Forget a node that is gone: it is in no rollout, list or count any more, and its messages are refused.

    Examples:
      hedgerow node forget shop-12/gateway --dry-run
      hedgerow node forget shop-12/gateway --why "scrapped" --pki pki --topology topology.yaml

    Its retained topics are cleared, and its desired state, labels and pins are gone; what it has sent, and the audit log, stay.
    Its results are refused without an acknowledgement, so that they wait on its disk. With --pki its certificate is revoked; else
    the command for that is shown. May be repeated, if it was interrupted. `hedgerow node admit` takes the node in again.
    """
    reply = options.request("node-forget", {"node": node, "dry_run": dry_run})
    _, site, name = reply["node"].split("/")
    steps = LifeSteps(dry_run)
    steps.revoke(pki, f"{site}/{name}", "cessation-of-operation")
    steps.edit(
        topology,
        f"remove {name} from the nodes of {site}",
        lambda file: _edits().remove_node(file, site, name),
    )
    if options.store.json:
        print_json(reply | steps.reply())
        return
    if reply["already"]:
        echo(f"{reply['node']} was forgotten already, {reply['because']}.")
    else:
        echo(f"{reply['node']} {'would be forgotten' if dry_run else 'is forgotten'}.")
        print_facts(_removed(reply["removes"]))
    steps.show()


def _removed(removes: dict[str, Any]) -> list[tuple[str, str]]:
    labels = [f"{key}={value}" for key, value in removes["labels"].items()]
    return [
        ("rollouts", ", ".join(removes["rollouts"]) or "none"),
        ("desired models", ", ".join(f"{name} → {ref}" for name, ref in removes["models"].items()) or "none"),
        ("labels", ", ".join(labels) or "none"),
        ("pins", ", ".join(removes["pins"]) or "none"),
        ("missing results", f"{removes['missing']:,}, counted no more"),
        ("retained topics", ", ".join(removes["topics"])),
        ("kept", f"{plural(removes['kept_results'], 'result')}, events, and the audit log"),
    ]


@on_service
def admit(options: ServiceOptions, node: Node) -> None:
    """Take a forgotten node in again: its messages are stored, and rollouts that match it reach it.

    Examples:
      hedgerow node admit shop-12/gateway --why "found in the storeroom"

    It has no labels, pins or desired models; what it had sent before is still there. It needs a certificate and a place in the topology.
    """
    reply = options.request("node-admit", {"node": node})
    if options.store.json:
        print_json(reply)
    else:
        echo(f"{reply['node']} {'was not forgotten' if reply['already'] else 'is admitted'}.")


@on_service
def rename(
    options: ServiceOptions,
    node: Node,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its new name.")],
    dry_run: DryRun = False,
    pki: PkiFolder = None,
    topology: TopologyFile = None,
) -> None:
    """Give a node another name. What it has sent, its labels, pins, desired state, rollouts and history follow.

    Examples:
      hedgerow node rename shop-12/gateway entrance --why "there are two now" --pki pki --topology topology.yaml

    Until its machine runs with the new configuration and certificate, what arrives under the old name still counts as its own. Results
    that wait on its disk are sent under the new name, with their numbers. Repeat the command once the node has reported under its new
    name: with --pki, it then revokes the old certificate.
    """
    _move(options, {"node": node, "name": name, "dry_run": dry_run}, pki, topology)


@on_service
def move(
    options: ServiceOptions,
    node: Node,
    site: Annotated[str, typer.Argument(metavar="SITE", help="Its new site.")],
    name: Annotated[str | None, typer.Option("--name", metavar="NAME", help="Its name there, if another.")] = None,
    new_site: Annotated[bool, typer.Option("--new-site", help="The region knows no node of this site yet.")] = False,
    dry_run: DryRun = False,
    pki: PkiFolder = None,
    topology: TopologyFile = None,
) -> None:
    """Move a node to another site. What it has sent, its labels, pins, desired state, rollouts and history follow.

    Examples:
      hedgerow node move shop-12/gateway shop-13 --name spare --why "shop-12 closes" --pki pki --topology topology.yaml

    As for `hedgerow node rename`: repeat the command once the node has reported from its new site.
    """
    _move(options, {"node": node, "site": site, "name": name, "new_site": new_site, "dry_run": dry_run}, pki, topology)


def _move(options: ServiceOptions, args: dict[str, Any], pki: Path | None, topology: Path | None) -> None:
    reply = options.request("node-rename", args)
    (_, site, name), (_, old_site, old) = reply["node"].split("/"), reply["was"].split("/")
    steps = LifeSteps(args["dry_run"])
    if site == old_site:
        enrolled = "hedgerow node approve MACHINE --folder PKI, with the new topology, then `hedgerow enrol --state DIR` on the machine"
    else:
        enrolled = (
            f"hedgerow node reject MACHINE, hedgerow claim create {site} --place {name}, then `hedgerow enrol` on the machine with "
            "another --state, and move its state folder there"
        )
    steps.issue(pki, f"{site}/{name}", if_enrolled=enrolled, was=f"{old_site}/{old}")
    if reply["seen"]:
        steps.revoke(pki, f"{old_site}/{old}", "superseded")
    steps.edit(
        topology,
        f"rename {old} to {name} in the nodes of {site}" if site == old_site else f"move {old} of {old_site} to the nodes of {site} as {name}",
        lambda file: _edits().move_node(file, old_site, old, site, name),
    )  # fmt: skip
    if options.store.json:
        print_json(reply | steps.reply())
        return
    if reply["already"]:
        echo(f"{reply['was']} is {reply['node']} already.")
    else:
        echo(f"{reply['was']} {'would become' if args['dry_run'] else 'is now'} {reply['node']}.")
    steps.show()
    if not reply["seen"] and not args["dry_run"]:
        echo(
            "Then give its machine the new configuration and certificate, and start it. Once `hedgerow node show` says that the old\n"
            "name is left, repeat this command: it ends the old certificate."
        )


@on_service
def replace(
    options: ServiceOptions,
    node: Node,
    declare_lost: Annotated[
        bool,
        typer.Option("--declare-lost", help="Count the node's missing results as lost: the old disk is gone."),
    ] = False,
    dry_run: DryRun = False,
    pki: PkiFolder = None,
) -> None:
    """Give a node another machine: same name, same desired state, a new key; the old one is revoked.

    Examples:
      hedgerow node replace shop-12/gateway --dry-run
      hedgerow node replace shop-12/gateway --why "board failed" --pki pki
      hedgerow node replace shop-12/gateway --why "disk burnt" --declare-lost

    Results that wait on the old disk arrive if you move its `state_dir` to the new machine before that starts. If the disk is gone, the
    region waits for the results that it knows to be missing until you declare them lost. Those that it has never heard of are not counted.
    With --pki the old certificate is revoked, and a new one issued; a node that enrolled gets none, since its new machine makes its own key.
    """
    reply = options.request("node-replace", {"node": node, "declare_lost": declare_lost, "dry_run": dry_run})
    _, site, name = reply["node"].split("/")
    steps = LifeSteps(dry_run)
    steps.revoke(pki, f"{site}/{name}", "superseded")
    steps.issue(
        pki,
        f"{site}/{name}",
        if_enrolled=f"hedgerow claim create {site} --place {name}, and `hedgerow enrol` on the new machine",
    )
    if options.store.json:
        print_json(reply | steps.reply())
        return
    echo(f"{reply['node']} {'would get' if dry_run else 'gets'} another machine.")
    models = ", ".join(f"{name} → {ref}" for name, ref in reply["models"].items())
    missing = f"{reply['missing']:,}" + (
        "; if the old disk is gone, repeat the command with --declare-lost" if reply["missing"] else ""
    )
    print_facts(
        [("desired models", models or "none"), ("missing results", missing), ("declared lost", f"{reply['lost']:,}")]
    )
    steps.show()


def _edits() -> Any:
    from hedgerow.cli.topology import edit

    return edit
