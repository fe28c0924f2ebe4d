"""Streams are spread evenly over lanes and stay where they are."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hedgerow.pipeline.intake.placement import Placement


@given(st.lists(st.text(max_size=3)), st.integers(1, 5))
def test_streams_are_spread_evenly_and_stay_in_their_lane(streams: list[str], lanes: int) -> None:
    """Chance, as a hash would have it, would put most of a few streams in one lane."""
    place = Placement(lanes)

    first = {stream: place(stream) for stream in streams}

    assert {stream: place(stream) for stream in reversed(streams)} == first
    counts = [list(first.values()).count(lane) for lane in range(lanes)]
    assert max(counts) - min(counts) <= 1


def test_a_forgotten_stream_leaves_room_but_not_before_its_last_frame() -> None:
    """Or its next frame could overtake it in another lane."""
    place = Placement(2)
    assert [place(stream) for stream in "abcd"] == [0, 1, 0, 1]

    place.sweep("ad", lambda stream, lane: (stream, lane) == ("b", 1))

    assert len(place) == 3
    assert place("b") == 1
    assert [place(stream) for stream in "efg"] == [0, 0, 1]
