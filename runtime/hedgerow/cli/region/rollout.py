"""`hedgerow rollout`: check, start, pause, resume and abort rollouts, and show their status."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

import typer

from hedgerow.cli.base.console import echo, plural, print_json, read_checked, style
from hedgerow.cli.base.options import Json, Newest
from hedgerow.cli.base.tables import print_table, terminal_width
from hedgerow.cli.region.options import (
    ServiceOptions,
    StoreOptions,
    author,
    on_service,
    on_store,
    open_store,
    short_ref,
)

_MAX_NAMES: Final = 8
"""Nodes of a wave that a dry run lists; --json has all."""

File = Annotated[Path, typer.Option("--file", "-f", metavar="FILE", help="The rollout (YAML).")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The rollout's name.")]
OneOrLatest = Annotated[
    str | None, typer.Argument(metavar="[NAME]", help="The rollout; by default the one in progress, else the last one.")
]


@on_service
def start(
    options: ServiceOptions,
    file: File,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show which nodes it would reach.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Follow it until it ends, as `rollout status` does.")] = False,
) -> None:
    """Start a rollout: move nodes to another version of a model in waves, and roll back if too many of them fail.

    Examples:
      hedgerow rollout start -f rollout.yaml --dry-run
      hedgerow rollout start -f rollout.yaml --why "faces in poor light" --watch

    The region's service carries it out, even after this command has ended. It is refused if the model is not in the region's
    repository, if no node matches, or if another rollout in progress has some of the same nodes.
    """
    from hedgerow.region.rollouts.planning.spec import load_plan

    plan = load_plan(file)
    args = {"rollout": plan.rollout, "plan": plan.model_dump(mode="json", exclude_unset=True), "dry_run": dry_run}
    reply = options.request("rollout-start", args)
    if options.store.json and watch and not dry_run:
        _follow(options.store, plan.rollout)
        return
    if options.store.json:
        print_json(reply)
        return
    _print_start(reply, dry_run=dry_run)
    if watch and not dry_run:
        _follow(options.store, plan.rollout)


def _print_start(reply: dict[str, Any], *, dry_run: bool) -> None:
    for name, ref in reply["models"].items():
        echo(f"{name} → {short_ref(ref)}")
    rows = []
    for number, wave in enumerate(reply["waves"], 1):
        nodes = [node.partition("/")[2] for node in wave["nodes"]]
        more = f" and {len(nodes) - _MAX_NAMES} more" if len(nodes) > _MAX_NAMES else ""
        names = ", ".join(nodes[:_MAX_NAMES]) + more
        rows.append((f"{number} ({wave['wave']})", f"{len(nodes)}", f"{wave['not_heard'] or ''}", names))
    print_table(("WAVE", ">NODES", ">NOT SEEN", "NAMES"), rows)
    if reply["pinned"]:
        echo(f"Skipping pinned nodes: {', '.join(reply['pinned'])}")
    for node, why in list(reply["unfit"].items())[:_MAX_NAMES]:
        echo(style(f"{'Cannot serve it' if reply['refused'] else 'Skipping'}: {node}: {why}", fg="red"))
    if (left := len(reply["unfit"]) - _MAX_NAMES) > 0:
        echo(f"… and {left} more; --json lists all.")
    rollout, count = reply["rollout"], plural(reply["nodes"], "node")
    if dry_run and reply["refused"]:
        echo(
            f"{rollout} would be refused: {plural(len(reply['unfit']), 'node')} cannot serve it. Choose others with `target`, or "
            "set `without_model: skip`. Nothing was changed."
        )
    elif dry_run:
        echo(f"{rollout} would reach {count}. Nothing was changed.")
    else:
        echo(f"Started {rollout} for {count}. To follow it: `hedgerow rollout status {rollout} --watch`")


def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The rollout (YAML). `configs/rollout.yaml` is one.")],
    json: Json = False,
) -> None:
    """Check a rollout's file, without contacting the region.

    Examples:
      hedgerow rollout check rollout.yaml

    Exits with 2 if the file is invalid.
    """
    from hedgerow.region.rollouts.planning.spec import load_plan

    plan = read_checked(load_plan, file, json=json)
    if json:
        print_json({"file": str(file), "ok": True, "problems": []})
    else:
        echo(f"{file}: {style('ok', fg='green')} (rollout {plan.rollout})")


def schema() -> None:
    """Print the JSON Schema of a rollout's file, for editors.

    Examples:
      hedgerow rollout schema > rollout.schema.json
    """
    from hedgerow import configfile
    from hedgerow.region.rollouts.planning.spec import RolloutPlan

    print_json(configfile.schema(RolloutPlan))


@on_store
def status(
    options: StoreOptions,
    name: OneOrLatest = None,
    watch: Annotated[bool, typer.Option("--watch", help="Follow it until it ends.")] = False,
    every_node: Annotated[bool, typer.Option("--nodes", help="List all nodes, not only failed ones.")] = False,
) -> None:
    """Show a rollout's progress, what it waits for, and what failed.

    Examples:
      hedgerow rollout status
      hedgerow rollout status faces-2 --watch
      hedgerow rollout status faces-2 --nodes --json

    With --watch, it draws bars on a terminal and otherwise prints a line per change, and exits with 1 if the rollout failed
    or was canceled. If the store becomes unavailable, it retries. Watching does not affect the rollout.
    """
    if watch:
        _follow(options, name, every_node=every_node)
        return
    from hedgerow.cli.region.rollout_progress import read, render

    with options.open() as database:
        progress = read(database, name, every_node=every_node)
    if options.json:
        print_json(progress)
        return
    for line in render(progress, terminal_width()):
        echo(line)


def _follow(options: StoreOptions, name: str | None, *, every_node: bool = False) -> None:
    """Follow a rollout until it ends. Raises: typer.Exit: it did not succeed."""
    from hedgerow.cli.region.rollout_progress import follow

    final = follow(lambda: open_store(options.url, options.config), name, every_node=every_node, json=options.json)
    if final["phase"] != "succeeded":
        raise typer.Exit(1)


@on_service
def pause(options: ServiceOptions, name: Name) -> None:
    """Pause a rollout: no further nodes get the new version. Failed nodes are still rolled back.

    Examples:
      hedgerow rollout pause faces-2 --why "the line is at capacity"
    """
    reply = options.request("rollout-pause", {"rollout": name})
    _print_reply(reply, options.store.json, f"Paused {name}.")


@on_service
def resume(options: ServiceOptions, name: Name) -> None:
    """Resume a paused rollout. Failures so far are accepted and not counted again.

    Examples:
      hedgerow rollout resume faces-2 --why "hall-2: the camera was covered"
    """
    reply = options.request("rollout-resume", {"rollout": name})
    _print_reply(reply, options.store.json, f"Resumed {name}.")


@on_service
def abort(
    options: ServiceOptions,
    name: Name,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave nodes as they are, instead of rolling them back.")
    ] = False,
) -> None:
    """Abort a rollout, and roll back all nodes that it has reached.

    Examples:
      hedgerow rollout abort faces-2 --why "wrong version"
      hedgerow rollout abort faces-2 --keep --why "good enough for this week"
    """
    reply = options.request("rollout-abort", {"rollout": name, "keep": keep})
    _print_reply(reply, options.store.json, f"{name} is {reply['phase']}.")


@on_store
def history(
    options: StoreOptions,
    newest: Newest = 20,
) -> None:
    """List rollouts, newest first: models, who started each, why, and the outcome.

    Examples:
      hedgerow rollout history
      hedgerow rollout history --newest 100 --json
    """
    from hedgerow.region.rollouts.progress import history as read

    with options.open() as database:
        rollouts = read(database, newest)
    if options.json:
        print_json(rollouts)
        return
    rows = []
    for one in rollouts:
        models = ", ".join(
            f"{ref['name']} {ref['version']}" if ref else f"{name} none" for name, ref in one["models"].items()
        )
        started = one["started_at"][:16] + "Z"
        rows.append((one["rollout"], one["phase"], started, models, author(one), one["why"], one["because"]))
    headings = ("ROLLOUT", "STATUS", "STARTED", "MODELS", "WHO", "WHY", "REASON")
    print_table(headings, rows, names=2, omit_first=("WHO", "STARTED", "WHY"))


def _print_reply(reply: Any, json: bool, text: str) -> None:
    if json:
        print_json(reply)
    else:
        echo(text)
