"""Progress of a rollout: rendered once, or followed until it ends."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

from hedgerow.cli.base.console import echo, print_json_line, style
from hedgerow.cli.base.tables import AlertCell, ansi_text, hanging_indent, table
from hedgerow.cli.region.options import author, short_ref
from hedgerow.errors import CommandError
from hedgerow.terminal import supports_redraw
from hedgerow.text import visible

if TYPE_CHECKING:
    from hedgerow.region.store.database.database import Database

_REDRAW_S: Final = 0.5
_MAX_RETRY_S: Final = 10.0
_BAR_WIDTH: Final = 16
_COLORS: Final = {"succeeded": "green", "in-progress": None, "paused": "yellow"}
_FAILURES: Final = ("failed", "timed-out", "rejected")


def read(database: Database, name: str | None, *, every_node: bool) -> dict[str, Any]:
    """Return a rollout's progress. Raises: CommandError: there is no such rollout."""
    from hedgerow.region.rollouts.progress import progress

    found = progress(database, name, every_node=every_node)
    if found is None:
        raise CommandError(
            f"There is no rollout {name}" if name else "There are no rollouts yet",
            code="unknown-rollout",
            remedy="`hedgerow rollout history` lists rollouts; `hedgerow rollout start -f FILE` starts one.",
        )
    return found


def follow(open_: Callable[[], Database], name: str | None, *, every_node: bool, json: bool) -> dict[str, Any]:
    """Show a rollout until it ends, and return its final progress.

    Args:
        open_: opens the store; called again after an outage.
    Raises: StoreError: the store cannot be read at the start.
    """
    states = _states(open_, name, every_node)
    if json or not supports_redraw(sys.stdout):
        return _print_changes(states, json)
    from rich.live import Live

    progress, _ = next(states)
    with Live(auto_refresh=False) as live:
        live.update(ansi_text(render(progress, live.console.width)), refresh=True)
        for progress, error in states:
            lines = render(progress, live.console.width)
            if error:
                lines += [style(text, fg="red") for text in hanging_indent("", _outage(error), live.console.width)]
            live.update(ansi_text(lines), refresh=True)
    return progress


def summary(progress: dict[str, Any]) -> str:
    """Format a rollout's progress as one line."""
    begun = sum(wave["begun"] for wave in progress["waves"])
    states = ", ".join(f"{count} {state}" for state, count in sorted(progress["states"].items()))
    reason = progress["waits_for"] or progress["because"]
    head = f"{progress['rollout']}: {progress['phase']}, wave {begun} of {len(progress['waves'])}: {states}"
    return f"{head} ({reason})" if reason else head


def render(progress: dict[str, Any], width: int | None) -> list[str]:
    """Return a rollout's progress as lines of at most `width` columns."""
    phase = style(progress["phase"], fg=_COLORS.get(progress["phase"], "red"))
    models = ", ".join(f"{name} → {short_ref(ref)}" for name, ref in progress["models"].items())
    head = hanging_indent(f"{progress['rollout']}: {progress['phase']}  ", visible(models), width)
    lines = [head[0].replace(progress["phase"], phase, 1), *head[1:]]
    started = visible(f"by {author(progress)}: {progress['why']}")
    lines += [style(text, dim=True) for text in hanging_indent("", started, width)]
    lines += table(
        ("WAVE", ">", ">GOOD", ">NODES", ">FAILED", ">LATE", ">ROLLED BACK"),
        [_wave(number, wave) for number, wave in enumerate(progress["waves"], 1)],
        width,
        omit_first=("",),
    )
    if reason := progress["waits_for"] or progress["because"]:
        lines += hanging_indent("", visible(f"{reason[:1].upper()}{reason[1:]}."), width)
    for task in progress["tasks"]:
        failure = f": {task['code']}: {task['reason']}" if task["code"] else ""
        late = ", late" if task["late"] and task["state"] in ("queued", "in-progress") else ""
        back = {"asked": ", rolling back", "proved": ", rolled back", "kept": ", still served"}.get(task["back"], "")
        lines += hanging_indent(f"{task['node']}: ", visible(f"{task['state']}{late}{back}{failure}"), width)
    if progress["tasks_left_out"]:
        lines.append(f"… and {progress['tasks_left_out']} more; --nodes lists all.")
    return lines


def _wave(number: int, wave: dict[str, Any]) -> tuple[str, ...]:
    states, nodes = wave["states"], wave["nodes"]
    good, failed = states.get("succeeded", 0), sum(states.get(state, 0) for state in _FAILURES)
    full = _BAR_WIDTH * good // max(1, nodes)
    bar = "█" * full + "░" * (_BAR_WIDTH - full)
    rest = (f"{wave['late'] or ''}", f"{wave['back'].get('proved') or ''}")
    return f"{number} ({wave['wave']})", bar, f"{good}", f"{nodes}", AlertCell(failed) if failed else "", *rest


def _print_changes(states: Iterator[tuple[dict[str, Any], str]], json: bool) -> dict[str, Any]:
    """Print a line for every change, and return the final progress."""
    progress: dict[str, Any] = {}
    printed: Any = None
    unavailable = False
    for progress, error in states:
        if bool(error) != unavailable:
            unavailable = bool(error)
            echo(_outage(error) if error else "store available again", err=True)
        if not error and printed != (current := {**progress, "changed_at": None}):
            printed = current
            print_json_line(progress) if json else echo(visible(summary(progress)))
    return progress


def _outage(error: str) -> str:
    return f"store unavailable, retrying… ({visible(error)})"


def _states(open_: Callable[[], Database], name: str | None, every_node: bool) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield a rollout's progress twice a second until it ends, with the store's error during an outage, else ""."""
    from hedgerow.region.store.database.database import StoreTrouble

    progress: dict[str, Any] = {}
    database: Database | None = None
    pause_s = _REDRAW_S
    try:
        while True:
            outage = ""
            try:
                database = database or open_()
                progress = read(database, name, every_node=every_node)
                name, pause_s = progress["rollout"], _REDRAW_S
            except StoreTrouble as error:
                if not progress:
                    raise
                outage, pause_s = str(error), min(2 * pause_s, _MAX_RETRY_S)
                if database is not None:
                    database.close()
                    database = None
            yield progress, outage
            if progress["ended"] and not outage:
                return
            time.sleep(pause_s)
    finally:
        if database is not None:
            database.close()
