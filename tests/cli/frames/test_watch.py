"""`hedgerow watch`: messages taken apart, counted, and shown as lines, JSON or a table."""

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


def result(sequence: int = 0, value: Any = FACES, captured_at: float = 100.0, at: float = 100.01) -> dict[str, Any]:
    frame = Frame(
        id=f"f{sequence}",
        stream="plant/door",
        topic="plant/door",
        sequence=sequence,
        captured_at=captured_at,
        result=value,
    )
    return result_body(frame, 0, HEAD, {"hedgerow": "0.1.0"}, at)


def letter() -> bytes:
    frame = Frame(b"\xff\xd8", id="f9", stream="plant/door", topic="plant/door", captured_at=100.0)
    return dead_letter(frame, FrameError("The JPEG ends after 2 bytes", code="bad-jpeg"), "decode", HEAD)


RESULT = NODE.topic(Channel.RESULT, "doors")


@pytest.mark.parametrize(
    ("encode", "content_type"), [(encode_json, JSON), (encode_msgpack, MSGPACK), (encode_json, "")]
)
def test_a_result_says_what_was_found_and_how_old_it_is(encode: Callable[..., bytes], content_type: str) -> None:
    seen = parse_message(RESULT, encode(result()), content_type, [], received_at=100.025)

    assert seen is not None
    assert (seen.node, seen.pipeline, seen.stream, seen.text) == ("local/site/press", "doors", "plant/door", "2 face")
    assert (seen.latency_ms(), seen.arrival_ms()) == (10.0, 25.0)
    assert seen.line().endswith("local/site/press  doors  plant/door  10.0 ms  2 face")


def test_a_result_that_is_a_picture_is_told_by_what_is_beside_it() -> None:
    user = [("subject", "plant/door"), ("time", "1970-01-01T00:01:40Z"), ("id", "f1")]

    seen = parse_message(RESULT, b"\xff\xd8" * 600, "image/jpeg", user, received_at=101.0)

    assert seen is not None
    assert (seen.stream, seen.made_at, seen.text) == ("plant/door", 100.0, "image/jpeg, 1.2 kB")
    assert seen.record()["body"]["payload_bytes"] == 1200


def test_a_dead_letter_says_why() -> None:
    seen = parse_message(NODE.topic(Channel.DEAD, "doors"), letter(), JSON, [], received_at=101.0)

    assert seen is not None
    assert (seen.pipeline, seen.stream) == ("doors", "plant/door")
    assert "  dead  " in seen.line()
    assert seen.text == "bad-jpeg: The JPEG ends after 2 bytes"


def test_a_sensors_own_topic_is_told_by_type_and_size() -> None:
    seen = parse_message("plant/door/image", bytes(2000), "image/jpeg", [("time", "100.5")], received_at=101.0)

    assert seen is not None
    assert (seen.channel, seen.stream, seen.text, seen.arrival_ms()) == (
        None,
        "plant/door/image",
        "image/jpeg, 2.0 kB",
        500.0,
    )


TAILS = {Channel.RESULT: "doors", Channel.DEAD: "doors", Channel.EVENT: "circuit-open"}
WATCHED = [*TAILS, Channel.HEALTH, Channel.STATUS]


@given(st.binary(max_size=60), st.sampled_from([JSON, MSGPACK, "", "image/jpeg"]), st.sampled_from(WATCHED))
def test_nothing_on_our_topics_brings_the_watch_down(payload: bytes, content_type: str, channel: Channel) -> None:
    """Anybody may publish there."""
    topic = NODE.topic(channel, TAILS.get(channel, ""))

    seen = parse_message(topic, payload, content_type, [("time", "never")], received_at=1.0)

    if seen is not None:
        Board().add(seen)
        encode_json(seen.record())


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
def test_no_shape_of_message_brings_the_watch_down(body: dict[str, Any], channel: Channel) -> None:
    topic = NODE.topic(channel, TAILS.get(channel, ""))

    seen = parse_message(topic, encode_json(body), JSON, [], received_at=1.0)

    assert seen is not None
    assert isinstance(seen.line(), str)


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
def test_a_result_in_a_few_words(value: Any, text: str) -> None:
    assert summarise(value) == text


def test_moments_are_shown_as_a_clock_shows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not as 1.795e+09; what is too small for a moment is a number of seconds."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    try:
        heard = summarise({"start": 1_795_000_000.25, "end": 1_795_000_002, "seconds": 1_795_000_000.0})
        nested = summarise({"word": {"at": 1_795_000_000.0, "start": 0.32, "end": 1e300}})
    finally:
        monkeypatch.undo()
        time.tzset()

    assert heard == "start 11:06:40.250, end 11:06:42.000, seconds 1.795e+09"
    assert nested == "word at 11:06:40.000, start 0.32, end 1e+300"


def test_the_board_counts_by_stream_and_forgets_what_is_old() -> None:
    board = Board()
    for number in range(20):
        at = 100.0 + number * 0.5
        board.add(
            parse_message(RESULT, encode_json(result(number, captured_at=at - 0.02, at=at)), JSON, [], at + 0.001)
        )  # type: ignore[arg-type]
    board.add(parse_message(NODE.topic(Channel.DEAD, "doors"), letter(), JSON, [], 110.0))  # type: ignore[arg-type]

    (count,) = board.streams.values()

    assert (count.results, count.dead) == (20, 1)
    assert count.rate(now=110.0) == pytest.approx(2.0, rel=0.01)
    assert str(count.latency()) == "20.0 / 20.0"
    assert str(count.arrival()) == "21.0 / 21.0"
    assert count.rate(now=200.0) == 0.0


async def say(client: aiomqtt.Client, topic: str, payload: bytes, content_type: str = JSON, **user: str) -> None:
    properties = Properties(PacketTypes.PUBLISH)
    properties.ContentType = content_type
    if user:
        properties.UserProperty = list(user.items())
    await client.publish(topic, payload, qos=1, properties=properties)


async def until_done(task: asyncio.Task[Any], speak: Callable[[], Any]) -> Any:
    """Say things until somebody has heard enough: when a subscription begins is not for a sender to know."""
    async with asyncio.timeout(60):
        while not task.done():
            await speak()
            await asyncio.sleep(0.02)
    return task.result()


async def test_lines_for_results_deaths_and_changes_of_status(listen, in_background, broker, topic_prefix: str) -> None:
    node = Address(topic_prefix, "site", "press")
    status = Status(state="offline", session="s", node=str(node), version="0.1.0", reason="lost")
    health = Health(node=str(node), session="s", at=1.0, uptime_s=1.0, state="ok")
    async with listen() as client:

        async def speak() -> None:
            await say(client, node.topic(Channel.HEALTH), health.encode())
            await say(client, node.topic(Channel.STATUS), status.encode())
            await say(client, node.topic(Channel.DEAD, "doors"), letter())
            await say(client, node.topic(Channel.RESULT, "doors"), encode_json(result()))

        watching = in_background("watch", "--node", f"{topic_prefix}/+/+", "--count", "2", "--broker", broker.url)
        said = await until_done(watching, speak)

    assert said.code == 0
    kinds = [line.split("  ", 2)[2] for line in said.out.splitlines()]
    assert "doors  plant/door  10.0 ms  2 face" in kinds
    assert "status  offline (lost), version 0.1.0" in kinds
    assert any(kind.startswith("doors  plant/door  dead  ") for kind in kinds)
    assert not any("health" in kind for kind in kinds), "a node that is well says nothing"


async def test_json_lines_carry_the_whole_message(listen, in_background, broker, topic_prefix: str) -> None:
    node = Address(topic_prefix, "site", "press")
    async with listen() as client:
        watching = in_background(
            "watch", "--node", f"{topic_prefix}/+/+", "--count", "1", "--json", "--broker", broker.url
        )
        said = await until_done(
            watching, lambda: say(client, node.topic(Channel.RESULT, "doors"), encode_json(result(7)))
        )

    (record,) = said.json_lines
    assert record["channel"] == "result"
    assert record["body"] == result(7)
    assert record["latency_ms"] == 10.0


async def test_only_the_pipeline_that_was_asked_for(listen, in_background, broker, topic_prefix: str) -> None:
    node = Address(topic_prefix, "site", "press")
    async with listen() as client:

        async def speak() -> None:
            for pipeline in ("doors", "pumps"):
                await say(client, node.topic(Channel.RESULT, pipeline), encode_json(result()))

        arguments = ("--node", f"{topic_prefix}/+/+", "--pipeline", "pumps", "--count", "3", "--json")
        said = await until_done(in_background("watch", *arguments, "--broker", broker.url), speak)

    assert {record["topic"].rpartition("/")[2] for record in said.json_lines} == {"pumps"}


async def test_a_filter_watches_sensors_themselves(listen, in_background, broker, topic_prefix: str) -> None:
    async with listen() as client:
        watching = in_background("watch", "--filter", f"{topic_prefix}/+", "--count", "1", "--broker", broker.url)
        said = await until_done(watching, lambda: say(client, f"{topic_prefix}/door", bytes(1500), "image/jpeg"))

    assert said.out.rstrip().endswith(f"{topic_prefix}/door  image/jpeg, 1.5 kB")


def test_it_ends_after_the_time_that_was_asked_for(hedgerow, broker, topic_prefix: str) -> None:
    said = hedgerow("watch", "--node", f"{topic_prefix}/+/+", "--seconds", "0.1", "--broker", broker.url)

    assert (said.code, said.out, said.err) == (0, "", "")


@pytest.mark.parametrize(
    "arguments", [("--node", "press"), ("--node", "a/b/#"), ("--pipeline", "a/b"), ("--filter", "a/#/b")]
)
def test_what_cannot_be_watched_is_explained(hedgerow, arguments: tuple[str, str]) -> None:
    said = hedgerow("watch", *arguments)

    assert said.code == 2
    assert said.err.startswith("error: ")


@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1"}], ids=["color", "no color"])
async def test_on_a_terminal_it_draws_a_table(listen, broker, topic_prefix: str, environment: dict[str, str]) -> None:
    """Streams, rates, and a node's drops from its health. NO_COLOR removes the color and leaves the table."""
    node = Address(topic_prefix, "site", "press")
    doors = PipelineHealth(state="running", received=100, out=90, dropped={"too-dark": 10})
    health = Health(node=str(node), session="s", at=1.0, uptime_s=1.0, state="degraded", pipelines={"doors": doors})
    arguments = ["watch", "--node", f"{topic_prefix}/+/+", "--count", "40", "--broker", broker.url]
    with terminal(*arguments, columns=200, **environment) as shell:
        async with listen() as client:

            async def speak() -> None:
                await say(client, node.topic(Channel.HEALTH), health.encode())
                await say(client, node.topic(Channel.RESULT, "doors"), encode_json(result()))

            code, shown = await until_done(asyncio.create_task(asyncio.to_thread(shell.wait)), speak)

    assert code == 0
    last = shown.rpartition("PIPELINE")[2]
    assert "LATENCY ms p50/p99" in last
    assert "10.0 / 10.0" in last
    assert "2 face" in last
    assert "doors running: 100 in, 90 out, 10 dropped (too-dark 10)" in last
    assert REDRAW in shown
    assert bool(COLOR.search(shown)) is (environment == {})
