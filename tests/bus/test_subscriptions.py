"""Requested, granted and refused subscriptions."""

from __future__ import annotations

import asyncio

import pytest

from hedgerow.bus.outgoing import MAX_PUBLISH_ID
from hedgerow.bus.packets import Acked, encode_subscribe, encode_unsubscribe
from hedgerow.bus.properties import MalformedPacket
from hedgerow.bus.subscriptions import Refused, Subscriptions

FIRST = MAX_PUBLISH_ID + 1
Request = tuple[bytes, asyncio.Future[Refused]]


def requesting(**filters: int) -> Subscriptions:
    subscriptions = Subscriptions()
    subscriptions.requested.update(filters)
    return subscriptions


def packets(requests: list[Request]) -> list[bytes]:
    return [packet for packet, _ in requests]


async def test_a_subscription_is_requested_once() -> None:
    subscriptions = requesting(a=1, b=0)
    ((packet, reply),) = subscriptions.reconcile()
    assert packet == encode_subscribe(FIRST, {"a": 1, "b": 0})

    subscriptions.on_ack(Acked(FIRST, (1, 0)))
    assert await reply == {}
    assert subscriptions.reconcile() == []


async def test_reconciling_changes_the_qos_and_unsubscribes_removed_filters() -> None:
    subscriptions = requesting(a=1, b=0)
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
    assert [await reply for _, reply in requests] == [{}, {}]
    assert subscriptions.reconcile() == []


@pytest.mark.parametrize(("reason", "refused"), [(0x02, {}), (0x7F, {}), (0x80, {"a": 0x80}), (0x87, {"a": 0x87})])
async def test_reason_codes_from_128_are_refusals(reason: int, refused: Refused) -> None:
    subscriptions = requesting(a=1, b=1)
    ((_, reply),) = subscriptions.reconcile()
    subscriptions.on_ack(Acked(FIRST, (reason, 1)))

    assert await reply == subscriptions.refused == refused
    again = [encode_subscribe(FIRST + 1, {"a": 1})] if refused else []
    assert packets(subscriptions.reconcile()) == again, "a refused filter is not granted"


async def test_a_granted_filter_is_no_longer_refused() -> None:
    subscriptions = requesting(a=1, b=1, c=1)
    for reasons in ((0x87, 0x87, 0x87), (1, 0x97, 0x87)):
        subscriptions.subscribe({"a": 1, "b": 1, "c": 1})
        subscriptions.on_ack(Acked(subscriptions._next_id, reasons))

    assert subscriptions.refused == {"b": 0x97, "c": 0x87}
    subscriptions.remove("c")
    assert subscriptions.refused == {"b": 0x97}


async def test_a_lost_link_refuses_nothing_and_keeps_granted_subscriptions() -> None:
    subscriptions = requesting(a=1)
    ((_, granted),) = subscriptions.reconcile()
    subscriptions.on_ack(Acked(FIRST, (1,)))
    subscriptions.requested["b"] = 1
    ((_, unanswered),) = subscriptions.reconcile()
    subscriptions.link_lost()

    assert [await granted, await unanswered] == [{}, {}]
    assert packets(subscriptions.reconcile()) == [encode_subscribe(FIRST + 2, {"b": 1})]
    subscriptions.session_lost()
    assert packets(subscriptions.reconcile()) == [encode_subscribe(FIRST + 3, {"a": 1, "b": 1})]


async def test_a_reply_to_a_cancelled_request_still_counts() -> None:
    subscriptions = requesting(a=1)
    ((_, reply),) = subscriptions.reconcile()
    reply.cancel()
    subscriptions.on_ack(Acked(FIRST, (1,)))
    assert subscriptions.reconcile() == []

    (_, reply) = subscriptions.subscribe({"b": 1})
    reply.cancel()
    subscriptions.link_lost()


async def test_a_reply_to_an_unknown_request_is_ignored() -> None:
    subscriptions = requesting(a=1)
    ((_, reply),) = subscriptions.reconcile()
    subscriptions.on_ack(Acked(FIRST + 7, (0x87,)))

    assert not reply.done()
    assert subscriptions.refused == {}


async def test_identifiers_are_above_those_of_publishes_and_never_shared() -> None:
    subscriptions = Subscriptions()
    requested = [subscriptions.subscribe({"a": 1})[0] for _ in range(65_535 - MAX_PUBLISH_ID)]
    assert requested == [encode_subscribe(packet_id, {"a": 1}) for packet_id in range(FIRST, 65_536)]

    subscriptions.on_ack(Acked(FIRST, (1,)))
    subscriptions.on_ack(Acked(FIRST + 5, (1,)))
    assert subscriptions.subscribe({"a": 1})[0] == encode_subscribe(FIRST, {"a": 1})
    assert subscriptions.subscribe({"a": 1})[0] == encode_subscribe(FIRST + 5, {"a": 1})


async def test_a_lower_qos_is_reported_until_the_requested_one_is_granted() -> None:
    subscriptions = requesting(a=1, b=1, c=0)
    for reasons, lowered in (((0, 1, 0), {"a": 0}), ((1, 0, 0), {"b": 0}), ((0, 0x87, 0), {"a": 0})):
        subscriptions.subscribe({"a": 1, "b": 1, "c": 0})
        assert subscriptions.on_ack(Acked(subscriptions._next_id, reasons)) == []
        assert subscriptions.lowered == lowered
    subscriptions.remove("a")
    assert subscriptions.lowered == {}


async def test_a_lower_qos_can_count_as_refused() -> None:
    subscriptions = Subscriptions(refuse_lower_qos=True)
    subscriptions.requested.update(a=1, b=1, c=0)
    ((_, reply),) = subscriptions.reconcile()

    assert subscriptions.on_ack(Acked(FIRST, (0, 1, 0))) == ["a"], "to unsubscribe: the broker would deliver"
    assert await reply == subscriptions.refused == {"a": 0x9B}
    assert subscriptions.lowered == {}
    assert packets(subscriptions.reconcile()) == [encode_subscribe(FIRST + 1, {"a": 1})], "requested on the next link"


async def test_a_refused_qos_that_was_not_granted_needs_no_unsubscribe() -> None:
    subscriptions = requesting(a=1)
    subscriptions.reconcile()

    assert subscriptions.on_ack(Acked(FIRST, (0x9B,))) == []


@pytest.mark.parametrize("reasons", [(1,), (1, 1, 1)])
async def test_a_reply_for_another_number_of_filters_is_malformed(reasons: tuple[int, ...]) -> None:
    subscriptions = requesting(a=1, b=1)
    subscriptions.reconcile()

    with pytest.raises(MalformedPacket, match="for 2 topic filters"):
        subscriptions.on_ack(Acked(FIRST, reasons))
