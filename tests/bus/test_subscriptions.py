"""What is subscribed, what is asked for, and what the broker refused."""

from __future__ import annotations

import asyncio

import pytest

from hedgerow.bus.outgoing import MAX_PUBLISH_ID
from hedgerow.bus.packets import Acked, encode_subscribe, encode_unsubscribe
from hedgerow.bus.subscriptions import Refused, Subscriptions

FIRST = MAX_PUBLISH_ID + 1
Request = tuple[bytes, asyncio.Future[Refused]]


def wanting(**wanted: int) -> Subscriptions:
    subscriptions = Subscriptions()
    subscriptions.requested.update(wanted)
    return subscriptions


def packets(requests: list[Request]) -> list[bytes]:
    return [packet for packet, _ in requests]


async def test_what_is_wanted_is_asked_for_once() -> None:
    subscriptions = wanting(a=1, b=0)
    ((packet, answer),) = subscriptions.reconcile()
    assert packet == encode_subscribe(FIRST, {"a": 1, "b": 0})

    subscriptions.on_ack(Acked(FIRST, (1, 0)))
    assert await answer == {}
    assert subscriptions.reconcile() == []


async def test_another_qos_is_asked_for_again_and_what_is_wanted_no_more_is_given_up() -> None:
    subscriptions = wanting(a=1, b=0)
    subscriptions.reconcile()
    subscriptions.on_ack(Acked(FIRST, (1, 0)))
    subscriptions.remove("b")
    subscriptions.requested["a"] = 0

    requests = subscriptions.reconcile()
    assert packets(requests) == [
        encode_unsubscribe(FIRST + 1, ["b"]), encode_subscribe(FIRST + 2, {"a": 0}),
    ]  # fmt: skip
    subscriptions.on_ack(Acked(FIRST + 1, (0,)))
    subscriptions.on_ack(Acked(FIRST + 2, (0,)))
    assert [await answer for _, answer in requests] == [{}, {}]
    assert subscriptions.reconcile() == []


@pytest.mark.parametrize(("reason", "refused"), [(0x02, {}), (0x7F, {}), (0x80, {"a": 0x80}), (0x87, {"a": 0x87})])
async def test_a_reason_of_128_or_more_is_a_refusal(reason: int, refused: Refused) -> None:
    subscriptions = wanting(a=1, b=1)
    ((_, answer),) = subscriptions.reconcile()
    subscriptions.on_ack(Acked(FIRST, (reason, 1)))

    assert await answer == subscriptions.refused == refused
    again = [encode_subscribe(FIRST + 1, {"a": 1})] if refused else []
    assert packets(subscriptions.reconcile()) == again, "what was refused is not held"


async def test_what_is_granted_at_last_is_refused_no_more() -> None:
    subscriptions = wanting(a=1, b=1, c=1)
    for reasons in ((0x87, 0x87, 0x87), (1, 0x97)):
        subscriptions.subscribe({"a": 1, "b": 1, "c": 1})
        subscriptions.on_ack(Acked(subscriptions._next_id, reasons))

    assert subscriptions.refused == {"b": 0x97, "c": 0x87}
    subscriptions.remove("c")
    assert subscriptions.refused == {"b": 0x97}


async def test_a_lost_link_refuses_nothing_and_holds_what_the_session_holds() -> None:
    subscriptions = wanting(a=1)
    ((_, granted),) = subscriptions.reconcile()
    subscriptions.on_ack(Acked(FIRST, (1,)))
    subscriptions.requested["b"] = 1
    ((_, unanswered),) = subscriptions.reconcile()
    subscriptions.link_lost()

    assert [await granted, await unanswered] == [{}, {}]
    assert packets(subscriptions.reconcile()) == [encode_subscribe(FIRST + 2, {"b": 1})]
    subscriptions.session_lost()
    assert packets(subscriptions.reconcile()) == [encode_subscribe(FIRST + 3, {"a": 1, "b": 1})]


async def test_an_answer_that_nobody_waits_for_any_more_still_counts() -> None:
    subscriptions = wanting(a=1)
    ((_, answer),) = subscriptions.reconcile()
    answer.cancel()
    subscriptions.on_ack(Acked(FIRST, (1,)))
    assert subscriptions.reconcile() == []

    (_, answer) = subscriptions.subscribe({"b": 1})
    answer.cancel()
    subscriptions.link_lost()


async def test_an_answer_to_nothing_that_was_asked_is_let_pass() -> None:
    subscriptions = wanting(a=1)
    ((_, answer),) = subscriptions.reconcile()
    subscriptions.on_ack(Acked(FIRST + 7, (0x87,)))

    assert not answer.done()
    assert subscriptions.refused == {}


async def test_identifiers_are_above_those_of_publishes_and_never_shared() -> None:
    subscriptions = Subscriptions()
    asked = [subscriptions.subscribe({"a": 1})[0] for _ in range(65_535 - MAX_PUBLISH_ID)]
    assert asked == [encode_subscribe(packet_id, {"a": 1}) for packet_id in range(FIRST, 65_536)]

    subscriptions.on_ack(Acked(FIRST, (1,)))
    subscriptions.on_ack(Acked(FIRST + 5, (1,)))
    assert subscriptions.subscribe({"a": 1})[0] == encode_subscribe(FIRST, {"a": 1})
    assert subscriptions.subscribe({"a": 1})[0] == encode_subscribe(FIRST + 5, {"a": 1})
