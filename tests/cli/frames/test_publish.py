"""`hedgerow publish` against a real broker: what arrives, the summary, the messages."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import time
import wave
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import aiomqtt
import orjson
import pytest
import trustme
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from hedgerow.cli.frames.publish import _Throttle
from hedgerow.cli.frames.sources import FileFrame
from hedgerow.testing import Mosquitto
from hedgerow.testing.mosquitto import TlsFiles


async def receive(client: aiomqtt.Client, count: int) -> list[aiomqtt.Message]:
    async with asyncio.timeout(60):
        return [await anext(client.messages) for _ in range(count)]


def user_properties(message: Any) -> dict[str, str]:
    return dict(message.properties.UserProperty)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("left", "right"):
        (folder / f"{name}.jpg").write_bytes(b"\xff\xd8" + name.encode())
    return folder


async def test_a_frame_arrives_with_type_id_and_time(
    listen, in_background, broker, topic_prefix: str, photos: Path
) -> None:
    async with listen(f"{topic_prefix}/#") as client:
        before = time.time()
        result = await in_background(
            "publish", photos / "left.jpg", "-t", f"{topic_prefix}/door", "--broker", broker.url
        )
        (message,) = await receive(client, 1)

    assert result.code == 0
    assert result.out.startswith(f"Sent 1 frame (6 B) to {topic_prefix}/door in ")
    assert message.payload == b"\xff\xd8left"
    assert message.properties.ContentType == "image/jpeg"
    assert before - 1 <= datetime.fromisoformat(user_properties(message)["time"]).timestamp() <= time.time() + 1


async def test_ids_are_unique(listen, in_background, broker, topic_prefix: str, photos: Path) -> None:
    """A file sent again is another frame."""
    async with listen(f"{topic_prefix}/#") as client:
        for _ in range(2):
            await in_background("publish", photos, "-t", f"{topic_prefix}/x", "--broker", broker.url, "--loop", "3")
        messages = await receive(client, 12)

    assert len({user_properties(message)["id"] for message in messages}) == 12


async def test_a_topic_may_contain_file_name_and_number(
    listen, in_background, broker, topic_prefix: str, photos: Path
) -> None:
    async with listen(f"{topic_prefix}/#") as client:
        result = await in_background(
            "publish",
            photos,
            "-t",
            f"{topic_prefix}/{{name}}/{{index}}",
            "--broker",
            broker.url,
            "--loop",
            "2",
            "--json",
        )
        topics = [str(message.topic).removeprefix(f"{topic_prefix}/") for message in await receive(client, 4)]

    assert topics == ["left/0", "right/1", "left/2", "right/3"]
    assert {key: result.json[key] for key in ("sent", "refused", "unheard", "topics")} == {
        "sent": 4,
        "refused": 0,
        "unheard": 0,
        "topics": 4,
    }


async def test_frames_keep_their_order_with_many_in_flight(
    listen, in_background, broker, topic_prefix: str, tmp_path: Path
) -> None:
    lines = tmp_path / "t.jsonl"
    lines.write_text("".join(f"{number}\n" for number in range(500)))
    async with listen(topic_prefix) as client:
        result = await in_background("publish", lines, "-t", topic_prefix, "--broker", broker.url, "--json")
        payloads = [int(message.payload) for message in await receive(client, 500)]

    assert payloads == list(range(500))
    assert result.json["sent"] == 500


async def test_count_ends_an_endless_loop(listen, in_background, broker, topic_prefix: str, photos: Path) -> None:
    async with listen(topic_prefix) as client:
        result = await in_background(
            "publish", photos, "-t", topic_prefix, "--broker", broker.url, "--loop", "forever", "--count", "5", "--json"
        )
        await receive(client, 5)

    assert result.json["sent"] == 5


async def test_sound_is_sent_in_chunks_with_rate_and_channels(
    listen, in_background, broker, topic_prefix: str, tmp_path: Path
) -> None:
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(bytes(range(256)) * 8)
    async with listen(topic_prefix) as client:
        await in_background(
            "publish", tmp_path / "a.wav", "-t", topic_prefix, "--broker", broker.url, "--chunk-ms", "16"
        )
        chunks = await receive(client, 4)

    assert b"".join(chunk.payload for chunk in chunks) == bytes(range(256)) * 8
    assert {chunk.properties.ContentType for chunk in chunks} == {"audio/l16;rate=16000;channels=1"}


def test_frames_without_a_subscriber_are_reported(hedgerow, broker, topic_prefix: str, photos: Path) -> None:
    """The usual first mistake: a topic that no pipeline subscribes to."""
    result = hedgerow("publish", photos, "-t", topic_prefix, "--broker", broker.url)

    assert result.code == 0
    assert result.err == (
        "No client subscribes to the topic of 2 frames. Check that a node is running and that "
        "the `subscribe` of one of its pipelines matches the topic.\n"
    )


def test_stdin_is_one_frame(hedgerow, broker, topic_prefix: str) -> None:
    result = hedgerow(
        "publish", "-", "-t", topic_prefix, "--content-type", "text/plain", "--broker", broker.url, input=b"hello"
    )

    assert result.out.startswith(f"Sent 1 frame (5 B) to {topic_prefix}")


def test_refused_frames_are_not_counted_as_sent(hedgerow, tmp_path: Path, photos: Path) -> None:
    """An acknowledgement may be a refusal (MQTT 5 §3.4.2.1)."""
    (tmp_path / "acl").write_text("topic read #\n")
    with Mosquitto(config=[f"acl_file {tmp_path}/acl"]) as broker:
        result = hedgerow("publish", photos / "left.jpg", "-t", "plant/door", "--broker", broker.url)

    assert result.code == 3
    assert result.out.startswith("Sent 0 frames")
    assert result.err == (
        "error: The broker refused 1 frame: not authorized\n"
        "  → Check the broker's access list: which topics may this user publish to?\n"
    )


def test_a_frame_too_large_for_the_broker_is_an_error_at_once(hedgerow, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(bytes(5000))
    with Mosquitto(config=["max_packet_size 1000"]) as broker:
        result = hedgerow("publish", tmp_path / "big", "-t", "x", "--broker", broker.url)

    assert result.code == 3
    assert result.err == (
        "error: A message of 5.0 kB exceeds the broker's limit of 1.0 kB\n"
        "  → Send smaller messages, or raise `max_packet_size` in the broker's configuration.\n"
    )


async def test_every_frame_arrives_in_order_across_a_restart_of_the_broker(
    in_background, mosquitto: Mosquitto, photos: Path
) -> None:
    """A subscriber with a session misses nothing; duplicates have the same id."""
    await _receive_queued(mosquitto, "plant/#")
    command = ("publish", photos, "-t", "plant/{name}", "--broker", mosquitto.url, "--loop", "400", "--rate", "250")
    async with aiomqtt.Client("127.0.0.1", mosquitto.port, protocol=aiomqtt.ProtocolVersion.V5) as observer:
        await observer.subscribe("plant/#")
        publishing = in_background(*command, "--json")
        await receive(observer, 20)
        await asyncio.to_thread(mosquitto.restart)
    result = await publishing

    numbers: dict[str, list[int]] = {"left": [], "right": []}
    for message in await _receive_queued(mosquitto, "plant/#"):
        received = numbers[str(message.topic).removeprefix("plant/")]
        if (number := int(user_properties(message)["id"].partition("-")[2])) not in received:
            received.append(number)
    assert numbers == {"left": list(range(0, 800, 2)), "right": list(range(1, 800, 2))}
    assert (result.code, result.json["sent"], result.json["lost"]) == (0, 800, 0)
    assert result.err.startswith("broker unavailable, retrying…\nreconnected, ")
    assert result.err.count("broker unavailable") == 1


async def _receive_queued(broker: Mosquitto, topic: str) -> list[aiomqtt.Message]:
    """Subscribe with a session, and return the messages that the broker has queued for it."""
    expiry = Properties(PacketTypes.CONNECT)
    expiry.SessionExpiryInterval = 600
    client = aiomqtt.Client(
        "127.0.0.1",
        broker.port,
        identifier="session",
        protocol=aiomqtt.ProtocolVersion.V5,
        clean_start=False,
        properties=expiry,
    )
    queued = []
    async with client:
        await client.subscribe([(topic, 1), ("end", 1)])
        await client.publish("end", qos=1)
        async for message in client.messages:
            if str(message.topic) == "end":
                return queued
            queued.append(message)
    raise AssertionError("the broker closed the connection")


def _start_endless(start, broker: Mosquitto, file: Path, *options: object) -> subprocess.Popen[str]:
    """Start publishing a file a hundred times a second, and wait for the first frames."""
    before = broker.log.count("Received PUBLISH")
    process = start("publish", file, "-t", "x", "--broker", broker.url, "--rate", "100", "--loop", "forever", *options)
    while broker.log.count("Received PUBLISH") < before + 5:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    return process


@pytest.fixture
def verbose_broker() -> Iterator[Mosquitto]:
    """A broker that logs every message."""
    with Mosquitto(config=["log_type all"]) as broker:
        yield broker


def test_at_qos_0_frames_due_during_an_outage_are_lost_and_counted(
    start, verbose_broker: Mosquitto, photos: Path
) -> None:
    process = _start_endless(start, verbose_broker, photos / "left.jpg", "--qos", "0", "--count", "500", "--json")
    verbose_broker.stop()
    assert process.stderr.readline() == "broker unavailable, retrying…\n"
    verbose_broker.start()
    out, err = process.communicate(timeout=60)

    summary = orjson.loads(out)
    assert process.returncode == 0
    assert summary["lost"] > 0
    assert summary["sent"] + summary["lost"] == 500
    assert err.startswith("reconnected, ")


@pytest.mark.parametrize(("give_up_after", "first"), [("0", []), ("0.3", ["broker unavailable, retrying…"])])
def test_a_long_outage_ends_publishing(
    start, verbose_broker: Mosquitto, photos: Path, give_up_after: str, first: list[str]
) -> None:
    """With one error, and no traceback of the frames in flight."""
    process = _start_endless(start, verbose_broker, photos / "left.jpg", "--give-up-after", give_up_after)
    verbose_broker.kill()
    out, err = process.communicate(timeout=60)

    assert process.returncode == 3
    assert out.startswith("Sent ")
    *before, error, remedy = [line for line in err.splitlines() if not line.startswith(("Lost", "No client"))]
    assert before == first
    assert error.startswith("error: ")
    assert verbose_broker.url in error
    assert remedy.startswith("  → ")


def test_ctrl_c_ends_publishing_during_an_outage(start, verbose_broker: Mosquitto, photos: Path) -> None:
    process = _start_endless(start, verbose_broker, photos / "left.jpg", "--give-up-after", "600")
    verbose_broker.kill()
    assert process.stderr.readline() == "broker unavailable, retrying…\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)

    assert process.returncode == 130
    assert out.startswith("Sent ")
    assert "Traceback" not in err


def test_a_broker_unreachable_from_the_start_is_an_error(hedgerow, photos: Path) -> None:
    """The address may be wrong: waiting would not help."""
    result = hedgerow("publish", photos, "-t", "x", "--broker", "mqtt://127.0.0.1:1")

    assert result.code == 3
    assert result.err.startswith("error: mqtt://127.0.0.1:1 refused the connection: nothing listens there")


def test_the_password_is_taken_from_file_or_environment(
    hedgerow, tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run(["mosquitto_passwd", "-c", "-b", tmp_path / "users", "press", "sesame"], check=True)
    with Mosquitto(config=["allow_anonymous false", f"password_file {tmp_path}/users"]) as broker:
        refused = hedgerow("publish", photos, "-t", "x", "--broker", broker.url)
        (tmp_path / "secret").write_text("sesame\n")
        (tmp_path / "node.yaml").write_text(
            f"broker: {{url: '{broker.url}', username: press, password_file: {tmp_path}/secret}}\n"
        )
        from_file = hedgerow("publish", photos, "-t", "x", "--config", tmp_path / "node.yaml")
        monkeypatch.setenv("HEDGEROW_BROKER__URL", broker.url)
        monkeypatch.setenv("HEDGEROW_BROKER__USERNAME", "press")
        monkeypatch.setenv("HEDGEROW_BROKER__PASSWORD", "sesame")
        from_environment = hedgerow("publish", photos, "-t", "x")

    assert (refused.code, from_file.code, from_environment.code) == (3, 0, 0)
    assert f"error: {broker.url} refused the connection: not authorised\n  → No user name was sent" in refused.err
    assert "HEDGEROW_BROKER__" in refused.err


def test_tls_needs_the_ca_that_signed_the_brokers_certificate(
    hedgerow, tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ca = trustme.CA()
    issued = ca.issue_cert("localhost")
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    issued.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    issued.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    files = TlsFiles(tmp_path / "ca.pem", tmp_path / "cert.pem", tmp_path / "key.pem")
    with Mosquitto(tls=files) as broker:
        without_ca = hedgerow("publish", photos, "-t", "x", "--broker", broker.url)
        monkeypatch.setenv("HEDGEROW_BROKER__TLS__CA_FILE", str(tmp_path / "ca.pem"))
        with_ca = hedgerow("publish", photos, "-t", "x", "--broker", broker.url)

    assert (without_ca.code, with_ca.code) == (3, 0)
    assert "is not trusted" in without_ca.err
    assert "  → Set `tls: {ca_file}` to the authority that signed it." in without_ca.err
    assert "HEDGEROW_BROKER__" in without_ca.err


def test_publishing_works_over_a_unix_socket(hedgerow, tmp_path: Path, photos: Path) -> None:
    with Mosquitto(unix_socket=tmp_path / "s") as _:
        assert hedgerow("publish", photos, "-t", "x", "--broker", f"unix://{tmp_path}/s").code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-t", "a/+"), "'a/+' is not a topic to publish to"),
        (("-t", "a", "--loop", "0"), "--loop 0 is neither a number nor `forever`"),
        (("-t", "a", "--loop", "ever"), "--loop ever is neither a number nor `forever`"),
        (("-t", "a", "--broker", "localhost"), "'localhost' is not a broker address"),
        (("-t", "a", "--config", "/no/such.yaml"), "/no/such.yaml:1: cannot be read"),
    ],
)
def test_an_invalid_command_line_is_explained(hedgerow, photos: Path, arguments: tuple[str, ...], message: str) -> None:
    result = hedgerow("publish", photos, *arguments)

    assert result.code == 2
    assert result.err.startswith(f"error: {message}")
    assert "  → " in result.err


class _Clock:
    """A clock that only sleeping advances."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0

        async def sleep(seconds: float) -> None:
            self.now += seconds

        monkeypatch.setattr("hedgerow.cli.frames.publish.asyncio.sleep", sleep)
        monkeypatch.setattr("hedgerow.cli.frames.publish.time.monotonic", lambda: self.now)


async def _send_times(throttle: _Throttle, due: list[float | None], clock: _Clock) -> list[float]:
    times = []
    for index, due_s in enumerate(due):
        await throttle.wait(index, FileFrame(b"", "", "", due_s))
        times.append(round(clock.now - 1000, 3))
    return times


async def test_recordings_are_sent_at_their_own_pace_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = _Clock(monkeypatch)

    assert await _send_times(_Throttle(None, True), [0.1, 0.2, 0.1, 0.2], clock) == [0.1, 0.2, 0.3, 0.4]


async def test_a_rate_overrides_the_pace_of_a_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = _Clock(monkeypatch)

    assert await _send_times(_Throttle(2, True), [0.1, None, 0.1], clock) == [0, 0.5, 1.0]


async def test_a_late_frame_is_sent_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = _Clock(monkeypatch)
    throttle = _Throttle(10, True)
    await _send_times(throttle, [None], clock)
    clock.now += 0.25

    assert await _send_times(throttle, [None, None, None, None], clock) == [0.25, 0.25, 0.25, 0.3]


async def test_without_a_pace_frames_are_sent_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = _Clock(monkeypatch)

    assert await _send_times(_Throttle(None, False), [0.1, 0.2], clock) == [0, 0]
