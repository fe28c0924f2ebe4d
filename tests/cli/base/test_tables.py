"""Tables and facts: complete in a pipe, fitted to the width of a terminal."""

from __future__ import annotations

import pytest
from click import unstyle
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from hedgerow.cli.base import tables
from hedgerow.cli.base.console import rendered

HEADINGS = ("NODE", "STREAM", ">RATE/S", ">COUNT", "STATE", "LAST")
ROWS = [
    ("shop/hall-1/gateway", "hall-1/camera-7/image", "12.5", "1,204", "running", "3 person, dog, 'EXIT'"),
    ("shop/hall-2/gateway", "hall-2/camera/image", "0.1", "3", "running", "cat"),
]


def table_lines(width: int | None, **options: object) -> list[str]:
    return [unstyle(rendered(line)) for line in tables.table(HEADINGS, ROWS, width, names=2, **options)]  # type: ignore[arg-type]


def test_in_a_pipe_a_table_is_complete_and_numbers_are_right_aligned() -> None:
    assert table_lines(None) == [
        "NODE                 STREAM                 RATE/S  COUNT  STATE    LAST",
        "shop/hall-1/gateway  hall-1/camera-7/image    12.5  1,204  running  3 person, dog, 'EXIT'",
        "shop/hall-2/gateway  hall-2/camera/image       0.1      3  running  cat",
    ]


def test_first_the_last_text_is_elided() -> None:
    assert table_lines(81)[1] == "shop/hall-1/gateway  hall-1/camera-7/image    12.5  1,204  running  3 person, do…"
    assert max(map(len, table_lines(81))) == 81


def test_then_spare_columns_are_omitted_in_order() -> None:
    assert (
        table_lines(78, omit_first=("COUNT", "STATE"))[0]
        == "NODE                 STREAM                 RATE/S  STATE    LAST"
    )
    assert (
        table_lines(71, omit_first=("COUNT", "STATE"))[0] == "NODE                 STREAM                 RATE/S  LAST"
    )


def test_then_other_columns_are_omitted_from_the_right_but_never_names() -> None:
    assert table_lines(55)[1] == "shop/hall-1/gateway  hall-1/camera-7/image    12.5"
    assert table_lines(30)[1] == "shop/h…gateway  hall-1…7/image"
    assert table_lines(30)[2] == "shop/h…gateway  hall-2…a/image"


def test_an_alert_cell_is_red_and_no_wider() -> None:
    heading, row = tables.table(("WHO", ">DEAD"), [("door", tables.AlertCell("7"))], 80)

    assert "\x1b[31m" in rendered(row)
    assert unstyle(rendered(row)) == "door     7"
    assert unstyle(rendered(heading)) == "WHO   DEAD"


def test_control_characters_are_escaped() -> None:
    (_, row) = tables.table(("WHO", "WHAT"), [("\x1b[2J", "a\nb")], None)

    assert row == "\\x1b[2J  a\\x0ab"


cells = st.text(st.characters(exclude_categories=["C", "M", "Zl", "Zp"]), max_size=40)
rows = st.lists(st.tuples(*[cells] * len(HEADINGS)), max_size=4)


@given(
    rows, st.integers(12, 200), st.integers(1, 3), st.lists(st.sampled_from(["STATE", "COUNT", "LAST"]), unique=True)
)
def test_no_line_is_wider_than_the_terminal_and_no_name_is_omitted(
    cells: list[tuple[str, ...]], width: int, names: int, omit_first: list[str]
) -> None:
    lines = [
        unstyle(rendered(line)) for line in tables.table(HEADINGS, cells, width, names=names, omit_first=omit_first)
    ]

    assert len(lines) == 1 + len(cells), "each row is a line"
    assert all(cell_len(line) <= width for line in lines)
    assert len(lines[0].split()) >= names


@pytest.mark.parametrize("width", [None, 60, 40, 24])
def test_facts_are_wrapped_and_complete(width: int | None) -> None:
    rows = [("pipelines.doors.state", "running"), ("reasons", "the broker is unreachable; no frame for 12 minutes")]

    lines = tables.facts(rows, width)

    assert " ".join("\n".join(lines).split()) == " ".join(" ".join(row) for row in rows)
    assert all(len(line) <= (width or 200) for line in lines)
    if width == 60:
        assert lines == [
            "pipelines.doors.state  running",
            "reasons                the broker is unreachable; no frame",
            "                       for 12 minutes",
        ]
    if width == 24:
        assert lines[:2] == ["pipelines.doors.state", "    running"]
