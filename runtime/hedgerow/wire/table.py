"""Reads tables of numbers: lines of cells, with or without names in the first line (CSV, RFC 4180)."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from hedgerow.errors import FrameError
from hedgerow.frame import Buffer
from hedgerow.wire.values import is_missing

Column = str | int
"""A column's name in the first line, or its position, from 0."""

_BOM: Final = "\ufeff"


class Table:
    """Lines of cells of equal number.

    Args:
        payload: UTF-8 text.
        delimiter: between cells, one character.
        decimal: decimal point or comma of its numbers.
        named: whether the first line has the columns' names.
    Attributes:
        names: names of the columns; empty without.
        rows: cells of the lines with numbers, in order; blank lines do not count.
        width: number of cells in each line.
    Raises: FrameError: it is not text, has no lines of cells, or lines of different lengths (`bad-csv`).
    """

    def __init__(self, payload: Buffer, *, delimiter: str = ",", decimal: str = ".", named: bool = False) -> None:
        self._delimiter, self._decimal = delimiter, decimal
        try:
            text = str(payload, "utf-8").removeprefix(_BOM)
            self.rows = self._cells(text)
        except (ValueError, csv.Error) as error:
            raise FrameError(f"Not lines of cells: {error}", code="bad-csv") from error
        self._plain = decimal == "." and "_" not in text and text.isascii()
        self.names = [name.strip() for name in self.rows.pop(0)] if named and self.rows else []
        self._first_line = 2 if self.names else 1
        if not self.rows:
            raise FrameError(
                "The table has no line of numbers", code="bad-csv", remedy="Send at least one line of numbers."
            )
        self.width = len(self.names or self.rows[0])
        for row, cells in enumerate(self.rows):
            if len(cells) != self.width:
                raise FrameError(
                    f"Line {self._first_line + row} has {len(cells)} cells, but the first one has {self.width}",
                    code="bad-csv",
                    remedy="Send the same number of cells in every line; quote cells that contain the delimiter.",
                )

    def _cells(self, text: str) -> list[list[str]]:
        lines = text.splitlines()
        if not all(map(str.strip, lines)):
            lines = [line for line in lines if line.strip()]
        if '"' in text:
            return list(csv.reader(lines, delimiter=self._delimiter, strict=True))
        return [line.split(self._delimiter) for line in lines]

    def position(self, column: Column) -> int:
        """Return a column's position.

        Raises: FrameError: there is no such column, or several.
        """
        if isinstance(column, int):
            if not 0 <= column < self.width:
                raise FrameError(
                    f"There is no column {column}; the lines have {self.width} cells, counted from 0",
                    code="missing-field",
                )
            return column
        if self.names.count(column) != 1:
            found = "no column" if column not in self.names else "several columns"
            raise FrameError(
                f"The table has {found} {column!r}; its columns are {', '.join(self.names)[:200]}",
                code="missing-field" if column not in self.names else "duplicate-field",
            )
        return self.names.index(column)

    def numbers(self, positions: Sequence[int], *, exact: bool = False) -> list[list[Any]]:
        """Return the numbers of these columns, line by line; None for a cell that is empty or says `NA` or the like.

        Args:
            positions: of the columns.
            exact: return whole numbers as integers; slower.
        Raises: FrameError: a cell is not a number (`bad-csv`).
        """
        if not exact and self._plain:
            try:
                return [[float(cells[position]) for position in positions] for cells in self.rows]
            except ValueError:
                pass
        return [[self._number(row, position) for position in positions] for row in range(len(self.rows))]

    def label(self, row: int, position: int) -> str:
        """Name a cell for an error message."""
        name = f"`{self.names[position]}`" if self.names else str(position)
        return f"Line {self._first_line + row}, column {name}"

    def _number(self, row: int, position: int) -> int | float | None:
        cell = self.rows[row][position].strip()
        if is_missing(cell):
            return None
        # Python also reads 1_000 and digits of other scripts. A point beside a decimal comma separates thousands, or is
        # a mistake: 1.234 is not 1,234.
        if cell.isascii() and "_" not in cell and (self._decimal == "." or "." not in cell):
            for kind in (int, float):
                try:
                    return kind(cell.replace(self._decimal, "."))
                except ValueError:
                    pass
        raise self._no_number(row, position, cell)

    def _no_number(self, row: int, position: int, cell: str) -> FrameError:
        remedy = "Send numbers only; or name the columns to read with `field` of `parse`."
        if self._delimiter == "," and any(other in cell for other in ";\t"):
            other = ";" if ";" in cell else "\\t"
            remedy = f'If the cells are separated otherwise, set `delimiter: "{other}"` of `parse`, and perhaps `decimal: ","`.'
        elif "," in cell and self._decimal == ".":
            remedy = 'If the numbers have a decimal comma, set `decimal: ","` of `parse`.'
        elif _is_time(cell):
            remedy = f"To read this column as the capture time, set `time: {position}` of `parse`, or its name."
        elif row == 0 and not self.names:
            remedy = "If the first line has names, name the columns to read: `parse: {field: [NAME, …]}`."
        return FrameError(f"{self.label(row, position)} is {cell[:40]!r}, not a number", code="bad-csv", remedy=remedy)


def _is_time(cell: str) -> bool:
    try:
        datetime.fromisoformat(cell.strip())
    except ValueError:
        return False
    return not cell.strip().isdigit()
