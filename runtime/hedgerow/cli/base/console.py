"""What all verbs share: exit codes, errors on stderr, and output that is plain where nobody reads it on a terminal."""

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
    0: "it worked",
    1: "it did not work: what was asked for failed, or a check did",
    2: "the command line or a configuration file is wrong",
    3: "the broker cannot be reached, or refuses",
    130: "stopped with Ctrl-C",
}


def exit_code(error: HedgerowError) -> int:
    """The exit code that stands for an error."""
    if isinstance(error, ConfigError):
        return 2
    return 3 if isinstance(error, BusError) else 1


def read_checked(load: Callable[[Path], T], file: Path, *, json: bool) -> T:
    """Read a file for a verb that checks it; with `json`, what is wrong with it is printed as such, and the verb ends with 2."""
    from hedgerow.configfile import BadConfigFile

    try:
        return load(file)
    except BadConfigFile as error:
        if not json:
            raise
        print_json({"file": str(file), "ok": False, "problems": error.problems})
        raise typer.Exit(2) from error


def print_error(error: HedgerowError) -> None:
    """What went wrong and what to do about it, on stderr."""
    typer.echo(f"{typer.style('error:', fg='red', bold=True)} {_lines(str(error))}", err=True)
    typer.echo(f"  → {_lines(error.remedy)}", err=True)


def print_json(value: Any) -> None:
    """A value as one JSON document, laid out to be read."""
    import orjson

    from hedgerow.wire.messages import encode_json

    typer.echo(orjson.dumps(orjson.loads(encode_json(value)), option=orjson.OPT_INDENT_2))


def print_json_line(value: Any) -> None:
    """A value as JSON on a line of its own, handed on at once."""
    from hedgerow.wire.messages import encode_json

    typer.echo(encode_json(value))
    sys.stdout.flush()


def on_terminal() -> bool:
    """Whether somebody reads along."""
    return sys.stdout.isatty()


def printable(text: str) -> str:
    """A text without signs that do something to a terminal: what others wrote may have them."""
    if text.isprintable():
        return text
    return "".join(f"\\x{ord(sign):02x}" if category(sign)[0] == "C" else sign for sign in text)


def _lines(text: str) -> str:
    return "\n".join(map(printable, text.split("\n")))


def human_readable(value: Any) -> str:
    """A value out of a file as people write it: `a, b`, `name: value`; `-` for what is not there."""
    if value is None:
        return "-"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {human_readable(one)}" for key, one in value.items())
    return ", ".join(map(human_readable, value)) if isinstance(value, list | tuple) else str(value)


def plural(count: int, noun: str) -> str:
    """`1 frame`, `2 frames`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def size(count: float) -> str:
    """Bytes as people say them."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
