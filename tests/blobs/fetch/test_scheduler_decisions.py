"""Decisions of one node's fetch scheduler, with exact deadlines.

The node is called `n`; of its peers, `m` sorts before it and `z` after it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from hedgerow.blobs.announcements import MAX_DIGESTS, Announcement, AnnouncementKind
from hedgerow.blobs.fetch.pacing import FetchWindow, TokenBucket
from hedgerow.blobs.fetch.scheduler import FetchScheduler, LeftOut, Reason, Steps
from hedgerow.blobs.peers.distrust import PeerDistrust

GROUP, OTHER_GROUP = "0123456789abcdef", "fedcba9876543210"
SIZE = 1000
HOLD_S, REFRESH_S, LEASE_S, ECHO_S, OFFER_S, STALL_S, DISTRUST_S = 0.5, 3.0, 10.0, 5.0, 5.0, 20.0, 120.0
TURN_S, LONGEST_TURN_S = 45.0, 450.0
FIRST_TIMEOUT_S = 30.0
"""Timeout before the first reply."""
SOON_S = 0.01


def names(count: int) -> list[str]:
    return [f"{number:03}" for number in range(count)]


class SchedulerBench:
    """A scheduler, and the announcements it receives.

    Args:
        digests: the missing chunks.
        bytes_per_s: limit on requests.
        reply_s: known reply time; None: unknown.
    """

    def __init__(
        self, digests: Sequence[str] = "a", bytes_per_s: int | None = None, reply_s: float | None = None
    ) -> None:
        self.window, self.bucket = FetchWindow(), TokenBucket(bytes_per_s)
        if reply_s is not None:
            self.window.on_late_reply(reply_s)
        self.scheduler = FetchScheduler("n", GROUP, dict.fromkeys(digests, SIZE), self.window, self.bucket)

    def receive(
        self, kind: AnnouncementKind, digests: Sequence[str], sender: str, now: float, group: str = GROUP
    ) -> None:
        self.scheduler.on_announcement(Announcement(kind, group, tuple(digests)), sender, now)

    def next(self, now: float) -> Steps:
        return self.scheduler.next(now)

    def announce(self, now: float, echo_s: float = 0.0) -> None:
        """Let it announce its wants, and receive them `echo_s` later."""
        want = self.next(now).want
        self.receive(AnnouncementKind.WANT, want, "n", now + echo_s)

    def request(self, now: float) -> None:
        """Let it request its wants from the region, after the hold time."""
        self.announce(now - HOLD_S)
        assert self.next(now).request

    def step(self, now: float) -> tuple[str, str, str]:
        """Return what it announces, requests, and reports as busy."""
        steps = self.next(now)
        return "".join(steps.want), "".join(steps.request), "".join(steps.busy)


NOTHING = ("", "", "")


# Peers first


def test_missing_chunks_are_announced_up_to_the_limit_of_an_announcement() -> None:
    digests = names(MAX_DIGESTS + 3)
    bench = SchedulerBench(digests)

    assert bench.next(10.0).want == digests[:MAX_DIGESTS]
    assert bench.next(10.0).want == []


def test_a_chunk_is_requested_after_a_hold_time_of_500_ms() -> None:
    bench = SchedulerBench()
    bench.announce(10.0)

    assert bench.step(10.49) == NOTHING
    assert bench.step(10.5) == ("", "a", "")
    assert bench.step(11.0) == NOTHING


@pytest.mark.parametrize(
    ("echo_s", "hold_s"), [(0.125, 0.5), (0.25, 1.0), (1.0, 4.0), (2.5, 10.0), (3.0, 10.0), (4.9, 10.0)]
)
def test_the_hold_time_is_four_round_trips_and_at_most_ten_seconds(echo_s: float, hold_s: float) -> None:
    bench = SchedulerBench()
    bench.announce(0.0, echo_s)

    assert "a" not in bench.next(echo_s + hold_s - 0.01).request
    assert bench.next(echo_s + hold_s).request == ["a"]


def test_a_want_that_does_not_come_back_is_repeated_after_five_seconds() -> None:
    bench = SchedulerBench()
    assert bench.step(0.0) == ("a", "", "")

    assert bench.step(4.99) == NOTHING
    assert bench.step(5.0) == ("a", "", "")
    assert bench.step(9.99) == NOTHING


def test_only_the_first_echo_of_a_want_counts() -> None:
    bench = SchedulerBench()
    bench.announce(0.0)
    bench.receive(AnnouncementKind.WANT, "a", "n", 0.4)

    assert bench.next(0.5).request == ["a"], "the first echo counts"
    bench.receive(AnnouncementKind.WANT, "a", "n", 0.6)
    assert bench.step(2.0) == NOTHING, "it is requested already"


def test_a_claimed_chunk_is_announced_again_every_three_seconds() -> None:
    bench = SchedulerBench(bytes_per_s=1)
    bench.bucket.take(1000, 0.0)
    bench.announce(0.0)

    assert bench.step(2.99) == NOTHING
    assert bench.step(3.0) == ("a", "", "")
    assert bench.step(5.99) == NOTHING
    assert bench.step(6.0) == ("a", "", "")


# Requests: limited by window and bucket


def test_requests_are_limited_by_the_window() -> None:
    bench = SchedulerBench("abcd")
    bench.announce(0.0)

    assert bench.step(0.5) == ("", "ab", "")
    assert bench.step(1.0) == NOTHING
    assert bench.scheduler.arrived("a", None, 1.0)
    assert bench.window.size == 3.0
    assert bench.step(1.0) == ("", "cd", "")


def test_a_fractional_window_is_rounded_down() -> None:
    bench = SchedulerBench("abcd")
    bench.window.size = 2.9
    bench.announce(0.0)

    assert bench.step(0.5) == ("", "ab", "")


def test_requests_by_peers_count_against_the_window() -> None:
    bench = SchedulerBench("abcd")
    bench.receive(AnnouncementKind.ASK, "d", "m", 0.0)
    bench.announce(0.0)

    assert bench.step(0.5) == ("", "a", "")


def test_busy_chunks_of_peers_do_not_count_against_the_window() -> None:
    bench = SchedulerBench("abcd")
    bench.receive(AnnouncementKind.BUSY, "cd", "m", 0.0)
    bench.announce(0.0)

    assert bench.step(0.5) == ("", "ab", "")


def test_requests_are_limited_by_the_bucket() -> None:
    bench = SchedulerBench("ab", bytes_per_s=1000)
    bench.announce(0.0)

    assert bench.step(0.5) == ("", "a", "")
    assert bench.step(1.49) == NOTHING
    assert bench.step(1.5) == ("", "b", "")


@pytest.mark.parametrize("kind", [AnnouncementKind.ASK, AnnouncementKind.TAKE])
def test_requests_by_peers_count_against_the_bucket(kind: AnnouncementKind) -> None:
    bench = SchedulerBench("ab", bytes_per_s=1000)
    bench.receive(kind, "b", "m", 0.0)
    assert bench.bucket.free_at(0.0) == 1.0

    bench.receive(kind, "b", "n", 0.0)
    bench.receive(kind, "x", "m", 0.0)
    assert bench.bucket.free_at(0.0) == 1.0, "it already counted its own request, and chunk x is not missing"


def test_announcements_of_chunks_that_are_not_missing_are_ignored() -> None:
    bench = SchedulerBench("a")
    bench.receive(AnnouncementKind.ASK, ("x", "a"), "m", 0.0)

    assert bench.next(0.0).want == []


# Wants announced ahead


@pytest.mark.parametrize(
    ("size", "reply_s", "ahead"),
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
def test_wants_are_announced_ahead_for_one_hold_time(size: float, reply_s: float, ahead: int) -> None:
    bench = SchedulerBench(names(100), reply_s=reply_s)
    bench.window.size = size

    assert len(bench.next(0.0).want) == ahead


def test_more_wants_are_announced_when_half_are_no_longer_waiting() -> None:
    bench = SchedulerBench(names(100), reply_s=1.0)
    bench.window.size = 4.0  # so it announces 12 at a time
    first = bench.next(0.0).want
    bench.receive(AnnouncementKind.HAVE, first[:5], "m", 0.1)

    assert bench.next(0.2).want == []
    bench.receive(AnnouncementKind.HAVE, first[5:6], "m", 0.2)
    assert bench.next(0.3).want == names(100)[12:18]


def test_chunks_claimed_by_peers_count_as_waiting() -> None:
    bench = SchedulerBench(names(100), reply_s=1.0)
    bench.window.size = 4.0
    bench.receive(AnnouncementKind.WANT, names(7), "m", 0.0)
    assert bench.next(0.0).want == []

    bench = SchedulerBench(names(100), reply_s=1.0)
    bench.window.size = 4.0
    bench.receive(AnnouncementKind.WANT, names(6), "m", 0.0)
    assert bench.next(0.0).want == names(100)[6:12]


# Wants of peers


def test_a_chunk_claimed_by_a_peer_is_free_when_its_lease_ends() -> None:
    bench = SchedulerBench()
    bench.receive(AnnouncementKind.WANT, "a", "m", 0.0)

    assert bench.step(0.0) == NOTHING
    bench.receive(AnnouncementKind.WANT, "a", "m", 3.0)
    assert bench.step(3.0 + LEASE_S - 0.01) == NOTHING
    steps = bench.next(3.0 + LEASE_S)
    assert (steps.want, steps.distrusted) == (["a"], ("m",))


def test_a_want_received_before_our_own_echo_claims_the_chunk() -> None:
    bench = SchedulerBench()
    assert bench.step(0.0) == ("a", "", "")
    bench.receive(AnnouncementKind.WANT, "a", "m", 0.1)
    bench.receive(AnnouncementKind.WANT, "a", "n", 0.2)

    assert bench.step(5.0) == NOTHING


def test_a_peer_that_wants_our_chunk_later_is_sent_busy() -> None:
    claimed, requested = SchedulerBench(), SchedulerBench()
    claimed.announce(0.0)
    requested.request(0.5)
    for bench in (claimed, requested):
        bench.receive(AnnouncementKind.WANT, "a", "m", 0.4)

    assert claimed.step(0.4) == ("", "", "a")
    assert claimed.step(0.4) == NOTHING
    assert requested.step(0.6) == ("", "", "a")


def test_busy_is_limited_to_one_announcement() -> None:
    digests = names(MAX_DIGESTS + 1)
    bench = SchedulerBench(digests)
    bench.announce(0.0)
    bench.receive(AnnouncementKind.HAVE, digests[:40], "z", 0.0)
    bench.announce(0.0)
    bench.receive(AnnouncementKind.WANT, digests, "m", 0.1)

    assert bench.next(0.1).busy == digests[:MAX_DIGESTS]


def test_the_first_of_two_peers_keeps_its_claim() -> None:
    bench = SchedulerBench()
    bench.receive(AnnouncementKind.WANT, "a", "m", 0.0)
    bench.receive(AnnouncementKind.WANT, "a", "z", 8.0)

    assert bench.step(9.99) == NOTHING
    assert bench.next(10.0).distrusted == ("m",)


def test_wants_of_another_group_are_ignored() -> None:
    bench = SchedulerBench()
    bench.receive(AnnouncementKind.WANT, "a", "m", 0.0, OTHER_GROUP)

    assert bench.step(0.0) == ("a", "", "")


def test_a_peer_that_wants_again_has_given_up_its_request() -> None:
    bench = SchedulerBench()
    bench.receive(AnnouncementKind.ASK, "a", "m", 0.0)
    bench.receive(AnnouncementKind.WANT, "a", "m", 1.0)

    assert bench.step(1.0 + LEASE_S - 0.01) == NOTHING
    assert bench.next(1.0 + LEASE_S).distrusted == ("m",)


def test_a_want_for_a_chunk_another_peer_requested_is_ignored() -> None:
    bench = SchedulerBench()
    bench.receive(AnnouncementKind.ASK, "a", "m", 0.0)
    bench.receive(AnnouncementKind.WANT, "a", "z", 1.0)

    assert bench.step(44.99) == NOTHING
    assert bench.step(45.0) == ("a", "", "")


# Offers of peers


def test_an_offer_that_is_not_kept_times_out_and_its_peer_is_distrusted() -> None:
    bench = SchedulerBench()
    bench.announce(0.0)
    bench.receive(AnnouncementKind.HAVE, "a", "m", 0.4)

    assert bench.step(0.4 + OFFER_S - 0.01) == NOTHING
    steps = bench.next(0.4 + OFFER_S)
    assert (steps.want, steps.request, steps.distrusted) == (["a"], [], ("m",))


def test_every_chunk_from_a_peer_extends_its_offers() -> None:
    bench = SchedulerBench("abc")
    bench.announce(0.0)
    bench.receive(AnnouncementKind.HAVE, "abc", "m", 0.0)
    assert bench.scheduler.arrived("a", "m", 4.0)
    bench.receive(AnnouncementKind.HAVE, "x", "m", 5.0)

    assert bench.step(4.0 + OFFER_S - 0.01) == NOTHING
    assert bench.next(4.0 + OFFER_S).distrusted == ("m",)


def test_every_offer_from_a_peer_extends_its_earlier_offers() -> None:
    bench = SchedulerBench("ab")
    bench.announce(0.0)
    bench.receive(AnnouncementKind.HAVE, "a", "m", 0.0)
    bench.receive(AnnouncementKind.HAVE, "b", "m", 4.0)

    assert bench.step(4.0 + OFFER_S - 0.01) == NOTHING
    assert bench.next(4.0 + OFFER_S).want == ["a", "b"]


def test_an_offer_counts_before_our_want_and_during_the_claim_of_another() -> None:
    idle, claimed = SchedulerBench(), SchedulerBench()
    idle.receive(AnnouncementKind.HAVE, "a", "z", 0.0)
    claimed.receive(AnnouncementKind.WANT, "a", "m", 0.0)
    claimed.receive(AnnouncementKind.HAVE, "a", "z", 1.0)

    assert idle.step(0.0) == NOTHING
    assert idle.next(5.0).distrusted == ("z",)
    assert claimed.step(1.0) == NOTHING
    assert claimed.next(6.0).distrusted == ("z",)


def test_an_offer_of_a_requested_or_offered_chunk_is_ignored() -> None:
    requested, offered = SchedulerBench(), SchedulerBench()
    requested.request(1.0)
    requested.receive(AnnouncementKind.HAVE, "a", "m", 1.1)
    offered.receive(AnnouncementKind.HAVE, "a", "m", 0.0)
    offered.receive(AnnouncementKind.HAVE, "a", "z", 3.0)

    assert requested.step(1.0 + FIRST_TIMEOUT_S - 0.01) == NOTHING
    assert requested.step(1.0 + FIRST_TIMEOUT_S) == ("a", "", "")
    assert offered.next(5.0).distrusted == ("m",)


def test_our_own_offer_is_ignored() -> None:
    bench = SchedulerBench()
    bench.announce(0.0)
    bench.receive(AnnouncementKind.HAVE, "a", "n", 0.1)

    assert bench.step(0.5) == ("", "a", "")


def test_a_peer_that_wants_a_chunk_offered_to_us_is_sent_busy() -> None:
    bench = SchedulerBench()
    bench.receive(AnnouncementKind.HAVE, "a", "z", 0.0)
    bench.receive(AnnouncementKind.WANT, "a", "m", 0.1)

    assert bench.step(0.1) == ("", "", "a")


# Requests of peers


@pytest.mark.parametrize("kind", [AnnouncementKind.ASK, AnnouncementKind.TAKE])
def test_a_request_by_a_peer_times_out_after_one_and_a_half_timeouts(kind: AnnouncementKind) -> None:
    bench = SchedulerBench()
    bench.announce(0.0)
    bench.receive(kind, "a", "m", 0.1)

    assert bench.step(0.1 + 1.5 * FIRST_TIMEOUT_S - 0.01) == NOTHING
    assert bench.step(0.1 + 1.5 * FIRST_TIMEOUT_S) == ("a", "", "")
    assert bench.window.size == 1.0, "the request counts as lost"


def test_our_own_request_is_not_replaced_by_a_peers() -> None:
    bench = SchedulerBench()
    bench.request(1.0)
    bench.receive(AnnouncementKind.ASK, "a", "m", 1.1)

    assert bench.step(1.0 + FIRST_TIMEOUT_S - 0.01) == NOTHING
    assert bench.step(1.0 + FIRST_TIMEOUT_S) == ("a", "", "")


@pytest.mark.parametrize("kind", [AnnouncementKind.ASK, AnnouncementKind.TAKE])
@pytest.mark.parametrize("peer", ["m", "z"])
def test_no_repetition_of_a_request_extends_it(kind: AnnouncementKind, peer: str) -> None:
    bench = SchedulerBench()
    bench.receive(AnnouncementKind.ASK, "a", "m", 0.0)
    for second in range(1, 45):
        bench.receive(kind, "a", peer, float(second))

    assert bench.step(45.0 - 0.01) == NOTHING
    assert bench.step(45.0) == ("a", "", "")


def test_a_request_with_another_group_is_waited_for_once() -> None:
    bench = SchedulerBench()
    bench.receive(AnnouncementKind.ASK, "a", "m", 0.0, OTHER_GROUP)

    assert bench.step(44.99) == NOTHING
    assert bench.step(45.0) == ("a", "", "")
    assert bench.window.size == 2.0, "not receiving it says nothing about the link"
    bench.receive(AnnouncementKind.ASK, "a", "m", 45.1, OTHER_GROUP)
    bench.receive(AnnouncementKind.WANT, "a", "n", 45.2)
    assert bench.step(46.5) == ("", "a", ""), "a second such request is not waited for"


# Busy peers


def test_a_busy_chunk_is_waited_for() -> None:
    idle, announced, claimed = SchedulerBench(), SchedulerBench(), SchedulerBench()
    announced.next(0.0)
    claimed.announce(0.0)
    for bench in (idle, announced, claimed):
        bench.receive(AnnouncementKind.BUSY, "a", "z", 0.0)

        assert bench.step(44.99) == NOTHING
        assert bench.step(45.0) == ("a", "", "")
        assert bench.window.size == 2.0, "no request is known to be lost"


def test_busy_does_not_replace_a_request_or_an_offer() -> None:
    requested, offered = SchedulerBench(), SchedulerBench()
    requested.request(1.0)
    offered.receive(AnnouncementKind.HAVE, "a", "m", 1.0)
    for bench in (requested, offered):
        bench.receive(AnnouncementKind.BUSY, "a", "z", 1.1)

    assert requested.step(31.0) == ("a", "", "")
    assert offered.next(6.0).distrusted == ("m",)


def test_of_two_mutually_busy_nodes_the_first_by_name_requests() -> None:
    first, second = SchedulerBench(), SchedulerBench()
    for bench, peer in ((first, "z"), (second, "m")):
        bench.announce(0.0)
        bench.receive(AnnouncementKind.WANT, "a", peer, 0.1)
        bench.receive(AnnouncementKind.BUSY, "a", peer, 0.2)

    assert first.step(0.5) == ("", "a", "a")
    assert second.step(0.5) == ("", "", "a")


def test_busy_without_our_own_busy_makes_us_wait() -> None:
    bench = SchedulerBench()
    bench.announce(0.0)
    bench.receive(AnnouncementKind.BUSY, "a", "z", 0.2)

    assert bench.step(0.5) == NOTHING


def test_our_own_busy_is_ignored() -> None:
    bench = SchedulerBench()
    bench.announce(0.0)
    bench.receive(AnnouncementKind.BUSY, "a", "n", 0.2)

    assert bench.step(0.5) == ("", "a", "")


# Distrust


def test_a_peer_that_sent_a_damaged_chunk_is_distrusted_for_two_minutes() -> None:
    bench = SchedulerBench(names(9))
    bench.announce(0.0)
    bench.scheduler.failed("000", "m", 10.0)
    for kind in (AnnouncementKind.HAVE, AnnouncementKind.WANT, AnnouncementKind.BUSY):
        bench.receive(kind, names(9), "m", 10.0 + DISTRUST_S - 0.01)
    assert bench.next(10.0 + DISTRUST_S - 0.01).distrusted == ("m",)
    assert not bench.next(10.0 + DISTRUST_S - 0.01).busy

    steps = bench.next(10.0 + DISTRUST_S)
    assert steps.distrusted == ()
    bench.receive(AnnouncementKind.WANT, ["008"], "m", 10.0 + DISTRUST_S)
    assert bench.next(10.0 + DISTRUST_S).busy == ["008"]


def test_trust_returns_exactly_when_distrust_ends() -> None:
    bench = SchedulerBench()
    bench.scheduler.failed("a", "m", 0.0)
    bench.receive(AnnouncementKind.HAVE, "a", "m", DISTRUST_S)

    assert bench.step(DISTRUST_S) == NOTHING


def test_offers_and_claims_of_a_distrusted_peer_are_released() -> None:
    bench = SchedulerBench("abcdef")
    bench.receive(AnnouncementKind.HAVE, "a", "m", 0.0)
    bench.receive(AnnouncementKind.WANT, "b", "m", 0.0)
    bench.receive(AnnouncementKind.HAVE, "c", "z", 0.0)
    bench.receive(AnnouncementKind.WANT, "d", "z", 0.0)
    bench.receive(AnnouncementKind.ASK, "e", "m", 0.0)
    assert bench.step(0.0) == ("f", "", "")

    bench.scheduler.failed("a", "m", 1.0)
    assert bench.step(1.0) == ("ab", "", "")


def test_an_offer_survives_distrust_of_the_claiming_peer() -> None:
    bench = SchedulerBench("ab")
    bench.receive(AnnouncementKind.WANT, "a", "m", 0.0)
    bench.receive(AnnouncementKind.HAVE, "a", "z", 0.0)
    bench.scheduler.failed("b", "m", 1.0)

    assert bench.step(1.0) == ("b", "", "")


def test_distrusted_peers_are_limited_to_one_announcement() -> None:
    bench = SchedulerBench()
    for number in range(MAX_DIGESTS + 1):
        bench.scheduler.failed("a", f"m{number}", float(number) / 100)

    assert bench.next(1.0).distrusted == tuple(f"m{number}" for number in range(MAX_DIGESTS))


# Arrivals


def test_a_chunk_arrives_once() -> None:
    bench = SchedulerBench("ab")

    assert bench.scheduler.arrived("a", "m", 0.0)
    assert not bench.scheduler.arrived("a", "m", 0.0)
    assert dict(bench.scheduler.missing) == {"b": SIZE}
    assert bench.step(0.0) == ("b", "", "")
    assert bench.scheduler.arrived("b", None, 0.1)
    assert bench.next(0.1) == Steps(wake_at=math.inf)


def test_the_window_learns_from_replies_to_own_and_peer_requests() -> None:
    own, peers = SchedulerBench(), SchedulerBench()
    own.request(1.0)
    peers.receive(AnnouncementKind.ASK, "a", "m", 1.0)
    for bench in (own, peers):
        bench.scheduler.arrived("a", None, 1.75)

        assert (bench.window.smoothed_rtt_s, bench.window.size) == (0.75, 3.0)


def test_the_window_ignores_chunks_from_peers_and_unrequested_ones() -> None:
    requested, unrequested, claimed, busy = SchedulerBench(), SchedulerBench(), SchedulerBench(), SchedulerBench()
    requested.request(1.0)
    requested.scheduler.arrived("a", "m", 2.0)
    unrequested.scheduler.arrived("a", None, 2.0)
    claimed.announce(0.0)
    claimed.scheduler.arrived("a", None, 2.0)
    busy.receive(AnnouncementKind.BUSY, "a", "m", 0.0)
    busy.scheduler.arrived("a", None, 2.0)

    for bench in (requested, unrequested, claimed, busy):
        assert (bench.window.smoothed_rtt_s, bench.window.size) == (None, 2.0)


def test_the_window_learns_from_a_late_reply() -> None:
    bench = SchedulerBench()
    bench.request(1.0)
    bench.next(31.0)
    bench.scheduler.arrived("a", None, 41.0)

    assert (bench.window.smoothed_rtt_s, bench.window.size) == (40.0, 1.0)


def test_the_window_ignores_late_replies_to_peers() -> None:
    bench = SchedulerBench()
    bench.receive(AnnouncementKind.ASK, "a", "m", 0.0)
    bench.next(45.0)
    bench.scheduler.arrived("a", None, 50.0)

    assert bench.window.smoothed_rtt_s is None


# Timeouts and failures


def test_the_timeout_doubles_with_every_attempt() -> None:
    """2, 4, 8, 16 and then 30 s; peers have 1.2 s each time to offer the chunk."""
    bench = SchedulerBench(reply_s=0.5)
    bench.announce(0.0)
    asked_at = 0.5
    assert bench.next(asked_at).request == ["a"]
    for patience in (2.0, 4.0, 8.0, 16.0, 30.0, 30.0):
        given_up_at = asked_at + patience
        assert bench.step(given_up_at - 0.01) == NOTHING
        assert bench.step(given_up_at) == ("a", "", "")
        bench.receive(AnnouncementKind.WANT, "a", "n", given_up_at)
        asked_at = given_up_at + 1.2
        assert bench.step(asked_at - 0.01) == NOTHING
        assert bench.step(asked_at) == ("", "a", "")


def test_a_usual_timeout_above_30_s_is_not_shortened() -> None:
    bench = SchedulerBench(reply_s=15.0)
    bench.request(1.0)
    assert bench.step(60.99) == NOTHING
    assert bench.step(61.0) == ("a", "", "")

    bench.receive(AnnouncementKind.WANT, "a", "n", 61.0)
    assert bench.step(63.0) == ("", "a", "")
    assert bench.step(122.99) == ("", "", "")
    assert bench.step(123.0) == ("a", "", "")


def test_a_damaged_chunk_from_the_region_is_requested_again_after_a_longer_hold() -> None:
    bench = SchedulerBench()
    bench.request(1.0)
    bench.scheduler.failed("a", None, 2.0)

    assert bench.step(2.0) == ("a", "", "")
    bench.receive(AnnouncementKind.WANT, "a", "n", 2.0)
    assert bench.step(3.19) == NOTHING
    assert bench.step(3.2) == ("", "a", "")
    assert bench.window.size == 2.0, "the request was not lost"


def test_a_failure_of_a_free_or_unknown_chunk_is_ignored() -> None:
    bench = SchedulerBench()
    bench.scheduler.failed("a", None, 0.0)
    bench.scheduler.failed("x", None, 0.0)

    bench.announce(0.0)
    assert bench.step(0.5) == ("", "a", "")


def test_a_failed_request_by_a_peer_also_lengthens_the_hold() -> None:
    bench = SchedulerBench()
    bench.receive(AnnouncementKind.ASK, "a", "m", 0.0)
    bench.announce(45.0)

    assert bench.step(46.19) == NOTHING
    assert bench.step(46.2) == ("", "a", "")


def test_a_repeated_request_by_a_peer_is_waited_for_again_once_this_node_has_requested() -> None:
    bench = SchedulerBench()
    bench.receive(AnnouncementKind.ASK, "a", "m", 0.0)
    bench.announce(45.0)
    bench.receive(AnnouncementKind.ASK, "a", "m", 45.1)

    assert bench.step(46.2) == ("", "a", "")
    assert bench.step(76.2) == ("a", "", "")
    bench.receive(AnnouncementKind.ASK, "a", "m", 76.3)
    assert bench.step(121.2) == NOTHING
    assert bench.step(121.3) == ("a", "", "")


def test_a_repeated_want_does_not_cancel_an_offer() -> None:
    bench = SchedulerBench()
    bench.receive(AnnouncementKind.WANT, "a", "m", 0.0)
    bench.receive(AnnouncementKind.HAVE, "a", "z", 1.0)
    bench.receive(AnnouncementKind.WANT, "a", "m", 2.0)

    assert bench.next(6.0).distrusted == ("z",)


def test_a_late_echo_of_a_released_chunk_is_ignored() -> None:
    bench = SchedulerBench()
    bench.next(0.0)
    bench.receive(AnnouncementKind.HAVE, "a", "m", 0.1)
    bench.scheduler.failed("a", "m", 0.2)
    bench.receive(AnnouncementKind.WANT, "a", "n", 0.3)

    assert bench.step(0.3) == ("a", "", "")


# Stalls


def stalled(reply_s: float | None, came_at: float | None = None) -> SchedulerBench:
    """A peer keeps announcing that it wants a chunk, and nothing arrives."""
    bench = SchedulerBench("ab", reply_s=reply_s)
    bench.receive(AnnouncementKind.WANT, "a", "m", 0.0)
    bench.next(0.0)
    if came_at is not None:
        bench.scheduler.arrived("b", "z", came_at)
    for second in range(0, 100, 5):
        bench.receive(AnnouncementKind.WANT, "a", "m", float(second))
    return bench


def test_a_claim_without_progress_for_twenty_seconds_is_released() -> None:
    assert "a" not in stalled(0.5, 10.0).next(10.0 + STALL_S).want
    assert "a" in stalled(0.5, 10.0).next(10.0 + STALL_S + 0.1).want
    assert stalled(0.5, 10.0).next(10.0 + STALL_S + 0.1).distrusted == ("m",)
    assert "a" in stalled(0.5).next(STALL_S + 0.1).want, "measured from the start"


def test_a_stall_takes_at_least_three_timeouts() -> None:
    assert "a" not in stalled(2.0).next(24.0).want
    assert "a" in stalled(2.0).next(24.1).want
    assert "a" not in stalled(None).next(TURN_S - 0.01).want, "a turn is shorter than three first timeouts"
    assert "a" in stalled(None).next(TURN_S).want


def test_a_stall_releases_neither_requests_nor_offers_nor_own_claims() -> None:
    bench = SchedulerBench("abcd", reply_s=10.0)
    bench.next(0.0)
    bench.receive(AnnouncementKind.ASK, "a", "m", 100.0)
    bench.receive(AnnouncementKind.HAVE, "b", "m", 120.5)
    bench.receive(AnnouncementKind.WANT, "c", "n", 120.5)
    bench.receive(AnnouncementKind.WANT, "d", "n", 120.5)

    steps = bench.next(121.0)
    assert (steps.distrusted, steps.want) == ((), [])


# Turns: peers that claim and repeat themselves


CLAIMS = {
    "wants": [AnnouncementKind.WANT],
    "busy": [AnnouncementKind.BUSY],
    "asks": [AnnouncementKind.ASK],
    "takes": [AnnouncementKind.TAKE],
    "offers": [AnnouncementKind.HAVE],
    "asks and wants": [AnnouncementKind.ASK, AnnouncementKind.WANT],
    "takes and is busy": [AnnouncementKind.TAKE, AnnouncementKind.BUSY],
    "everything": list(AnnouncementKind),
}


@pytest.mark.parametrize("peers", [["m"], ["m", "z"], [f"m{number}" for number in range(50)]], ids=len)
@pytest.mark.parametrize("kinds", CLAIMS.values(), ids=CLAIMS)
def test_the_region_is_asked_after_a_fixed_time_whatever_peers_claim(
    kinds: list[AnnouncementKind], peers: list[str]
) -> None:
    """They claim ten times a second, and deliver nothing. The region answers."""
    bench = SchedulerBench("abcd")
    requested: dict[str, float] = {}
    for tenth in range(1000):
        now = tenth / 10
        if len(requested) == 4:
            break
        steps = bench.next(now)
        if steps.want:
            bench.receive(AnnouncementKind.WANT, steps.want, "n", now)
        for digest in steps.request:
            requested[digest] = now
            assert bench.scheduler.arrived(digest, None, now + 0.05)
        for number, peer in enumerate(peers):
            bench.receive(kinds[(tenth + number) % len(kinds)], "abcd", peer, now)
            if kinds == [AnnouncementKind.HAVE]:
                bench.receive(AnnouncementKind.HAVE, "x", peer, now)

    assert sorted(requested) == ["a", "b", "c", "d"], "although two requests fill the window"
    assert max(requested.values()) <= TURN_S + 1.2 + 0.4


def test_peers_have_one_turn_between_two_requests_of_this_node() -> None:
    bench = SchedulerBench()
    bench.receive(AnnouncementKind.BUSY, "a", "z", 0.0)
    assert bench.step(TURN_S) == ("a", "", "")
    bench.receive(AnnouncementKind.WANT, "a", "n", TURN_S)
    for kind in (AnnouncementKind.BUSY, AnnouncementKind.HAVE, AnnouncementKind.ASK, AnnouncementKind.TAKE):
        bench.receive(kind, "a", "z", TURN_S + 0.1)
    assert bench.step(TURN_S + 1.2) == ("", "a", "")

    assert bench.step(TURN_S + 1.2 + FIRST_TIMEOUT_S) == ("a", "", "")
    bench.receive(AnnouncementKind.BUSY, "a", "z", 80.0)
    assert bench.step(80.0 + TURN_S - 0.01) == NOTHING
    assert bench.step(80.0 + TURN_S) == ("a", "", "")


def test_this_nodes_own_turns_are_limited_by_the_window_too() -> None:
    bench = SchedulerBench("abcdef")
    bench.receive(AnnouncementKind.BUSY, "abcd", "z", 0.0)
    bench.receive(AnnouncementKind.ASK, "ef", "z", TURN_S - 1)
    bench.announce(TURN_S)

    assert bench.step(TURN_S + 1.2) == ("", "ab", "")
    assert bench.step(TURN_S + 1.3) == NOTHING
    assert bench.scheduler.arrived("a", "m", TURN_S + 1.4)
    assert bench.step(TURN_S + 1.4) == ("", "c", "")


def test_a_turn_is_one_and_a_half_timeouts_if_replies_take_long() -> None:
    bench = SchedulerBench(reply_s=20.0)  # a timeout of 80 s
    bench.receive(AnnouncementKind.WANT, "a", "m", 0.0)
    for second in range(0, 130, 5):
        bench.receive(AnnouncementKind.WANT, "a", "m", float(second))

    assert "a" not in bench.next(119.99).want
    assert "a" in bench.next(120.0).want


def claiming(*, delivers_at: float, until: float) -> SchedulerBench:
    """A peer that claims a chunk again and again, and delivers another one once."""
    bench = SchedulerBench("ab", reply_s=20.0)
    bench.receive(AnnouncementKind.WANT, "a", "m", 0.0)
    bench.receive(AnnouncementKind.ASK, "b", "m", 0.0)
    for second in range(int(until) + 1):
        if second == delivers_at:
            assert bench.scheduler.arrived("b", "m", float(second))
        bench.receive(AnnouncementKind.WANT, "a", "m", float(second))
        bench.next(float(second))
    return bench


def test_a_peer_that_delivers_may_go_on_for_another_turn_and_stays_trusted() -> None:
    bench = claiming(delivers_at=100.0, until=219.0)

    steps = bench.next(219.99)
    assert (steps.want, steps.distrusted) == ([], ())
    steps = bench.next(220.0)
    assert (steps.want, steps.distrusted) == (["a"], ())


def test_a_peer_that_delivers_from_time_to_time_does_not_keep_a_chunk_for_ever() -> None:
    bench = SchedulerBench([*names(20), "a"])
    bench.receive(AnnouncementKind.WANT, ["a"], "m", 0.0)
    wanted_at = []
    for second in range(1, 600):
        bench.receive(AnnouncementKind.WANT, ["a"], "m", float(second))
        if second % 40 == 0:
            assert bench.scheduler.arrived(f"{second // 40:03}", "m", float(second))
        if "a" in bench.next(float(second)).want:
            wanted_at.append(second)

    assert wanted_at[0] == LONGEST_TURN_S


@pytest.mark.parametrize("kind", [AnnouncementKind.ASK, AnnouncementKind.HAVE])
def test_what_the_region_sends_is_delivered_by_the_peer_that_asked_for_it(kind: AnnouncementKind) -> None:
    bench = SchedulerBench("ab")
    for second in range(45):
        bench.receive(AnnouncementKind.WANT, "a", "m", float(second))
        bench.next(float(second))
    bench.receive(kind, "b", "m", 44.0)
    bench.scheduler.arrived("b", None, 44.5)

    assert ("a" in bench.next(TURN_S).want) == (kind is AnnouncementKind.HAVE)


def test_the_window_does_not_learn_from_what_a_peer_takes_from_a_mirror() -> None:
    bench = SchedulerBench()
    bench.receive(AnnouncementKind.TAKE, "a", "m", 1.0)
    bench.scheduler.arrived("a", None, 30.0)

    assert bench.window.smoothed_rtt_s is None


def test_requests_of_peers_for_one_chunk_count_against_the_bucket_once() -> None:
    bench = SchedulerBench("ab", bytes_per_s=1000)
    for second in range(10):
        bench.receive(AnnouncementKind.ASK, "ab", f"m{second}", 0.0)

    assert bench.bucket.free_at(0.0) == 2.0


def test_the_wake_time_considers_the_end_of_a_turn_and_own_turns_in_a_full_window() -> None:
    bench = SchedulerBench("abc")
    bench.receive(AnnouncementKind.WANT, "a", "m", 0.0)
    for second in range(0, 45, 5):
        bench.receive(AnnouncementKind.WANT, "a", "m", float(second))
    bench.receive(AnnouncementKind.ASK, "bc", "z", 44.0)
    assert wake_time(bench, 44.0) == TURN_S

    bench.announce(TURN_S)
    assert wake_time(bench, TURN_S) == TURN_S + HOLD_S, "two requests of others fill the window"
    assert bench.step(TURN_S + HOLD_S) == ("", "a", "")


# Peers that are left out


def test_a_request_that_is_not_kept_while_others_are_costs_trust() -> None:
    bench = SchedulerBench("ab")
    bench.receive(AnnouncementKind.TAKE, "a", "m", 0.0)
    bench.scheduler.arrived("b", "z", 1.0)

    steps = bench.next(45.0)
    assert steps.left_out == [LeftOut("m", Reason.REQUEST_NOT_KEPT, DISTRUST_S)]
    assert (steps.want, steps.distrusted) == (["a"], ("m",))
    assert bench.next(45.0).left_out == [], "told once"


def test_a_request_that_is_not_kept_while_nothing_arrives_costs_no_trust() -> None:
    """The region may be away."""
    bench = SchedulerBench("ab")
    bench.scheduler.arrived("b", "z", 0.0)
    bench.receive(AnnouncementKind.ASK, "a", "m", 0.0)

    assert bench.next(45.0) == Steps(want=["a"], wake_at=50.0)


def test_our_own_request_that_is_not_answered_costs_nobodys_trust() -> None:
    bench = SchedulerBench("ab")
    bench.request(1.0)
    bench.scheduler.arrived("b", "z", 2.0)

    assert bench.next(31.0).left_out == []


@pytest.mark.parametrize("kind", [AnnouncementKind.ASK, AnnouncementKind.TAKE])
def test_requests_of_a_peer_that_is_left_out_are_not_waited_for(kind: AnnouncementKind) -> None:
    bench = SchedulerBench()
    bench.scheduler.failed("a", "m", 0.0)
    bench.receive(kind, "a", "m", 0.0)

    assert bench.step(0.0) == ("a", "", "")


def test_why_a_peer_is_left_out_is_told() -> None:
    bench = SchedulerBench("abc")
    bench.receive(AnnouncementKind.WANT, "a", "claims", 0.0)
    bench.receive(AnnouncementKind.HAVE, "b", "offers", 0.0)
    bench.scheduler.failed("c", "lies", 0.0)

    assert bench.next(0.0).left_out == [LeftOut("lies", Reason.BAD_CHUNK, DISTRUST_S)]
    assert bench.next(OFFER_S).left_out == [LeftOut("offers", Reason.OFFER_NOT_KEPT, DISTRUST_S)]
    assert bench.next(LEASE_S).left_out == [LeftOut("claims", Reason.CLAIM_NOT_KEPT, DISTRUST_S)]


def test_a_peer_is_left_out_for_longer_each_time_also_by_the_next_fetch() -> None:
    distrust, now, times = PeerDistrust(), 0.0, []
    for _ in range(7):
        scheduler = FetchScheduler("n", GROUP, {"a": SIZE}, FetchWindow(), TokenBucket(None), distrust)
        scheduler.failed("a", "m", now)
        scheduler.failed("a", "m", now + 1.0)
        (left_out,) = scheduler.next(now).left_out
        times.append(left_out.seconds)
        assert distrust.includes("m", now + left_out.seconds - 0.01)
        now += left_out.seconds
        assert not distrust.includes("m", now)

    assert times == [120.0, 240.0, 480.0, 960.0, 1920.0, 3600.0, 3600.0]


# Outages


def test_time_without_a_link_extends_all_deadlines() -> None:
    bench = SchedulerBench("abcd")
    bench.receive(AnnouncementKind.HAVE, "a", "m", 0.0)
    bench.receive(AnnouncementKind.WANT, "b", "z", 0.0)
    bench.receive(AnnouncementKind.ASK, "c", "m", 0.0)
    bench.announce(0.0)
    bench.scheduler.paused(100.0)

    assert bench.step(100.49) == NOTHING
    assert bench.step(100.5) == ("", "d", "")
    assert bench.next(104.99).distrusted == ()
    assert bench.next(105.0).distrusted == ("m",)
    assert bench.next(109.99).distrusted == ("m",)
    assert bench.next(110.0).distrusted == ("m", "z")
    assert "d" not in bench.next(130.49).want
    assert "d" in bench.next(130.5).want
    assert "c" not in bench.next(144.99).want
    assert "c" in bench.next(145.0).want


def test_an_outage_extends_the_offers_of_a_sending_peer() -> None:
    bench = SchedulerBench("ab")
    bench.receive(AnnouncementKind.HAVE, "ab", "m", 0.0)
    bench.scheduler.arrived("a", "m", 3.0)
    bench.scheduler.paused(100.0)

    assert bench.next(107.99).distrusted == ()
    assert bench.next(108.0).distrusted == ("m",)


def test_an_outage_does_not_count_as_reply_time() -> None:
    requested, late = SchedulerBench(), SchedulerBench()
    requested.request(1.0)
    requested.scheduler.paused(100.0)
    requested.scheduler.arrived("a", None, 101.5)
    assert requested.window.smoothed_rtt_s == 0.5

    late.request(1.0)
    late.next(31.0)
    late.scheduler.paused(100.0)
    late.scheduler.arrived("a", None, 141.0)
    assert late.window.smoothed_rtt_s == 40.0


def test_an_outage_extends_the_time_until_a_stall() -> None:
    bench = SchedulerBench(reply_s=0.5)
    bench.receive(AnnouncementKind.WANT, "a", "m", 0.0)
    bench.next(0.0)
    bench.scheduler.paused(100.0)
    for second in range(100, 125, 5):
        bench.receive(AnnouncementKind.WANT, "a", "m", float(second))

    assert bench.next(120.0).distrusted == ()
    assert bench.next(120.1).distrusted == ("m",)


def test_an_outage_before_the_start_has_no_effect() -> None:
    bench = SchedulerBench()
    bench.scheduler.paused(100.0)

    assert bench.step(0.0) == ("a", "", "")


# Wake times


def wake_time(bench: SchedulerBench, now: float) -> float:
    return bench.next(now).wake_at


def test_the_wake_time_is_the_earliest_deadline() -> None:
    announced, claimed, requested, offered, peers = (
        SchedulerBench(),
        SchedulerBench(),
        SchedulerBench(),
        SchedulerBench(),
        SchedulerBench(),
    )
    assert wake_time(announced, 10.0) == 10.0 + ECHO_S
    claimed.announce(10.0)
    assert wake_time(claimed, 10.0) == 10.0 + HOLD_S
    requested.request(10.0)
    assert wake_time(requested, 10.0) == 10.0 + FIRST_TIMEOUT_S
    offered.receive(AnnouncementKind.HAVE, "a", "m", 10.0)
    assert wake_time(offered, 10.0) == 10.0 + OFFER_S
    peers.receive(AnnouncementKind.WANT, "a", "m", 10.0)
    assert wake_time(peers, 10.0) == 10.0 + LEASE_S


def test_the_wake_time_considers_the_bucket_and_repeated_wants() -> None:
    soon, late = SchedulerBench(bytes_per_s=1000), SchedulerBench(bytes_per_s=100)
    for bench in (soon, late):
        bench.announce(0.0)
        bench.bucket.take(SIZE, 0.0)

    assert wake_time(soon, 0.5) == 1.0
    assert wake_time(late, 0.5) == REFRESH_S


def test_a_full_window_wakes_for_repeated_wants() -> None:
    bench = SchedulerBench("abc")
    bench.announce(0.0)
    bench.next(0.5)

    assert wake_time(bench, 0.6) == REFRESH_S


def test_free_chunks_shorten_the_wake_time() -> None:
    more, full = SchedulerBench(names(20), reply_s=1.0), SchedulerBench(names(MAX_DIGESTS + 1))
    more.window.size = 1.0

    assert wake_time(more, 10.0) == 10.0 + HOLD_S
    assert wake_time(full, 10.0) == 10.0 + ECHO_S


def test_the_wake_time_is_at_least_10_ms_ahead() -> None:
    bench = SchedulerBench(bytes_per_s=1000)
    bench.announce(0.0)
    bench.bucket.take(1, 0.5)

    assert wake_time(bench, 0.499) == pytest.approx(0.509)
    assert wake_time(SchedulerBench(""), 1.0) == math.inf
