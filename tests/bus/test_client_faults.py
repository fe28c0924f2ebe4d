"""The client against a real Mosquitto, over a faulty network."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from hedgerow.bus import Publication
from hedgerow.bus import client as client_module
from hedgerow.bus.packets import encode_puback
from hedgerow.errors import BusError
from hedgerow.testing.faults import FaultProxy
from hedgerow.testing.mosquitto import Mosquitto

MakeListener = Callable[..., Any]
Eventually = Callable[..., Awaitable[None]]


async def test_acknowledgements_are_sent_in_the_order_of_arrival(
    mosquitto: Mosquitto, listener: MakeListener, eventually: Eventually
) -> None:
    """Observed on the wire, while the pipeline finishes in another order (MQTT-4.6.0-2)."""
    with FaultProxy("127.0.0.1", mosquitto.port, record=True) as proxy:
        async with listener(mosquitto.url) as sender, listener(proxy.url, acks=False) as client:
            await client.wait_connected(60)
            await client.subscribe({"a": 1})
            await sender.wait_connected(60)
            for number in range(20):
                sender.publish("a", b"%d" % number, qos=1)
            await client.receive(20)
            before = len(proxy.up)
            for message in [*client.messages[10:], *reversed(client.messages[:10])]:
                client.ack(message)
            expected = b"".join(encode_puback(message.packet_id) for message in client.messages)
            await eventually(lambda: len(proxy.up) - before >= len(expected))

            assert proxy.up[before:] == expected


async def test_a_broker_that_hangs_does_not_hold_up_a_subscription(
    mosquitto: Mosquitto, listener: MakeListener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor what waits for it, such as a reload, and the stop of a node behind that. The subscription is made all the same."""
    monkeypatch.setattr(client_module, "_ANSWER_S", 0.1)
    assert mosquitto.pid is not None
    async with listener(mosquitto.url) as sender, listener(mosquitto.url) as client:
        await sender.wait_connected(60)
        await client.wait_connected(60)
        os.kill(mosquitto.pid, signal.SIGSTOP)
        try:
            async with asyncio.timeout(20):  # keep-alive ends the link after 45 s
                await client.subscribe({"a": 1})
                await client.unsubscribe(["b"])
        finally:
            os.kill(mosquitto.pid, signal.SIGCONT)
        await client.publish_and_wait("b", b"")  # comes after the subscription; the sender's could come before it
        await sender.publish_and_wait("a", b"after all")

        assert await client.receive(1) == [b"after all"]


async def test_the_session_keeps_messages_while_the_client_is_paused(
    mosquitto: Mosquitto, listener: MakeListener
) -> None:
    async with listener(mosquitto.url) as sender, listener(mosquitto.url, client_id="pauses") as client:
        await sender.wait_connected(60)
        await client.wait_connected(60)
        await client.subscribe({"a": 1})
        await client.pause()
        assert not client.connected
        for number in range(10):
            await sender.publish_and_wait("a", b"%d" % number)
        assert client.messages == []

        client.resume()
        assert await client.receive(10) == [b"%d" % number for number in range(10)]


async def test_pausing_loses_no_acknowledgement_while_more_messages_arrive(
    mosquitto: Mosquitto, listener: MakeListener
) -> None:
    """Closing a socket with unread bytes resets it, and the broker may then miss the last acknowledgements."""
    count = 150
    async with (
        listener(mosquitto.url) as sender,
        listener(mosquitto.url, client_id="leaves", receive_maximum=5) as client,
    ):
        await sender.wait_connected(60)
        await client.wait_connected(60)
        await client.subscribe({"a": 1})
        await client.pause()
        for number in range(count):
            sender.publish("a", b"%06d" % number + bytes(60_000), qos=1)
        await sender.flush(60)
        while len(client.messages) < count:
            before = len(client.messages)
            client.resume()
            await client.receive(before + 1)
            await client.pause()

    assert [int(payload[:6]) for payload in client.payloads] == list(range(count))


async def test_a_session_survives_restarts_of_client_and_broker(mosquitto: Mosquitto, listener: MakeListener) -> None:
    async with listener(mosquitto.url, client_id="node") as client:
        await client.wait_connected(60)
        await client.subscribe({"a": 1})
    async with listener(mosquitto.url) as sender:
        await sender.wait_connected(60)
        await sender.publish_and_wait("a", b"while disconnected")
    mosquitto.restart()

    async with listener(mosquitto.url, client_id="node") as client:
        assert await client.receive(1) == [b"while disconnected"]


async def test_a_forgotten_session_keeps_no_messages(mosquitto: Mosquitto, listener: MakeListener) -> None:
    async with listener(mosquitto.url, client_id="node") as client:
        await client.wait_connected(60)
        await client.subscribe({"a": 1})
        await client.close(forget_session=True)
    async with listener(mosquitto.url) as sender:
        await sender.wait_connected(60)
        await sender.publish_and_wait("a", b"while disconnected")

    async with listener(mosquitto.url, client_id="node") as client:
        await client.subscribe({"a": 1})
        await client.wait_connected(60)
        await client.publish_and_wait("a", b"now")
        assert await client.receive(1) == [b"now"]


async def test_a_clean_start_discards_the_last_process_but_not_a_lost_link(
    mosquitto: Mosquitto, listener: MakeListener, eventually: Eventually
) -> None:
    async with listener(mosquitto.url, client_id="node") as client:
        await client.wait_connected(60)
        await client.subscribe({"old": 1})
    with FaultProxy("127.0.0.1", mosquitto.port) as proxy:
        async with listener(mosquitto.url) as sender, listener(proxy.url, client_id="node", clean_start=True) as client:
            await sender.wait_connected(60)
            await client.subscribe({"new": 1})
            await client.wait_connected(60)
            proxy.cut()
            await eventually(lambda: not client.connected)
            await sender.publish_and_wait("old", b"not delivered")
            await sender.publish_and_wait("new", b"delivered")
            proxy.restore()
            assert await client.receive(1) == [b"delivered"]


async def test_qos_1_publishes_survive_broker_restarts(mosquitto: Mosquitto, listener: MakeListener) -> None:
    """None is lost: a broker saves its sessions when it stops."""
    outcomes: list[Exception | None] = []
    async with listener(mosquitto.url, client_id="receiver") as client:
        await client.wait_connected(60)
        await client.subscribe({"a": 1})
        async with listener(mosquitto.url, client_id="sender") as sender:
            await sender.wait_connected(60)
            for number in range(900):
                sender.publish("a", b"%d" % number, qos=1, done=outcomes.append)
                if number % 300 == 150:
                    await asyncio.sleep(0.002)  # so that some are in flight
                    await asyncio.to_thread(mosquitto.restart)
            await sender.flush(60)
            assert sender.outstanding == sender.outstanding_bytes == 0
        await client.publish_and_wait("a", b"end")
        while client.payloads[-1:] != [b"end"]:
            await client.receive(len(client.messages) + 1)

    assert outcomes == [None] * 900
    assert {int(payload) for payload in client.payloads[:-1]} == set(range(900))


async def test_qos_1_publishes_survive_a_link_that_keeps_failing(mosquitto: Mosquitto, listener: MakeListener) -> None:
    with FaultProxy("127.0.0.1", mosquitto.port) as proxy:
        async with listener(mosquitto.url) as client, listener(proxy.url, client_id="sender") as sender:
            await client.wait_connected(60)
            await client.subscribe({"a": 1})
            await sender.wait_connected(60)
            for number in range(600):
                sender.publish("a", b"%d" % number * 1000, qos=1)
                if number % 100 == 50:
                    await asyncio.sleep(0.003)  # so that some are in flight
                    proxy.reset() if number % 200 == 50 else proxy.drop()
            await sender.flush(60)
            assert sender.reconnects > 0
            await client.publish_and_wait("a", b"end")
            while b"end" not in client.payloads:
                await client.receive(len(client.messages) + 1)

    assert set(client.payloads) >= {b"%d" % number * 1000 for number in range(600)}


async def test_a_redelivery_of_a_message_still_being_processed_is_discarded(
    mosquitto: Mosquitto, listener: MakeListener, eventually: Eventually
) -> None:
    """The link is cut while the pipeline runs: every frame is processed once and acknowledged."""
    with FaultProxy("127.0.0.1", mosquitto.port, record=True) as proxy:
        async with (
            listener(mosquitto.url) as sender,
            listener(proxy.url, client_id="node", acks=False, receive_maximum=20) as client,
        ):
            await sender.wait_connected(60)
            await client.wait_connected(60)
            await client.subscribe({"a": 1})
            for number in range(20):
                sender.publish("a", b"%d" % number, qos=1)
            await client.receive(20)
            proxy.cut()
            await eventually(lambda: not client.connected)
            for message in client.messages[:5]:
                client.ack(message)  # without a link
            proxy.restore()
            await eventually(lambda: client.redelivered == 20)
            for message in client.messages[5:]:
                client.ack(message)
            sender.publish("a", b"next", qos=1)
            assert await client.receive(21) == [*(b"%d" % number for number in range(20)), b"next"]
            client.ack(client.messages[-1])
            await eventually(lambda: client.unacknowledged == 0)
            await client.pause()
            client.resume()
            await client.wait_connected(60)
            await client.publish_and_wait("b", b"")

        assert len(client.messages) == 21  # all were acknowledged: nothing was redelivered


async def test_acknowledging_a_message_of_a_lost_session_has_no_effect(
    mosquitto: Mosquitto, listener: MakeListener, eventually: Eventually
) -> None:
    async with listener(mosquitto.url, client_id="node", acks=False) as client:
        await client.wait_connected(60)
        await client.subscribe({"a": 1})
        await client.publish_and_wait("a", b"old")
        await client.receive(1)
        mosquitto.kill()  # without saving the session
        await eventually(lambda: not client.connected)
        mosquitto.restart()
        await client.wait_connected(60)
        await client.publish_and_wait("a", b"new")
        await client.receive(2)
        old, new = client.messages
        assert old.packet_id == new.packet_id

        client.ack(old)
        await client.publish_and_wait("b", b"")
        assert client.unacknowledged == 1
        client.ack(new)
        await eventually(lambda: client.unacknowledged == 0)


async def test_subscriptions_are_renewed_when_the_session_is_lost(
    mosquitto: Mosquitto, listener: MakeListener, eventually: Eventually
) -> None:
    async with listener(mosquitto.url, client_id="node") as client:
        await client.wait_connected(60)
        await client.subscribe({"a": 1})
        mosquitto.kill()
        await eventually(lambda: not client.connected)
        await client.subscribe({"b": 1})
        await client.unsubscribe(["a"])
        mosquitto.restart()
        await client.wait_connected(60)
        await client.publish_and_wait("a", b"a")
        await client.publish_and_wait("b", b"b")
        assert await client.receive(1) == [b"b"]


async def test_subscriptions_changed_while_disconnected_reach_the_session(
    mosquitto: Mosquitto, listener: MakeListener, eventually: Eventually
) -> None:
    with FaultProxy("127.0.0.1", mosquitto.port) as proxy:
        async with listener(proxy.url, client_id="node") as client:
            await client.wait_connected(60)
            await client.subscribe({"a": 1, "b": 1})
            proxy.cut()
            await eventually(lambda: not client.connected)
            await client.unsubscribe(["a"])
            await client.subscribe({"c": 1})
            proxy.restore()
            await client.wait_connected(60)
            for topic in ("a", "b", "c"):
                await client.publish_and_wait(topic, topic.encode())
            assert await client.receive(2) == [b"b", b"c"]


async def test_a_half_open_link_is_detected_and_replaced(
    mosquitto: Mosquitto, listener: MakeListener, eventually: Eventually
) -> None:
    """No reset and no FIN, only silence. The broker times out too, and publishes the will."""
    with FaultProxy("127.0.0.1", mosquitto.port) as proxy:
        async with listener(proxy.url, client_id="node", keepalive_s=1) as client:
            await client.wait_connected(60)
            proxy.half_open()
            await eventually(lambda: not client.connected)
            proxy.restore()
            await client.wait_connected(60)
            assert client.reconnects >= 1

    assert any("did not answer in time" in reason for _, reason in client.states)


async def test_a_link_that_ends_without_a_reason_is_replaced(
    mosquitto: Mosquitto, listener: MakeListener, eventually: Eventually
) -> None:
    """Some transports report no error when they end; the client must reconnect unless it was closed."""
    async with listener(mosquitto.url) as client:
        await client.wait_connected(60)
        client._session.link._transport.close()
        await eventually(lambda: client.reconnects == 1 and client.connected)

    reasons = [reason for up, reason in client.states if not up]
    assert reasons == [f"{mosquitto.url} closed the connection", "closed"]


async def test_an_idle_link_is_kept_alive(mosquitto: Mosquitto, listener: MakeListener, eventually: Eventually) -> None:
    """A broker closes a link that is silent for 1.5 times the keep-alive; pings come at half of it."""
    async with listener(mosquitto.url, keepalive_s=2) as client:
        await client.wait_connected(60)
        before = client.bytes_received
        await eventually(lambda: client.bytes_received >= before + 3 * len(b"\xd0\x00"))
        assert client.connected
        assert client.reconnects == 0


async def test_the_will_is_published_when_the_link_dies(mosquitto: Mosquitto, listener: MakeListener) -> None:
    with FaultProxy("127.0.0.1", mosquitto.port) as proxy:
        async with listener(mosquitto.url) as witness, listener(proxy.url, will=Publication("will", b"dead")) as client:
            await witness.wait_connected(60)
            await witness.subscribe({"will": 1})
            await client.wait_connected(60)
            proxy.cut()
            assert await witness.receive(1) == [b"dead"]


async def test_a_taken_over_session_reports_the_cause(
    mosquitto: Mosquitto, listener: MakeListener, eventually: Eventually
) -> None:
    async with listener(mosquitto.url, client_id="same", min_backoff_s=5, max_backoff_s=5) as first:
        await first.wait_connected(60)
        async with listener(mosquitto.url, client_id="same") as second:
            await second.wait_connected(60)
            await eventually(lambda: not first.connected and len(first.states) > 1)
            with pytest.raises(BusError, match=r"session taken over|closed the connection") as caught:
                await first.wait_connected(0.05)

    assert "same name" in caught.value.remedy


async def test_a_broker_that_exceeds_receive_maximum_is_throttled(mosquitto: Mosquitto, listener: MakeListener) -> None:
    """With queued messages, Mosquitto 2.0.11 sends Receive Maximum more for each acknowledgement."""
    payload = b"x" * 10_000
    async with listener(mosquitto.url) as sender, listener(mosquitto.url, acks=False, receive_maximum=10) as client:
        await sender.wait_connected(60)
        await client.wait_connected(60)
        await client.subscribe({"a": 1})
        for _ in range(1000):
            sender.publish("a", payload, qos=1)
        await sender.flush(60)
        most = done = 0
        while done < 1000:
            await client.receive(done + 1)
            most = max(most, client.unacknowledged)
            client.ack(client.messages[done])
            done += 1
            if done % 10 == 0:
                await asyncio.sleep(0)
        assert most < 10 + 3 * 128 * 1024 / len(payload)


async def test_a_throttled_link_still_receives_pubacks(
    mosquitto: Mosquitto, listener: MakeListener, eventually: Eventually
) -> None:
    """A message may wait for the PUBACK of its own result: blocking that would be a deadlock."""
    async with listener(mosquitto.url) as sender, listener(mosquitto.url, acks=False, receive_maximum=5) as client:
        await sender.wait_connected(60)
        await client.wait_connected(60)
        await client.subscribe({"a": 1})
        for _ in range(60):
            sender.publish("a", b"x" * 300_000, qos=1)
        await sender.flush(60)
        await client.receive(5)
        for message in client.messages[:5]:
            client.ack(message)
        await client.receive(11)  # six unacknowledged, Receive Maximum is five: reading is paused
        async with asyncio.timeout(60):
            await client.publish_and_wait("result", b"")


async def test_a_slow_link_pauses_publishing_without_loss(
    mosquitto: Mosquitto, listener: MakeListener, eventually: Eventually
) -> None:
    with FaultProxy("127.0.0.1", mosquitto.port) as proxy:
        async with listener(mosquitto.url) as client, listener(proxy.url) as sender:
            await client.wait_connected(60)
            await client.subscribe({"a": 1})
            await sender.wait_connected(60)
            proxy.throttle(1_000)
            for number in range(100):
                sender.publish("a", bytes([number]) * 200_000, qos=number % 2)
            await eventually(lambda: sender._session.link.paused)
            assert sender.outstanding_bytes > 1_000_000
            proxy.restore()
            await client.receive(100)
            assert not sender._session.link.paused

    assert sorted(payload[0] for payload in client.payloads) == list(range(100))


@pytest.mark.parametrize(
    "greeting",
    [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x20\x03\x00\x00\x00\x34\x06\x00\x01a\x00\x05\x00", b"\x20\x02\x00\x84"],
    ids=["not MQTT", "QoS 2", "MQTT 3 only"],
)
async def test_a_peer_that_is_not_an_mqtt_5_broker_is_reported_as_the_cause(
    listener: MakeListener, eventually: Eventually, greeting: bytes
) -> None:
    """The only peer here that is not Mosquitto, which does not misbehave."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(greeting)
        await reader.read()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = f"mqtt://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, listener(url, connect_timeout_s=0.5) as client:
        error = await client.failure()

    assert "MQTT 5" in error.remedy
