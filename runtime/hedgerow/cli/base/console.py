"""Output of verbs: exit codes, errors on stderr, JSON, and values formatted for reading.

All that verbs print goes through `echo` and `print_json`, which show what could control the terminal: topics, ids and errors come
from sensors. Colors come from `style` only.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import typer

from hedgerow.errors import BusError, ConfigError, HedgerowError
from hedgerow.text import visible_json, visible_lines

T = TypeVar("T")

EXIT_CODES: Final = {
    0: "success",
    1: "the request or a check failed",
    2: "invalid command line or configuration file",
    3: "the broker is unreachable, or refuses the client",
    130: "interrupted with Ctrl-C",
}


_MARK: Final = f"\ufdd0{os.urandom(4).hex()}"
"""Stands where `style` begins and ends a color. No sender can know it, so none can color a line, or hide it."""

_COLORS: Final = {"red": "31", "green": "32", "yellow": "33"}


def exit_code(error: HedgerowError) -> int:
    """Return the exit code for an error."""
    if isinstance(error, ConfigError):
        return 2
    return 3 if isinstance(error, BusError) else 1


def read_checked(load: Callable[[Path], T], file: Path, *, json: bool) -> T:
    """Read a file for a verb that checks it. With `json`, print its problems as JSON and exit with 2."""
    from hedgerow.configfile import BadConfigFile

    try:
        return load(file)
    except BadConfigFile as error:
        if not json:
            raise
        print_json({"file": str(file), "ok": False, "problems": error.problems})
        raise typer.Exit(2) from error


def style(text: str, *, fg: str | None = None, bold: bool = False, dim: bool = False) -> str:
    """Return a text to be shown in a color, or bold or dim, by `echo`."""
    codes = [*([_COLORS[fg]] if fg is not None else []), *("1" for _ in range(bold)), *("2" for _ in range(dim))]
    return "".join(f"{_MARK}{code}m" for code in codes) + f"{text}{_MARK}0m"


def echo(text: str = "", *, err: bool = False) -> None:
    """Print a text and a line feed, on stderr if `err`; color is left out where it is off."""
    typer.echo(rendered(text), err=err)


def rendered(text: str) -> str:
    """Return a text as it goes to a terminal: escape sequences where `style` put them, all others shown, not executed."""
    first, *styled = text.split(_MARK)
    parts = (each.partition("m") for each in styled)
    return visible_lines(first) + "".join(f"\x1b[{codes}m{visible_lines(rest)}" for codes, _, rest in parts)


def print_error(error: HedgerowError) -> None:
    """Print an error and its remedy on stderr."""
    echo(f"{style('error:', fg='red', bold=True)} {error}", err=True)
    echo(f"  → {error.remedy}", err=True)


def print_json(value: Any) -> None:
    """Print a value as one indented JSON document."""
    import orjson

    from hedgerow.wire.messages import encode_json

    _echo_json(orjson.dumps(orjson.loads(encode_json(value, lossy=True)), option=orjson.OPT_INDENT_2))


def print_json_line(value: Any) -> None:
    """Print a value as a line of JSON, and flush it."""
    from hedgerow.wire.messages import encode_json

    _echo_json(encode_json(value, lossy=True))
    sys.stdout.flush()


def _echo_json(encoded: bytes) -> None:
    """Print JSON, with escape sequences of its own for what JSON allows but a terminal acts upon."""
    typer.echo(visible_json(encoded.decode()).encode())


def on_terminal() -> bool:
    """Return whether stdout is a terminal."""
    return sys.stdout.isatty()


def human_readable(value: Any) -> str:
    """Format a value from a file for reading: `a, b`, `name: value`; `-` for None."""
    if value is None:
        return "-"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {human_readable(item)}" for key, item in value.items())
    return ", ".join(map(human_readable, value)) if isinstance(value, list | tuple) else str(value)


def plural(count: int, noun: str) -> str:
    """Return a count with its noun: `1 frame`, `2 frames`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def size(count: float) -> str:
    """Format a number of bytes with its unit: `1.5 kB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
