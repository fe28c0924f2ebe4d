"""Table of pending acknowledgements, against a model of a broker."""

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


def test_an_early_acknowledgement_waits_for_its_predecessors() -> None:
    table = Acknowledgements()
    first, second = received(table, 1), received(table, 2)

    second.done = True
    assert table.take_ready() == []
    first.done = True
    assert table.take_ready() == [1, 2]
    assert len(table) == 0


def test_a_redelivered_message_still_being_processed_is_discarded_and_acknowledged_once() -> None:
    table = Acknowledgements()
    message = received(table, 7)
    table.link_lost()

    message.done = True
    assert table.take_ready() == []  # not before it is redelivered on this link
    assert table.received(7, dup=True) is None
    assert table.take_ready() == [7]
    assert table.redelivered == 1


def test_a_redelivery_after_the_acknowledgement_was_sent_is_delivered() -> None:
    """The broker may not have received the acknowledgement before the link died: delivery is at least once."""
    table = Acknowledgements()
    received(table, 7).done = True
    assert table.take_ready() == [7]
    table.link_lost()

    assert table.received(7, dup=True) is not None


def test_an_identifier_reused_without_dup_is_a_new_message() -> None:
    table = Acknowledgements()
    old = received(table, 7)
    table.link_lost()
    new = received(table, 7)

    old.done = True
    assert old.void
    assert table.take_ready() == []
    new.done = True
    assert table.take_ready() == [7]


def test_an_identifier_reused_on_the_same_link_voids_only_the_old_message() -> None:
    table = Acknowledgements()
    received(table, 7)
    between = received(table, 8)
    new = received(table, 7)

    between.done = new.done = True
    assert table.take_ready() == [8, 7]


def test_a_lost_session_voids_every_message() -> None:
    table = Acknowledgements()
    old = received(table, 7)
    table.link_lost()
    table.session_lost()

    old.done = True
    assert table.take_ready() == []
    assert table.received(7, dup=True) is not None


def test_a_received_message_is_neither_done_nor_void() -> None:
    table = Acknowledgements()
    message = received(table, 7)

    assert (message.packet_id, message.done, message.void, table.redelivered) == (7, False, False, 0)


def test_acknowledgements_are_ready_once_the_first_message_is_done() -> None:
    table = Acknowledgements()
    assert not table.ready
    first, second = received(table, 1), received(table, 2)
    second.done = True
    assert not table.ready
    first.done = True
    assert table.ready
    table.take_ready()
    assert not table.ready


def test_messages_of_an_earlier_link_count_but_not_as_on_this_link() -> None:
    table = Acknowledgements()
    received(table, 1), received(table, 2)
    table.link_lost()
    received(table, 3)

    assert (len(table), table.on_link) == (3, 1)


def test_a_duplicate_on_the_same_link_is_discarded() -> None:
    table = Acknowledgements()
    message = received(table, 7)

    assert table.received(7, dup=True) is None
    assert table.redelivered == 1
    assert not message.void


def test_a_lost_session_voids_messages_of_this_link_and_of_earlier_ones() -> None:
    table = Acknowledgements()
    earlier = received(table, 1)
    table.link_lost()
    current = received(table, 2)
    table.session_lost()

    assert (earlier.void, current.void, len(table), table.ready) == (True, True, 0, False)


class BrokerAndTable(RuleBasedStateMachine):
    """A conforming broker, links that die at any moment, a pipeline that finishes in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.table = Acknowledgements()
        self.inflight: dict[int, int] = {}  # on the broker: identifier → message, oldest first
        self.to_send: list[tuple[int, bool]] = []  # identifier and DUP, next on this link
        self.arrived: list[int] = []  # unacknowledged identifiers on this link, in order
        self.processing: list[tuple[int, Unacked]] = []  # delivered: message and its entry
        self.delivered: list[int] = []
        self.lost_acknowledgements: set[int] = set()
        self.count = 0

    @precondition(lambda self: len(self.inflight) < 6)
    @rule()
    def the_broker_receives_a_message(self) -> None:
        packet_id = next(number for number in range(1, 8) if number not in self.inflight)
        self.count += 1
        self.inflight[packet_id] = self.count
        self.to_send.append((packet_id, False))

    @precondition(lambda self: self.to_send)
    @rule()
    def a_message_arrives(self) -> None:
        packet_id, dup = self.to_send.pop(0)
        unacked = self.table.received(packet_id, dup)
        self.arrived.append(packet_id)
        if unacked is not None:
            message = self.inflight[packet_id]
            assert message not in self.delivered or message in self.lost_acknowledgements
            self.delivered.append(message)
            self.processing.append((message, unacked))

    @precondition(lambda self: self.processing)
    @rule(data=st.data())
    def the_pipeline_finishes_one(self, data: st.DataObject) -> None:
        _, unacked = self.processing.pop(data.draw(st.integers(0, len(self.processing) - 1)))
        unacked.done = True

    @rule(reaches_broker=st.booleans())
    def acknowledgements_are_sent(self, reaches_broker: bool) -> None:
        ready = self.table.take_ready()
        assert ready == self.arrived[: len(ready)]  # MQTT-4.6.0-2
        del self.arrived[: len(ready)]
        if reaches_broker:
            for packet_id in ready:
                del self.inflight[packet_id]
        elif ready:
            self.lost_acknowledgements.update(self.inflight[packet_id] for packet_id in ready)
            self.the_link_dies()

    @rule()
    def the_link_dies(self) -> None:
        sent = {packet_id for packet_id, dup in self.to_send if not dup}
        self.table.link_lost()
        self.arrived.clear()
        # Messages that may have been sent carry DUP; the others do not.
        self.to_send = [(packet_id, packet_id not in sent) for packet_id in self.inflight]

    @rule()
    def the_session_is_lost(self) -> None:
        self.table.link_lost()
        self.table.session_lost()
        self.arrived.clear()
        self.inflight.clear()
        self.to_send.clear()

    @invariant()
    def nothing_is_forgotten(self) -> None:
        """Once everything is delivered and processed, the broker has no message in flight."""
        if not self.to_send and not self.processing:
            ready = self.table.take_ready()
            assert ready == self.arrived == list(self.inflight)
            self.arrived.clear()
            self.inflight.clear()


BrokerAndTable.TestCase.settings = settings(max_examples=examples(150), stateful_step_count=40, deadline=None)
TestBrokerAndTable = BrokerAndTable.TestCase
