"""Requests of one site: in turn by node, each once, within a limit that no node uses up."""

from __future__ import annotations

import pytest

from hedgerow.blobs.site_queue import SiteQueue, SiteRequest


def chunk(name: str) -> SiteRequest:
    return SiteRequest("group", name)


def names(queue: SiteQueue) -> list[str]:
    return [queue.take().digest for _ in range(len(queue))]


def test_nodes_take_turns() -> None:
    queue = SiteQueue(10)
    for name in ("a1", "a2", "a3"):
        assert queue.add("a", chunk(name))
    assert queue.add("b", chunk("b1"))

    assert (len(queue), chunk("a2") in queue, chunk("x") in queue) == (4, True, False)
    assert names(queue) == ["a1", "b1", "a2", "a3"]
    assert (len(queue), chunk("a2") in queue) == (0, False)
    with pytest.raises(KeyError):
        queue.take()


def test_a_node_that_fills_the_queue_gives_places_up_to_others() -> None:
    queue = SiteQueue(4)
    for name in ("a1", "a2", "a3", "a4"):
        assert queue.add("a", chunk(name))
    assert not queue.add("a", chunk("a5")), "its own requests make no room"

    assert not queue.add("b", chunk("b1")), "one was dropped"
    assert not queue.add("b", chunk("b2"))
    assert not queue.add("b", chunk("b3")), "both have as many"
    assert len(queue) == 4
    assert [chunk(name) in queue for name in ("a3", "a4", "b3")] == [False, False, False]
    assert names(queue) == ["a1", "b1", "a2", "b2"]


def test_a_dropped_request_can_be_made_again() -> None:
    queue = SiteQueue(2)
    queue.add("a", chunk("a1"))
    queue.add("a", chunk("a2"))
    queue.add("b", chunk("b1"))
    assert names(queue) == ["a1", "b1"]

    assert queue.add("a", chunk("a2"))
    assert names(queue) == ["a2"]


def test_a_queue_of_one_place_keeps_its_request() -> None:
    queue = SiteQueue(1)
    queue.add("a", chunk("a1"))

    assert not queue.add("b", chunk("b1"))
    assert names(queue) == ["a1"]
