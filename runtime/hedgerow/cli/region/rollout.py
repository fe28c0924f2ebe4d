"""`hedgerow rollout`: changes, taken through the fleet in waves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

import typer

from hedgerow.cli.base.console import plural, print_json, read_checked
from hedgerow.cli.base.options import Json, Newest
from hedgerow.cli.base.tables import print_table, terminal_width
from hedgerow.cli.region.options import ServiceOptions, StoreOptions, on_service, on_store, open_store, short

_NAMED: Final = 8
"""Nodes of a wave that a dry run names; --json has all."""

File = Annotated[Path, typer.Option("--file", "-f", metavar="FILE", help="The rollout (YAML).")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The rollout's name.")]
OneOrLatest = Annotated[
    str | None, typer.Argument(metavar="[NAME]", help="The rollout; by default the one under way, else the last one.")
]


@on_service
def start(
    options: ServiceOptions,
    file: File,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it would do, to whom.")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Follow it until it has ended, as `rollout status` does.")
    ] = False,
) -> None:
    """Start a rollout: give nodes another version of a model, wave after wave, and take it back where it does harm.

    Examples:
      hedgerow rollout start -f rollout.yaml --dry-run
      hedgerow rollout start -f rollout.yaml --why "faces in poor light" --watch

    The region's service carries it out; it goes on when this command ends. It is refused where the model is not in the
    region's repository, nobody matches, or another rollout under way has some of the same nodes.
    """
    from hedgerow.region.rollouts.planning.spec import load_plan

    plan = load_plan(file)
    args = {"rollout": plan.rollout, "plan": plan.model_dump(mode="json", exclude_unset=True), "dry_run": dry_run}
    said = options.ask("rollout-start", args)
    if options.store.json and watch and not dry_run:
        _show_until_it_ends(options.store, plan.rollout)
        return
    if options.store.json:
        print_json(said)
        return
    for name, ref in said["models"].items():
        typer.echo(f"{name} → {short(ref)}")
    rows = []
    for number, wave in enumerate(said["waves"], 1):
        nodes = [node.partition("/")[2] for node in wave["nodes"]]
        more = f" and {len(nodes) - _NAMED} more" if len(nodes) > _NAMED else ""
        who = ", ".join(nodes[:_NAMED]) + more
        rows.append((f"{number} ({wave['wave']})", f"{len(nodes)}", f"{wave['not_heard'] or ''}", who))
    print_table(("WAVE", ">NODES", ">NOT SEEN", "WHO"), rows)
    if said["pinned"]:
        typer.echo(f"Left out, since a person has pinned them: {', '.join(said['pinned'])}")
    count = plural(said["nodes"], "node")
    if dry_run:
        typer.echo(f"{said['rollout']} would reach {count}. Nothing was done.")
    else:
        typer.echo(f"{said['rollout']} has started, for {count}. `hedgerow rollout status {said['rollout']} --watch`")
    if watch and not dry_run:
        _show_until_it_ends(options.store, plan.rollout)


def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The rollout (YAML). `configs/rollout.yaml` is one.")],
    json: Json = False,
) -> None:
    """Find everything that is wrong with a rollout's file; the region is not asked.

    Examples:
      hedgerow rollout check rollout.yaml

    Exits with 2 if anything is wrong.
    """
    from hedgerow.region.rollouts.planning.spec import load_plan

    plan = read_checked(load_plan, file, json=json)
    if json:
        print_json({"file": str(file), "ok": True, "problems": []})
    else:
        typer.echo(f"{file}: {typer.style('ok', fg='green')} (rollout {plan.rollout})")


def schema() -> None:
    """Print the JSON Schema of rollouts, for editors.

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
    watch: Annotated[bool, typer.Option("--watch", help="Follow it until it has ended.")] = False,
    every_node: Annotated[bool, typer.Option("--nodes", help="List all nodes, not only those that failed.")] = False,
) -> None:
    """Say how far a rollout is, what it waits for, and what went wrong.

    Examples:
      hedgerow rollout status
      hedgerow rollout status faces-2 --watch
      hedgerow rollout status faces-2 --nodes --json

    With --watch it draws bars on a terminal, and prints a line for every change elsewhere; it exits with 1 if the
    rollout failed or was canceled. A store that is away meanwhile is waited for. The service carries the rollout out whether
    anybody watches or not.
    """
    if watch:
        _show_until_it_ends(options, name, every_node=every_node)
        return
    from hedgerow.cli.region.rollout_progress import read, render

    with options.open() as database:
        said = read(database, name, every_node=every_node)
    if options.json:
        print_json(said)
        return
    for line in render(said, terminal_width()):
        typer.echo(line)


def _show_until_it_ends(options: StoreOptions, name: str | None, *, every_node: bool = False) -> None:
    """Follow a rollout. Raises: typer.Exit: it did not succeed."""
    from hedgerow.cli.region.rollout_progress import follow

    if (
        follow(lambda: open_store(options.url, options.config), name, every_node=every_node, json=options.json)["phase"]
        != "succeeded"
    ):
        raise typer.Exit(1)


@on_service
def pause(options: ServiceOptions, name: Name) -> None:
    """Pause a rollout: nobody else is given anything. What fails is taken back all the same.

    Examples:
      hedgerow rollout pause faces-2 --why "the line is at capacity"
    """
    said = options.ask("rollout-pause", {"rollout": name})
    _say(said, options.store.json, f"{name} is paused.")


@on_service
def resume(options: ServiceOptions, name: Name) -> None:
    """Let a rollout that is paused go on. Failures so far are let pass and not counted again.

    Examples:
      hedgerow rollout resume faces-2 --why "looked at hall-2: its camera was covered"
    """
    said = options.ask("rollout-resume", {"rollout": name})
    _say(said, options.store.json, f"{name} goes on.")


@on_service
def abort(
    options: ServiceOptions,
    name: Name,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave nodes as they are now, instead of putting them back.")
    ] = False,
) -> None:
    """End a rollout, and put all nodes that it has reached back on what they served before.

    Examples:
      hedgerow rollout abort faces-2 --why "wrong version"
      hedgerow rollout abort faces-2 --keep --why "good enough for this week"
    """
    said = options.ask("rollout-abort", {"rollout": name, "keep": keep})
    _say(said, options.store.json, f"{name} is {said['phase']}.")


@on_store
def history(
    options: StoreOptions,
    newest: Newest = 20,
) -> None:
    """List rollouts, the newest first: what, who, why, and what became of it.

    Examples:
      hedgerow rollout history
      hedgerow rollout history --newest 100 --json
    """
    from hedgerow.region.rollouts.progress import history as read

    with options.open() as database:
        said = read(database, newest)
    if options.json:
        print_json(said)
        return
    rows = []
    for one in said:
        models = ", ".join(f"{ref['name']} {ref['version']}" for ref in one["models"].values())
        began = one["started_at"][:16] + "Z"
        rows.append((one["rollout"], one["phase"], began, models, one["who"], one["why"], one["because"]))
    headings = ("ROLLOUT", "STATUS", "STARTED", "MODELS", "WHO", "WHY", "REASON")
    print_table(headings, rows, names=2, spare=("WHO", "STARTED", "WHY"))


def _say(said: Any, json: bool, text: str) -> None:
    if json:
        print_json(said)
    else:
        typer.echo(text)
