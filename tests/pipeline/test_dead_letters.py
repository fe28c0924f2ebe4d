"""Dead letters: what a pipeline keeps back from its results is not in them either, and they say why."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from tests.pipeline.lane_bench import LaneBench

from hedgerow.cli.frames.explain import Branch, tree
from hedgerow.wire.messages import LARGEST_DEAD_PAYLOAD

FACE = b"not json, but a face"


async def letter_of(payload: bytes = FACE, **pipeline: Any) -> dict[str, Any]:
    """Return the dead letter of a frame that `parse` refuses."""
    async with LaneBench(stages=["parse"], content_type="application/json", **pipeline) as bench:
        bench.send([payload])
        await bench.settled()
    (letter,) = bench.published("dead")
    return letter


def text(branch: Branch) -> str:
    return "\n".join([branch.text, *map(text, branch.children)])


@pytest.mark.parametrize(
    ("pipeline", "included"),
    [
        ({}, True),
        ({"publish": {"fields": {"keep": ["count"]}}}, False),
        ({"publish": {"fields": {"keep": []}}}, False),
        ({"publish": {"fields": {"drop": ["face"]}}}, False),
        ({"dead_letters": {"payload": False}}, False),
        ({"dead_letters": {"payload": True}, "publish": {"fields": {"keep": ["count"]}}}, True),
        ({"publish": {"format": "msgpack"}}, True),
    ],
)
async def test_a_pipeline_that_keeps_fields_back_keeps_the_payload_back(
    pipeline: dict[str, Any], included: bool
) -> None:
    letter = await letter_of(**pipeline)

    assert letter["payload_bytes"] == len(FACE)
    if included:
        assert base64.b64decode(letter["payload_base64"]) == FACE
        assert "payload_omitted" not in letter
    else:
        assert letter["payload_omitted"] == "kept-back"
        assert "payload_base64" not in letter
        assert base64.b64encode(FACE).decode() not in str(letter)
        assert "keeps payloads back" in text(tree(letter, letter["at"]))


async def test_a_large_payload_is_left_out_with_the_reason() -> None:
    letter = await letter_of(b"x" * (LARGEST_DEAD_PAYLOAD + 1))

    assert (letter["payload_bytes"], letter["payload_omitted"]) == (LARGEST_DEAD_PAYLOAD + 1, "too-large")
    assert "larger than 1 MiB" in text(tree(letter, letter["at"]))


async def test_a_payload_that_exceeds_the_packet_limit_of_the_broker_is_left_out() -> None:
    """Base64 takes a third more than the frame, which did fit."""
    async with LaneBench(stages=["parse"], content_type="application/json") as bench:
        bench.sink.max_packet_bytes = 2000
        bench.send([b"x" * 1900])
        await bench.settled()

    (letter,) = bench.published("dead")
    assert (letter["payload_bytes"], letter["payload_omitted"]) == (1900, "too-large")
    assert len(bench.sink.sent[0][1]) < 2000


async def test_an_empty_payload_is_not_left_out() -> None:
    letter = await letter_of(b"")

    assert letter["payload_bytes"] == 0
    assert not {"payload_base64", "payload_omitted"} & letter.keys()


def test_explain_shows_the_traceback_of_a_stage() -> None:
    letter = {
        "schema": "hedgerow.dead/1",
        "stage": "door",
        "traceback": "Traceback …\n  File door.py, line 7\nKeyError: 'x'",
    }

    assert "  File door.py, line 7" in text(tree(letter, 0.0))
