"""Output of verbs: exit codes, errors on stderr, JSON, and values formatted for reading."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar
from unicodedata import category

import typer

from hedgerow.errors import BusError, ConfigError, HedgerowError

T = TypeVar("T")

EXIT_CODES: Final = {
    0: "success",
    1: "the request or a check failed",
    2: "invalid command line or configuration file",
    3: "the broker is unreachable, or refuses the client",
    130: "interrupted with Ctrl-C",
}


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


def print_error(error: HedgerowError) -> None:
    """Print an error and its remedy on stderr."""
    typer.echo(f"{typer.style('error:', fg='red', bold=True)} {_lines(str(error))}", err=True)
    typer.echo(f"  → {_lines(error.remedy)}", err=True)


def print_json(value: Any) -> None:
    """Print a value as one indented JSON document."""
    import orjson

    from hedgerow.wire.messages import encode_json

    typer.echo(orjson.dumps(orjson.loads(encode_json(value, lossy=True)), option=orjson.OPT_INDENT_2))


def print_json_line(value: Any) -> None:
    """Print a value as a line of JSON, and flush it."""
    from hedgerow.wire.messages import encode_json

    typer.echo(encode_json(value, lossy=True))
    sys.stdout.flush()


def on_terminal() -> bool:
    """Return whether stdout is a terminal."""
    return sys.stdout.isatty()


def printable(text: str) -> str:
    """Return a text with its control characters escaped: untrusted text must not control the terminal."""
    if text.isprintable():
        return text
    return "".join(f"\\x{ord(char):02x}" if category(char)[0] == "C" else char for char in text)


def _lines(text: str) -> str:
    return "\n".join(map(printable, text.split("\n")))


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
