"""Offers of one node: who sends, how long an offer holds, and how many are tracked."""

from __future__ import annotations

import math
from random import Random

import pytest

from hedgerow.blobs.announcements import MAX_DIGESTS, Announcement, AnnouncementKind
from hedgerow.blobs.peers.peer_offers import MAX_OPEN, PeerOffers, PeerRequest

GROUP = "0123456789abcdef"
PAUSE_S, CLAIM_S = 0.05, 4.0


class FixedRandom(Random):
    """Draws a fixed share of the range."""

    def __init__(self, share: float = 0.0) -> None:
        super().__init__(0)
        self.share = share

    def uniform(self, a: float, b: float) -> float:
        return a + self.share * (b - a)


def offers(*lacks: str, share: float = 0.0) -> PeerOffers:
    """Return the offers of a node called `us` that has all chunks but these."""
    return PeerOffers("us", lambda digest: digest not in lacks, FixedRandom(share))


def want(*digests: str, exclude: tuple[str, ...] = (), group: str = GROUP) -> Announcement:
    return Announcement(AnnouncementKind.WANT, group, digests, exclude)


def have(*digests: str) -> Announcement:
    return Announcement(AnnouncementKind.HAVE, GROUP, digests)


def chunk(digest: str) -> PeerRequest:
    return PeerRequest(GROUP, digest)


def take_all(peer: PeerOffers) -> list[str]:
    """Return all chunks to send now."""
    return [request.digest for request in iter(peer.take, None)]


def offered(peer: PeerOffers, now: float) -> list[str]:
    return peer.next(now)[0].get(GROUP, [])


def test_a_stored_chunk_is_offered_and_sent_once_the_offer_is_received() -> None:
    peer = offers("b")
    peer.on_want(want("a", "b"), "them", 0.0)

    assert peer.next(0.0) == ({GROUP: ["a"]}, math.inf)
    assert peer.take() is None
    peer.on_have(have("a"), "us", 0.1)
    assert peer.take() == chunk("a")
    assert peer.take() is None


def test_an_offer_is_delayed_by_up_to_50_ms() -> None:
    early, late = offers(), offers(share=1.0)
    for peer in (early, late):
        peer.on_want(want("a"), "them", 10.0)

    assert early.next(10.0) == ({GROUP: ["a"]}, math.inf)
    assert late.next(10.0) == ({}, 10.0 + PAUSE_S)
    assert late.next(10.04) == ({}, 10.0 + PAUSE_S)
    assert late.next(10.0 + PAUSE_S) == ({GROUP: ["a"]}, math.inf)


def test_the_next_offer_due_sets_the_wake_time() -> None:
    peer = offers(share=1.0)
    peer.on_want(want("a"), "them", 0.0)
    peer.on_want(want("b"), "them", 0.02)

    assert peer.next(0.0) == ({}, pytest.approx(0.05))
    assert peer.next(0.06) == ({GROUP: ["a"]}, pytest.approx(0.07))


def test_own_wants_and_wants_that_exclude_this_node_are_not_answered() -> None:
    peer = offers()
    peer.on_want(want("a"), "us", 0.0)
    peer.on_want(want("a", exclude=("them", "us")), "them", 0.0)

    assert peer.next(1.0) == ({}, math.inf)


def test_an_earlier_offer_by_another_node_suppresses_ours() -> None:
    peer = offers()
    peer.on_want(want("a"), "them", 0.0)
    peer.on_have(have("a"), "other", 0.0)
    assert peer.next(1.0) == ({}, math.inf)

    peer.on_have(have("a"), "us", 1.0)
    assert take_all(peer) == []


def test_the_first_of_two_offers_wins() -> None:
    peer = offers()
    peer.on_want(want("a"), "them", 0.0)
    assert offered(peer, 0.0) == ["a"]
    peer.on_have(have("a"), "us", 0.1)
    peer.on_have(have("a"), "other", 0.1)
    peer.on_have(have("a"), "us", 0.2)

    assert take_all(peer) == ["a"]


def test_an_unknown_offer_in_our_name_is_ignored() -> None:
    peer = offers()
    peer.on_have(have("a"), "us", 0.0)

    assert take_all(peer) == []


def test_an_offer_by_an_excluded_node_does_not_suppress_ours() -> None:
    peer = offers()
    peer.on_want(want("a", "b", exclude=("liar",)), "them", 0.0)
    peer.on_have(have("a"), "liar", 0.0)
    peer.on_have(have("b"), "honest", 0.0)
    peer.on_have(have("a", "c"), "liar", 0.0)
    peer.on_want(want("c"), "them", 0.1)

    assert offered(peer, 0.1) == ["a"], "the want for c does not exclude the liar"
    peer.on_have(have("a"), "us", 0.0)
    assert take_all(peer) == ["a"]


def test_every_chunk_of_an_announcement_is_handled() -> None:
    peer = offers()
    peer.on_have(have("a"), "other", 0.0)
    peer.on_have(have("a", "b"), "other", 1.0)
    peer.on_want(want("a", "b", "c"), "them", 1.1)

    assert offered(peer, 1.1) == ["c"]


def test_an_offer_by_another_node_holds_for_four_seconds() -> None:
    peer = offers()
    peer.on_have(have("a"), "other", 10.0)

    peer.on_want(want("a"), "them", 10.0 + CLAIM_S - 0.01)
    assert peer.next(20.0) == ({}, math.inf)
    peer.on_want(want("a"), "them", 10.0 + CLAIM_S)
    assert offered(peer, 20.0) == ["a"]


def test_a_peer_that_excludes_the_offering_node_is_served_by_us() -> None:
    peer = offers()
    peer.on_have(have("a", "b"), "other", 0.0)
    peer.on_want(want("a", exclude=("other",)), "them", 1.0)

    assert offered(peer, 1.0) == ["a"]
    peer.on_have(have("a"), "us", 1.1)
    assert take_all(peer) == ["a"], "the other offer no longer counts"


def test_a_sent_chunk_is_offered_again_to_a_late_peer() -> None:
    peer = offers()
    peer.on_want(want("a"), "them", 0.0)
    offered(peer, 0.0)
    peer.on_have(have("a"), "us", 0.1)

    peer.on_want(want("a"), "late", 0.2)
    assert offered(peer, 1.0) == [], "it is queued for sending"
    assert take_all(peer) == ["a"]
    peer.on_want(want("a"), "later", 1.1)
    assert offered(peer, 2.0) == ["a"]
    peer.on_have(have("a"), "us", 2.1)
    assert take_all(peer) == ["a"]


def test_a_chunk_wanted_twice_is_offered_once() -> None:
    peer = offers(share=1.0)
    peer.on_want(want("a"), "them", 0.0)
    peer.on_want(want("a"), "others", 0.04)

    assert offered(peer, 0.05) == ["a"]
    assert offered(peer, 0.1) == []


def test_an_offer_that_did_not_come_back_is_repeated_on_a_want_after_four_seconds() -> None:
    peer = offers()
    peer.on_want(want("a"), "them", 10.0)
    assert offered(peer, 10.0) == ["a"]

    assert offered(peer, 10.0 + CLAIM_S) == []
    peer.on_want(want("a"), "them", 10.0 + CLAIM_S)
    assert offered(peer, 14.0) == [], "our offer may still come back"
    assert offered(peer, 14.1) == []
    peer.on_want(want("a"), "them", 14.1)
    assert offered(peer, 14.1) == ["a"]


def test_offers_are_split_at_the_limit_of_an_announcement() -> None:
    peer = offers()
    digests = [f"{number:064x}" for number in range(MAX_DIGESTS + 6)]
    peer.on_want(want(*digests[:40]), "them", 0.0)
    peer.on_want(want(*digests[40:]), "them", 1.0)

    assert peer.next(2.0) == ({GROUP: digests[:MAX_DIGESTS]}, 1.0)
    assert peer.next(2.0) == ({GROUP: digests[MAX_DIGESTS:]}, math.inf)


def test_every_group_is_offered_separately() -> None:
    peer = offers()
    peer.on_want(want("a"), "them", 0.0)
    peer.on_want(want("a", "b", group="fedcba9876543210"), "them", 0.0)

    assert peer.next(0.0)[0] == {GROUP: ["a"], "fedcba9876543210": ["a", "b"]}


def test_at_most_1024_wants_are_tracked() -> None:
    peer = offers()
    for number in range(MAX_OPEN - 1):
        peer.on_want(want(f"{number}"), "them", 0.0)
    peer.on_want(want("last", "one too many"), "them", 0.0)

    digests = [digest for _ in range(20) for digest in offered(peer, 1.0)]
    assert (MAX_OPEN, len(digests), digests[-1]) == (1024, 1024, "last")


def test_at_most_4096_offers_of_others_are_tracked() -> None:
    peer = offers()
    peer.on_have(have(*(f"{number}" for number in range(4095))), "other", 0.0)
    peer.on_have(have("last", "one too many"), "other", 0.0)

    peer.on_want(want("last", "one too many"), "them", 1.0)
    assert offered(peer, 1.0) == ["one too many"]


def test_a_shared_chunk_is_sent_without_a_want() -> None:
    peer = offers()
    peer.on_want(want("a"), "them", 0.0)
    peer.share(chunk("a"))
    peer.share(chunk("b"))

    assert offered(peer, 1.0) == []
    assert take_all(peer) == ["a", "b"]


# Peers that want too much


def serve(peer: PeerOffers, digest: str, sender: str, now: float) -> bool:
    """Let a peer want a chunk. Returns: whether it is sent."""
    peer.on_want(want(digest), sender, now)
    if offered(peer, now) != [digest]:
        return False
    peer.on_have(have(digest), "us", now)
    return take_all(peer) == [digest]


def test_a_peer_that_wants_a_chunk_again_and_again_waits_twice_as_long_each_time() -> None:
    peer = offers()
    assert [serve(peer, "a", "greedy", 100.0) for _ in range(3)] == [True, True, False]
    now = 100.0
    for pause_s in (4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 256.0):
        assert not serve(peer, "a", "greedy", now + pause_s - 0.01)
        assert serve(peer, "a", "modest", now + pause_s - 0.01) or pause_s > 8.0, "its own fault"
        now += pause_s
        assert serve(peer, "a", "greedy", now)
    assert serve(peer, "b", "greedy", now)


def test_a_chunk_that_has_to_wait_delays_no_other_chunk_of_the_want() -> None:
    peer = offers()
    assert [serve(peer, "a", "them", 0.0) for _ in range(2)] == [True, True]
    peer.on_want(want("a", "b"), "them", 0.0)

    assert offered(peer, 0.0) == ["b"]


def test_offers_of_others_expire_one_by_one() -> None:
    peer = offers()
    peer.on_have(have("a"), "other", 0.0)
    peer.on_have(have("b"), "other", 3.0)
    peer.on_want(want("a", "b"), "them", CLAIM_S)

    assert offered(peer, CLAIM_S) == ["a"]


def test_chunks_sent_to_16384_peers_are_remembered() -> None:
    peer, now = offers(), 0.0
    for _ in range(10):  # the longest pause is 256 s
        now += 300.0
        assert serve(peer, "a", "first", now)
    for number in range(16_383):
        assert serve(peer, f"{number}", "them", now)
        now += 0.01
    assert not serve(peer, "a", "first", now)
    assert serve(peer, "last", "them", now)
    assert serve(peer, "a", "first", now)


def test_peers_are_served_in_turn() -> None:
    peer = offers()
    peer.on_want(want("a1", "a2", "a3"), "greedy", 0.0)
    peer.on_want(want("b1"), "modest", 0.0)
    peer.on_have(have(*offered(peer, 0.0)), "us", 0.0)

    assert take_all(peer) == ["a1", "b1", "a2", "a3"]


def test_a_chunk_that_is_queued_is_not_queued_again() -> None:
    peer = offers()
    peer.share(chunk("a"))
    peer.share(chunk("a"))
    assert take_all(peer) == ["a"]
    peer.share(chunk("a"))
    assert take_all(peer) == ["a"]


def test_offers_of_others_do_not_use_up_the_places_of_our_own() -> None:
    peer = offers()
    peer.on_want(want("a"), "them", 0.0)
    assert offered(peer, 0.0) == ["a"]
    peer.on_have(have(*(f"{number}" for number in range(4 * MAX_OPEN))), "liar", 0.0)
    peer.on_have(have("a"), "us", 0.1)

    assert take_all(peer) == ["a"]


def test_a_peer_that_wants_everything_gives_places_up_to_others() -> None:
    peer = offers()
    peer.on_want(want(*(f"{number}" for number in range(MAX_OPEN))), "greedy", 0.0)
    peer.on_want(want("one too many"), "greedy", 0.0)
    peer.on_want(want("b"), "modest", 0.0)

    digests = [digest for _ in range(20) for digest in offered(peer, 1.0)]
    assert len(digests) == MAX_OPEN // 2 + 1
    assert digests[-1] == "b"
    assert "one too many" not in digests
