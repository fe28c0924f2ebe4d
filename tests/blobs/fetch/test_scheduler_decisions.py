"""Whom a node asks for what, and when: one node's plan, word by word, and each time exactly at its end.

The node is called `n`; of its neighbours `m` comes before it by name, and `z` after it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from hedgerow.blobs.announcements import MAX_DIGESTS, Announcement, AnnouncementKind
from hedgerow.blobs.fetch.pacing import FetchWindow, TokenBucket
from hedgerow.blobs.fetch.scheduler import FetchScheduler, Steps

GROUP, OTHER_GROUP = "0123456789abcdef", "fedcba9876543210"
SIZE = 1000
HOLD_S, REFRESH_S, LEASE_S, ECHO_S, OFFER_S, STALL_S, DISTRUST_S = 0.5, 3.0, 10.0, 5.0, 5.0, 20.0, 120.0
FIRST_TIMEOUT_S = 30.0
"""Before anything came, an answer is waited for so long."""
SOON_S = 0.01


def names(count: int) -> list[str]:
    return [f"{number:03}" for number in range(count)]


class Site:
    """A plan, and who speaks to it.

    Args:
        answers_s: how long answers take, as far as is known.
    """

    def __init__(
        self, digests: Sequence[str] = "a", bytes_per_s: int | None = None, answers_s: float | None = None
    ) -> None:
        self.window, self.bucket = FetchWindow(), TokenBucket(bytes_per_s)
        if answers_s is not None:
            self.window.on_late_reply(answers_s)
        self.plan = FetchScheduler("n", GROUP, dict.fromkeys(digests, SIZE), self.window, self.bucket)

    def hears(
        self, kind: AnnouncementKind, digests: Sequence[str], sender: str, now: float, group: str = GROUP
    ) -> None:
        self.plan.on_announcement(Announcement(kind, group, tuple(digests)), sender, now)

    def next(self, now: float) -> Steps:
        return self.plan.next(now)

    def says(self, now: float, echo_s: float = 0.0) -> None:
        """It says what it wants, and hears it so much later."""
        want = self.next(now).want
        self.hears(AnnouncementKind.WANT, want, "n", now + echo_s)

    def asks(self, now: float) -> None:
        """It asks the region for what it wants, neighbours having had their time."""
        self.says(now - HOLD_S)
        assert self.next(now).request

    def does(self, now: float) -> tuple[str, str, str]:
        """What it wants, asks for, and says is on its way."""
        steps = self.next(now)
        return "".join(steps.want), "".join(steps.request), "".join(steps.busy)


NOTHING = ("", "", "")


# To the neighbours first


def test_missing_chunks_are_announced_up_to_the_limit_of_an_announcement() -> None:
    digests = names(MAX_DIGESTS + 3)
    site = Site(digests)

    assert site.next(10.0).want == digests[:MAX_DIGESTS]
    assert site.next(10.0).want == []


def test_a_chunk_is_requested_after_a_hold_time_of_500_ms() -> None:
    site = Site()
    site.says(10.0)

    assert site.does(10.49) == NOTHING
    assert site.does(10.5) == ("", "a", "")
    assert site.does(11.0) == NOTHING


@pytest.mark.parametrize(
    ("echo_s", "hold_s"), [(0.125, 0.5), (0.25, 1.0), (1.0, 4.0), (2.5, 10.0), (3.0, 10.0), (4.9, 10.0)]
)
def test_the_hold_time_is_four_round_trips_and_at_most_ten_seconds(echo_s: float, hold_s: float) -> None:
    site = Site()
    site.says(0.0, echo_s)

    assert "a" not in site.next(echo_s + hold_s - 0.01).request
    assert site.next(echo_s + hold_s).request == ["a"]


def test_a_want_that_does_not_come_back_is_repeated_after_five_seconds() -> None:
    site = Site()
    assert site.does(0.0) == ("a", "", "")

    assert site.does(4.99) == NOTHING
    assert site.does(5.0) == ("a", "", "")
    assert site.does(9.99) == NOTHING


def test_only_the_first_echo_of_a_want_counts() -> None:
    site = Site()
    site.says(0.0)
    site.hears(AnnouncementKind.WANT, "a", "n", 0.4)

    assert site.next(0.5).request == ["a"], "the echo that came first counts"
    site.hears(AnnouncementKind.WANT, "a", "n", 0.6)
    assert site.does(2.0) == NOTHING, "it is asked for already"


def test_a_claimed_chunk_is_announced_again_every_three_seconds() -> None:
    site = Site(bytes_per_s=1)
    site.bucket.take(1000, 0.0)
    site.says(0.0)

    assert site.does(2.99) == NOTHING
    assert site.does(3.0) == ("a", "", "")
    assert site.does(5.99) == NOTHING
    assert site.does(6.0) == ("a", "", "")


# Of the region: no more than window and bucket allow


def test_requests_are_limited_by_the_window() -> None:
    site = Site("abcd")
    site.says(0.0)

    assert site.does(0.5) == ("", "ab", "")
    assert site.does(1.0) == NOTHING
    assert site.plan.arrived("a", None, 1.0)
    assert site.window.size == 3.0
    assert site.does(1.0) == ("", "cd", "")


def test_a_fractional_window_is_rounded_down() -> None:
    site = Site("abcd")
    site.window.size = 2.9
    site.says(0.0)

    assert site.does(0.5) == ("", "ab", "")


def test_requests_by_peers_count_against_the_window() -> None:
    site = Site("abcd")
    site.hears(AnnouncementKind.ASK, "d", "m", 0.0)
    site.says(0.0)

    assert site.does(0.5) == ("", "a", "")


def test_busy_chunks_of_peers_do_not_count_against_the_window() -> None:
    site = Site("abcd")
    site.hears(AnnouncementKind.BUSY, "cd", "m", 0.0)
    site.says(0.0)

    assert site.does(0.5) == ("", "ab", "")


def test_requests_are_limited_by_the_bucket() -> None:
    site = Site("ab", bytes_per_s=1000)
    site.says(0.0)

    assert site.does(0.5) == ("", "a", "")
    assert site.does(1.49) == NOTHING
    assert site.does(1.5) == ("", "b", "")


@pytest.mark.parametrize("kind", [AnnouncementKind.ASK, AnnouncementKind.TAKE])
def test_requests_by_peers_count_against_the_bucket(kind: AnnouncementKind) -> None:
    site = Site("ab", bytes_per_s=1000)
    site.hears(kind, "b", "m", 0.0)
    assert site.bucket.free_at(0.0) == 1.0

    site.hears(kind, "b", "n", 0.0)
    site.hears(kind, "x", "m", 0.0)
    assert site.bucket.free_at(0.0) == 1.0, "its own it has counted, and the other it does not miss"


def test_announcements_of_chunks_that_are_not_missing_are_ignored() -> None:
    site = Site("a")
    site.hears(AnnouncementKind.ASK, ("x", "a"), "m", 0.0)

    assert site.next(0.0).want == []


# How far ahead it asks its neighbours


@pytest.mark.parametrize(
    ("size", "answers_s", "ahead"),
    [
        (1.0, 1.0, 2 + 4),
        (1.0, 9.0, 2 + 4),
        (1.0, 0.5, 3 + 4),
        (3.0, 0.25, 15 + 4),
        (2.5, 1.0, 5 + 4),
        (2.9, 0.8, 6 + 4),
        (30.0, 1.0, 64),
        (29.5, 1.0, 63),
        (1.0, 1e-6, 64),
    ],
)
def test_wants_are_announced_ahead_for_one_hold_time(size: float, answers_s: float, ahead: int) -> None:
    site = Site(names(100), answers_s=answers_s)
    site.window.size = size

    assert len(site.next(0.0).want) == ahead


def test_more_wants_are_announced_when_half_are_no_longer_waiting() -> None:
    site = Site(names(100), answers_s=1.0)
    site.window.size = 4.0  # so it wants 12 at a time
    first = site.next(0.0).want
    site.hears(AnnouncementKind.HAVE, first[:5], "m", 0.1)

    assert site.next(0.2).want == []
    site.hears(AnnouncementKind.HAVE, first[5:6], "m", 0.2)
    assert site.next(0.3).want == names(100)[12:18]


def test_chunks_claimed_by_peers_count_as_waiting() -> None:
    site = Site(names(100), answers_s=1.0)
    site.window.size = 4.0
    site.hears(AnnouncementKind.WANT, names(7), "m", 0.0)
    assert site.next(0.0).want == []

    site = Site(names(100), answers_s=1.0)
    site.window.size = 4.0
    site.hears(AnnouncementKind.WANT, names(6), "m", 0.0)
    assert site.next(0.0).want == names(100)[6:12]


# What neighbours want


def test_a_chunk_claimed_by_a_peer_is_free_when_its_lease_ends() -> None:
    site = Site()
    site.hears(AnnouncementKind.WANT, "a", "m", 0.0)

    assert site.does(0.0) == NOTHING
    site.hears(AnnouncementKind.WANT, "a", "m", 3.0)
    assert site.does(3.0 + LEASE_S - 0.01) == NOTHING
    steps = site.next(3.0 + LEASE_S)
    assert (steps.want, steps.distrusted) == (["a"], ("m",))


def test_a_want_received_before_our_own_echo_claims_the_chunk() -> None:
    site = Site()
    assert site.does(0.0) == ("a", "", "")
    site.hears(AnnouncementKind.WANT, "a", "m", 0.1)
    site.hears(AnnouncementKind.WANT, "a", "n", 0.2)

    assert site.does(5.0) == NOTHING


def test_a_peer_that_wants_our_chunk_later_is_sent_busy() -> None:
    wanted, asked = Site(), Site()
    wanted.says(0.0)
    asked.asks(0.5)
    for site in (wanted, asked):
        site.hears(AnnouncementKind.WANT, "a", "m", 0.4)

    assert wanted.does(0.4) == ("", "", "a")
    assert wanted.does(0.4) == NOTHING
    assert asked.does(0.6) == ("", "", "a")


def test_busy_is_limited_to_one_announcement() -> None:
    digests = names(MAX_DIGESTS + 1)
    site = Site(digests)
    site.says(0.0)
    site.hears(AnnouncementKind.HAVE, digests[:40], "z", 0.0)
    site.says(0.0)
    site.hears(AnnouncementKind.WANT, digests, "m", 0.1)

    assert site.next(0.1).busy == digests[:MAX_DIGESTS]


def test_the_first_of_two_peers_keeps_its_claim() -> None:
    site = Site()
    site.hears(AnnouncementKind.WANT, "a", "m", 0.0)
    site.hears(AnnouncementKind.WANT, "a", "z", 8.0)

    assert site.does(9.99) == NOTHING
    assert site.next(10.0).distrusted == ("m",)


def test_wants_of_another_group_are_ignored() -> None:
    site = Site()
    site.hears(AnnouncementKind.WANT, "a", "m", 0.0, OTHER_GROUP)

    assert site.does(0.0) == ("a", "", "")


def test_a_peer_that_wants_again_has_given_up_its_request() -> None:
    site = Site()
    site.hears(AnnouncementKind.ASK, "a", "m", 0.0)
    site.hears(AnnouncementKind.WANT, "a", "m", 1.0)

    assert site.does(1.0 + LEASE_S - 0.01) == NOTHING
    assert site.next(1.0 + LEASE_S).distrusted == ("m",)


def test_a_want_for_a_chunk_another_peer_requested_is_ignored() -> None:
    site = Site()
    site.hears(AnnouncementKind.ASK, "a", "m", 0.0)
    site.hears(AnnouncementKind.WANT, "a", "z", 1.0)

    assert site.does(44.99) == NOTHING
    assert site.does(45.0) == ("a", "", "")


# What neighbours offer


def test_an_offer_that_is_not_kept_times_out_and_its_peer_is_distrusted() -> None:
    site = Site()
    site.says(0.0)
    site.hears(AnnouncementKind.HAVE, "a", "m", 0.4)

    assert site.does(0.4 + OFFER_S - 0.01) == NOTHING
    steps = site.next(0.4 + OFFER_S)
    assert (steps.want, steps.request, steps.distrusted) == (["a"], [], ("m",))


def test_every_chunk_from_a_peer_extends_its_offers() -> None:
    site = Site("abc")
    site.says(0.0)
    site.hears(AnnouncementKind.HAVE, "abc", "m", 0.0)
    assert site.plan.arrived("a", "m", 4.0)
    site.hears(AnnouncementKind.HAVE, "x", "m", 5.0)

    assert site.does(4.0 + OFFER_S - 0.01) == NOTHING
    assert site.next(4.0 + OFFER_S).distrusted == ("m",)


def test_every_offer_from_a_peer_extends_its_earlier_offers() -> None:
    site = Site("ab")
    site.says(0.0)
    site.hears(AnnouncementKind.HAVE, "a", "m", 0.0)
    site.hears(AnnouncementKind.HAVE, "b", "m", 4.0)

    assert site.does(4.0 + OFFER_S - 0.01) == NOTHING
    assert site.next(4.0 + OFFER_S).want == ["a", "b"]


def test_an_offer_counts_before_our_want_and_during_the_claim_of_another() -> None:
    unsaid, wanted = Site(), Site()
    unsaid.hears(AnnouncementKind.HAVE, "a", "z", 0.0)
    wanted.hears(AnnouncementKind.WANT, "a", "m", 0.0)
    wanted.hears(AnnouncementKind.HAVE, "a", "z", 1.0)

    assert unsaid.does(0.0) == NOTHING
    assert unsaid.next(5.0).distrusted == ("z",)
    assert wanted.does(1.0) == NOTHING
    assert wanted.next(6.0).distrusted == ("z",)


def test_an_offer_of_a_requested_or_offered_chunk_is_ignored() -> None:
    asked, offered = Site(), Site()
    asked.asks(1.0)
    asked.hears(AnnouncementKind.HAVE, "a", "m", 1.1)
    offered.hears(AnnouncementKind.HAVE, "a", "m", 0.0)
    offered.hears(AnnouncementKind.HAVE, "a", "z", 3.0)

    assert asked.does(1.0 + FIRST_TIMEOUT_S - 0.01) == NOTHING
    assert asked.does(1.0 + FIRST_TIMEOUT_S) == ("a", "", "")
    assert offered.next(5.0).distrusted == ("m",)


def test_our_own_offer_is_ignored() -> None:
    site = Site()
    site.says(0.0)
    site.hears(AnnouncementKind.HAVE, "a", "n", 0.1)

    assert site.does(0.5) == ("", "a", "")


def test_a_peer_that_wants_a_chunk_offered_to_us_is_sent_busy() -> None:
    site = Site()
    site.hears(AnnouncementKind.HAVE, "a", "z", 0.0)
    site.hears(AnnouncementKind.WANT, "a", "m", 0.1)

    assert site.does(0.1) == ("", "", "a")


# What neighbours ask for


@pytest.mark.parametrize("kind", [AnnouncementKind.ASK, AnnouncementKind.TAKE])
def test_a_request_by_a_peer_times_out_after_one_and_a_half_timeouts(kind: AnnouncementKind) -> None:
    site = Site()
    site.says(0.0)
    site.hears(kind, "a", "m", 0.1)

    assert site.does(0.1 + 1.5 * FIRST_TIMEOUT_S - 0.01) == NOTHING
    assert site.does(0.1 + 1.5 * FIRST_TIMEOUT_S) == ("a", "", "")
    assert site.window.size == 1.0, "it was lost"


def test_our_own_request_is_not_replaced_by_a_peers() -> None:
    site = Site()
    site.asks(1.0)
    site.hears(AnnouncementKind.ASK, "a", "m", 1.1)

    assert site.does(1.0 + FIRST_TIMEOUT_S - 0.01) == NOTHING
    assert site.does(1.0 + FIRST_TIMEOUT_S) == ("a", "", "")


def test_a_request_by_another_peer_restarts_the_timeout() -> None:
    site = Site()
    site.hears(AnnouncementKind.ASK, "a", "m", 0.0)
    site.hears(AnnouncementKind.ASK, "a", "z", 20.0)

    assert site.does(20.0 + 45.0 - 0.01) == NOTHING
    assert site.does(20.0 + 45.0) == ("a", "", "")


def test_a_request_with_another_group_is_waited_for_once() -> None:
    site = Site()
    site.hears(AnnouncementKind.ASK, "a", "m", 0.0, OTHER_GROUP)

    assert site.does(44.99) == NOTHING
    assert site.does(45.0) == ("a", "", "")
    assert site.window.size == 2.0, "that it did not come to us says nothing of the link"
    site.hears(AnnouncementKind.ASK, "a", "m", 45.1, OTHER_GROUP)
    site.hears(AnnouncementKind.WANT, "a", "n", 45.2)
    assert site.does(46.5) == ("", "a", ""), "the second time it is not waited for"


# What is on its way to others


def test_a_busy_chunk_is_waited_for() -> None:
    unsaid, said, wanted = Site(), Site(), Site()
    said.next(0.0)
    wanted.says(0.0)
    for site in (unsaid, said, wanted):
        site.hears(AnnouncementKind.BUSY, "a", "z", 0.0)

        assert site.does(44.99) == NOTHING
        assert site.does(45.0) == ("a", "", "")
        assert site.window.size == 2.0, "nothing is known to be lost"


def test_busy_does_not_replace_a_request_or_an_offer() -> None:
    asked, offered = Site(), Site()
    asked.asks(1.0)
    offered.hears(AnnouncementKind.HAVE, "a", "m", 1.0)
    for site in (asked, offered):
        site.hears(AnnouncementKind.BUSY, "a", "z", 1.1)

    assert asked.does(31.0) == ("a", "", "")
    assert offered.next(6.0).distrusted == ("m",)


def test_of_two_mutually_busy_nodes_the_first_by_name_requests() -> None:
    first, second = Site(), Site()
    for site, neighbour in ((first, "z"), (second, "m")):
        site.says(0.0)
        site.hears(AnnouncementKind.WANT, "a", neighbour, 0.1)
        site.hears(AnnouncementKind.BUSY, "a", neighbour, 0.2)

    assert first.does(0.5) == ("", "a", "a")
    assert second.does(0.5) == ("", "", "a")


def test_busy_without_our_own_busy_makes_us_wait() -> None:
    site = Site()
    site.says(0.0)
    site.hears(AnnouncementKind.BUSY, "a", "z", 0.2)

    assert site.does(0.5) == NOTHING


def test_our_own_busy_is_ignored() -> None:
    site = Site()
    site.says(0.0)
    site.hears(AnnouncementKind.BUSY, "a", "n", 0.2)

    assert site.does(0.5) == ("", "a", "")


# Doubt


def test_a_peer_that_sent_a_damaged_chunk_is_distrusted_for_two_minutes() -> None:
    site = Site(names(9))
    site.says(0.0)
    site.plan.failed("000", "m", 10.0)
    for kind in (AnnouncementKind.HAVE, AnnouncementKind.WANT, AnnouncementKind.BUSY):
        site.hears(kind, names(9), "m", 10.0 + DISTRUST_S - 0.01)
    assert site.next(10.0 + DISTRUST_S - 0.01).distrusted == ("m",)
    assert not site.next(10.0 + DISTRUST_S - 0.01).busy

    steps = site.next(10.0 + DISTRUST_S)
    assert steps.distrusted == ()
    site.hears(AnnouncementKind.WANT, ["008"], "m", 10.0 + DISTRUST_S)
    assert site.next(10.0 + DISTRUST_S).busy == ["008"]


def test_trust_returns_exactly_when_distrust_ends() -> None:
    site = Site()
    site.plan.failed("a", "m", 0.0)
    site.hears(AnnouncementKind.HAVE, "a", "m", DISTRUST_S)

    assert site.does(DISTRUST_S) == NOTHING


def test_offers_and_claims_of_a_distrusted_peer_are_released() -> None:
    site = Site("abcdef")
    site.hears(AnnouncementKind.HAVE, "a", "m", 0.0)
    site.hears(AnnouncementKind.WANT, "b", "m", 0.0)
    site.hears(AnnouncementKind.HAVE, "c", "z", 0.0)
    site.hears(AnnouncementKind.WANT, "d", "z", 0.0)
    site.hears(AnnouncementKind.ASK, "e", "m", 0.0)
    assert site.does(0.0) == ("f", "", "")

    site.plan.failed("a", "m", 1.0)
    assert site.does(1.0) == ("ab", "", "")


def test_an_offer_survives_distrust_of_the_claiming_peer() -> None:
    site = Site("ab")
    site.hears(AnnouncementKind.WANT, "a", "m", 0.0)
    site.hears(AnnouncementKind.HAVE, "a", "z", 0.0)
    site.plan.failed("b", "m", 1.0)

    assert site.does(1.0) == ("b", "", "")


def test_distrusted_peers_are_limited_to_one_announcement() -> None:
    site = Site()
    for number in range(MAX_DIGESTS + 1):
        site.plan.failed("a", f"m{number}", float(number) / 100)

    assert site.next(1.0).distrusted == tuple(f"m{number}" for number in range(MAX_DIGESTS))


# What comes


def test_a_chunk_arrives_once() -> None:
    site = Site("ab")

    assert site.plan.arrived("a", "m", 0.0)
    assert not site.plan.arrived("a", "m", 0.0)
    assert dict(site.plan.missing) == {"b": SIZE}
    assert site.does(0.0) == ("b", "", "")
    assert site.plan.arrived("b", None, 0.1)
    assert site.next(0.1) == Steps(wake_at=math.inf)


def test_the_window_learns_from_replies_to_own_and_peer_requests() -> None:
    mine, theirs = Site(), Site()
    mine.asks(1.0)
    theirs.hears(AnnouncementKind.ASK, "a", "m", 1.0)
    for site in (mine, theirs):
        site.plan.arrived("a", None, 1.75)

        assert (site.window.smoothed_rtt_s, site.window.size) == (0.75, 3.0)


def test_the_window_ignores_chunks_from_peers_and_unrequested_ones() -> None:
    asked, unasked, wanted, busy = Site(), Site(), Site(), Site()
    asked.asks(1.0)
    asked.plan.arrived("a", "m", 2.0)
    unasked.plan.arrived("a", None, 2.0)
    wanted.says(0.0)
    wanted.plan.arrived("a", None, 2.0)
    busy.hears(AnnouncementKind.BUSY, "a", "m", 0.0)
    busy.plan.arrived("a", None, 2.0)

    for site in (asked, unasked, wanted, busy):
        assert (site.window.smoothed_rtt_s, site.window.size) == (None, 2.0)


def test_the_window_learns_from_a_late_reply() -> None:
    site = Site()
    site.asks(1.0)
    site.next(31.0)
    site.plan.arrived("a", None, 41.0)

    assert (site.window.smoothed_rtt_s, site.window.size) == (40.0, 1.0)


def test_the_window_ignores_late_replies_to_peers() -> None:
    site = Site()
    site.hears(AnnouncementKind.ASK, "a", "m", 0.0)
    site.next(45.0)
    site.plan.arrived("a", None, 50.0)

    assert site.window.smoothed_rtt_s is None


# What does not come


def test_the_timeout_doubles_with_every_attempt() -> None:
    """2, 4, 8, 16 and then 30 s; neighbours have 1.2 s each time to offer it."""
    site = Site(answers_s=0.5)
    site.says(0.0)
    asked_at = 0.5
    assert site.next(asked_at).request == ["a"]
    for patience in (2.0, 4.0, 8.0, 16.0, 30.0, 30.0):
        given_up_at = asked_at + patience
        assert site.does(given_up_at - 0.01) == NOTHING
        assert site.does(given_up_at) == ("a", "", "")
        site.hears(AnnouncementKind.WANT, "a", "n", given_up_at)
        asked_at = given_up_at + 1.2
        assert site.does(asked_at - 0.01) == NOTHING
        assert site.does(asked_at) == ("", "a", "")


def test_a_usual_timeout_above_30_s_is_not_shortened() -> None:
    site = Site(answers_s=15.0)
    site.asks(1.0)
    assert site.does(60.99) == NOTHING
    assert site.does(61.0) == ("a", "", "")

    site.hears(AnnouncementKind.WANT, "a", "n", 61.0)
    assert site.does(63.0) == ("", "a", "")
    assert site.does(122.99) == ("", "", "")
    assert site.does(123.0) == ("a", "", "")


def test_a_damaged_chunk_from_the_region_is_requested_again_after_a_longer_hold() -> None:
    site = Site()
    site.asks(1.0)
    site.plan.failed("a", None, 2.0)

    assert site.does(2.0) == ("a", "", "")
    site.hears(AnnouncementKind.WANT, "a", "n", 2.0)
    assert site.does(3.19) == NOTHING
    assert site.does(3.2) == ("", "a", "")
    assert site.window.size == 2.0, "it was not lost"


def test_a_failure_of_a_free_or_unknown_chunk_is_ignored() -> None:
    site = Site()
    site.plan.failed("a", None, 0.0)
    site.plan.failed("x", None, 0.0)

    site.says(0.0)
    assert site.does(0.5) == ("", "a", "")


def test_a_failed_request_by_a_peer_also_lengthens_the_hold() -> None:
    site = Site()
    site.hears(AnnouncementKind.ASK, "a", "m", 0.0)
    site.says(45.0)

    assert site.does(46.19) == NOTHING
    assert site.does(46.2) == ("", "a", "")


def test_a_repeated_request_by_a_peer_is_waited_for_again() -> None:
    site = Site()
    site.hears(AnnouncementKind.ASK, "a", "m", 0.0)
    site.says(45.0)
    site.hears(AnnouncementKind.ASK, "a", "m", 45.1)

    assert site.does(90.0) == NOTHING
    assert site.does(90.2) == ("a", "", "")


def test_a_repeated_want_does_not_cancel_an_offer() -> None:
    site = Site()
    site.hears(AnnouncementKind.WANT, "a", "m", 0.0)
    site.hears(AnnouncementKind.HAVE, "a", "z", 1.0)
    site.hears(AnnouncementKind.WANT, "a", "m", 2.0)

    assert site.next(6.0).distrusted == ("z",)


def test_a_late_echo_of_a_released_chunk_is_ignored() -> None:
    site = Site()
    site.next(0.0)
    site.hears(AnnouncementKind.HAVE, "a", "m", 0.1)
    site.plan.failed("a", "m", 0.2)
    site.hears(AnnouncementKind.WANT, "a", "n", 0.3)

    assert site.does(0.3) == ("a", "", "")


# When nothing goes on


def stalled(answers_s: float | None, came_at: float | None = None) -> Site:
    """A neighbour says again and again that it wants a chunk, and nothing comes of it."""
    site = Site("ab", answers_s=answers_s)
    site.hears(AnnouncementKind.WANT, "a", "m", 0.0)
    site.next(0.0)
    if came_at is not None:
        site.plan.arrived("b", "z", came_at)
    for second in range(0, 100, 5):
        site.hears(AnnouncementKind.WANT, "a", "m", float(second))
    return site


def test_a_claim_without_progress_for_twenty_seconds_is_released() -> None:
    assert "a" not in stalled(0.5, 10.0).next(10.0 + STALL_S).want
    assert "a" in stalled(0.5, 10.0).next(10.0 + STALL_S + 0.1).want
    assert stalled(0.5, 10.0).next(10.0 + STALL_S + 0.1).distrusted == ("m",)
    assert "a" in stalled(0.5).next(STALL_S + 0.1).want, "from when it began"


def test_a_stall_takes_at_least_three_timeouts() -> None:
    assert "a" not in stalled(2.0).next(24.0).want
    assert "a" in stalled(2.0).next(24.1).want
    assert "a" not in stalled(None).next(90.0).want
    assert "a" in stalled(None).next(90.1).want


def test_a_stall_releases_neither_requests_nor_offers_nor_own_claims() -> None:
    site = Site("abcd", answers_s=10.0)
    site.next(0.0)
    site.hears(AnnouncementKind.ASK, "a", "m", 100.0)
    site.hears(AnnouncementKind.HAVE, "b", "m", 120.5)
    site.hears(AnnouncementKind.WANT, "c", "n", 120.5)
    site.hears(AnnouncementKind.WANT, "d", "n", 120.5)

    steps = site.next(121.0)
    assert (steps.distrusted, steps.want) == ((), [])


# A cut


def test_time_without_a_link_extends_all_deadlines() -> None:
    site = Site("abcd")
    site.hears(AnnouncementKind.HAVE, "a", "m", 0.0)
    site.hears(AnnouncementKind.WANT, "b", "z", 0.0)
    site.hears(AnnouncementKind.ASK, "c", "m", 0.0)
    site.says(0.0)
    site.plan.paused(100.0)

    assert site.does(100.49) == NOTHING
    assert site.does(100.5) == ("", "d", "")
    assert site.next(104.99).distrusted == ()
    assert site.next(105.0).distrusted == ("m",)
    assert site.next(109.99).distrusted == ("m",)
    assert site.next(110.0).distrusted == ("m", "z")
    assert "d" not in site.next(130.49).want
    assert "d" in site.next(130.5).want
    assert "c" not in site.next(144.99).want
    assert "c" in site.next(145.0).want


def test_an_outage_extends_the_offers_of_a_sending_peer() -> None:
    site = Site("ab")
    site.hears(AnnouncementKind.HAVE, "ab", "m", 0.0)
    site.plan.arrived("a", "m", 3.0)
    site.plan.paused(100.0)

    assert site.next(107.99).distrusted == ()
    assert site.next(108.0).distrusted == ("m",)


def test_an_outage_does_not_count_as_reply_time() -> None:
    asked, late = Site(), Site()
    asked.asks(1.0)
    asked.plan.paused(100.0)
    asked.plan.arrived("a", None, 101.5)
    assert asked.window.smoothed_rtt_s == 0.5

    late.asks(1.0)
    late.next(31.0)
    late.plan.paused(100.0)
    late.plan.arrived("a", None, 141.0)
    assert late.window.smoothed_rtt_s == 40.0


def test_an_outage_extends_the_time_until_a_stall() -> None:
    site = Site(answers_s=0.5)
    site.hears(AnnouncementKind.WANT, "a", "m", 0.0)
    site.next(0.0)
    site.plan.paused(100.0)
    for second in range(100, 125, 5):
        site.hears(AnnouncementKind.WANT, "a", "m", float(second))

    assert site.next(120.0).distrusted == ()
    assert site.next(120.1).distrusted == ("m",)


def test_an_outage_before_the_start_has_no_effect() -> None:
    site = Site()
    site.plan.paused(100.0)

    assert site.does(0.0) == ("a", "", "")


# When to look again


def wakes(site: Site, now: float) -> float:
    return site.next(now).wake_at


def test_the_wake_time_is_the_earliest_deadline() -> None:
    said, wanted, asked, offered, theirs = Site(), Site(), Site(), Site(), Site()
    assert wakes(said, 10.0) == 10.0 + ECHO_S
    wanted.says(10.0)
    assert wakes(wanted, 10.0) == 10.0 + HOLD_S
    asked.asks(10.0)
    assert wakes(asked, 10.0) == 10.0 + FIRST_TIMEOUT_S
    offered.hears(AnnouncementKind.HAVE, "a", "m", 10.0)
    assert wakes(offered, 10.0) == 10.0 + OFFER_S
    theirs.hears(AnnouncementKind.WANT, "a", "m", 10.0)
    assert wakes(theirs, 10.0) == 10.0 + LEASE_S


def test_the_wake_time_considers_the_bucket_and_repeated_wants() -> None:
    soon, late = Site(bytes_per_s=1000), Site(bytes_per_s=100)
    for site in (soon, late):
        site.says(0.0)
        site.bucket.take(SIZE, 0.0)

    assert wakes(soon, 0.5) == 1.0
    assert wakes(late, 0.5) == REFRESH_S


def test_a_full_window_wakes_for_repeated_wants() -> None:
    site = Site("abc")
    site.says(0.0)
    site.next(0.5)

    assert wakes(site, 0.6) == REFRESH_S


def test_free_chunks_shorten_the_wake_time() -> None:
    more, full = Site(names(20), answers_s=1.0), Site(names(MAX_DIGESTS + 1))
    more.window.size = 1.0

    assert wakes(more, 10.0) == 10.0 + HOLD_S
    assert wakes(full, 10.0) == 10.0 + ECHO_S


def test_the_wake_time_is_at_least_10_ms_ahead() -> None:
    site = Site(bytes_per_s=1000)
    site.says(0.0)
    site.bucket.take(1, 0.5)

    assert wakes(site, 0.499) == pytest.approx(0.509)
    assert wakes(Site(""), 1.0) == math.inf
