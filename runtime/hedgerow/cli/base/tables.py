"""Tables and facts that fit the terminal. Where the output is no terminal, they are printed in full.

What a table does when it gets narrow, in this order: texts are elided, spare columns go, names are elided in the middle.
Lines may hold escape sequences for color and bold; `typer.echo` removes them where they are not wanted.
"""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final
from unicodedata import combining, east_asian_width

import typer

from hedgerow.cli.base.console import on_terminal, printable
from hedgerow.terminal import supports_color

if TYPE_CHECKING:
    from rich.text import Text

_GAP: Final = "  "
_LEAST_TEXT: Final = 12
_LEAST_NAME: Final = 20
"""Texts and names are not elided to less than this while anything else may go."""
_ROOM: Final = 16
"""Facts with less room than this beside their names stand below them."""


class AlertCell(str):
    """A cell that wants attention: red, where there is color."""

    __slots__ = ()


def alert(text: str) -> str:
    """A cell that wants attention: red, or followed by `!` where there is no color."""
    return AlertCell(text) if supports_color(sys.stdout) else f"{text} !"


def print_table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], *, names: int = 1, spare: Sequence[str] = ()
) -> None:
    """Print a table; the arguments are those of `table`."""
    for line in table(headings, rows, terminal_width(), names=names, spare=spare):
        typer.echo(line)


def print_facts(rows: Iterable[Sequence[str]]) -> None:
    """Print rows without headings, the last cell wrapped below itself."""
    for line in facts(rows, terminal_width()):
        typer.echo(line)


def terminal_width() -> int | None:
    """Columns of the terminal; None: the output is none."""
    return shutil.get_terminal_size().columns if on_terminal() else None


def table(
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    width: int | None,
    *,
    names: int = 1,
    spare: Sequence[str] = (),
) -> list[str]:
    """A table as lines, none wider than `width`.

    Args:
        headings: `>` before one says that its column holds numbers: they stand at the right and are never elided.
        names: how many of the first columns are names, which are never left out.
        spare: headings of columns that may be left out, the first one first; the others follow from the right.
    """
    titles = [heading.removeprefix(">") for heading in headings]
    numbers = {column for column, heading in enumerate(headings) if heading.startswith(">")}
    cells = [[_clean(cell) for cell in row] for row in rows]
    natural = [max(map(_columns, each)) for each in zip(titles, *cells, strict=True)]
    least = [
        width if column in numbers else min(width, max(_columns(title), _LEAST_NAME if column < names else _LEAST_TEXT))
        for column, (title, width) in enumerate(zip(titles, natural, strict=True))
    ]
    shown = list(range(len(titles)))
    widths = dict(enumerate(natural))
    if width is not None:
        shown = _chosen(natural, least, width, names, [titles.index(heading) for heading in spare])
        widths = _shrunk({column: natural[column] for column in shown}, least, width, names, numbers)

    def line(row: Sequence[str]) -> str:
        fitted = (_fitted(row[column], widths[column], column < names, column in numbers) for column in shown)
        return _GAP.join(fitted).rstrip()

    return [typer.style(line(titles), bold=True), *map(line, cells)]


def facts(rows: Iterable[Sequence[str]], width: int | None) -> list[str]:
    """Rows without headings as lines: all cells but the last are aligned, the last is wrapped below itself."""
    cells = [[printable(cell) for cell in row] for row in rows]
    aligned = [max(map(_columns, each)) for each in zip(*(row[:-1] for row in cells), strict=True)]
    lines = []
    for row in cells:
        beside = "".join(_padded(cell, width) + _GAP for cell, width in zip(row, aligned, strict=False))
        lines += hanging_indent(beside, row[-1], width)
    return lines


def hanging_indent(beside: str, text: str, width: int | None) -> list[str]:
    """A text beside another, wrapped to its own left edge."""
    if width is None or _columns(beside) + _columns(text) <= width:
        return [f"{beside}{text}".rstrip()]
    indent = _columns(beside)
    lines = []
    if width - indent < _ROOM and indent:
        lines, beside, indent = [beside.rstrip()], " " * 4, 4
    wrapped = textwrap.wrap(text, max(1, width - indent), break_on_hyphens=False)
    return [*lines, *(f"{beside if not number else ' ' * indent}{part}" for number, part in enumerate(wrapped))]


def elided(text: str, width: int) -> str:
    """A text, cut to so many columns at its end."""
    return text if _columns(text) <= width else f"{_cut(text, width - 1)}…"


def ansi_text(lines: Iterable[str]) -> Text:
    """Lines for rich to draw, with the color and bold they have."""
    from rich.text import Text

    return Text.from_ansi("\n".join(lines), no_wrap=True, overflow="crop")


def _chosen(natural: Sequence[int], least: Sequence[int], width: int, names: int, spare: Sequence[int]) -> list[int]:
    """The columns that fit; names always do."""
    shown, going = list(range(len(natural))), list(spare)

    def needed(of: Callable[[int], int]) -> int:
        return sum(map(of, shown)) + len(_GAP) * (len(shown) - 1)

    while going and needed(lambda column: natural[column] if column < names else least[column]) > width:
        shown.remove(going.pop(0))
    while len(shown) > names and needed(lambda column: least[column]) > width:
        shown.pop()
    return shown


def _shrunk(
    widths: dict[int, int], least: Sequence[int], width: int, names: int, numbers: Iterable[int]
) -> dict[int, int]:
    """Widths of the columns shown: texts give way from the right, then the longest name does."""
    over = sum(widths.values()) + len(_GAP) * (len(widths) - 1) - width
    for column in sorted(widths.keys() - set(range(names)) - set(numbers), reverse=True):
        cut = max(0, min(over, widths[column] - least[column]))
        widths[column] -= cut
        over -= cut
    while over > 0 and widths[longest := max(range(names), key=lambda column: widths[column])] > 1:
        widths[longest] -= 1
        over -= 1
    return widths


def _fitted(cell: str, width: int, is_name: bool, is_number: bool) -> str:
    if _columns(cell) > width:
        head = (width - 1) // 2
        text = f"{_cut(cell, head)}…{_cut(cell[::-1], width - 1 - head)[::-1]}" if is_name else elided(cell, width)
    else:
        text = str(cell)
    text = _padded(text, width, right=is_number)
    return typer.style(text, fg="red", bold=True) if isinstance(cell, AlertCell) else text


def _padded(text: str, width: int, *, right: bool = False) -> str:
    space = " " * (width - _columns(text))
    return f"{space}{text}" if right else f"{text}{space}"


def _clean(cell: str) -> str:
    return AlertCell(printable(cell)) if isinstance(cell, AlertCell) else printable(cell)


def _columns(text: str) -> int:
    """Columns that a text takes on a terminal."""
    return len(text) if text.isascii() else sum(map(_sign_columns, text))


def _sign_columns(sign: str) -> int:
    return 0 if combining(sign) else 2 if east_asian_width(sign) in "WF" else 1


def _cut(text: str, width: int) -> str:
    """As much of a text's beginning as so many columns hold."""
    return "".join(_taken(text, width))


def _taken(text: str, width: int) -> Iterator[str]:
    for sign in text:
        width -= _sign_columns(sign)
        if width < 0:
            return
        yield sign
