"""Per-stream state in rows: nothing of one stream reaches another, and no write is lost."""

from __future__ import annotations

import threading

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hedgerow import StreamTable


@given(
    st.lists(st.tuples(st.sampled_from(["use", "forget", "reset"]), st.integers(0, 150)), max_size=60), st.booleans()
)
def test_it_acts_like_a_dictionary_of_states(steps: list[tuple[str, int]], as_lists: bool) -> None:
    table = StreamTable(count=((), np.int64), tail=((2,), np.float32, -1.0), last=((), object))
    expected: dict[str, int] = {}
    for act, number in steps:
        stream = f"stream/{number}"
        if act == "forget":
            table.pop(stream, None)
            expected.pop(stream, None)
        elif act == "reset":
            table.reset(table.row(stream))
            expected[stream] = 0
        else:
            rows = table.rows([stream, "other"]) if as_lists else table.row(stream)
            counts = table.take("count", rows) + 1
            assert np.ravel(counts)[0] == expected.get(stream, 0) + 1
            before = table.take("tail", rows).reshape(-1, 2)[0].tolist()
            assert before == [expected.get(stream) or -1.0] * 2
            expected[stream] = int(np.ravel(counts)[0])
            table.put("count", rows, counts)
            table.put("tail", rows, np.broadcast_to(np.reshape(counts, (-1, 1)), (2, 2)) if as_lists else counts)
            assert table.take("last", table.row(stream)) == (stream if expected[stream] > 1 else None)
            table.put("last", table.row(stream), stream)
            if as_lists:
                table.pop("other")

    assert len(table) == len(expected)
    assert all(table.take("count", table.row(stream)) == count for stream, count in expected.items())


def test_rows_are_reused_so_that_the_table_is_as_large_as_there_were_streams_at_once() -> None:
    table = StreamTable(count=((), np.int64))
    for number in range(10_000):
        table.put("count", table.row(f"stream/{number}"), number)
        if number >= 100:
            table.pop(f"stream/{number - 100}")

    assert len(table) == 100
    assert table._size == 128


def test_what_was_taken_does_not_change_when_the_row_does() -> None:
    table = StreamTable(tail=((2,), np.float32), count=((), np.int64))
    row = table.row("a")
    one, many, count = table.take("tail", row), table.take("tail", table.rows(["a"])), table.take("count", row)
    table.put("tail", row, 1.0)
    table.put("count", row, 1)

    assert one.tolist() == many[0].tolist() == [0, 0]
    assert count == 0


def test_clear_discards_all() -> None:
    table = StreamTable(count=((), np.int64))
    table.put("count", table.rows(["a", "b"]), [1, 2])
    table.clear()

    assert len(table) == 0
    assert "a" not in table
    assert table.take("count", table.rows(["a", "b", "c"])).tolist() == [0, 0, 0]


def test_threads_that_add_streams_lose_nothing_that_others_write() -> None:
    """A lane that makes the table grow copies it while others write."""
    table = StreamTable(count=((), np.int64))
    start = threading.Barrier(4)
    wrong: list[str] = []

    def work(thread: int) -> None:
        start.wait()
        for number in range(300):
            streams = [f"{thread}/{stream}" for stream in range(number + 1)]
            rows = table.rows(streams)
            table.put("count", rows, table.take("count", rows) + 1)
            if table.take("count", table.row(f"{thread}/0")) != number + 1:
                wrong.append(f"{thread} in round {number}")

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()

    assert wrong == []
    assert [int(table.take("count", table.row(f"2/{stream}"))) for stream in (0, 100, 299)] == [300, 200, 1]
