"""`hedgerow explain`: a result or dead letter as a tree."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from hedgerow import Frame, FrameError
from hedgerow.cli.frames.explain import Branch, decode, tree
from hedgerow.topics import Address, Channel
from hedgerow.wire.messages import JSON, dead_letter, encode_json, encode_msgpack, result_body

AT = 1_750_000_000.0
HEAD = {"schema": "hedgerow.result/1", "node": "local/site/press", "pipeline": "doors"}
LINEAGE = {
    "hedgerow": "0.1.0",
    "config": "sha256:12ab",
    "waited_ms": 1.25,
    "stages": [["decode", 3.2, 4], ["infer", 10.3, 3]],
    "models": [{"name": "face", "digest": "sha256:34cd", "backend": "openvino", "device": "CPU"}],
}
FRAME = Frame(
    b"\xff\xd8",
    id="f12",
    stream="plant/door",
    topic="plant/door/image",
    sequence=12,
    captured_at=AT - 0.05,
    content_type="image/jpeg",
    result={"detections": [{"label": "face", "score": 0.9}]},
)
RESULT = result_body(FRAME, 0, HEAD, LINEAGE, AT)
DEAD_LETTER = dead_letter(FRAME, FrameError("The JPEG ends after 2 bytes", code="bad-jpeg"), "decode", HEAD)


def lines(branch: Branch) -> list[str]:
    return [branch.text, *(line for child in branch.children for line in lines(child))]


def test_a_result_is_explained_from_frame_to_model() -> None:
    assert lines(tree(RESULT, now=AT + 2)) == [
        "Result f12 by local/site/press, pipeline doors, at 2025-06-15 15:06:40.000 UTC (2.0 s ago)",
        "result: face",
        "frame f12",
        "number 12 of stream plant/door",
        "received on plant/door/image",
        "captured at 2025-06-15 15:06:39.950 UTC (2.0 s ago)",
        "50.0 ms old when it was processed",
        "waited 1.25 ms in the queue",
        "2 stages, 13.5 ms for all frames processed together",
        "decode      3.200 ms  4 frames",
        "infer      10.300 ms  3 frames",
        "model face, openvino on CPU",
        "sha256:34cd",
        "produced by hedgerow 0.1.0, configuration sha256:12ab",
    ]


@pytest.mark.parametrize("encode", [encode_json, encode_msgpack])
def test_both_encodings_are_read_from_a_file(hedgerow, tmp_path: Path, encode) -> None:
    (tmp_path / "result").write_bytes(encode(RESULT))

    result = hedgerow("explain", tmp_path / "result")

    assert result.code == 0
    assert "├─ model face, openvino on CPU\n│  └─ sha256:34cd\n└─ produced by hedgerow 0.1.0" in result.out


def test_a_dead_letter_is_explained_with_stage_cause_and_remedy(hedgerow) -> None:
    result = hedgerow("explain", "-", input=DEAD_LETTER)

    assert result.code == 0
    printed = result.out.splitlines()
    assert printed[0].startswith("Dead letter by local/site/press, pipeline doors, at ")
    assert printed[1:4] == [
        "├─ died in stage decode: bad-jpeg",
        "│  ├─ The JPEG ends after 2 bytes",
        "│  └─ → Check what the sensor sends; `hedgerow explain` reads the dead letter.",
    ]
    assert printed[-1] == "└─ payload: 2 B of image/jpeg, included as payload_base64"


def test_json_prints_the_decoded_payload(hedgerow) -> None:
    assert hedgerow("explain", "-", "--json", input=encode_msgpack(RESULT)).json == RESULT


@pytest.mark.parametrize(
    "age", [(0.5, "0.5 s ago"), (150, "2 minutes ago"), (8000, "2 hours ago"), (-3, "3.0 s in the future")]
)
def test_ages_are_printed_in_a_readable_unit(age: tuple[float, str]) -> None:
    assert tree(RESULT, now=AT + age[0]).text.endswith(f"({age[1]})")


@pytest.mark.parametrize("payload", [b"", b"\xff\xd8\xff", b"[1]", b'{"schema": "other/1"}'])
def test_another_payload_is_refused(hedgerow, payload: bytes) -> None:
    result = hedgerow("explain", "-", input=payload)

    assert result.code == 1
    assert result.err.startswith("error: Neither a result nor a dead letter: ")
    assert "--last PIPELINE" in result.err


@pytest.mark.parametrize("arguments", [(), ("x.json", "--last", "doors"), ("--last", "a/b"), ("/no/such",)])
def test_an_invalid_command_line_is_explained(hedgerow, arguments: tuple[str, ...]) -> None:
    result = hedgerow("explain", *arguments)

    assert result.code == 2
    assert result.err.startswith("error: ")


anything = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers(-(2**63), 2**63) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.sampled_from(["hedgerow.result/1", "hedgerow.dead/1"]),
    st.dictionaries(st.sampled_from(["at", "node", "result", "stage", "message", "payload_bytes", "remedy"]), anything),
    st.dictionaries(st.sampled_from(["id", "captured_at", "sequence", "stream"]), anything),
    st.dictionaries(st.sampled_from(["waited_ms", "stages", "models", "config"]), anything),
)
def test_any_payload_is_explained_without_an_exception(
    schema: str, body: dict[str, Any], frame: dict[str, Any], lineage: dict[str, Any]
) -> None:
    """It may come from another version, or be made up."""
    payload = encode_json({**body, "schema": schema, "frame": frame, "lineage": lineage}, lossy=True)

    assert lines(tree(decode(payload), now=AT))


async def test_last_waits_for_the_next_result_of_a_pipeline(listen, in_background, broker, topic_prefix: str) -> None:
    topic = Address("local", "site", "press").topic(Channel.RESULT, topic_prefix)
    properties = Properties(PacketTypes.PUBLISH)
    properties.ContentType = JSON
    async with listen() as client, asyncio.timeout(60):
        explaining = in_background("explain", "--last", topic_prefix, "--broker", broker.url)
        while not explaining.done():
            await client.publish(topic, encode_json(RESULT), qos=1, properties=properties)
            await asyncio.sleep(0.02)
        result = await explaining

    assert result.code == 0
    assert result.out.startswith("Result f12 by local/site/press, pipeline doors")


def test_a_pipeline_without_results_is_an_error(hedgerow, broker, topic_prefix: str) -> None:
    result = hedgerow("explain", "--last", topic_prefix, "--timeout", "0.1", "--broker", broker.url)

    assert result.code == 1
    assert result.err == (
        f"error: Pipeline {topic_prefix} published nothing within 0.1 s\n"
        "  → Publish a frame (`hedgerow publish`), or check with `hedgerow watch` that the pipeline runs.\n"
    )
