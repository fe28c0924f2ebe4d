"""Tables and lists of facts, fitted to the terminal. Output to a pipe or file is shortened only beyond 200 columns in a cell.

A narrow table first elides texts at their end, the widest first, then omits columns, then elides names in the middle. So a node
that sends long texts leaves the columns of others as they are.
Lines may be styled (`console.style`); `echo` prints them.
"""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final
from unicodedata import combining, east_asian_width

from hedgerow.cli.base.console import echo, on_terminal, rendered, style
from hedgerow.terminal import supports_color
from hedgerow.text import visible

if TYPE_CHECKING:
    from rich.text import Text

_GAP: Final = "  "
_MIN_TEXT: Final = 12
_MIN_NAME: Final = 20
"""Texts and names are not elided below these widths while anything else can give way."""
_WIDEST: Final = 200
"""Columns of a cell at most, since each pads its whole column; JSON has the whole text."""
_MIN_TEXT_BESIDE: Final = 16
"""A text with fewer columns than this beside its label goes below the label."""


class AlertCell(str):
    """A cell shown in red, where color is on."""

    __slots__ = ()


def alert(text: str) -> str:
    """Return a cell that is red, or followed by `!` where color is off."""
    return AlertCell(text) if supports_color(sys.stdout) else f"{text} !"


def print_table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], *, names: int = 1, omit_first: Sequence[str] = ()
) -> None:
    """Print a table; see `table` for the arguments."""
    for line in table(headings, rows, terminal_width(), names=names, omit_first=omit_first):
        echo(line)


def print_facts(rows: Iterable[Sequence[str]]) -> None:
    """Print rows without headings, each last cell wrapped to its own left edge."""
    for line in facts(rows, terminal_width()):
        echo(line)


def terminal_width() -> int | None:
    """Return the columns of the terminal; None if stdout is not a terminal."""
    return shutil.get_terminal_size().columns if on_terminal() else None


def table(
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    width: int | None,
    *,
    names: int = 1,
    omit_first: Sequence[str] = (),
) -> list[str]:
    """Return a table as lines, none wider than `width`.

    Args:
        headings: a leading `>` marks a column of numbers, which are right-aligned and never elided.
        width: columns of the terminal; None: unlimited.
        names: how many of the first columns are names, which are never omitted.
        omit_first: headings of columns to omit first, in this order; then columns are omitted from the right.
    """
    titles = [heading.removeprefix(">") for heading in headings]
    numbers = {column for column, heading in enumerate(headings) if heading.startswith(">")}
    cells = [[_clean(cell) for cell in row] for row in rows]
    natural = [min(_WIDEST, max(map(_columns, each))) for each in zip(titles, *cells, strict=True)]
    minimum = [
        width if column in numbers else min(width, max(_columns(title), _MIN_NAME if column < names else _MIN_TEXT))
        for column, (title, width) in enumerate(zip(titles, natural, strict=True))
    ]
    shown = list(range(len(titles)))
    widths = dict(enumerate(natural))
    if width is not None:
        shown = _columns_that_fit(natural, minimum, width, names, [titles.index(heading) for heading in omit_first])
        widths = _shrink({column: natural[column] for column in shown}, minimum, width, names, numbers)

    def line(row: Sequence[str]) -> str:
        fitted = (_fit(row[column], widths[column], column < names, column in numbers) for column in shown)
        return _GAP.join(fitted).rstrip()

    return [style(line(titles), bold=True), *map(line, cells)]


def facts(rows: Iterable[Sequence[str]], width: int | None) -> list[str]:
    """Return rows without headings as lines: all cells are aligned, and the last is wrapped to its own left edge."""
    cells = [[*(elided(visible(cell), _WIDEST) for cell in row[:-1]), visible(row[-1])] for row in rows]
    aligned = [max(map(_columns, each)) for each in zip(*(row[:-1] for row in cells), strict=True)]
    lines = []
    for row in cells:
        label = "".join(_pad(cell, width) + _GAP for cell, width in zip(row, aligned, strict=False))
        lines += hanging_indent(label, row[-1], width)
    return lines


def hanging_indent(label: str, text: str, width: int | None) -> list[str]:
    """Return a label and a text as lines, the text wrapped to its own left edge."""
    if width is None or _columns(label) + _columns(text) <= width:
        return [f"{label}{text}".rstrip()]
    indent = _columns(label)
    lines = []
    if width - indent < _MIN_TEXT_BESIDE and indent:
        lines, label, indent = [label.rstrip()], " " * 4, 4
    wrapped = textwrap.wrap(text, max(1, width - indent), break_on_hyphens=False)
    return [*lines, *(f"{label if not number else ' ' * indent}{part}" for number, part in enumerate(wrapped))]


def elided(text: str, width: int) -> str:
    """Return a text, shortened at its end to fit the width."""
    return text if _columns(text) <= width else f"{_cut(text, width - 1)}…"


def ansi_text(lines: Iterable[str]) -> Text:
    """Return lines, some of them styled, as a text that rich can draw."""
    from rich.text import Text

    return Text.from_ansi("\n".join(map(rendered, lines)), no_wrap=True, overflow="crop")


def _columns_that_fit(
    natural: Sequence[int], minimum: Sequence[int], width: int, names: int, omit_first: Sequence[int]
) -> list[int]:
    """Return the columns to show: all names, and the others that fit."""
    shown, omittable = list(range(len(natural))), list(omit_first)

    def needed(of: Callable[[int], int]) -> int:
        return sum(map(of, shown)) + len(_GAP) * (len(shown) - 1)

    while omittable and needed(lambda column: natural[column] if column < names else minimum[column]) > width:
        shown.remove(omittable.pop(0))
    while len(shown) > names and needed(lambda column: minimum[column]) > width:
        shown.pop()
    return shown


def _shrink(
    widths: dict[int, int], minimum: Sequence[int], width: int, names: int, numbers: Iterable[int]
) -> dict[int, int]:
    """Return the widths of the columns shown: the widest text shrinks, then the longest name does."""
    over = sum(widths.values()) + len(_GAP) * (len(widths) - 1) - width
    texts = widths.keys() - set(range(names)) - set(numbers)
    while over > 0 and (wider := [column for column in texts if widths[column] > minimum[column]]):
        widths[max(wider, key=lambda column: (widths[column], column))] -= 1
        over -= 1
    while over > 0 and widths[longest := max(range(names), key=lambda column: widths[column])] > 1:
        widths[longest] -= 1
        over -= 1
    return widths


def _fit(cell: str, width: int, is_name: bool, is_number: bool) -> str:
    if _columns(cell) > width:
        head = (width - 1) // 2
        text = f"{_cut(cell, head)}…{_cut(cell[::-1], width - 1 - head)[::-1]}" if is_name else elided(cell, width)
    else:
        text = str(cell)
    text = _pad(text, width, right=is_number)
    return style(text, fg="red", bold=True) if isinstance(cell, AlertCell) else text


def _pad(text: str, width: int, *, right: bool = False) -> str:
    space = " " * (width - _columns(text))
    return f"{space}{text}" if right else f"{text}{space}"


def _clean(cell: str) -> str:
    return AlertCell(visible(cell)) if isinstance(cell, AlertCell) else visible(cell)


def _columns(text: str) -> int:
    """Return how many columns a text takes on a terminal."""
    return len(text) if text.isascii() else sum(map(_char_columns, text))


def _char_columns(char: str) -> int:
    return 0 if combining(char) else 2 if east_asian_width(char) in "WF" else 1


def _cut(text: str, width: int) -> str:
    """Return the longest prefix of a text that fits the width."""
    return "".join(_take(text, width))


def _take(text: str, width: int) -> Iterator[str]:
    for char in text:
        width -= _char_columns(char)
        if width < 0:
            return
        yield char
