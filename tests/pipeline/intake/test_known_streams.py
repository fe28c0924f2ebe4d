"""Streams with a number: bounded, and no topic takes the place of another's by inventing names."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hedgerow.pipeline.intake.known_streams import KnownStreams


def test_frames_are_numbered_by_stream_and_the_one_silent_for_longest_is_forgotten() -> None:
    known, forgotten = KnownStreams(), list[str]()

    numbers = [known.next_number(stream, 2, forgotten.append) for stream in ("a", "b", "a", "c", "b", "a")]

    assert numbers == [0, 0, 1, 0, 0, 0]
    assert forgotten == ["b", "a", "c"]


def test_a_topic_that_names_its_streams_makes_room_by_its_own() -> None:
    known, forgotten = KnownStreams(), list[str]()
    for stream in ("quiet", "quiet#1", *(f"loud#{number}" for number in range(20))):
        known.next_number(stream, 5, forgotten.append)

    assert known.names == {"quiet", "quiet#1", "loud#17", "loud#18", "loud#19"}
    assert forgotten == [f"loud#{number}" for number in range(17)]


def test_slow_streams_do_not_make_room_for_each_other_when_one_topic_has_filled_all_places() -> None:
    """They would begin anew at each frame, and with them every window of a stage."""
    known, forgotten = KnownStreams(), list[str]()
    slow = [f"slow/{number}" for number in range(5)]
    for turn in range(3):
        for stream in slow:
            for number in range(20):
                known.next_number(f"loud#{number}", 20, forgotten.append)
            assert known.next_number(stream, 20, forgotten.append) == turn

    assert not set(slow) & set(forgotten)


@given(st.lists(st.sampled_from(["a", "b", "c", "a#1", "a#2", "a#3", "b#1", "b#2"])), st.integers(1, 5))
def test_there_are_never_more_than_the_limit_and_each_is_forgotten_once(streams: list[str], limit: int) -> None:
    known, live = KnownStreams(), dict[str, int]()
    for stream in streams:
        number = known.next_number(stream, limit, live.pop)
        assert number == live.get(stream, 0)
        live[stream] = number + 1
        assert known.names == live.keys()
        assert len(known) <= limit
