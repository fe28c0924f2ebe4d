"""`hedgerow publish` against a real broker: what arrives, what is counted, what is told."""

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


async def arrivals(client: aiomqtt.Client, count: int) -> list[aiomqtt.Message]:
    async with asyncio.timeout(60):
        return [await anext(client.messages) for _ in range(count)]


def user(message: Any) -> dict[str, str]:
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
        began = time.time()
        said = await in_background("publish", photos / "left.jpg", "-t", f"{topic_prefix}/door", "--broker", broker.url)
        (message,) = await arrivals(client, 1)

    assert said.code == 0
    assert said.out.startswith(f"Sent 1 frame (6 B) to {topic_prefix}/door in ")
    assert message.payload == b"\xff\xd8left"
    assert message.properties.ContentType == "image/jpeg"
    assert began - 1 <= datetime.fromisoformat(user(message)["time"]).timestamp() <= time.time() + 1


async def test_ids_are_never_used_twice(listen, in_background, broker, topic_prefix: str, photos: Path) -> None:
    """The same file sent again is another frame."""
    async with listen(f"{topic_prefix}/#") as client:
        for _ in range(2):
            await in_background("publish", photos, "-t", f"{topic_prefix}/x", "--broker", broker.url, "--loop", "3")
        messages = await arrivals(client, 12)

    assert len({user(message)["id"] for message in messages}) == 12


async def test_a_topic_may_name_file_and_number(listen, in_background, broker, topic_prefix: str, photos: Path) -> None:
    async with listen(f"{topic_prefix}/#") as client:
        said = await in_background(
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
        topics = [str(message.topic).removeprefix(f"{topic_prefix}/") for message in await arrivals(client, 4)]

    assert topics == ["left/0", "right/1", "left/2", "right/3"]
    assert {key: said.json[key] for key in ("sent", "refused", "unheard", "topics")} == {
        "sent": 4,
        "refused": 0,
        "unheard": 0,
        "topics": 4,
    }


async def test_frames_keep_their_order_with_many_under_way(
    listen, in_background, broker, topic_prefix: str, tmp_path: Path
) -> None:
    lines = tmp_path / "t.jsonl"
    lines.write_text("".join(f"{number}\n" for number in range(500)))
    async with listen(topic_prefix) as client:
        said = await in_background("publish", lines, "-t", topic_prefix, "--broker", broker.url, "--json")
        payloads = [int(message.payload) for message in await arrivals(client, 500)]

    assert payloads == list(range(500))
    assert said.json["sent"] == 500


async def test_count_ends_what_would_go_on_for_ever(
    listen, in_background, broker, topic_prefix: str, photos: Path
) -> None:
    async with listen(topic_prefix) as client:
        said = await in_background(
            "publish", photos, "-t", topic_prefix, "--broker", broker.url, "--loop", "forever", "--count", "5", "--json"
        )
        await arrivals(client, 5)

    assert said.json["sent"] == 5


async def test_sound_is_chunks_with_rate_and_channels(
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
        chunks = await arrivals(client, 4)

    assert b"".join(chunk.payload for chunk in chunks) == bytes(range(256)) * 8
    assert {chunk.properties.ContentType for chunk in chunks} == {"audio/l16;rate=16000;channels=1"}


def test_that_nobody_subscribes_is_told(hedgerow, broker, topic_prefix: str, photos: Path) -> None:
    """The usual first mistake: a topic that no pipeline takes in."""
    said = hedgerow("publish", photos, "-t", topic_prefix, "--broker", broker.url)

    assert said.code == 0
    assert said.err == (
        "Nobody subscribes to what 2 frames went to; is a node running? "
        "Its pipelines' `subscribe` must take in the topic.\n"
    )


def test_what_comes_on_stdin_is_one_frame(hedgerow, broker, topic_prefix: str) -> None:
    said = hedgerow(
        "publish", "-", "-t", topic_prefix, "--content-type", "text/plain", "--broker", broker.url, input=b"hello"
    )

    assert said.out.startswith(f"Sent 1 frame (5 B) to {topic_prefix}")


def test_what_the_broker_refuses_is_not_counted_as_sent(hedgerow, tmp_path: Path, photos: Path) -> None:
    """An acknowledgement may be a refusal (MQTT 5 §3.4.2.1)."""
    (tmp_path / "acl").write_text("topic read #\n")
    with Mosquitto(config=[f"acl_file {tmp_path}/acl"]) as broker:
        said = hedgerow("publish", photos / "left.jpg", "-t", "plant/door", "--broker", broker.url)

    assert said.code == 3
    assert said.out.startswith("Sent 0 frames")
    assert said.err == (
        "error: The broker refused 1 frame: not authorized\n"
        "  → See what the broker's access control lets this user publish.\n"
    )


def test_a_frame_too_large_for_the_broker_is_told_at_once(hedgerow, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(bytes(5000))
    with Mosquitto(config=["max_packet_size 1000"]) as broker:
        said = hedgerow("publish", tmp_path / "big", "-t", "x", "--broker", broker.url)

    assert said.code == 3
    assert said.err == (
        "error: A message of 5.0 kB exceeds the broker's limit of 1.0 kB\n"
        "  → Send smaller messages, or raise `max_packet_size` in the broker's configuration.\n"
    )


async def test_every_frame_arrives_and_in_order_though_the_broker_restarts(
    in_background, mosquitto: Mosquitto, photos: Path
) -> None:
    """A subscriber with a session misses nothing; what comes twice has the id it had."""
    await _held(mosquitto, "plant/#")
    command = ("publish", photos, "-t", "plant/{name}", "--broker", mosquitto.url, "--loop", "400", "--rate", "400")
    async with aiomqtt.Client("127.0.0.1", mosquitto.port, protocol=aiomqtt.ProtocolVersion.V5) as witness:
        await witness.subscribe("plant/#")
        publishing = in_background(*command, "--json")
        await arrivals(witness, 100)
        await asyncio.to_thread(mosquitto.restart)
    said = await publishing

    numbers: dict[str, list[int]] = {"left": [], "right": []}
    for message in await _held(mosquitto, "plant/#"):
        of_topic = numbers[str(message.topic).removeprefix("plant/")]
        if (number := int(user(message)["id"].partition("-")[2])) not in of_topic:
            of_topic.append(number)
    assert numbers == {"left": list(range(0, 800, 2)), "right": list(range(1, 800, 2))}
    assert (said.code, said.json["sent"], said.json["lost"]) == (0, 800, 0)
    assert said.err.startswith("broker away, trying again…\nbroker back, ")
    assert said.err.count("broker away") == 1


async def _held(broker: Mosquitto, topic: str) -> list[aiomqtt.Message]:
    """What the broker has kept for a subscriber with a session, until nothing more comes; subscribed from now on."""
    expiry = Properties(PacketTypes.CONNECT)
    expiry.SessionExpiryInterval = 600
    client = aiomqtt.Client(
        "127.0.0.1",
        broker.port,
        identifier="keeper",
        protocol=aiomqtt.ProtocolVersion.V5,
        clean_start=False,
        properties=expiry,
    )
    kept = []
    async with client:
        await client.subscribe([(topic, 1), ("end", 1)])
        await client.publish("end", qos=1)
        async for message in client.messages:
            if str(message.topic) == "end":
                return kept
            kept.append(message)
    raise AssertionError("the broker hung up")


def _goes_on(start, broker: Mosquitto, file: Path, *options: object) -> subprocess.Popen[str]:
    """Publishes a file a hundred times a second, and has begun to."""
    arrived = broker.log.count("Received PUBLISH")
    process = start("publish", file, "-t", "x", "--broker", broker.url, "--rate", "100", "--loop", "forever", *options)
    while broker.log.count("Received PUBLISH") < arrived + 5:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    return process


@pytest.fixture
def talkative() -> Iterator[Mosquitto]:
    """A broker that logs every message."""
    with Mosquitto(config=["log_type all"]) as broker:
        yield broker


def test_at_qos_0_what_fell_due_while_the_broker_was_away_is_counted(start, talkative: Mosquitto, photos: Path) -> None:
    process = _goes_on(start, talkative, photos / "left.jpg", "--qos", "0", "--count", "300", "--json")
    talkative.stop()
    assert process.stderr.readline() == "broker away, trying again…\n"
    talkative.start()
    out, err = process.communicate(timeout=60)

    summary = orjson.loads(out)
    assert process.returncode == 0
    assert summary["lost"] > 0
    assert summary["sent"] + summary["lost"] == 300
    assert err.startswith("broker back, ")


@pytest.mark.parametrize(("patience", "first"), [("0", []), ("0.3", ["broker away, trying again…"])])
def test_a_broker_that_stays_away_is_given_up(
    start, talkative: Mosquitto, photos: Path, patience: str, first: list[str]
) -> None:
    """With one error that says so, and no traceback of the frames that were under way."""
    process = _goes_on(start, talkative, photos / "left.jpg", "--give-up-after", patience)
    talkative.kill()
    out, err = process.communicate(timeout=60)

    assert process.returncode == 3
    assert out.startswith("Sent ")
    *before, error, remedy = [line for line in err.splitlines() if not line.startswith(("Lost", "Nobody"))]
    assert before == first
    assert error.startswith("error: The ")
    assert remedy.startswith("  → ")


def test_ctrl_c_ends_it_while_the_broker_is_away(start, talkative: Mosquitto, photos: Path) -> None:
    process = _goes_on(start, talkative, photos / "left.jpg", "--give-up-after", "600")
    talkative.kill()
    assert process.stderr.readline() == "broker away, trying again…\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)

    assert process.returncode == 130
    assert out.startswith("Sent ")
    assert "Traceback" not in err


def test_a_broker_that_never_was_there_is_not_waited_for(hedgerow, photos: Path) -> None:
    """An address that is wrong would be waited for in vain."""
    said = hedgerow("publish", photos, "-t", "x", "--broker", "mqtt://127.0.0.1:1")

    assert said.code == 3
    assert said.err.startswith("error: The broker at mqtt://127.0.0.1:1 cannot be reached")


def test_a_broker_that_wants_a_password_gets_it_from_file_or_environment(
    hedgerow, tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run(["mosquitto_passwd", "-c", "-b", tmp_path / "users", "press", "sesame"], check=True)
    with Mosquitto(config=["allow_anonymous false", f"password_file {tmp_path}/users"]) as broker:
        refused = hedgerow("publish", photos, "-t", "x", "--broker", broker.url)
        (tmp_path / "secret").write_text("sesame\n")
        (tmp_path / "node.yaml").write_text(
            f"broker: {{url: '{broker.url}', username: press, password_file: {tmp_path}/secret}}\n"
        )
        by_file = hedgerow("publish", photos, "-t", "x", "--config", tmp_path / "node.yaml")
        monkeypatch.setenv("HEDGEROW_BROKER__URL", broker.url)
        monkeypatch.setenv("HEDGEROW_BROKER__USERNAME", "press")
        monkeypatch.setenv("HEDGEROW_BROKER__PASSWORD", "sesame")
        by_environment = hedgerow("publish", photos, "-t", "x")

    assert (refused.code, by_file.code, by_environment.code) == (3, 0, 0)
    assert f"error: The broker at {broker.url} refuses the connection: Not authorized\n" in refused.err


def test_tls_wants_the_authority_that_signed(
    hedgerow, tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    issued.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    issued.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    files = TlsFiles(tmp_path / "ca.pem", tmp_path / "cert.pem", tmp_path / "key.pem")
    with Mosquitto(tls=files) as broker:
        unknown = hedgerow("publish", photos, "-t", "x", "--broker", broker.url)
        monkeypatch.setenv("HEDGEROW_BROKER__TLS__CA_FILE", str(tmp_path / "ca.pem"))
        known = hedgerow("publish", photos, "-t", "x", "--broker", broker.url)

    assert (unknown.code, known.code) == (3, 0)
    assert "is not trusted" in unknown.err
    assert "  → Name the CA that signed it in `broker.tls.ca_file` or HEDGEROW_BROKER__TLS__CA_FILE.\n" in unknown.err


def test_a_unix_socket_does_as_well(hedgerow, tmp_path: Path, photos: Path) -> None:
    with Mosquitto(unix_socket=tmp_path / "s") as _:
        assert hedgerow("publish", photos, "-t", "x", "--broker", f"unix://{tmp_path}/s").code == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("-t", "a/+"), "'a/+' is not a topic to publish to"),
        (("-t", "a", "--loop", "0"), "--loop 0 is neither a number nor `forever`"),
        (("-t", "a", "--loop", "ever"), "--loop ever is neither a number nor `forever`"),
        (("-t", "a", "--broker", "localhost"), "'localhost' is not a broker address"),
        (("-t", "a", "--config", "/no/such.yaml"), "/no/such.yaml:1: cannot be read"),
    ],
)
def test_a_wrong_command_line_is_explained(hedgerow, photos: Path, arguments: tuple[str, ...], told: str) -> None:
    said = hedgerow("publish", photos, *arguments)

    assert said.code == 2
    assert said.err.startswith(f"error: {told}")
    assert "  → " in said.err


class _Clock:
    """Time that passes only by waiting."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0

        async def sleep(seconds: float) -> None:
            self.now += seconds

        monkeypatch.setattr("hedgerow.cli.frames.publish.asyncio.sleep", sleep)
        monkeypatch.setattr("hedgerow.cli.frames.publish.time.monotonic", lambda: self.now)


async def _moments(pace: _Throttle, due: list[float | None], clock: _Clock) -> list[float]:
    moments = []
    for index, due_s in enumerate(due):
        await pace.wait(index, FileFrame(b"", "", "", due_s))
        moments.append(round(clock.now - 1000, 3))
    return moments


async def test_a_recording_is_sent_at_its_own_pace_and_the_next_one_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = _Clock(monkeypatch)

    assert await _moments(_Throttle(None, True), [0.1, 0.2, 0.1, 0.2], clock) == [0.1, 0.2, 0.3, 0.4]


async def test_a_rate_goes_before_a_recordings_own_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = _Clock(monkeypatch)

    assert await _moments(_Throttle(2, True), [0.1, None, 0.1], clock) == [0, 0.5, 1.0]


async def test_what_is_late_is_sent_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = _Clock(monkeypatch)
    pace = _Throttle(10, True)
    await _moments(pace, [None], clock)
    clock.now += 0.25

    assert await _moments(pace, [None, None, None, None], clock) == [0.25, 0.25, 0.25, 0.3]


async def test_without_a_pace_nothing_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = _Clock(monkeypatch)

    assert await _moments(_Throttle(None, False), [0.1, 0.2], clock) == [0, 0]
