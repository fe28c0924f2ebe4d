"""Bad input: each frame becomes a dead letter with its reason, and the next frame is unaffected."""

from __future__ import annotations

import asyncio
import importlib.util
import io
from typing import Any

import msgpack
import numpy as np
import orjson
import pytest
from trial_site import Site, tally_counts, until

from hedgerow.pipeline.settlement import settler
from hedgerow.wire.codec import ENVELOPE


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


BAD: dict[str, tuple[bytes, dict[str, Any], str]] = {
    "empty": (b"", {"content_type": "application/json"}, "empty-payload"),
    "unknown type": (b"x", {"content_type": "image/x-riddle"}, "unknown-content-type"),
    "nested MessagePack": (b"\x91" * 100_000, {"content_type": "application/msgpack"}, "bad-msgpack"),
    "endless MessagePack": (b"\xdd\xff\xff\xff\xff", {"content_type": "application/msgpack"}, "bad-msgpack"),
    "list as a key": (b"\x81\x91\x01\x02", {"content_type": ENVELOPE}, "bad-msgpack"),
    "no envelope": (msgpack.packb({"payload": 5}), {"content_type": ENVELOPE}, "bad-envelope"),
    "NaN in JSON": (b"[NaN]", {"content_type": "application/json"}, "missing-value"),
    "NaN in an array": (npy(np.full(3, np.nan)), {"content_type": "application/x-npy"}, "out-of-range"),
    "words": (b'["a"]', {"content_type": "application/json"}, "not-numbers"),
    "cut short": (npy(np.ones(9))[:-1], {"content_type": "application/x-npy"}, "truncated-array"),
    "from the future": (
        b"[1]",
        {"content_type": "application/json", "user": {"time": "2126-01-01T00:00:00Z"}},
        "captured-in-future",
    ),
    "at no time": (b"[1]", {"content_type": "application/json", "user": {"time": "soon"}}, "bad-time"),
    "too large": (bytes(8 << 20), {}, "payload-too-large"),
    "long id": (b"[1]", {"content_type": "application/json", "user": {"id": "x" * 65_000}}, "malformed-message"),
    "long stream": (
        msgpack.packb({"payload": b"[1]", "stream": "s" * 70_000, "content_type": "application/json"}),
        {"content_type": ENVELOPE},
        "long-stream-name",
    ),
}


async def test_each_bad_frame_is_dead_lettered_with_its_own_reason(site: Site) -> None:
    pipeline = site.pipeline({"parse": {"dtype": "int32"}}, max_payload_bytes=1 << 20)
    async with site.node({"p": pipeline}) as node:
        memory = node.health().memory_bytes
        for number, (payload, fields, _) in enumerate(BAD.values()):
            await site.publish(payload, **fields)
            await site.publish(b"[1]", content_type="application/json", user={"id": f"good-{number}"})
        tally = node.runners["p"].tally
        await until(lambda: tally.settled == 2 * len(BAD), lambda: tally_counts(tally))
        expected = [code for _, _, code in BAD.values() if code]
        letters = await site.wait_dead_letters(len(expected))
        assert tally_counts(tally)["dead"] == {code: expected.count(code) for code in expected}
        await site.wait_results(2 * len(BAD) - len(expected))
        assert node.health().memory_bytes < memory + (64 << 20)

    assert sorted(letter["reason"] for letter in letters) == sorted(expected)
    assert all(letter["remedy"] and letter["message"] for letter in letters)
    assert dict(tally.dead) == {code: expected.count(code) for code in expected}
    good = {body["id"] for body in site.results()}
    assert good >= {f"good-{number}" for number in range(len(BAD))}
    (large,) = [letter for letter in letters if letter["reason"] == "payload-too-large"]
    assert large["payload_bytes"] == 8 << 20
    assert "payload_base64" not in large


@pytest.mark.skipif(importlib.util.find_spec("hedgerow_vision") is None, reason="hedgerow-vision is not installed")
async def test_a_broken_picture_is_dead_lettered_and_does_not_affect_others(site: Site) -> None:
    import simplejpeg

    picture = simplejpeg.encode_jpeg(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    bombs = {"cut": picture[:200], "noise": b"\xff\xd8" + bytes(500), "empty": b""}
    async with site.node({"p": site.pipeline("decode", content_type="image/jpeg")}):
        for bad in bombs.values():
            await site.publish(bad)
            await site.publish(picture)
        await site.wait_dead_letters(len(bombs))
        await site.wait_results(len(bombs))

    assert {letter["stage"] for letter in site.dead_letters()} == {"decode"}


async def test_a_frame_that_exits_the_thread_does_not_affect_others(site: Site) -> None:
    """`sys.exit` in a stage, and all kinds of exceptions."""
    async with site.node():
        for do in ("exit", "crash", "no such thing"):
            await site.frame(0, do)
        await site.publish(orjson.dumps([]))
        await site.frame(1)
        await site.wait_dead_letters(4)
        await site.wait_results(1)

    assert {letter["reason"] for letter in site.dead_letters()} == {"stage-failed"}


@pytest.mark.skipif(importlib.util.find_spec("hedgerow_audio") is None, reason="hedgerow-audio is not installed")
@pytest.mark.skipif(importlib.util.find_spec("silero_vad") is None, reason="silero-vad is not installed")
async def test_a_real_model_keeps_the_state_of_two_microphones_apart(site: Site) -> None:
    """Silero VAD over the broker: noise and silence in, one probability per window out, with lineage."""
    vad = {
        "path": "package:silero_vad/data/silero_vad_16k_op15.onnx",
        "backend": "onnxruntime",
        "constants": {"sr": 16_000},
        "state": {"state": "stateN"},
        "batch_axis": {"state": 1, "stateN": 1},
    }
    stages = [{"pcm16": {"rate": 16_000}}, "vad-window", {"infer": {"model": "vad"}}]
    noise = (np.random.default_rng(0).normal(0, 3000, 5120)).astype("<i2").tobytes()
    async with site.node(
        {"p": site.pipeline(*stages, content_type="audio/pcm", queue={"policy": "fifo"})}, models={"vad": vad}
    ) as node:
        for _ in range(4):
            await site.publish(noise, stream="loud")
            await site.publish(bytes(10_240), stream="quiet")
        await site.wait_results(70)
        await until(lambda: node.runners["p"].tally.out == 8)
        digest = node.health().models["vad"].digest

    assert {body["frame"]["stream"].rsplit("/")[-1] for body in site.results()} == {"loud", "quiet"}
    assert site.results()[0]["lineage"]["models"][0]["digest"] == digest
    assert site.published("result")[0].user["model"] == f"vad@{digest}"


async def test_dead_letters_waiting_for_the_broker_are_limited_by_their_bytes(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise any QoS 0 publisher could exhaust the node's memory while the broker accepts no results."""
    monkeypatch.setattr(settler, "MOST_OUTSTANDING_BYTES", 1 << 20)
    async with site.node({"p": site.pipeline(stream={"by": "field", "field": "machine"})}) as node:
        runner = node.runners["p"]
        await runner._sink.pause()
        for _ in range(50):
            await site.publish(b"no JSON" * 15_000, qos=0)
        await until(lambda: runner.tally.received == 50, lambda: tally_counts(runner.tally))
        assert runner._sink.outstanding_bytes < 2 << 20
        runner._sink.resume()
        await until(lambda: runner.tally.settled == 50, lambda: tally_counts(runner.tally))

    assert set(runner.tally.dead) == {"bad-json"}
    assert set(runner.tally.dropped) == {"broker-away"}


async def test_results_waiting_for_the_broker_hold_back_frames_by_their_bytes(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settler, "MOST_OUTSTANDING_BYTES", 1 << 20)
    async with site.node({"p": site.pipeline(batch=1, lanes=1)}) as node:
        runner = node.runners["p"]
        await runner._sink.pause()
        for number in range(20):
            await site.frame(number, "large", size=500_000)
        await until(
            lambda: runner.tally.received == 20 and runner._dispatcher.idle == 1, lambda: tally_counts(runner.tally)
        )
        await asyncio.sleep(0)
        assert runner.queued == 17
        runner._sink.resume()
        await until(lambda: runner.tally.out == 20, lambda: tally_counts(runner.tally))
