"""What a node offers and sends: who is first, how long another's word counts, and how much is remembered."""

from __future__ import annotations

import math
from random import Random

import pytest

from hedgerow.blobs.announcements import MAX_DIGESTS, Announcement, AnnouncementKind
from hedgerow.blobs.peers.peer_offers import MAX_OPEN, PeerOffers, PeerRequest

GROUP = "0123456789abcdef"
PAUSE_S, TAKEN_S = 0.05, 4.0


class Early(Random):
    """Draws what it is told to, between the limits it is given."""

    def __init__(self, share: float = 0.0) -> None:
        super().__init__(0)
        self.share = share

    def uniform(self, a: float, b: float) -> float:
        return a + self.share * (b - a)


def offers(*lacks: str, share: float = 0.0) -> PeerOffers:
    """Of a node that is called `us` and has everything but this."""
    return PeerOffers("us", lambda digest: digest not in lacks, Early(share))


def want(*digests: str, exclude: tuple[str, ...] = (), group: str = GROUP) -> Announcement:
    return Announcement(AnnouncementKind.WANT, group, digests, exclude)


def have(*digests: str) -> Announcement:
    return Announcement(AnnouncementKind.HAVE, GROUP, digests)


def chunk(digest: str) -> PeerRequest:
    return PeerRequest(GROUP, digest)


def sends(one: PeerOffers) -> list[str]:
    """All that it would send now."""
    return [wanted.digest for wanted in iter(one.take, None)]


def said(one: PeerOffers, now: float) -> list[str]:
    return one.next(now)[0].get(GROUP, [])


def test_a_stored_chunk_is_offered_and_sent_once_the_offer_is_received() -> None:
    one = offers("b")
    one.on_want(want("a", "b"), "them", 0.0)

    assert one.next(0.0) == ({GROUP: ["a"]}, math.inf)
    assert one.take() is None
    one.on_have(have("a"), "us", 0.1)
    assert one.take() == chunk("a")
    assert one.take() is None


def test_an_offer_is_delayed_by_up_to_50_ms() -> None:
    early, late = offers(), offers(share=1.0)
    for one in (early, late):
        one.on_want(want("a"), "them", 10.0)

    assert early.next(10.0) == ({GROUP: ["a"]}, math.inf)
    assert late.next(10.0) == ({}, 10.0 + PAUSE_S)
    assert late.next(10.04) == ({}, 10.0 + PAUSE_S)
    assert late.next(10.0 + PAUSE_S) == ({GROUP: ["a"]}, math.inf)


def test_the_next_offer_due_sets_the_wake_time() -> None:
    one = offers(share=1.0)
    one.on_want(want("a"), "them", 0.0)
    one.on_want(want("b"), "them", 0.02)

    assert one.next(0.0) == ({}, pytest.approx(0.05))
    assert one.next(0.06) == ({GROUP: ["a"]}, pytest.approx(0.07))


def test_own_wants_and_wants_that_exclude_this_node_are_not_answered() -> None:
    one = offers()
    one.on_want(want("a"), "us", 0.0)
    one.on_want(want("a", exclude=("them", "us")), "them", 0.0)

    assert one.next(1.0) == ({}, math.inf)


def test_an_earlier_offer_by_another_node_suppresses_ours() -> None:
    one = offers()
    one.on_want(want("a"), "them", 0.0)
    one.on_have(have("a"), "other", 0.0)
    assert one.next(1.0) == ({}, math.inf)

    one.on_have(have("a"), "us", 1.0)
    assert sends(one) == []


def test_the_first_of_two_offers_wins() -> None:
    one = offers()
    one.on_want(want("a"), "them", 0.0)
    assert said(one, 0.0) == ["a"]
    one.on_have(have("a"), "us", 0.1)
    one.on_have(have("a"), "other", 0.1)
    one.on_have(have("a"), "us", 0.2)

    assert sends(one) == ["a"]


def test_an_unknown_offer_in_our_name_is_ignored() -> None:
    one = offers()
    one.on_have(have("a"), "us", 0.0)

    assert sends(one) == []


def test_an_offer_by_an_excluded_node_does_not_suppress_ours() -> None:
    one = offers()
    one.on_want(want("a", "b", exclude=("liar",)), "them", 0.0)
    one.on_have(have("a"), "liar", 0.0)
    one.on_have(have("b"), "honest", 0.0)
    one.on_have(have("a", "c"), "liar", 0.0)
    one.on_want(want("c"), "them", 0.1)

    assert said(one, 0.1) == ["a"], "of c, nobody has said that he lies"
    one.on_have(have("a"), "us", 0.0)
    assert sends(one) == ["a"]


def test_every_chunk_of_an_announcement_is_handled() -> None:
    one = offers()
    one.on_have(have("a"), "other", 0.0)
    one.on_have(have("a", "b"), "other", 1.0)
    one.on_want(want("a", "b", "c"), "them", 1.1)

    assert said(one, 1.1) == ["c"]


def test_an_offer_by_another_node_holds_for_four_seconds() -> None:
    one = offers()
    one.on_have(have("a"), "other", 10.0)

    one.on_want(want("a"), "them", 10.0 + TAKEN_S - 0.01)
    assert one.next(20.0) == ({}, math.inf)
    one.on_want(want("a"), "them", 10.0 + TAKEN_S)
    assert said(one, 20.0) == ["a"]


def test_a_peer_that_excludes_the_offering_node_is_served_by_us() -> None:
    one = offers()
    one.on_have(have("a", "b"), "other", 0.0)
    one.on_want(want("a", exclude=("other",)), "them", 1.0)

    assert said(one, 1.0) == ["a"]
    one.on_have(have("a"), "us", 1.1)
    assert sends(one) == ["a"], "the other's offer does not count any more"


def test_a_sent_chunk_is_offered_again_to_a_late_peer() -> None:
    one = offers()
    one.on_want(want("a"), "them", 0.0)
    said(one, 0.0)
    one.on_have(have("a"), "us", 0.1)

    one.on_want(want("a"), "late", 0.2)
    assert said(one, 1.0) == [], "it is on its way"
    assert sends(one) == ["a"]
    one.on_want(want("a"), "later", 1.1)
    assert said(one, 2.0) == ["a"]
    one.on_have(have("a"), "us", 2.1)
    assert sends(one) == ["a"]


def test_a_chunk_wanted_twice_is_offered_once() -> None:
    one = offers(share=1.0)
    one.on_want(want("a"), "them", 0.0)
    one.on_want(want("a"), "others", 0.04)

    assert said(one, 0.05) == ["a"]
    assert said(one, 0.1) == []


def test_an_offer_that_did_not_come_back_is_repeated_on_a_want_after_four_seconds() -> None:
    one = offers()
    one.on_want(want("a"), "them", 10.0)
    assert said(one, 10.0) == ["a"]

    assert said(one, 10.0 + TAKEN_S) == []
    one.on_want(want("a"), "them", 10.0 + TAKEN_S)
    assert said(one, 14.0) == [], "our words are on their way still"
    assert said(one, 14.1) == []
    one.on_want(want("a"), "them", 14.1)
    assert said(one, 14.1) == ["a"]


def test_offers_are_split_at_the_limit_of_an_announcement() -> None:
    one = offers()
    digests = [f"{number:064x}" for number in range(MAX_DIGESTS + 6)]
    one.on_want(want(*digests[:40]), "them", 0.0)
    one.on_want(want(*digests[40:]), "them", 1.0)

    assert one.next(2.0) == ({GROUP: digests[:MAX_DIGESTS]}, 1.0)
    assert one.next(2.0) == ({GROUP: digests[MAX_DIGESTS:]}, math.inf)


def test_every_group_is_offered_separately() -> None:
    one = offers()
    one.on_want(want("a"), "them", 0.0)
    one.on_want(want("a", "b", group="fedcba9876543210"), "them", 0.0)

    assert one.next(0.0)[0] == {GROUP: ["a"], "fedcba9876543210": ["a", "b"]}


def test_at_most_1024_wants_are_tracked() -> None:
    one = offers()
    for number in range(MAX_OPEN - 1):
        one.on_want(want(f"{number}"), "them", 0.0)
    one.on_want(want("last", "one too many"), "them", 0.0)

    offered = [digest for _ in range(20) for digest in said(one, 1.0)]
    assert (MAX_OPEN, len(offered), offered[-1]) == (1024, 1024, "last")


def test_at_most_4096_offers_of_others_are_tracked() -> None:
    one = offers()
    one.on_have(have(*(f"{number}" for number in range(4095))), "other", 0.0)
    one.on_have(have("last", "one too many"), "other", 0.0)

    one.on_want(want("last", "one too many"), "them", 1.0)
    assert said(one, 1.0) == ["one too many"]


def test_a_shared_chunk_is_sent_without_a_want() -> None:
    one = offers()
    one.on_want(want("a"), "them", 0.0)
    one.share(chunk("a"))
    one.share(chunk("b"))

    assert said(one, 1.0) == []
    assert sends(one) == ["a", "b"]
