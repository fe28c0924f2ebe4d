"""`hedgerow watch`: messages parsed, counted, and shown as lines, JSON or a table."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import aiomqtt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from tests.cli.terminals import COLOR, REDRAW, terminal

from hedgerow import Frame, FrameError
from hedgerow.cli.frames.message_board import Board, parse_message, summarise
from hedgerow.topics import Address, Channel
from hedgerow.wire.messages import (
    JSON,
    MSGPACK,
    Health,
    PipelineHealth,
    Status,
    dead_letter,
    encode_json,
    encode_msgpack,
    result_body,
)

NODE = Address("local", "site", "press")
HEAD = {"schema": "hedgerow.result/1", "node": str(NODE), "pipeline": "doors"}
FACES = {"detections": [{"label": "face", "score": 0.9}, {"label": "face", "score": 0.7}]}


def make_result(
    sequence: int = 0, value: Any = FACES, captured_at: float = 100.0, at: float = 100.01
) -> dict[str, Any]:
    frame = Frame(
        id=f"f{sequence}",
        stream="plant/door",
        topic="plant/door",
        sequence=sequence,
        captured_at=captured_at,
        result=value,
    )
    return result_body(frame, 0, HEAD, {"hedgerow": "0.1.0"}, at)


def make_dead_letter() -> bytes:
    frame = Frame(b"\xff\xd8", id="f9", stream="plant/door", topic="plant/door", captured_at=100.0)
    return dead_letter(frame, FrameError("The JPEG ends after 2 bytes", code="bad-jpeg"), "decode", HEAD)


RESULT = NODE.topic(Channel.RESULT, "doors")


@pytest.mark.parametrize(
    ("encode", "content_type"), [(encode_json, JSON), (encode_msgpack, MSGPACK), (encode_json, "")]
)
def test_a_result_has_a_summary_and_latencies(encode: Callable[..., bytes], content_type: str) -> None:
    message = parse_message(RESULT, encode(make_result()), content_type, [], received_at=100.025)

    assert message is not None
    assert (message.node, message.pipeline, message.stream, message.text) == (
        "local/site/press",
        "doors",
        "plant/door",
        "2 face",
    )
    assert (message.latency_ms(), message.arrival_ms()) == (10.0, 25.0)
    assert message.line().endswith("local/site/press  doors  plant/door  10.0 ms  2 face")


def test_a_result_that_is_a_picture_is_described_by_its_properties() -> None:
    user = [("subject", "plant/door"), ("time", "1970-01-01T00:01:40Z"), ("id", "f1")]

    message = parse_message(RESULT, b"\xff\xd8" * 600, "image/jpeg", user, received_at=101.0)

    assert message is not None
    assert (message.stream, message.produced_at, message.text) == ("plant/door", 100.0, "image/jpeg, 1.2 kB")
    assert message.record()["body"]["payload_bytes"] == 1200


def test_a_dead_letter_is_shown_with_its_cause() -> None:
    message = parse_message(NODE.topic(Channel.DEAD, "doors"), make_dead_letter(), JSON, [], received_at=101.0)

    assert message is not None
    assert (message.pipeline, message.stream) == ("doors", "plant/door")
    assert "  dead  " in message.line()
    assert message.text == "bad-jpeg: The JPEG ends after 2 bytes"


def test_a_sensors_message_is_described_by_type_and_size() -> None:
    message = parse_message("plant/door/image", bytes(2000), "image/jpeg", [("time", "100.5")], received_at=101.0)

    assert message is not None
    assert (message.channel, message.stream, message.text, message.arrival_ms()) == (
        None,
        "plant/door/image",
        "image/jpeg, 2.0 kB",
        500.0,
    )


TAILS = {Channel.RESULT: "doors", Channel.DEAD: "doors", Channel.EVENT: "circuit-open"}
WATCHED = [*TAILS, Channel.HEALTH, Channel.STATUS]


@given(st.binary(max_size=60), st.sampled_from([JSON, MSGPACK, "", "image/jpeg"]), st.sampled_from(WATCHED))
def test_no_payload_stops_the_watch(payload: bytes, content_type: str, channel: Channel) -> None:
    """Anyone may publish on its topics."""
    topic = NODE.topic(channel, TAILS.get(channel, ""))

    message = parse_message(topic, payload, content_type, [("time", "never")], received_at=1.0)

    if message is not None:
        Board().add(message)
        encode_json(message.record(), lossy=True)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers(-(2**63), 2**63) | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["label", "text", "at", "b"]), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(
    st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(
            ("at", "frame", "result", "reason", "detail", "state", "reasons", "pipelines"), json_values
        ),
    ),
    st.sampled_from(WATCHED),
)
def test_no_shape_of_message_stops_the_watch(body: dict[str, Any], channel: Channel) -> None:
    topic = NODE.topic(channel, TAILS.get(channel, ""))

    message = parse_message(topic, encode_json(body, lossy=True), JSON, [], received_at=1.0)

    assert message is not None
    assert isinstance(message.line(), str)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (FACES, "2 face"),
        ({"detections": [{"label": "person"}, {"label": "dog"}, {"label": "person"}]}, "2 person, dog"),
        ({"detections": []}, "detections none"),
        ({"detections": [], "texts": [{"text": "EXIT"}]}, "detections none, 'EXIT'"),
        ({"probability": 0.98765, "speaking": True}, "probability 0.9877, speaking True"),
        ({"box": [1, 2, 3]}, "box [3]"),
        (3.14159, "3.142"),
        (None, ""),
        ("x" * 100, "x" * 71 + "…"),
    ],
)
def test_a_result_is_summarised(value: Any, text: str) -> None:
    assert summarise(value) == text


def test_unix_seconds_are_shown_as_local_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not as 1.795e+09. Smaller numbers are durations, and stay numbers."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    try:
        flat = summarise({"start": 1_795_000_000.25, "end": 1_795_000_002, "seconds": 1_795_000_000.0})
        nested = summarise({"word": {"at": 1_795_000_000.0, "start": 0.32, "end": 1e300}})
    finally:
        monkeypatch.undo()
        time.tzset()

    assert flat == "start 11:06:40.250, end 11:06:42.000, seconds 1.795e+09"
    assert nested == "word at 11:06:40.000, start 0.32, end 1e+300"


def test_the_board_counts_by_stream_and_expires_old_messages() -> None:
    board = Board()
    for number in range(20):
        at = 100.0 + number * 0.5
        board.add(
            parse_message(RESULT, encode_json(make_result(number, captured_at=at - 0.02, at=at)), JSON, [], at + 0.001)
        )  # type: ignore[arg-type]
    board.add(parse_message(NODE.topic(Channel.DEAD, "doors"), make_dead_letter(), JSON, [], 110.0))  # type: ignore[arg-type]

    (count,) = board.streams.values()

    assert (count.results, count.dead) == (20, 1)
    assert count.rate(now=110.0) == pytest.approx(2.0, rel=0.01)
    assert str(count.latency()) == "20.0 / 20.0"
    assert str(count.arrival()) == "21.0 / 21.0"
    assert count.rate(now=200.0) == 0.0


async def publish(client: aiomqtt.Client, topic: str, payload: bytes, content_type: str = JSON, **user: str) -> None:
    properties = Properties(PacketTypes.PUBLISH)
    properties.ContentType = content_type
    if user:
        properties.UserProperty = list(user.items())
    await client.publish(topic, payload, qos=1, properties=properties)


async def until_done(task: asyncio.Task[Any], publish_all: Callable[[], Any]) -> Any:
    """Publish until a task is done: a publisher cannot know when the subscription starts."""
    async with asyncio.timeout(60):
        while not task.done():
            await publish_all()
            await asyncio.sleep(0.02)
    return task.result()


async def test_results_dead_letters_and_changes_of_status_are_lines(
    listen, in_background, broker, topic_prefix: str
) -> None:
    node = Address(topic_prefix, "site", "press")
    status = Status(state="offline", session="s", node=str(node), version="0.1.0", reason="lost")
    health = Health(node=str(node), session="s", at=1.0, uptime_s=1.0, state="ok")
    async with listen() as client:

        async def publish_all() -> None:
            await publish(client, node.topic(Channel.HEALTH), health.encode())
            await publish(client, node.topic(Channel.STATUS), status.encode())
            await publish(client, node.topic(Channel.DEAD, "doors"), make_dead_letter())
            await publish(client, node.topic(Channel.RESULT, "doors"), encode_json(make_result()))

        watching = in_background("watch", "--node", f"{topic_prefix}/+/+", "--count", "2", "--broker", broker.url)
        result = await until_done(watching, publish_all)

    assert result.code == 0
    printed = [line.split("  ", 2)[2] for line in result.out.splitlines()]
    assert "doors  plant/door  10.0 ms  2 face" in printed
    assert "status  offline (lost), version 0.1.0" in printed
    assert any(line.startswith("doors  plant/door  dead  ") for line in printed)
    assert not any("health" in line for line in printed), "healthy nodes print nothing"


async def test_json_prints_whole_messages(listen, in_background, broker, topic_prefix: str) -> None:
    node = Address(topic_prefix, "site", "press")
    async with listen() as client:
        watching = in_background(
            "watch", "--node", f"{topic_prefix}/+/+", "--count", "1", "--json", "--broker", broker.url
        )
        result = await until_done(
            watching, lambda: publish(client, node.topic(Channel.RESULT, "doors"), encode_json(make_result(7)))
        )

    (record,) = result.json_lines
    assert record["channel"] == "result"
    assert record["body"] == make_result(7)
    assert record["latency_ms"] == 10.0


async def test_pipeline_selects_one_pipeline(listen, in_background, broker, topic_prefix: str) -> None:
    node = Address(topic_prefix, "site", "press")
    async with listen() as client:

        async def publish_all() -> None:
            for pipeline in ("doors", "pumps"):
                await publish(client, node.topic(Channel.RESULT, pipeline), encode_json(make_result()))

        arguments = ("--node", f"{topic_prefix}/+/+", "--pipeline", "pumps", "--count", "3", "--json")
        result = await until_done(in_background("watch", *arguments, "--broker", broker.url), publish_all)

    assert {record["topic"].rpartition("/")[2] for record in result.json_lines} == {"pumps"}


async def test_filter_watches_the_topics_of_sensors(listen, in_background, broker, topic_prefix: str) -> None:
    async with listen() as client:
        watching = in_background("watch", "--filter", f"{topic_prefix}/+", "--count", "1", "--broker", broker.url)
        result = await until_done(watching, lambda: publish(client, f"{topic_prefix}/door", bytes(1500), "image/jpeg"))

    assert result.out.rstrip().endswith(f"{topic_prefix}/door  image/jpeg, 1.5 kB")


def test_seconds_ends_the_watch(hedgerow, broker, topic_prefix: str) -> None:
    result = hedgerow("watch", "--node", f"{topic_prefix}/+/+", "--seconds", "0.1", "--broker", broker.url)

    assert (result.code, result.out, result.err) == (0, "", "")


@pytest.mark.parametrize(
    "arguments", [("--node", "press"), ("--node", "a/b/#"), ("--pipeline", "a/b"), ("--filter", "a/#/b")]
)
def test_an_invalid_pattern_is_explained(hedgerow, arguments: tuple[str, str]) -> None:
    result = hedgerow("watch", *arguments)

    assert result.code == 2
    assert result.err.startswith("error: ")


@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1"}], ids=["color", "no color"])
async def test_on_a_terminal_it_draws_a_table(listen, broker, topic_prefix: str, environment: dict[str, str]) -> None:
    """Streams, rates, and a node's drops from its health. NO_COLOR removes the color and leaves the table."""
    node = Address(topic_prefix, "site", "press")
    doors = PipelineHealth(state="running", received=100, out=90, dropped={"too-dark": 10})
    health = Health(node=str(node), session="s", at=1.0, uptime_s=1.0, state="degraded", pipelines={"doors": doors})
    arguments = ["watch", "--node", f"{topic_prefix}/+/+", "--count", "40", "--broker", broker.url]
    with terminal(*arguments, columns=200, **environment) as shell:
        async with listen() as client:

            async def publish_all() -> None:
                await publish(client, node.topic(Channel.HEALTH), health.encode())
                await publish(client, node.topic(Channel.RESULT, "doors"), encode_json(make_result()))

            code, shown = await until_done(asyncio.create_task(asyncio.to_thread(shell.wait)), publish_all)

    assert code == 0
    last = shown.rpartition("PIPELINE")[2]
    assert "LATENCY ms p50/p99" in last
    assert "10.0 / 10.0" in last
    assert "2 face" in last
    assert "doors running: 100 in, 90 out, 10 dropped (too-dark 10)" in last
    assert REDRAW in shown
    assert bool(COLOR.search(shown)) is (environment == {})
