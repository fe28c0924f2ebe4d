"""`hedgerow rollout`: changes, taken through the fleet in waves."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from hedgerow.cli.base.console import on_terminal, plural, print_columns, print_json, print_json_line, read_checked
from hedgerow.cli.base.options import Json, Newest
from hedgerow.cli.region.options import ServiceOptions, StoreOptions, on_service, on_store, short
from hedgerow.errors import CommandError

if TYPE_CHECKING:
    from rich.console import RenderableType

_REDRAW_S: Final = 0.5
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
    rows = [("WAVE", "NODES", "NOT HEARD", "WHO")]
    for number, wave in enumerate(said["waves"], 1):
        nodes = [node.partition("/")[2] for node in wave["nodes"]]
        more = f" and {len(nodes) - _NAMED} more" if len(nodes) > _NAMED else ""
        who = ", ".join(nodes[:_NAMED]) + more
        rows.append((f"{number} ({wave['wave']})", f"{len(nodes)}", f"{wave['not_heard'] or ''}", who))
    print_columns(rows)
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
    rollout failed or was canceled. The service carries the rollout out whether anybody watches or not.
    """
    if watch:
        _show_until_it_ends(options, name, every_node=every_node)
        return
    with options.open() as database:
        said = _progress(database, name, every_node)
    if options.json:
        print_json(said)
    else:
        _print(_drawn(said))


def _show_until_it_ends(options: StoreOptions, name: str | None, *, every_node: bool = False) -> None:
    """Follow a rollout. Raises: typer.Exit: it did not succeed."""
    with options.open() as database:
        said = _follow(database, name, every_node, options.json)
    if said["phase"] != "succeeded":
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
    rows = [("ROLLOUT", "IS", "STARTED", "MODELS", "WHO", "WHY", "BECAUSE")]
    for one in said:
        models = ", ".join(f"{ref['name']} {ref['version']}" for ref in one["models"].values())
        began = one["started_at"][:16] + "Z"
        rows.append((one["rollout"], one["phase"], began, models, one["who"], one["why"], one["because"]))
    print_columns(rows)


def _say(said: Any, json: bool, text: str) -> None:
    if json:
        print_json(said)
    else:
        typer.echo(text)


def _progress(database: Any, name: str | None, every_node: bool) -> dict[str, Any]:
    from hedgerow.region.rollouts.progress import progress

    said = progress(database, name, every_node=every_node)
    if said is None:
        raise CommandError(
            f"There is no rollout {name}" if name else "There was no rollout yet",
            code="unknown-rollout",
            remedy="`hedgerow rollout history` lists them; `hedgerow rollout start -f FILE` starts one.",
        )
    return said


def _follow(database: Any, name: str | None, every_node: bool, json: bool) -> dict[str, Any]:
    """Show a rollout until it has ended."""
    said = _progress(database, name, every_node)
    name = said["rollout"]
    if json or not on_terminal():
        shown: Any = None
        while True:
            if shown != (told := {**said, "changed_at": None}):
                shown = told
                print_json_line(said) if json else typer.echo(line(said))
            if said["ended"]:
                return said
            time.sleep(_REDRAW_S)
            said = _progress(database, name, every_node)
    from rich.live import Live

    with Live(_drawn(said), auto_refresh=False) as live:
        while not said["ended"]:
            time.sleep(_REDRAW_S)
            said = _progress(database, name, every_node)
            live.update(_drawn(said), refresh=True)
    return said


def line(said: dict[str, Any]) -> str:
    """How far a rollout is, in a line."""
    begun = sum(wave["begun"] for wave in said["waves"])
    states = ", ".join(f"{count} {state}" for state, count in sorted(said["states"].items()))
    rest = said["waits_for"] or said["because"]
    return f"{said['rollout']}: {said['phase']}, wave {begun} of {len(said['waves'])}: {states}{f' ({rest})' if rest else ''}"


def _drawn(said: dict[str, Any]) -> RenderableType:
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    phase = said["phase"]
    style = {"succeeded": "green", "in-progress": "", "paused": "yellow"}.get(phase, "red")
    head = Text(f"{said['rollout']}: ").append(phase, style=style)
    models = ", ".join(f"{name} → {short(ref)}" for name, ref in said["models"].items())
    head.append(f"  {models}")
    lines: list[RenderableType] = [head, Text(f"by {said['who']}: {said['why']}", style="dim")]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("WAVE", "", "GOOD", "NODES", "FAILED", "LATE", "BACK"):
        table.add_column(heading, justify="left" if heading in ("WAVE", "") else "right", no_wrap=True)
    for number, wave in enumerate(said["waves"], 1):
        states = wave["states"]
        good = states.get("succeeded", 0)
        failed = sum(states.get(state, 0) for state in ("failed", "timed-out", "rejected"))
        bar = ProgressBar(
            total=max(1, wave["nodes"]), completed=good, width=24, complete_style="cyan", finished_style="green"
        )
        cells = (good, wave["nodes"], failed or "", wave["late"] or "", sum(wave["back"].values()) or "")
        table.add_row(Text(f"{number} ({wave['wave']})"), bar, *(Text(str(cell)) for cell in cells))
    lines.append(table)
    rest = said["waits_for"] or said["because"]
    if rest:
        lines.append(Text(rest[:1].upper() + rest[1:] + "."))
    for task in said["tasks"]:
        reason = f": {task['code']}: {task['reason']}" if task["code"] else ""
        late = ", late" if task["late"] and task["state"] in ("queued", "in-progress") else ""
        back = {"asked": ", going back", "proved": ", back"}.get(task["back"], "")
        lines.append(Text(f"{task['node']}: {task['state']}{late}{back}{reason}"))
    if said["tasks_left_out"]:
        lines.append(Text(f"… and {said['tasks_left_out']} more; --nodes lists all."))
    return Group(*lines)


def _print(drawn: RenderableType) -> None:
    from rich.console import Console

    Console(highlight=False, soft_wrap=True).print(drawn)
