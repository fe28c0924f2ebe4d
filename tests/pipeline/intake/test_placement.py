"""Placement: streams are spread evenly over lanes and stay there."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hedgerow.pipeline.intake.placement import Placement


@given(st.lists(st.text(max_size=3)), st.integers(1, 5))
def test_streams_are_spread_evenly_and_stay_in_their_lane(streams: list[str], lanes: int) -> None:
    """A hash could put most of a few streams into one lane."""
    placement = Placement(lanes)

    first = {stream: placement(stream) for stream in streams}

    assert {stream: placement(stream) for stream in reversed(streams)} == first
    counts = [list(first.values()).count(lane) for lane in range(lanes)]
    assert max(counts) - min(counts) <= 1


def test_a_forgotten_stream_leaves_its_lane_only_after_its_last_frame() -> None:
    """Otherwise its next frame could overtake in another lane."""
    placement = Placement(2)
    assert [placement(stream) for stream in "abcd"] == [0, 1, 0, 1]

    placement.sweep("ad", lambda stream, lane: (stream, lane) == ("b", 1))

    assert len(placement) == 3
    assert placement("b") == 1
    assert [placement(stream) for stream in "efg"] == [0, 0, 1]
