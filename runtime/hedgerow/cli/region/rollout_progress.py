"""How far a rollout is: drawn once, or followed until it has ended."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

import typer

from hedgerow.cli.base.console import print_json_line, printable
from hedgerow.cli.base.tables import Marked, drawing, hanging, table
from hedgerow.cli.region.options import short
from hedgerow.errors import CommandError
from hedgerow.terminal import takes_escapes

if TYPE_CHECKING:
    from hedgerow.region.store.database.database import Database

_REDRAW_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 10.0
_BAR: Final = 16
_COLORS: Final = {"succeeded": "green", "in-progress": None, "paused": "yellow"}
_FAILURES: Final = ("failed", "timed-out", "rejected")


def read(database: Database, name: str | None, *, every_node: bool) -> dict[str, Any]:
    """How far a rollout is. Raises: CommandError: there is none."""
    from hedgerow.region.rollouts.progress import progress

    said = progress(database, name, every_node=every_node)
    if said is None:
        raise CommandError(
            f"There is no rollout {name}" if name else "There was no rollout yet",
            code="unknown-rollout",
            remedy="`hedgerow rollout history` lists them; `hedgerow rollout start -f FILE` starts one.",
        )
    return said


def follow(open_: Callable[[], Database], name: str | None, *, every_node: bool, json: bool) -> dict[str, Any]:
    """Show a rollout until it has ended. Returns: how it is then.

    Args:
        open_: opens the store; one that goes away is opened again.
    Raises: StoreError: the store cannot be read to begin with.
    """
    states = _states(open_, name, every_node)
    if json or not takes_escapes(sys.stdout):
        return _print_changes(states, json)
    from rich.live import Live

    said, _ = next(states)
    with Live(auto_refresh=False) as live:
        live.update(drawing(render(said, live.console.width)), refresh=True)
        for said, trouble in states:
            lines = render(said, live.console.width)
            if trouble:
                lines += [typer.style(line, fg="red") for line in hanging("", _away(trouble), live.console.width)]
            live.update(drawing(lines), refresh=True)
    return said


def line(said: dict[str, Any]) -> str:
    """How far a rollout is, in a line."""
    begun = sum(wave["begun"] for wave in said["waves"])
    states = ", ".join(f"{count} {state}" for state, count in sorted(said["states"].items()))
    rest = said["waits_for"] or said["because"]
    return f"{said['rollout']}: {said['phase']}, wave {begun} of {len(said['waves'])}: {states}{f' ({rest})' if rest else ''}"


def render(said: dict[str, Any], width: int | None) -> list[str]:
    """How far a rollout is, as lines for a terminal so wide."""
    phase = typer.style(said["phase"], fg=_COLORS.get(said["phase"], "red"))
    models = ", ".join(f"{name} → {short(ref)}" for name, ref in said["models"].items())
    head = hanging(f"{said['rollout']}: {said['phase']}  ", printable(models), width)
    lines = [head[0].replace(said["phase"], phase, 1), *head[1:]]
    lines += [typer.style(text, dim=True) for text in hanging("", printable(f"by {said['who']}: {said['why']}"), width)]
    lines += table(
        ("WAVE", ">", ">GOOD", ">NODES", ">FAILED", ">LATE", ">ROLLED BACK"),
        [_wave(number, wave) for number, wave in enumerate(said["waves"], 1)],
        width,
        spare=("",),
    )
    rest = said["waits_for"] or said["because"]
    if rest:
        lines += hanging("", printable(f"{rest[:1].upper()}{rest[1:]}."), width)
    for task in said["tasks"]:
        reason = f": {task['code']}: {task['reason']}" if task["code"] else ""
        late = ", late" if task["late"] and task["state"] in ("queued", "in-progress") else ""
        back = {"asked": ", rolling back", "proved": ", rolled back"}.get(task["back"], "")
        lines += hanging(f"{task['node']}: ", printable(f"{task['state']}{late}{back}{reason}"), width)
    if said["tasks_left_out"]:
        lines.append(f"… and {said['tasks_left_out']} more; --nodes lists all.")
    return lines


def _wave(number: int, wave: dict[str, Any]) -> tuple[str, ...]:
    states, nodes = wave["states"], wave["nodes"]
    good, failed = states.get("succeeded", 0), sum(states.get(state, 0) for state in _FAILURES)
    full = _BAR * good // max(1, nodes)
    bar = "█" * full + "░" * (_BAR - full)
    rest = (f"{wave['late'] or ''}", f"{sum(wave['back'].values()) or ''}")
    return f"{number} ({wave['wave']})", bar, f"{good}", f"{nodes}", Marked(failed) if failed else "", *rest


def _print_changes(states: Iterator[tuple[dict[str, Any], str]], json: bool) -> dict[str, Any]:
    """Print a line for every change. Returns: the last."""
    said: dict[str, Any] = {}
    shown: Any = None
    was_away = False
    for said, trouble in states:
        if bool(trouble) != was_away:
            was_away = bool(trouble)
            typer.echo(_away(trouble) if trouble else "store back", err=True)
        if not trouble and shown != (told := {**said, "changed_at": None}):
            shown = told
            print_json_line(said) if json else typer.echo(line(said))
    return said


def _away(trouble: str) -> str:
    return f"store away, trying again… ({printable(trouble)})"


def _states(open_: Callable[[], Database], name: str | None, every_node: bool) -> Iterator[tuple[dict[str, Any], str]]:
    """How a rollout is, twice a second until it has ended; and why the store cannot be read just now, else ""."""
    from hedgerow.region.store.database.database import StoreTrouble

    said: dict[str, Any] = {}
    database: Database | None = None
    pause_s = _REDRAW_S
    try:
        while True:
            trouble = ""
            try:
                database = database or open_()
                said = read(database, name, every_node=every_node)
                name, pause_s = said["rollout"], _REDRAW_S
            except StoreTrouble as error:
                if not said:
                    raise
                trouble, pause_s = str(error), min(2 * pause_s, _LONGEST_PAUSE_S)
                if database is not None:
                    database.close()
                    database = None
            yield said, trouble
            if said["ended"] and not trouble:
                return
            time.sleep(pause_s)
    finally:
        if database is not None:
            database.close()
