"""The ordered table of acknowledgements, against a model of a broker."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.examples import examples

from hedgerow.bus.acknowledgements import Acknowledgements, Unacked


def received(table: Acknowledgements, packet_id: int, dup: bool = False) -> Unacked:
    unacked = table.received(packet_id, dup)
    assert unacked is not None
    return unacked


def test_an_early_acknowledgement_waits_for_those_before_it() -> None:
    table = Acknowledgements()
    first, second = received(table, 1), received(table, 2)

    second.done = True
    assert table.take_ready() == []
    first.done = True
    assert table.take_ready() == [1, 2]
    assert len(table) == 0


def test_a_redelivery_of_a_message_still_with_us_is_swallowed_and_answered_once() -> None:
    table = Acknowledgements()
    message = received(table, 7)
    table.link_lost()

    message.done = True
    assert table.take_ready() == []  # not on a link on which it has not come
    assert table.received(7, dup=True) is None
    assert table.take_ready() == [7]
    assert table.redelivered == 1


def test_a_redelivery_after_the_acknowledgement_left_is_a_message_again() -> None:
    """Whether the broker got the acknowledgement before the link died cannot be known: at least once."""
    table = Acknowledgements()
    received(table, 7).done = True
    assert table.take_ready() == [7]
    table.link_lost()

    assert table.received(7, dup=True) is not None


def test_an_identifier_that_comes_back_without_dup_is_a_new_message() -> None:
    table = Acknowledgements()
    old = received(table, 7)
    table.link_lost()
    new = received(table, 7)

    old.done = True
    assert old.void
    assert table.take_ready() == []
    new.done = True
    assert table.take_ready() == [7]


def test_an_identifier_used_again_on_the_same_link_voids_the_old_message_only() -> None:
    table = Acknowledgements()
    received(table, 7)
    between = received(table, 8)
    new = received(table, 7)

    between.done = new.done = True
    assert table.take_ready() == [8, 7]


def test_with_the_session_lost_every_message_is_void() -> None:
    table = Acknowledgements()
    old = received(table, 7)
    table.link_lost()
    table.session_lost()

    old.done = True
    assert table.take_ready() == []
    assert table.received(7, dup=True) is not None


def test_a_message_is_neither_done_nor_void_when_it_comes() -> None:
    table = Acknowledgements()
    message = received(table, 7)

    assert (message.packet_id, message.done, message.void, table.redelivered) == (7, False, False, 0)


def test_there_is_something_ready_as_soon_as_the_first_is_done() -> None:
    table = Acknowledgements()
    assert not table.ready
    first, second = received(table, 1), received(table, 2)
    second.done = True
    assert not table.ready
    first.done = True
    assert table.ready
    table.take_ready()
    assert not table.ready


def test_what_came_on_the_link_before_counts_but_not_as_on_this_one() -> None:
    table = Acknowledgements()
    received(table, 1), received(table, 2)
    table.link_lost()
    received(table, 3)

    assert (len(table), table.on_link) == (3, 1)


def test_a_second_copy_on_the_same_link_is_swallowed() -> None:
    table = Acknowledgements()
    message = received(table, 7)

    assert table.received(7, dup=True) is None
    assert table.redelivered == 1
    assert not message.void


def test_messages_of_this_link_and_of_the_one_before_are_void_with_the_session() -> None:
    table = Acknowledgements()
    before = received(table, 1)
    table.link_lost()
    here = received(table, 2)
    table.session_lost()

    assert (before.void, here.void, len(table), table.ready) == (True, True, 0, False)


class BrokerAndTable(RuleBasedStateMachine):
    """A broker that keeps to the standard, links that die at any moment, a pipeline that finishes in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.table = Acknowledgements()
        self.inflight: dict[int, int] = {}  # the broker's: identifier → message, oldest first
        self.to_send: list[tuple[int, bool]] = []  # what the broker will send next on this link
        self.came: list[int] = []  # identifiers on this link, in order, not yet acknowledged
        self.working: list[tuple[int, Unacked]] = []  # handed over: message and its entry
        self.handed: list[int] = []
        self.acknowledged_lost: set[int] = set()
        self.count = 0

    @precondition(lambda self: len(self.inflight) < 6)
    @rule()
    def the_broker_takes_a_message(self) -> None:
        packet_id = next(number for number in range(1, 8) if number not in self.inflight)
        self.count += 1
        self.inflight[packet_id] = self.count
        self.to_send.append((packet_id, False))

    @precondition(lambda self: self.to_send)
    @rule()
    def a_message_comes(self) -> None:
        packet_id, dup = self.to_send.pop(0)
        unacked = self.table.received(packet_id, dup)
        self.came.append(packet_id)
        if unacked is not None:
            message = self.inflight[packet_id]
            assert message not in self.handed or message in self.acknowledged_lost
            self.handed.append(message)
            self.working.append((message, unacked))

    @precondition(lambda self: self.working)
    @rule(data=st.data())
    def the_pipeline_finishes_one(self, data: st.DataObject) -> None:
        _, unacked = self.working.pop(data.draw(st.integers(0, len(self.working) - 1)))
        unacked.done = True

    @rule(arrives=st.booleans())
    def acknowledgements_leave(self, arrives: bool) -> None:
        ready = self.table.take_ready()
        assert ready == self.came[: len(ready)]  # MQTT-4.6.0-2
        del self.came[: len(ready)]
        if arrives:
            for packet_id in ready:
                del self.inflight[packet_id]
        elif ready:
            self.acknowledged_lost.update(self.inflight[packet_id] for packet_id in ready)
            self.the_link_dies()

    @rule()
    def the_link_dies(self) -> None:
        sent = {packet_id for packet_id, dup in self.to_send if not dup}
        self.table.link_lost()
        self.came.clear()
        # What was never sent goes without DUP, what may have been sent with it.
        self.to_send = [(packet_id, packet_id not in sent) for packet_id in self.inflight]

    @rule()
    def the_session_is_lost(self) -> None:
        self.table.link_lost()
        self.table.session_lost()
        self.came.clear()
        self.inflight.clear()
        self.to_send.clear()

    @invariant()
    def nothing_is_forgotten(self) -> None:
        """Once all work is done and all has come, the broker waits for nothing."""
        if not self.to_send and not self.working:
            ready = self.table.take_ready()
            assert ready == self.came == list(self.inflight)
            self.came.clear()
            self.inflight.clear()


BrokerAndTable.TestCase.settings = settings(max_examples=examples(150), stateful_step_count=40, deadline=None)
TestBrokerAndTable = BrokerAndTable.TestCase
