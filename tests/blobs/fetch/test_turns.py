"""Turns of peers and of this node, with exact limits."""

from __future__ import annotations

import pytest

from hedgerow.blobs.fetch.pacing import FetchWindow
from hedgerow.blobs.fetch.turns import PEER_TIMEOUTS, PeerTurns

TURN_S, LONGEST_TURN_S = 45.0, 450.0


@pytest.fixture
def turns() -> PeerTurns:
    return PeerTurns(FetchWindow())


def test_the_first_peer_begins_the_turn_of_all(turns: PeerTurns) -> None:
    assert not turns.is_own("a", 1e9), "nobody has had a turn"
    assert turns.may_hold("a", "m", 10.0)

    assert turns.may_hold("a", "z", 10.0 + TURN_S - 0.01)
    assert not turns.may_hold("a", "z", 10.0 + TURN_S)
    assert not turns.is_own("a", 10.0 + TURN_S - 0.01)
    assert turns.is_own("a", 10.0 + TURN_S)
    assert turns.ends("a", "m") == 10.0 + TURN_S


def test_each_chunk_has_a_turn_of_its_own(turns: PeerTurns) -> None:
    turns.may_hold("a", "m", 0.0)
    turns.may_hold("b", "m", 5.0)

    assert (turns.ends("a", "m"), turns.ends("b", "m")) == (TURN_S, 5.0 + TURN_S)


def test_peers_have_another_turn_once_this_node_has_requested(turns: PeerTurns) -> None:
    turns.may_hold("a", "m", 0.0)
    turns.requested("a")
    turns.requested("unknown")

    assert not turns.is_own("a", 1e9)
    assert turns.may_hold("a", "m", 100.0)
    assert turns.ends("a", "m") == 100.0 + TURN_S


def test_a_peer_that_delivers_may_go_on_for_a_turn_from_then(turns: PeerTurns) -> None:
    turns.may_hold("a", "m", 0.0)
    turns.delivered("m", 20.0)

    assert turns.ends("a", "m") == 20.0 + TURN_S
    assert turns.ends("a", "z") == TURN_S
    assert turns.is_own("a", TURN_S), "unless this node holds it already"
    turns.delivered("m", 10_000.0)
    assert turns.ends("a", "m") == LONGEST_TURN_S


def test_a_delivery_long_ago_does_not_shorten_a_turn(turns: PeerTurns) -> None:
    turns.delivered("m", 0.0)
    turns.may_hold("a", "m", 100.0)

    assert turns.ends("a", "m") == 100.0 + TURN_S


def test_a_turn_is_one_and_a_half_timeouts_if_that_is_longer() -> None:
    window = FetchWindow()
    window.on_late_reply(20.0)
    turns = PeerTurns(window)
    turns.may_hold("a", "m", 0.0)

    assert (window.timeout_s, PEER_TIMEOUTS) == (80.0, 1.5)
    assert turns.ends("a", "m") == 120.0
    turns.delivered("m", 10_000.0)
    assert turns.ends("a", "m") == 1200.0


def test_a_turn_is_not_shorter_if_replies_are_fast() -> None:
    window = FetchWindow()
    window.on_late_reply(0.1)
    turns = PeerTurns(window)
    turns.may_hold("a", "m", 0.0)

    assert turns.ends("a", "m") == TURN_S


def test_deliveries_are_told_apart_by_peer_and_time(turns: PeerTurns) -> None:
    assert not turns.has_delivered("m", 0.0)
    assert not turns.has_any_delivered(0.0)
    turns.delivered("m", 10.0)
    turns.delivered("z", 5.0)

    assert turns.has_delivered("m", 10.0)
    assert not turns.has_delivered("m", 10.01)
    assert not turns.has_delivered("z", 10.0)
    assert turns.has_any_delivered(9.99)
    assert not turns.has_any_delivered(10.0)


def test_time_without_a_link_does_not_count(turns: PeerTurns) -> None:
    turns.may_hold("a", "m", 0.0)
    turns.delivered("m", 10.0)
    turns.paused(100.0)

    assert turns.ends("a", "z") == 100.0 + TURN_S
    assert turns.ends("a", "m") == 110.0 + TURN_S
