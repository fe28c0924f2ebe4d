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


def test_what_is_missing_is_wanted_of_the_neighbours_as_much_as_one_note_names() -> None:
    digests = names(MAX_DIGESTS + 3)
    site = Site(digests)

    assert site.next(10.0).want == digests[:MAX_DIGESTS]
    assert site.next(10.0).want == []


def test_a_chunk_is_asked_for_when_neighbours_have_had_half_a_second() -> None:
    site = Site()
    site.says(10.0)

    assert site.does(10.49) == NOTHING
    assert site.does(10.5) == ("", "a", "")
    assert site.does(11.0) == NOTHING


@pytest.mark.parametrize(
    ("echo_s", "hold_s"), [(0.125, 0.5), (0.25, 1.0), (1.0, 4.0), (2.5, 10.0), (3.0, 10.0), (4.9, 10.0)]
)
def test_neighbours_have_four_times_as_long_as_words_take_and_ten_seconds_at_most(echo_s: float, hold_s: float) -> None:
    site = Site()
    site.says(0.0, echo_s)

    assert "a" not in site.next(echo_s + hold_s - 0.01).request
    assert site.next(echo_s + hold_s).request == ["a"]


def test_before_its_own_words_came_back_it_asks_for_nothing_and_says_them_again_after_five_seconds() -> None:
    site = Site()
    assert site.does(0.0) == ("a", "", "")

    assert site.does(4.99) == NOTHING
    assert site.does(5.0) == ("a", "", "")
    assert site.does(9.99) == NOTHING


def test_only_its_own_words_of_now_let_it_ask() -> None:
    site = Site()
    site.says(0.0)
    site.hears(AnnouncementKind.WANT, "a", "n", 0.4)

    assert site.next(0.5).request == ["a"], "the echo that came first counts"
    site.hears(AnnouncementKind.WANT, "a", "n", 0.6)
    assert site.does(2.0) == NOTHING, "it is asked for already"


def test_what_it_still_wants_it_says_again_every_three_seconds() -> None:
    site = Site(bytes_per_s=1)
    site.bucket.take(1000, 0.0)
    site.says(0.0)

    assert site.does(2.99) == NOTHING
    assert site.does(3.0) == ("a", "", "")
    assert site.does(5.99) == NOTHING
    assert site.does(6.0) == ("a", "", "")


# Of the region: no more than window and bucket allow


def test_of_the_region_two_chunks_are_asked_for_at_first_and_the_next_when_one_has_come() -> None:
    site = Site("abcd")
    site.says(0.0)

    assert site.does(0.5) == ("", "ab", "")
    assert site.does(1.0) == NOTHING
    assert site.plan.arrived("a", None, 1.0)
    assert site.window.size == 3.0
    assert site.does(1.0) == ("", "cd", "")


def test_a_part_of_a_chunk_is_not_asked_for() -> None:
    site = Site("abcd")
    site.window.size = 2.9
    site.says(0.0)

    assert site.does(0.5) == ("", "ab", "")


def test_what_neighbours_ask_for_counts_as_well() -> None:
    site = Site("abcd")
    site.hears(AnnouncementKind.ASK, "d", "m", 0.0)
    site.says(0.0)

    assert site.does(0.5) == ("", "a", "")


def test_what_a_neighbour_only_said_is_on_its_way_to_it_does_not_count() -> None:
    site = Site("abcd")
    site.hears(AnnouncementKind.BUSY, "cd", "m", 0.0)
    site.says(0.0)

    assert site.does(0.5) == ("", "ab", "")


def test_no_more_bytes_are_asked_for_than_the_bucket_gives() -> None:
    site = Site("ab", bytes_per_s=1000)
    site.says(0.0)

    assert site.does(0.5) == ("", "a", "")
    assert site.does(1.49) == NOTHING
    assert site.does(1.5) == ("", "b", "")


@pytest.mark.parametrize("kind", [AnnouncementKind.ASK, AnnouncementKind.TAKE])
def test_what_neighbours_fetch_is_taken_from_the_same_bucket(kind: AnnouncementKind) -> None:
    site = Site("ab", bytes_per_s=1000)
    site.hears(kind, "b", "m", 0.0)
    assert site.bucket.free_at(0.0) == 1.0

    site.hears(kind, "b", "n", 0.0)
    site.hears(kind, "x", "m", 0.0)
    assert site.bucket.free_at(0.0) == 1.0, "its own it has counted, and the other it does not miss"


def test_words_about_what_it_does_not_miss_keep_it_from_nothing() -> None:
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
def test_it_wants_as_many_as_will_be_asked_for_while_the_next_are_being_offered(
    size: float, answers_s: float, ahead: int
) -> None:
    site = Site(names(100), answers_s=answers_s)
    site.window.size = size

    assert len(site.next(0.0).want) == ahead


def test_it_wants_more_when_half_of_that_has_come() -> None:
    site = Site(names(100), answers_s=1.0)
    site.window.size = 4.0  # so it wants 12 at a time
    first = site.next(0.0).want
    site.hears(AnnouncementKind.HAVE, first[:5], "m", 0.1)

    assert site.next(0.2).want == []
    site.hears(AnnouncementKind.HAVE, first[5:6], "m", 0.2)
    assert site.next(0.3).want == names(100)[12:18]


def test_what_others_want_counts_among_what_it_waits_for() -> None:
    site = Site(names(100), answers_s=1.0)
    site.window.size = 4.0
    site.hears(AnnouncementKind.WANT, names(7), "m", 0.0)
    assert site.next(0.0).want == []

    site = Site(names(100), answers_s=1.0)
    site.window.size = 4.0
    site.hears(AnnouncementKind.WANT, names(6), "m", 0.0)
    assert site.next(0.0).want == names(100)[6:12]


# What neighbours want


def test_what_a_neighbour_wanted_first_is_left_to_it_and_taken_up_when_its_lease_ends() -> None:
    site = Site()
    site.hears(AnnouncementKind.WANT, "a", "m", 0.0)

    assert site.does(0.0) == NOTHING
    site.hears(AnnouncementKind.WANT, "a", "m", 3.0)
    assert site.does(3.0 + LEASE_S - 0.01) == NOTHING
    steps = site.next(3.0 + LEASE_S)
    assert (steps.want, steps.distrusted) == (["a"], ("m",))


def test_a_neighbour_who_was_heard_before_our_own_words_is_first() -> None:
    site = Site()
    assert site.does(0.0) == ("a", "", "")
    site.hears(AnnouncementKind.WANT, "a", "m", 0.1)
    site.hears(AnnouncementKind.WANT, "a", "n", 0.2)

    assert site.does(5.0) == NOTHING


def test_a_neighbour_who_comes_later_is_told_that_it_is_on_its_way() -> None:
    wanted, asked = Site(), Site()
    wanted.says(0.0)
    asked.asks(0.5)
    for site in (wanted, asked):
        site.hears(AnnouncementKind.WANT, "a", "m", 0.4)

    assert wanted.does(0.4) == ("", "", "a")
    assert wanted.does(0.4) == NOTHING
    assert asked.does(0.6) == ("", "", "a")


def test_as_many_are_told_of_as_one_note_names() -> None:
    digests = names(MAX_DIGESTS + 1)
    site = Site(digests)
    site.says(0.0)
    site.hears(AnnouncementKind.HAVE, digests[:40], "z", 0.0)
    site.says(0.0)
    site.hears(AnnouncementKind.WANT, digests, "m", 0.1)

    assert site.next(0.1).busy == digests[:MAX_DIGESTS]


def test_of_two_neighbours_the_first_counts_and_nothing_is_said_for_it() -> None:
    site = Site()
    site.hears(AnnouncementKind.WANT, "a", "m", 0.0)
    site.hears(AnnouncementKind.WANT, "a", "z", 8.0)

    assert site.does(9.99) == NOTHING
    assert site.next(10.0).distrusted == ("m",)


def test_what_is_wanted_with_other_files_is_no_matter() -> None:
    site = Site()
    site.hears(AnnouncementKind.WANT, "a", "m", 0.0, OTHER_GROUP)

    assert site.does(0.0) == ("a", "", "")


def test_a_neighbour_that_has_asked_and_wants_again_has_given_up() -> None:
    site = Site()
    site.hears(AnnouncementKind.ASK, "a", "m", 0.0)
    site.hears(AnnouncementKind.WANT, "a", "m", 1.0)

    assert site.does(1.0 + LEASE_S - 0.01) == NOTHING
    assert site.next(1.0 + LEASE_S).distrusted == ("m",)


def test_a_neighbour_that_wants_what_another_has_asked_for_changes_nothing() -> None:
    site = Site()
    site.hears(AnnouncementKind.ASK, "a", "m", 0.0)
    site.hears(AnnouncementKind.WANT, "a", "z", 1.0)

    assert site.does(44.99) == NOTHING
    assert site.does(45.0) == ("a", "", "")


# What neighbours offer


def test_what_a_neighbour_offers_is_waited_for_and_wanted_again_without_it_after_five_seconds() -> None:
    site = Site()
    site.says(0.0)
    site.hears(AnnouncementKind.HAVE, "a", "m", 0.4)

    assert site.does(0.4 + OFFER_S - 0.01) == NOTHING
    steps = site.next(0.4 + OFFER_S)
    assert (steps.want, steps.request, steps.distrusted) == (["a"], [], ("m",))


def test_a_neighbour_that_sends_is_waited_for_from_chunk_to_chunk() -> None:
    site = Site("abc")
    site.says(0.0)
    site.hears(AnnouncementKind.HAVE, "abc", "m", 0.0)
    assert site.plan.arrived("a", "m", 4.0)
    site.hears(AnnouncementKind.HAVE, "x", "m", 5.0)

    assert site.does(4.0 + OFFER_S - 0.01) == NOTHING
    assert site.next(4.0 + OFFER_S).distrusted == ("m",)


def test_a_neighbour_that_offers_more_is_there() -> None:
    site = Site("ab")
    site.says(0.0)
    site.hears(AnnouncementKind.HAVE, "a", "m", 0.0)
    site.hears(AnnouncementKind.HAVE, "b", "m", 4.0)

    assert site.does(4.0 + OFFER_S - 0.01) == NOTHING
    assert site.next(4.0 + OFFER_S).want == ["a", "b"]


def test_an_offer_counts_before_we_have_said_anything_and_while_another_wants() -> None:
    unsaid, wanted = Site(), Site()
    unsaid.hears(AnnouncementKind.HAVE, "a", "z", 0.0)
    wanted.hears(AnnouncementKind.WANT, "a", "m", 0.0)
    wanted.hears(AnnouncementKind.HAVE, "a", "z", 1.0)

    assert unsaid.does(0.0) == NOTHING
    assert unsaid.next(5.0).distrusted == ("z",)
    assert wanted.does(1.0) == NOTHING
    assert wanted.next(6.0).distrusted == ("z",)


def test_an_offer_of_what_is_asked_for_or_offered_already_is_no_matter() -> None:
    asked, offered = Site(), Site()
    asked.asks(1.0)
    asked.hears(AnnouncementKind.HAVE, "a", "m", 1.1)
    offered.hears(AnnouncementKind.HAVE, "a", "m", 0.0)
    offered.hears(AnnouncementKind.HAVE, "a", "z", 3.0)

    assert asked.does(1.0 + FIRST_TIMEOUT_S - 0.01) == NOTHING
    assert asked.does(1.0 + FIRST_TIMEOUT_S) == ("a", "", "")
    assert offered.next(5.0).distrusted == ("m",)


def test_our_own_offer_is_none_to_us() -> None:
    site = Site()
    site.says(0.0)
    site.hears(AnnouncementKind.HAVE, "a", "n", 0.1)

    assert site.does(0.5) == ("", "a", "")


def test_who_wants_what_we_are_offered_is_told_that_it_is_on_its_way() -> None:
    site = Site()
    site.hears(AnnouncementKind.HAVE, "a", "z", 0.0)
    site.hears(AnnouncementKind.WANT, "a", "m", 0.1)

    assert site.does(0.1) == ("", "", "a")


# What neighbours ask for


@pytest.mark.parametrize("kind", [AnnouncementKind.ASK, AnnouncementKind.TAKE])
def test_what_a_neighbour_asks_for_is_waited_for_half_as_long_again_as_it_waits_itself(kind: AnnouncementKind) -> None:
    site = Site()
    site.says(0.0)
    site.hears(kind, "a", "m", 0.1)

    assert site.does(0.1 + 1.5 * FIRST_TIMEOUT_S - 0.01) == NOTHING
    assert site.does(0.1 + 1.5 * FIRST_TIMEOUT_S) == ("a", "", "")
    assert site.window.size == 1.0, "it was lost"


def test_what_two_ask_for_is_asked_for_by_us() -> None:
    site = Site()
    site.asks(1.0)
    site.hears(AnnouncementKind.ASK, "a", "m", 1.1)

    assert site.does(1.0 + FIRST_TIMEOUT_S - 0.01) == NOTHING
    assert site.does(1.0 + FIRST_TIMEOUT_S) == ("a", "", "")


def test_what_another_asks_for_after_the_first_is_waited_for_anew() -> None:
    site = Site()
    site.hears(AnnouncementKind.ASK, "a", "m", 0.0)
    site.hears(AnnouncementKind.ASK, "a", "z", 20.0)

    assert site.does(20.0 + 45.0 - 0.01) == NOTHING
    assert site.does(20.0 + 45.0) == ("a", "", "")


def test_what_others_ask_for_with_other_files_comes_past_us_once() -> None:
    site = Site()
    site.hears(AnnouncementKind.ASK, "a", "m", 0.0, OTHER_GROUP)

    assert site.does(44.99) == NOTHING
    assert site.does(45.0) == ("a", "", "")
    assert site.window.size == 2.0, "that it did not come to us says nothing of the link"
    site.hears(AnnouncementKind.ASK, "a", "m", 45.1, OTHER_GROUP)
    site.hears(AnnouncementKind.WANT, "a", "n", 45.2)
    assert site.does(46.5) == ("", "a", ""), "the second time it is not waited for"


# What is on its way to others


def test_what_a_neighbour_says_is_on_its_way_is_waited_for() -> None:
    unsaid, said, wanted = Site(), Site(), Site()
    said.next(0.0)
    wanted.says(0.0)
    for site in (unsaid, said, wanted):
        site.hears(AnnouncementKind.BUSY, "a", "z", 0.0)

        assert site.does(44.99) == NOTHING
        assert site.does(45.0) == ("a", "", "")
        assert site.window.size == 2.0, "nothing is known to be lost"


def test_what_we_know_better_of_does_not_change_by_a_word() -> None:
    asked, offered = Site(), Site()
    asked.asks(1.0)
    offered.hears(AnnouncementKind.HAVE, "a", "m", 1.0)
    for site in (asked, offered):
        site.hears(AnnouncementKind.BUSY, "a", "z", 1.1)

    assert asked.does(31.0) == ("a", "", "")
    assert offered.next(6.0).distrusted == ("m",)


def test_of_two_who_told_each_other_to_wait_the_first_by_name_asks() -> None:
    first, second = Site(), Site()
    for site, neighbour in ((first, "z"), (second, "m")):
        site.says(0.0)
        site.hears(AnnouncementKind.WANT, "a", neighbour, 0.1)
        site.hears(AnnouncementKind.BUSY, "a", neighbour, 0.2)

    assert first.does(0.5) == ("", "a", "a")
    assert second.does(0.5) == ("", "", "a")


def test_who_has_not_told_the_other_to_wait_waits() -> None:
    site = Site()
    site.says(0.0)
    site.hears(AnnouncementKind.BUSY, "a", "z", 0.2)

    assert site.does(0.5) == NOTHING


def test_its_own_word_that_something_is_on_its_way_is_none_to_itself() -> None:
    site = Site()
    site.says(0.0)
    site.hears(AnnouncementKind.BUSY, "a", "n", 0.2)

    assert site.does(0.5) == ("", "a", "")


# Doubt


def test_who_sent_what_is_damaged_is_not_believed_for_two_minutes() -> None:
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


def test_a_neighbour_is_believed_again_in_the_very_moment_in_which_doubt_ends() -> None:
    site = Site()
    site.plan.failed("a", "m", 0.0)
    site.hears(AnnouncementKind.HAVE, "a", "m", DISTRUST_S)

    assert site.does(DISTRUST_S) == NOTHING


def test_all_that_hung_on_one_who_is_not_believed_is_wanted_again_at_once() -> None:
    site = Site("abcdef")
    site.hears(AnnouncementKind.HAVE, "a", "m", 0.0)
    site.hears(AnnouncementKind.WANT, "b", "m", 0.0)
    site.hears(AnnouncementKind.HAVE, "c", "z", 0.0)
    site.hears(AnnouncementKind.WANT, "d", "z", 0.0)
    site.hears(AnnouncementKind.ASK, "e", "m", 0.0)
    assert site.does(0.0) == ("f", "", "")

    site.plan.failed("a", "m", 1.0)
    assert site.does(1.0) == ("ab", "", "")


def test_what_a_neighbour_offers_of_another_ones_wants_stays_when_that_one_is_doubted() -> None:
    site = Site("ab")
    site.hears(AnnouncementKind.WANT, "a", "m", 0.0)
    site.hears(AnnouncementKind.HAVE, "a", "z", 0.0)
    site.plan.failed("b", "m", 1.0)

    assert site.does(1.0) == ("b", "", "")


def test_as_many_are_named_as_not_believed_as_one_note_names() -> None:
    site = Site()
    for number in range(MAX_DIGESTS + 1):
        site.plan.failed("a", f"m{number}", float(number) / 100)

    assert site.next(1.0).distrusted == tuple(f"m{number}" for number in range(MAX_DIGESTS))


# What comes


def test_what_comes_once_is_not_missing_any_more() -> None:
    site = Site("ab")

    assert site.plan.arrived("a", "m", 0.0)
    assert not site.plan.arrived("a", "m", 0.0)
    assert dict(site.plan.missing) == {"b": SIZE}
    assert site.does(0.0) == ("b", "", "")
    assert site.plan.arrived("b", None, 0.1)
    assert site.next(0.1) == Steps(wake_at=math.inf)


def test_how_long_an_answer_of_the_region_took_is_learnt_from_what_it_asked_for_and_what_others_did() -> None:
    mine, theirs = Site(), Site()
    mine.asks(1.0)
    theirs.hears(AnnouncementKind.ASK, "a", "m", 1.0)
    for site in (mine, theirs):
        site.plan.arrived("a", None, 1.75)

        assert (site.window.smoothed_rtt_s, site.window.size) == (0.75, 3.0)


def test_nothing_is_learnt_from_what_a_neighbour_sent_nor_from_what_came_unasked_or_unseen() -> None:
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


def test_an_answer_that_came_after_it_was_given_up_says_how_long_answers_take() -> None:
    site = Site()
    site.asks(1.0)
    site.next(31.0)
    site.plan.arrived("a", None, 41.0)

    assert (site.window.smoothed_rtt_s, site.window.size) == (40.0, 1.0)


def test_what_others_asked_for_in_vain_says_nothing_when_it_comes() -> None:
    site = Site()
    site.hears(AnnouncementKind.ASK, "a", "m", 0.0)
    site.next(45.0)
    site.plan.arrived("a", None, 50.0)

    assert site.window.smoothed_rtt_s is None


# What does not come


def test_an_answer_that_does_not_come_is_waited_for_longer_each_time() -> None:
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


def test_where_answers_take_longer_than_half_a_minute_each_is_waited_for_as_long() -> None:
    site = Site(answers_s=15.0)
    site.asks(1.0)
    assert site.does(60.99) == NOTHING
    assert site.does(61.0) == ("a", "", "")

    site.hears(AnnouncementKind.WANT, "a", "n", 61.0)
    assert site.does(63.0) == ("", "a", "")
    assert site.does(122.99) == ("", "", "")
    assert site.does(123.0) == ("a", "", "")


def test_what_came_damaged_from_the_region_is_wanted_again_and_of_the_region_later() -> None:
    site = Site()
    site.asks(1.0)
    site.plan.failed("a", None, 2.0)

    assert site.does(2.0) == ("a", "", "")
    site.hears(AnnouncementKind.WANT, "a", "n", 2.0)
    assert site.does(3.19) == NOTHING
    assert site.does(3.2) == ("", "a", "")
    assert site.window.size == 2.0, "it was not lost"


def test_what_came_damaged_and_nobody_waits_for_is_no_matter() -> None:
    site = Site()
    site.plan.failed("a", None, 0.0)
    site.plan.failed("x", None, 0.0)

    site.says(0.0)
    assert site.does(0.5) == ("", "a", "")


def test_what_another_asked_for_in_vain_is_asked_for_later_as_well() -> None:
    site = Site()
    site.hears(AnnouncementKind.ASK, "a", "m", 0.0)
    site.says(45.0)

    assert site.does(46.19) == NOTHING
    assert site.does(46.2) == ("", "a", "")


def test_who_asks_again_is_waited_for_again() -> None:
    site = Site()
    site.hears(AnnouncementKind.ASK, "a", "m", 0.0)
    site.says(45.0)
    site.hears(AnnouncementKind.ASK, "a", "m", 45.1)

    assert site.does(90.0) == NOTHING
    assert site.does(90.2) == ("a", "", "")


def test_what_is_offered_to_one_who_says_again_that_he_wants_it_stays_offered() -> None:
    site = Site()
    site.hears(AnnouncementKind.WANT, "a", "m", 0.0)
    site.hears(AnnouncementKind.HAVE, "a", "z", 1.0)
    site.hears(AnnouncementKind.WANT, "a", "m", 2.0)

    assert site.next(6.0).distrusted == ("z",)


def test_its_own_words_come_back_too_late_when_the_chunk_is_free_again() -> None:
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


def test_one_who_wants_and_gets_nothing_for_twenty_seconds_is_not_believed() -> None:
    assert "a" not in stalled(0.5, 10.0).next(10.0 + STALL_S).want
    assert "a" in stalled(0.5, 10.0).next(10.0 + STALL_S + 0.1).want
    assert stalled(0.5, 10.0).next(10.0 + STALL_S + 0.1).distrusted == ("m",)
    assert "a" in stalled(0.5).next(STALL_S + 0.1).want, "from when it began"


def test_where_answers_take_long_it_has_three_times_as_long() -> None:
    assert "a" not in stalled(2.0).next(24.0).want
    assert "a" in stalled(2.0).next(24.1).want
    assert "a" not in stalled(None).next(90.0).want
    assert "a" in stalled(None).next(90.1).want


def test_when_nothing_goes_on_what_others_ask_for_or_offer_and_our_own_words_are_not_given_up() -> None:
    site = Site("abcd", answers_s=10.0)
    site.next(0.0)
    site.hears(AnnouncementKind.ASK, "a", "m", 100.0)
    site.hears(AnnouncementKind.HAVE, "b", "m", 120.5)
    site.hears(AnnouncementKind.WANT, "c", "n", 120.5)
    site.hears(AnnouncementKind.WANT, "d", "n", 120.5)

    steps = site.next(121.0)
    assert (steps.distrusted, steps.want) == ((), [])


# A cut


def test_the_time_without_a_link_does_not_count() -> None:
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


def test_a_neighbour_that_sent_before_the_cut_is_waited_for_after_it() -> None:
    site = Site("ab")
    site.hears(AnnouncementKind.HAVE, "ab", "m", 0.0)
    site.plan.arrived("a", "m", 3.0)
    site.plan.paused(100.0)

    assert site.next(107.99).distrusted == ()
    assert site.next(108.0).distrusted == ("m",)


def test_how_long_an_answer_took_is_known_without_the_cut() -> None:
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


def test_one_who_wants_has_its_time_after_a_cut() -> None:
    site = Site(answers_s=0.5)
    site.hears(AnnouncementKind.WANT, "a", "m", 0.0)
    site.next(0.0)
    site.plan.paused(100.0)
    for second in range(100, 125, 5):
        site.hears(AnnouncementKind.WANT, "a", "m", float(second))

    assert site.next(120.0).distrusted == ()
    assert site.next(120.1).distrusted == ("m",)


def test_a_cut_before_the_beginning_is_no_matter() -> None:
    site = Site()
    site.plan.paused(100.0)

    assert site.does(0.0) == ("a", "", "")


# When to look again


def wakes(site: Site, now: float) -> float:
    return site.next(now).wake_at


def test_it_looks_again_when_the_first_of_its_times_ends() -> None:
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


def test_it_looks_again_when_the_bucket_gives_or_to_say_what_it_wants_again() -> None:
    soon, late = Site(bytes_per_s=1000), Site(bytes_per_s=100)
    for site in (soon, late):
        site.says(0.0)
        site.bucket.take(SIZE, 0.0)

    assert wakes(soon, 0.5) == 1.0
    assert wakes(late, 0.5) == REFRESH_S


def test_with_a_full_window_it_looks_again_to_say_what_it_wants() -> None:
    site = Site("abc")
    site.says(0.0)
    site.next(0.5)

    assert wakes(site, 0.6) == REFRESH_S


def test_it_looks_again_soon_as_long_as_there_is_more_to_want_and_room_for_it() -> None:
    more, full = Site(names(20), answers_s=1.0), Site(names(MAX_DIGESTS + 1))
    more.window.size = 1.0

    assert wakes(more, 10.0) == 10.0 + HOLD_S
    assert wakes(full, 10.0) == 10.0 + ECHO_S


def test_it_does_not_look_again_at_once() -> None:
    site = Site(bytes_per_s=1000)
    site.says(0.0)
    site.bucket.take(1, 0.5)

    assert wakes(site, 0.499) == pytest.approx(0.509)
    assert wakes(Site(""), 1.0) == math.inf
