"""The client against a real Mosquitto."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
import uvloop
from structlog.testing import capture_logs

from hedgerow.bus import ClientOptions, Message, Property, Publication, encode_properties
from hedgerow.errors import BusError, ConfigError
from hedgerow.testing.faults import FaultProxy
from hedgerow.testing.mosquitto import Mosquitto, TlsFiles

MakeListener = Callable[..., Any]
Eventually = Callable[..., Awaitable[None]]
Authority = tuple[TlsFiles, Path, Path, Path]


@pytest.mark.parametrize("qos", [0, 1])
async def test_published_messages_arrive_in_order(
    broker: Mosquitto, topic_prefix: str, listener: MakeListener, qos: int
) -> None:
    async with listener(broker.url) as client:
        await client.subscribe({f"{topic_prefix}/#": 1})
        await client.wait_connected(60)
        for number in range(500):
            client.publish(f"{topic_prefix}/x", b"%d" % number, qos=qos)
        assert await client.receive(500) == [b"%d" % number for number in range(500)]

    assert {message.qos for message in client.messages} == {qos}


@pytest.mark.parametrize("sizes", [[1], [0, 1, 200], [0] * 300, [100, 20_000, 100], [16_300, 100]], ids=str)
async def test_messages_published_together_arrive_as_if_published_one_by_one(
    broker: Mosquitto, topic_prefix: str, listener: MakeListener, sizes: list[int]
) -> None:
    messages = [
        (b"%d" % number + bytes(size), encode_properties([(Property.USER, ("number", f"{number}"))]))
        for number, size in enumerate(sizes)
    ]
    async with listener(broker.url) as client:
        await client.subscribe({f"{topic_prefix}/#": 1})
        await client.wait_connected(60)
        sent = client.sent
        client.publish_all(f"{topic_prefix}/x", messages)
        assert client.outstanding == len(messages)
        assert await client.receive(len(messages)) == [payload for payload, _ in messages]
        assert (client.outstanding, client.outstanding_bytes) == (0, 0)
        assert client.sent == sent + len(messages)

    assert {(message.topic, message.qos, message.retain) for message in client.messages} == {
        (f"{topic_prefix}/x", 0, False)
    }
    read = [message.properties.user_properties for message in client.messages]
    assert read == [[("number", f"{number}")] for number in range(len(messages))]


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16_384, 131_072, 3_000_000])
async def test_payloads_of_any_size_arrive_intact(
    broker: Mosquitto, topic_prefix: str, listener: MakeListener, size: int
) -> None:
    payload = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    async with listener(broker.url) as client:
        await client.wait_connected(60)
        await client.subscribe({topic_prefix: 1})
        await client.publish_and_wait(topic_prefix, memoryview(payload))
        assert await client.receive(1) == [payload]


async def test_properties_arrive_as_sent(broker: Mosquitto, topic_prefix: str, listener: MakeListener) -> None:
    sent: list[tuple[Property, Any]] = [
        (Property.CONTENT_TYPE, "image/jpeg"),
        (Property.EXPIRY, 60),
        (Property.RESPONSE_TOPIC, "reply/here"),
        (Property.CORRELATION_DATA, b"\0\1"),
        (Property.USER, ("traceparent", "00-1-2-01")),
        (Property.USER, ("käse", "🧀")),
    ]
    async with listener(broker.url) as client:
        await client.wait_connected(60)
        await client.subscribe({topic_prefix: 0})
        client.publish(topic_prefix, b"", properties=encode_properties(sent))
        await client.receive(1)

    read = client.messages[0].properties
    assert (read.content_type, read.expiry_s, read.response_topic) == ("image/jpeg", 60, "reply/here")
    assert read.correlation_data == b"\0\1"
    assert read.user_properties == [("traceparent", "00-1-2-01"), ("käse", "🧀")]


async def test_a_retained_message_is_marked_and_delivered_once(
    mosquitto: Mosquitto, listener: MakeListener, eventually: Eventually
) -> None:
    """Renewing a subscription must not deliver it again: to the pipeline it would be a new frame."""
    async with listener(mosquitto.url, client_id="keeps") as client:
        await client.wait_connected(60)
        await client.publish_and_wait("kept", b"state", retain=True)
        await client.subscribe({"kept": 1})
        await client.receive(1)
        await client.publish_and_wait("other", b"")  # the broker processes the acknowledgement before this
        mosquitto.restart()
        await eventually(lambda: client.reconnects == 1)
        await client.wait_connected(60)
        await client.publish_and_wait("kept", b"live")
        assert await client.receive(2) == [b"state", b"live"]

    assert [message.retain for message in client.messages] == [True, False]


async def test_messages_from_an_mqtt_3_client_are_read(
    broker: Mosquitto, topic_prefix: str, listener: MakeListener
) -> None:
    """A sensor that speaks MQTT 3.1.1 sends no properties."""
    async with listener(broker.url) as client:
        await client.wait_connected(60)
        await client.subscribe({topic_prefix: 1})
        command = [
            "mosquitto_pub",
            "-V",
            "mqttv311",
            "-p",
            str(broker.port),
            "-t",
            topic_prefix,
            "-m",
            "old",
            "-q",
            "1",
        ]
        await asyncio.to_thread(subprocess.run, command, check=True)
        assert await client.receive(1) == [b"old"]

    assert client.messages[0].properties.content_type == ""


@pytest.mark.parametrize("send_will", [False, True])
async def test_closing_publishes_the_will_only_on_request(
    broker: Mosquitto, topic_prefix: str, listener: MakeListener, send_will: bool
) -> None:
    will = Publication(topic_prefix, b"dead", qos=1, properties=encode_properties([(Property.USER, ("session", "7"))]))
    async with listener(broker.url) as witness:
        await witness.wait_connected(60)
        await witness.subscribe({topic_prefix: 1})
        async with listener(broker.url, will=will) as client:
            await client.wait_connected(60)
            await client.close(send_will=send_will)
        await witness.publish_and_wait(topic_prefix, b"end")
        payloads = await witness.receive(2 if send_will else 1)

    assert payloads == ([b"dead", b"end"] if send_will else [b"end"])
    if send_will:
        assert ("session", "7") in witness.messages[0].properties.user_properties


async def test_a_unix_socket_works(tmp_path: Path, listener: MakeListener) -> None:
    path = tmp_path / "bus.sock"
    with Mosquitto(unix_socket=path):
        async with listener(f"unix://{path}") as client:
            await client.wait_connected(60)
            await client.subscribe({"a": 1})
            await client.publish_and_wait("a", b"x" * 100_000)
            assert await client.receive(1) == [b"x" * 100_000]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    folder = tmp_path_factory.mktemp("tls")
    ca, stranger = trustme.CA(), trustme.CA()
    server, client = ca.issue_cert("localhost", "127.0.0.1"), ca.issue_cert("node-1")
    ca.cert_pem.write_to_path(folder / "ca.pem")
    stranger.cert_pem.write_to_path(folder / "stranger.pem")
    for name, cert in (("server", server), ("client", client)):
        cert.private_key_pem.write_to_path(folder / f"{name}.key")
        cert.cert_chain_pems[0].write_to_path(folder / f"{name}.pem")
    files = TlsFiles(folder / "ca.pem", folder / "server.pem", folder / "server.key", require_certificate=True)
    return files, folder / "client.pem", folder / "client.key", folder / "stranger.pem"


async def test_tls_with_a_client_certificate(authority: Authority, listener: MakeListener) -> None:
    files, cert, key, _ = authority
    with Mosquitto(tls=files) as broker:
        async with listener(broker.url, ca_file=files.ca_file, cert_file=cert, key_file=key) as client:
            await client.wait_connected(60)
            await client.subscribe({"a": 1})
            for size in (10, 1_000_000):
                await client.publish_and_wait("a", b"x" * size)
            assert [len(payload) for payload in await client.receive(2)] == [10, 1_000_000]


async def test_a_missing_client_certificate_fails_with_the_settings_to_check(
    authority: Authority, listener: MakeListener
) -> None:
    files, _, _, _ = authority
    with Mosquitto(tls=files) as broker:
        async with listener(broker.url, ca_file=files.ca_file) as client:
            error = await client.failure()

    assert "cert_file" in error.remedy


async def test_a_broker_with_an_unknown_authority_is_not_trusted(authority: Authority, listener: MakeListener) -> None:
    files, cert, key, stranger = authority
    with Mosquitto(tls=files) as broker:
        async with listener(broker.url, ca_file=stranger, cert_file=cert, key_file=key) as client:
            error = await client.failure()

    assert "not trusted" in str(error)
    assert "ca_file" in error.remedy


async def test_a_missing_certificate_file_is_a_configuration_error(
    authority: Authority, listener: MakeListener
) -> None:
    async with listener("mqtts://localhost:1", ca_file=Path("/nowhere/ca.pem")) as client:
        error = await client.failure()

    assert isinstance(error, ConfigError)
    assert "certificates" in str(error)


@pytest.mark.parametrize("url", ["http://host", "mqtt://", "mqtt://host:99999", "unix://", "localhost:1883"])
def test_an_invalid_address_is_refused_at_once(url: str) -> None:
    with pytest.raises(ConfigError, match="address"):
        ClientOptions(url=url)


@pytest.fixture
def passwords(tmp_path: Path) -> Path:
    path = tmp_path / "passwords"
    subprocess.run(["mosquitto_passwd", "-b", "-c", str(path), "node", "right"], check=True, capture_output=True)
    return path


async def test_a_wrong_password_is_reported_as_the_cause_and_logged_once(
    passwords: Path, listener: MakeListener, eventually: Eventually
) -> None:
    with Mosquitto(config=["allow_anonymous false", f"password_file {passwords}"]) as broker:
        with capture_logs() as logs:
            async with listener(broker.url, username="node", password="wrong") as client:
                error = await client.failure()
                await eventually(lambda: broker.log.count("disconnected, not authorised") >= 4)
        async with listener(broker.url, username="node", password="right") as client:
            await client.wait_connected(60)

    assert "password" in error.remedy
    assert "right" not in str(error)
    assert len([entry for entry in logs if entry["event"] == "broker-disconnected"]) == 1


async def test_a_broker_that_starts_late_is_connected_to(listener: MakeListener) -> None:
    broker = Mosquitto()
    try:
        broker.start()
        broker.stop()
        async with listener(broker.url) as client:
            assert "refused the connection" in str(await client.failure())
            await client.subscribe({"a": 1})  # made on the next link
            client.publish("a", b"waited", qos=1)
            broker.restart()
            assert await client.receive(1) == [b"waited"]
    finally:
        broker.close()


async def test_a_refused_subscription_raises_and_is_dropped(
    mosquitto_with_acl: Mosquitto, listener: MakeListener
) -> None:
    async with listener(mosquitto_with_acl.url, username="node", password="pass") as client:
        await client.wait_connected(60)
        with pytest.raises(BusError, match=r"secret/# \(not authorised\)") as caught:
            await client.subscribe({"secret/#": 1, "open/#": 1})
        await client.publish_and_wait("open/a", b"fine")
        assert await client.receive(1) == [b"fine"]

    assert "ACL" in caught.value.remedy


async def test_a_subscription_refused_on_connect_is_reported_until_it_is_granted(
    mosquitto_with_acl: Mosquitto, listener: MakeListener, eventually: Eventually
) -> None:
    """No caller awaits the reply then, so the node itself must report that it receives nothing."""
    with FaultProxy("127.0.0.1", mosquitto_with_acl.port) as proxy:
        client = listener(proxy.url, username="node", password="pass")
        await client.subscribe({"secret/#": 1, "open/#": 1})
        async with client:
            await client.wait_connected(60)
            assert client.refused == {"secret/#": "not authorised"}
            set_acl(mosquitto_with_acl, "addRoleACL open subscribePattern secret/# allow")
            proxy.drop()  # unless the broker already closed the link because the ACL changed
            await eventually(lambda: client.reconnects and client.connected)
            assert client.refused == {}


async def test_an_unsubscribed_filter_is_no_longer_reported_as_refused(
    mosquitto_with_acl: Mosquitto, listener: MakeListener
) -> None:
    client = listener(mosquitto_with_acl.url, username="node", password="pass")
    await client.subscribe({"secret/#": 1})
    async with client:
        await client.wait_connected(60)
        await client.unsubscribe(["secret/#"])
        assert client.refused == {}
        with pytest.raises(BusError):
            await client.subscribe({"secret/#": 1})
        assert client.refused == {}


async def test_a_refused_publish_raises_for_its_publisher(
    mosquitto_with_acl: Mosquitto, listener: MakeListener
) -> None:
    async with listener(mosquitto_with_acl.url, username="node", password="pass") as client:
        await client.wait_connected(60)
        with pytest.raises(BusError, match="not authorised") as caught:
            await client.publish_and_wait("secret/a", b"")

    assert "ACL" in caught.value.remedy
    assert client.outstanding == 0


@pytest.fixture
def mosquitto_with_acl(tmp_path: Path) -> Iterator[Mosquitto]:
    """Mosquitto's ACL files do not check subscriptions; its dynamic security plugin does."""
    plugins = [*Path("/usr/lib").glob("**/mosquitto_dynamic_security.so"), *Path("/opt/homebrew/lib").glob("*/x.so")]
    if not plugins:
        pytest.skip("Mosquitto's dynamic security plugin is not installed")
    state = tmp_path / "dynsec.json"
    subprocess.run(["mosquitto_ctrl", "dynsec", "init", str(state), "admin", "pass"], check=True, capture_output=True)
    with Mosquitto(
        config=[f"plugin {plugins[0]}", f"plugin_opt_config_file {state}", "allow_anonymous false"]
    ) as broker:
        for command in (
            "createRole open",
            "addRoleACL open publishClientSend open/# allow",
            "addRoleACL open subscribePattern open/# allow",
            "addRoleACL open publishClientReceive open/# allow",
            "createClient node -p pass",
            "addClientRole node open",
        ):
            set_acl(broker, command)
        yield broker


def set_acl(broker: Mosquitto, command: str) -> None:
    base = ["mosquitto_ctrl", "-p", str(broker.port), "-u", "admin", "-P", "pass", "dynsec"]
    subprocess.run([*base, *command.split()], check=True, capture_output=True, timeout=60)


async def test_unsubscribed_topics_deliver_nothing(
    broker: Mosquitto, topic_prefix: str, listener: MakeListener
) -> None:
    async with listener(broker.url) as client:
        await client.wait_connected(60)
        await client.subscribe({f"{topic_prefix}/a": 1, f"{topic_prefix}/b": 1})
        await client.unsubscribe([f"{topic_prefix}/a"])
        await client.publish_and_wait(f"{topic_prefix}/a", b"not delivered")
        await client.publish_and_wait(f"{topic_prefix}/b", b"delivered")
        assert await client.receive(1) == [b"delivered"]


async def test_the_broker_pauses_at_receive_maximum_until_acknowledged(
    broker: Mosquitto, topic_prefix: str, listener: MakeListener
) -> None:
    """Back-pressure: unfinished messages bound those in flight."""
    async with listener(broker.url) as sender, listener(broker.url, acks=False, receive_maximum=10) as client:
        await sender.wait_connected(60)
        await client.wait_connected(60)
        await client.subscribe({topic_prefix: 1})
        for number in range(11):
            sender.publish(topic_prefix, b"%d" % number, qos=1)
        await sender.flush(60)
        await client.receive(10)
        await _round_trip(client)
        assert len(client.messages) == 10

        client.ack(client.messages[0])
        await client.receive(11)


async def _round_trip(client: Any) -> None:
    """Wait until the broker has handled everything sent so far and its replies have arrived."""
    await client.subscribe({"$SYS/nothing": 0})
    await client.unsubscribe(["$SYS/nothing"])


async def test_an_oversized_payload_is_skipped_and_marked(
    broker: Mosquitto, topic_prefix: str, listener: MakeListener
) -> None:
    async with listener(broker.url, max_payload_bytes=1000) as client:
        await client.wait_connected(60)
        await client.subscribe({topic_prefix: 1})
        await client.publish_and_wait(topic_prefix, b"x" * 5_000_000)
        await client.publish_and_wait(topic_prefix, b"x" * 1001)
        await client.publish_and_wait(topic_prefix, b"x" * 1000)
        assert [len(payload) for payload in await client.receive(3)] == [0, 0, 1000]

    assert [message.oversized for message in client.messages] == [5_000_000, 1001, None]
    assert client.reconnects == 0


async def test_a_message_above_the_broker_limit_is_refused_before_sending(listener: MakeListener) -> None:
    """Sending it would cost the link."""
    with Mosquitto(config=["max_packet_size 1000"]) as broker:
        async with listener(broker.url) as client:
            await client.wait_connected(60)
            for qos in (0, 1):
                with pytest.raises(BusError, match="exceeds the broker's limit") as caught:
                    await client.publish_and_wait("a", b"x" * 2000, qos=qos)
            assert client.connected

    assert "max_packet_size" in caught.value.remedy


@pytest.mark.parametrize("topic", ["", "a/+", "a/#", "a\0b", "x" * 70_000])
async def test_an_invalid_topic_is_refused_at_once(broker: Mosquitto, listener: MakeListener, topic: str) -> None:
    async with listener(broker.url) as client:
        with pytest.raises(BusError, match="Cannot publish"):
            client.publish(topic, b"")


async def test_of_messages_published_together_those_above_the_broker_limit_are_not_sent(listener: MakeListener) -> None:
    with Mosquitto(config=["max_packet_size 100"]) as broker:
        async with listener(broker.url) as client:
            await client.subscribe({"x": 0})
            await client.wait_connected(60)
            client.publish_all("x", [(b"1", b""), (bytes(200), b""), (b"2" * 60, b""), (b"3" * 60, b"")])
            assert await client.receive(3) == [b"1", b"2" * 60, b"3" * 60]
            assert client.outstanding == 0


@pytest.mark.parametrize("topic", ["", "a/+", "a\0b"])
async def test_of_messages_published_together_to_a_bad_topic_none_is_sent(
    broker: Mosquitto, listener: MakeListener, topic: str
) -> None:
    async with listener(broker.url) as client:
        await client.wait_connected(60)
        with pytest.raises(BusError, match="Cannot publish to"):
            client.publish_all(topic, [(b"1", b""), (b"2", b"")])
        assert client.outstanding == 0


async def test_messages_published_together_are_lost_without_a_link(listener: MakeListener) -> None:
    async with listener("mqtt://127.0.0.1:1") as client:
        client.publish_all("a", [(b"1", b""), (b"2", b"")])
        assert client.outstanding == 0


async def test_a_qos_0_publish_fails_without_a_link(listener: MakeListener) -> None:
    async with listener("mqtt://127.0.0.1:1") as client:
        with pytest.raises(BusError, match="Not connected"):
            await client.publish_and_wait("a", b"", qos=0)


async def test_a_handler_that_raises_does_not_end_the_link(
    broker: Mosquitto, topic_prefix: str, listener: MakeListener, eventually: Eventually
) -> None:
    def fail(messages: list[Message]) -> None:
        raise RuntimeError("a bug")

    async with listener(broker.url) as client:
        client._session.on_messages = fail
        await client.wait_connected(60)
        await client.subscribe({topic_prefix: 0})
        await client.publish_and_wait(topic_prefix, b"1")
        await eventually(lambda: client.handler_errors == 1)
        await client.publish_and_wait(topic_prefix, b"2")
        await eventually(lambda: client.handler_errors == 2)
        assert client.reconnects == 0


async def test_closing_fails_publishes_that_were_not_acknowledged(listener: MakeListener) -> None:
    outcomes: list[Exception | None] = []
    async with listener("mqtt://127.0.0.1:1") as client:
        client.publish("a", b"", qos=1, done=outcomes.append)

    assert [type(outcome) for outcome in outcomes] == [BusError]


async def test_closing_sends_queued_publishes(broker: Mosquitto, topic_prefix: str, listener: MakeListener) -> None:
    async with listener(broker.url) as witness:
        await witness.wait_connected(60)
        await witness.subscribe({topic_prefix: 1})
        async with listener(broker.url) as client:
            await client.wait_connected(60)
            for number in range(200):
                client.publish(topic_prefix, b"%d" % number, qos=number % 2)
        await witness.receive(200)


async def test_counters_match_the_messages_sent(broker: Mosquitto, topic_prefix: str, listener: MakeListener) -> None:
    async with listener(broker.url) as client:
        await client.wait_connected(60)
        await client.subscribe({topic_prefix: 1})
        for _ in range(10):
            await client.publish_and_wait(topic_prefix, b"x" * 100)
        await client.receive(10)
        assert (client.sent, client.received, client.reconnects, client.redelivered) == (10, 10, 0, 0)
        assert client.bytes_sent > 1000
        assert client.bytes_received > 1000


def test_the_client_runs_on_uvloop(broker: Mosquitto, topic_prefix: str, listener: MakeListener) -> None:
    async def talk() -> list[bytes]:
        async with listener(broker.url) as client:
            await client.wait_connected(60)
            await client.subscribe({topic_prefix: 1})
            for size in (1, 100_000):
                await client.publish_and_wait(topic_prefix, b"x" * size)
            payloads: list[bytes] = await client.receive(2)
            return payloads

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert [len(payload) for payload in runner.run(talk())] == [1, 100_000]


async def test_a_client_id_assigned_by_the_broker_keeps_the_session(
    mosquitto: Mosquitto, listener: MakeListener, eventually: Eventually
) -> None:
    async with listener(mosquitto.url) as client:
        await client.wait_connected(60)
        await client.subscribe({"a": 1})
        mosquitto.restart()
        await eventually(lambda: client.reconnects == 1)
        await client.publish_and_wait("a", b"1")
        assert await client.receive(1) == [b"1"]
    names = {line.split(" as ")[1].split()[0] for line in mosquitto.log.splitlines() if "New client connected" in line}
    assert len(names) == 1


async def test_a_client_that_never_connected_closes_quickly(listener: MakeListener) -> None:
    async with listener("mqtt://127.0.0.1:1") as client:
        with contextlib.suppress(BusError):
            await client.wait_connected(0.05)
    assert client.states[-1] == (False, "closed")
