"""Commands and reloads, over the broker."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs
from trial_site import Site, properties, until
from trial_stages import Trial

from hedgerow.backends.onnxruntime import OnnxRuntime
from hedgerow.config import NodeConfig
from hedgerow.errors import CommandError
from hedgerow.pipeline.built_pipeline import BuiltPipeline
from hedgerow.wire.messages import Health


def error(reply: dict[str, Any]) -> str:
    assert not reply["ok"]
    assert reply["error"]["message"]
    assert reply["error"]["remedy"]
    return str(reply["error"]["code"])


async def test_ping_and_info_describe_the_node(site: Site) -> None:
    async with site.node() as node:
        ping, info = await site.command("ping"), await site.command("info")

    assert ping["ok"]
    assert ping["value"]["session"] == info["value"]["session"] == node.session
    assert ping["node"] == str(site.address)
    pipeline = info["value"]["pipelines"]["p"]
    assert (pipeline["state"], pipeline["stages"]) == ("running", ["trial"])
    assert info["value"]["backends"]


async def test_a_command_to_every_node_of_the_site_gets_a_reply(site: Site) -> None:
    async with site.node():
        assert (await site.command("ping", node="~"))["node"] == str(site.address)


async def test_without_a_response_topic_the_reply_goes_to_the_default_topic(site: Site) -> None:
    async with site.node():
        await site.client.publish(site.address.topic("command", "ping"), b"", qos=1)  # type: ignore[arg-type]
        await until(lambda: site.published("reply", "ping"))

    assert site.published("reply", "ping")[0].body["ok"]


@pytest.mark.parametrize(
    "topic", ["{own}/reply/1", "{own}/reply/a/b/c", "{own}/reply/up/region/1", "{all}/reply/1", "answers/1", "a/b/c/d"]
)
async def test_a_reply_goes_to_the_reply_topics_of_the_node_and_where_its_file_allows(site: Site, topic: str) -> None:
    base = f"hedgerow/v1/test/{site.name}"
    topic = topic.format(own=f"{base}/node", all=f"{base}/~")
    async with site.node(remote={"reply_prefixes": ["answers", "a/b/"]}):
        await site.client.subscribe(topic, qos=1)
        sent = properties(response_topic=topic, correlation=b"1")
        await site.client.publish(f"{base}/node/command/ping", b"", qos=1, properties=sent)
        await until(lambda: any(one.topic == topic and one.correlation == b"1" for one in site.received))

    assert next(one for one in site.received if one.topic == topic).body["ok"]


@pytest.mark.parametrize("topic", ["a/+/b", "answers", "answers/1/#", "answersx/1", "a/bc", "answers/\u200b"])
async def test_a_command_with_another_response_topic_is_refused_on_the_default_topic(site: Site, topic: str) -> None:
    async with site.node(remote={"reply_prefixes": ["answers", "a/b"]}) as node:
        sent = properties(response_topic=topic, correlation=b"1")
        await site.client.publish(f"hedgerow/v1/{site.address}/command/pause", b"", qos=1, properties=sent)
        await until(lambda: site.published("reply", "pause"))
        assert error(site.published("reply", "pause")[0].body) == "response-topic-refused"
        assert site.published("reply", "pause")[0].correlation == b"1"
        assert node.runners["p"].state == "running"
        assert (await site.wait_event("command-refused"))["detail"]["code"] == "response-topic-refused"
        assert ("hedgerow_commands", {"what": "refused"}, 1) in [
            (name, labels, value) for name, _, labels, value in node._commands.gauges()
        ]


@pytest.mark.parametrize("allowed", [False, True])
async def test_a_snapshot_goes_up_only_if_the_nodes_file_lets_frames_leave(site: Site, allowed: bool) -> None:
    up = f"hedgerow/v1/{site.address}/reply/up/region/1"
    async with site.node(remote={"frames_may_leave": allowed}):
        await site.frame(1)
        await site.wait_results(1)
        sent = properties(response_topic=up)
        await site.client.publish(f"hedgerow/v1/{site.address}/command/snapshot", b"", qos=1, properties=sent)
        await until(lambda: site.published("reply", "up/region/1"))
        (reply,) = (one.body for one in site.published("reply", "up/region/1"))

    assert reply["ok"] is allowed
    assert ("payload_base64" in json.dumps(reply)) is allowed
    assert allowed or "frames_may_leave" in reply["error"]["remedy"]


async def test_a_snapshot_has_no_payload_where_fields_are_kept_back(site: Site) -> None:
    """The payload has the fields that the results leave out."""
    async with site.node({"p": site.pipeline(publish={"fields": {"keep": ["n"]}})}):
        await site.frame(1, secret="hidden")
        await site.wait_results(1)
        value = (await site.command("snapshot"))["value"]

    assert (value["result"]["result"], value["payload_omitted"]) == ({"n": 1}, "kept-back")
    assert "payload_base64" not in value


async def test_the_event_of_an_open_circuit_quotes_no_frame(site: Site) -> None:
    """Events leave the site; the stage's error has the whole frame in its text."""
    async with site.node():
        await asyncio.gather(*(site.frame(n, "unknown", secret="hidden") for n in range(30)))
        event = await site.wait_event("circuit-open")
        letters = await site.wait_dead_letters(30)

    assert event["detail"]["error"].startswith("AssertionError in trial_stages.py:")
    assert any("hidden" in letter["message"] for letter in letters)
    up = [
        one for one in site.received if one.parsed is not None and one.parsed.channel in ("event", "health", "status")
    ]
    assert not [one.topic for one in up if b"hidden" in one.payload]


async def test_a_pipeline_without_frames_makes_the_node_unready_after_flow_timeout_s(site: Site) -> None:
    async with site.node(metrics={"flow_timeout_s": 0.2}) as node:
        await until(lambda: any("no frame for" in reason for reason in node._probes.why_unready()))

        async def feed() -> None:  # a single frame makes it ready for only 0.2 s, which a busy machine may miss
            while True:
                await site.frame(0)
                await asyncio.sleep(0.02)

        feeding = asyncio.create_task(feed())
        await until(lambda: not node._probes.why_unready())
        feeding.cancel()


@pytest.mark.parametrize(
    ("name", "payload", "code"),
    [
        ("pong", b"", "unknown-command"),
        ("ping", b"{", "malformed-command"),
        ("ping", b"\xff", "malformed-command"),
        ("ping", b'{"arg": {}}', "malformed-command"),
        ("ping", b"[]", "malformed-command"),
        ("ping", json.dumps({"expires_at": 5}).encode(), "command-expired"),
        ("ping", b'{"args": {"loud": true}}', "unknown-argument"),
        ("ping", bytes(2 << 20), "command-too-large"),
        ("pause", b'{"args": {"pipeline": "q"}}', "unknown-pipeline"),
        ("snapshot", b"", "no-snapshot"),
        ("reload", b'{"args": {"config": 5}}', "config-not-accepted"),
        ("reload", b'{"args": {"config": "pipelines: {}"}}', "config-not-accepted"),
        ("reload", b'{"args": {"path": "/etc/passwd"}}', "unknown-argument"),
        ("pause", b'{"args": {"pipeline": ["p"]}}', "bad-argument"),
        ("adjust", b'{"args": {"pipeline": "p", "stages": ["parse"]}}', "not-adjustable"),
    ],
)
async def test_an_invalid_command_is_refused_with_a_remedy(site: Site, name: str, payload: bytes, code: str) -> None:
    async with site.node():
        assert error(await site.command(name, payload=payload)) == code
        assert (await site.command("ping"))["ok"]


async def send_expiring(
    site: Site, late_s: float, *, expiry_s: int | None = 5, key: bytes = b"key", name: str = "ping"
) -> list[dict[str, Any]]:
    """Send a command that by the node's clock expired `late_s` ago. Returns: the replies so far."""
    before = len(site._replies(key))
    fields: dict[str, Any] = {} if expiry_s is None else {"expiry_s": expiry_s}
    await site.client.publish(
        f"hedgerow/v1/{site.address}/command/{name}",
        json.dumps({"expires_at": NOW - late_s}).encode(),
        qos=1,
        properties=properties(response_topic=site.reply_topic, correlation=key, **fields),
    )
    await until(lambda: len(site._replies(key)) > before)
    return site._replies(key)


NOW = 1_900_000_000.0
"""The node's clock in tests of expiry."""


@pytest.mark.parametrize(
    ("late_s", "expiry_s", "code"),
    [
        (-5.0, 5, None),
        (-5.0, None, None),
        (3.0, 5, None),
        (8.0, 5, None),
        (59.0, 1, None),
        (61.0, 5, "command-expired"),
        (3600.0, 5, "command-expired"),
        (0.5, None, "command-expired"),
    ],
)
async def test_a_command_is_executed_although_the_clocks_differ_a_little(
    site: Site, monkeypatch: pytest.MonkeyPatch, late_s: float, expiry_s: int | None, code: str | None
) -> None:
    """Only if its message expiry shows that it has not waited; a larger difference is named."""
    monkeypatch.setattr("hedgerow.node.commands.time", SimpleNamespace(time=lambda: NOW))
    async with site.node():
        (reply,) = await send_expiring(site, late_s, expiry_s=expiry_s)

    assert (None if reply["ok"] else error(reply)) == code


@pytest.mark.parametrize("late_s", [1.0, 8.0, 59.0])
async def test_a_repeated_command_is_executed_once(site: Site, monkeypatch: pytest.MonkeyPatch, late_s: float) -> None:
    """Such as one that a bridge or a recorder publishes again."""
    monkeypatch.setattr("hedgerow.node.commands.time", SimpleNamespace(time=lambda: NOW))
    async with site.node() as node:
        first, *_ = await send_expiring(site, late_s)
        _, second = await send_expiring(site, late_s)
        (other,) = await send_expiring(site, late_s, key=b"another")
        for _ in range(1000):  # it is forgotten after many others, and then must not be taken for a new one
            node._commands._executed[len(node._commands._executed) + 10] = NOW - late_s
        (third,) = await send_expiring(site, late_s, key=b"the one that makes it forget")
        *_, fourth = await send_expiring(site, late_s)

    assert first["ok"]
    assert error(second) == "command-repeated"
    assert other["ok"]
    assert third["ok"]
    assert error(fourth) == "command-expired"


async def test_a_retained_command_is_not_executed(site: Site) -> None:
    """Otherwise it would be executed after every reconnect."""
    topic = f"hedgerow/v1/test/{site.name}/node/command/stop"
    await site.client.publish(topic, b"", qos=1)
    await site.client.publish(topic, b"{}", qos=1, retain=True)
    try:
        async with site.node():
            await until(lambda: site.published("reply", "stop"))
            assert error(site.published("reply", "stop")[0].body) == "command-retained"
            assert (await site.command("ping"))["ok"]
    finally:
        await site.client.publish(topic, b"", qos=1, retain=True)


async def test_no_frame_is_lost_during_a_pause(site: Site) -> None:
    async with site.node() as node:
        await site.frames(range(20))
        assert (await site.command("pause"))["value"] == {"pipelines": {"p": "paused"}}
        await site.frames(range(20, 60))
        assert node.health().pipelines["p"].state == "paused"
        received = node.runners["p"].tally.received
        assert received <= 20
        assert (await site.command("resume", {"pipeline": "p"}))["ok"]
        await site.wait_results(60)

    assert site.numbers() == list(range(60))


async def test_the_last_of_concurrent_pauses_and_resumes_wins(site: Site) -> None:
    async with site.node() as node:
        for _ in range(10):
            await asyncio.gather(node.runners["p"].pause(), node.runners["p"].resume())
        await site.frames(range(20))
        await site.wait_results(20)


@asynccontextmanager
async def streaming(site: Site) -> AsyncIterator[list[int]]:
    """Publish numbered frames, one after the other, while the body runs."""
    sent: list[int] = []
    done = asyncio.Event()

    async def publish() -> None:
        while not done.is_set():
            await site.frame(len(sent))
            sent.append(len(sent))

    publishing = asyncio.create_task(publish())
    try:
        await until(lambda: len(sent) > 50)
        yield sent
        more = len(sent) + 50
        await until(lambda: len(sent) > more)
    finally:
        done.set()
        await publishing


@pytest.mark.parametrize(
    "change", [{}, {"receive_maximum": 7}, {"max_payload_bytes": 5000}, {"lanes": 3}, {"lanes": 0}]
)
async def test_a_reload_under_load_loses_no_frame_and_keeps_their_order(site: Site, change: dict[str, Any]) -> None:
    def config(tag: str, **fields: Any) -> dict[str, Any]:
        return {"p": site.pipeline({"trial": {"tag": tag, "sleep_s": 0.001}}, **fields)}

    async with site.node(config("old")):
        async with streaming(site) as sent:
            reply = await site.reload(config("new", **change))
            assert reply["value"] == {"added": [], "changed": ["p"], "removed": [], "kept": []}
        await until(lambda: set(site.numbers()) >= set(sent), lambda: set(sent) - set(site.numbers()))

    numbers = list(dict.fromkeys(site.numbers()))  # resent ones count once
    assert numbers == sent
    tags = [body["result"]["tag"] for body in site.results()]
    assert tags == sorted(tags, reverse=True), "first the old pipeline, then the new one"
    assert set(tags) == {"old", "new"}
    assert site.events("reloaded")


async def test_reloads_of_batch_queue_and_rate_under_load_lose_no_frame(site: Site) -> None:
    """The load stays below the rate."""
    settings: list[dict[str, Any]] = [
        {"batch": 1},
        {"batch": 64, "queue": {"max_frames_per_stream": 3, "max_frames": 9}},
        {"queue": {"policy": "fifo", "max_rate_per_stream": 100_000}},
        {},
    ]
    async with site.node({"p": site.pipeline()}) as node:
        async with streaming(site) as sent:
            for fields in [*settings, *settings]:
                reply = await site.reload({"p": site.pipeline(**fields)})
                assert reply["ok"], reply
        await until(lambda: set(site.numbers()) >= set(sent), lambda: set(sent) - set(site.numbers()))
        assert dict(node.runners["p"].tally.dropped) == {}

    assert list(dict.fromkeys(site.numbers())) == sent


@pytest.mark.parametrize("qos", [0, 1])
async def test_a_reload_limits_the_rate_and_drops_above_it_are_counted(site: Site, qos: int) -> None:
    """Dropped QoS 1 frames too are acknowledged, so they are not redelivered."""
    limited = site.pipeline(queue={"max_rate_per_stream": 0.001, "max_frames_per_stream": 100})
    async with site.node({"p": site.pipeline(queue={"max_frames_per_stream": 100})}) as node:
        await site.frames(range(10), qos=qos)
        await site.wait_results(10)
        assert (await site.reload({"p": limited}))["ok"]
        await site.frames(range(10, 20), qos=qos)
        tally = node.runners["p"].tally
        await until(lambda: tally.settled == 20)
        assert dict(tally.dropped) == {"rate": 8}
        await until(lambda: node.runners["p"]._source.unacknowledged == 0)

    assert site.numbers() == list(range(12))


async def test_a_reload_changes_the_number_of_lanes(site: Site) -> None:
    """From the event loop to threads and back."""
    async with site.node({"p": site.pipeline(lanes=0)}) as node:
        for turn, lanes in enumerate((3, 0, 1, 0)):
            assert (await site.reload({"p": site.pipeline(lanes=lanes)}))["ok"]
            assert node.runners["p"]._dispatcher.lanes == lanes
            await site.frame(turn)
            await site.wait_results(turn + 1)


async def test_a_paused_pipeline_is_still_paused_after_a_reload(site: Site) -> None:
    async with site.node() as node:
        await site.command("pause")
        reply = await site.reload({"p": site.pipeline(receive_maximum=9)})
        assert reply["ok"]
        assert node.runners["p"].state == "paused"
        await site.frame(1)
        await site.command("resume")
        await site.wait_results(1)


async def test_an_invalid_configuration_is_refused_and_the_node_keeps_the_old_one(site: Site) -> None:
    infer = site.pipeline({"infer": {"model": "m"}})
    async with site.node() as node:
        (site.folder / "bad.onnx").write_bytes(b"no model")
        before = node.config
        for text, code in (
            ("pipelines: [", "bad-config-file"),
            (site.yaml({"p": site.pipeline("no-such")}), "bad-plugin"),
            (site.yaml({"p": site.pipeline({"trial": {"tagg": 1}})}), "bad-stage-config"),
            (site.yaml({"p": infer}, models={"m": {"path": "gone.onnx"}}), "model-not-found"),
            (site.yaml({"p": infer}, models={"m": {"path": str(site.folder / "bad.onnx")}}), "model-unreadable"),
            (site.yaml({"p": site.pipeline()}, node={"name": "other"}), "restart-needed"),
            (site.yaml({"p": site.pipeline()}, metrics={"port": 1}), "restart-needed"),
        ):
            (site.folder / "node.yaml").write_text(text)
            assert error(await site.command("reload")) == code
            assert node.config is before
        await site.frame(1)
        await site.wait_results(1)
        assert node.failures == {}


async def test_renaming_a_key_needs_no_restart(site: Site) -> None:
    origins: list[str] = []
    with capture_logs() as logs:
        async with site.node(fleet={"sources": origins}):
            reply = await site.reload({"p": site.pipeline()}, fleet={"origins": origins})

    assert reply["ok"]
    assert [entry for entry in logs if entry["event"] == "config-key-renamed"] == [
        {
            "event": "config-key-renamed",
            "log_level": "warning",
            "key": "fleet.sources",
            "remedy": "Rename it to `fleet.origins`.",
        }
    ]


async def test_a_reload_adds_removes_and_moves_pipelines(site: Site) -> None:
    async with site.node({"p": site.pipeline(), "gone": site.pipeline({"trial": {"tag": "g"}})}) as node:
        reply = await site.reload({"p": site.pipeline(subscribe=f"{site.name}/elsewhere"), "new": site.pipeline()})
        assert reply["value"] == {"added": ["new"], "changed": ["p"], "removed": ["gone"], "kept": []}
        await until(lambda: site.is_up(node))  # the new pipeline subscribes in the background
        await site.frame(1)
        await site.wait_results(1, "new")
        await site.client.publish(f"{site.name}/elsewhere", b'{"n": 2}', qos=1)
        await site.wait_results(1, "p")

    assert site.numbers("p") == [2]
    assert site.numbers("new") == [1]
    assert site.results("gone") == []


async def test_a_snapshot_is_the_last_frame_and_its_result(site: Site) -> None:
    async with site.node():
        await site.frames(range(3))
        await site.wait_results(3)
        value = (await site.command("snapshot", {"pipeline": "p"}))["value"]

    assert value["result"]["result"] == {"n": 2, "tag": ""}
    assert value["frame"]["sequence"] == 2
    assert value["payload_base64"]


async def test_stop_gets_a_reply_before_the_node_stops(site: Site) -> None:
    async with site.node() as node:
        assert (await site.command("stop"))["value"]["stopping"]
        await until(lambda: [s.body["state"] for s in site.published("status")] == ["online", "offline"])
        assert node._stop.is_set()


async def test_a_pause_while_the_runner_is_being_replaced_is_refused(site: Site) -> None:
    """Otherwise the reply is a success, and the new runner keeps running."""
    async with site.node({"p": site.pipeline({"gate": {"path": str(site.folder / "open")}})}) as node:
        await site.frame(1)
        old = node.runners["p"]
        await until(lambda: old.tally.held)
        other = site.pipeline({"gate": {"path": str(site.folder / "open")}}, receive_maximum=9)
        reloading = asyncio.create_task(site.reload({"p": other}))
        await until(lambda: old.state == "stopping")
        assert error(await site.command("pause", {"pipeline": "p"})) == "busy"
        (site.folder / "open").touch()
        assert (await reloading)["ok"]
        assert (await site.command("pause"))["value"]["pipelines"] == {"p": "paused"}


async def test_a_reload_reduces_the_number_of_lanes(site: Site) -> None:
    async with site.node({"p": site.pipeline(lanes=4)}) as node:
        assert (await site.reload({"p": site.pipeline(lanes=1)}))["ok"]
        assert node.runners["p"]._dispatcher.lanes == 1
        await site.frame(1)
        await site.wait_results(1)


async def test_a_reload_still_building_when_the_node_stops_starts_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipeline started now would not be drained."""
    async with site.node() as node:
        original = node._pipelines._builder.build

        def build(config: NodeConfig, name: str) -> BuiltPipeline:
            pipeline = original(config, name)
            node.stop()
            return pipeline

        monkeypatch.setattr(node._pipelines._builder, "build", build)
        site.write({"p": site.pipeline(lanes=1), "q": site.pipeline()})
        with pytest.raises(CommandError, match="stopping"):
            await node.reload()
        assert list(node.runners) == ["p"]


async def test_a_stage_that_closes_slowly_blocks_only_the_end_of_the_node(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event loop keeps running, both at a reload and at the end, when the node waits for the stage."""
    turns: list[bool] = []
    async with site.node() as node:

        def close(stage: Trial) -> None:
            turned = threading.Event()
            node._loop.call_soon_threadsafe(turned.set)
            turns.append(turned.wait(60))

        monkeypatch.setattr(Trial, "close", close)
        assert (await site.reload({"p": site.pipeline(batch=5)}))["ok"]
        await until(lambda: turns)

    assert turns == [True, True]


async def test_info_does_not_block_the_event_loop(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing a backend takes a good part of a second, and querying a driver may take longer."""
    turns: list[bool] = []

    def devices(backend: OnnxRuntime) -> tuple[str, ...]:
        turned = threading.Event()
        node._loop.call_soon_threadsafe(turned.set)
        turns.append(turned.wait(60))
        return ("CPU",)

    monkeypatch.setattr(OnnxRuntime, "devices", devices)
    async with site.node() as node:
        assert (await site.command("info"))["value"]["backends"]["onnxruntime"]["devices"] == ["CPU"]

    assert turns == [True]


async def test_a_failed_pipeline_is_reported_with_a_remedy_and_the_others_run(site: Site) -> None:
    (site.folder / "bad.onnx").write_bytes(b"no model")
    bad = {
        "missing": ["trial-missing"],
        "broken": ["trial-broken-import"],
        "exits": ["trial-exits"],
        "no-stage": ["trial-not-a-stage"],
        "setup": ["trial-bad-setup"],
        "corrupt": [{"infer": {"model": "m"}}],
    }
    pipelines = {name: site.pipeline(*stages) for name, stages in bad.items()} | {"p": site.pipeline()}
    async with site.node(pipelines, models={"m": {"path": str(site.folder / "bad.onnx")}}) as node:
        await site.frame(1)
        await site.wait_results(1)
        health = Health.model_validate(json.loads(node.health().encode()))
        info = (await site.command("info"))["value"]["pipelines"]

    assert health.state == "failing"
    assert health.pipelines["p"].state == "running"
    for name in bad:
        assert health.pipelines[name].state == info[name]["state"] == "failed"
        assert health.pipelines[name].error
        assert health.pipelines[name].remedy
        assert any(name in reason for reason in health.reasons)
    assert {event["pipeline"] for event in site.events("pipeline-failed")} == set(bad)


async def test_a_stage_that_keeps_failing_is_an_event_and_a_reason_in_health(site: Site) -> None:
    async with site.node() as node:
        await asyncio.gather(*(site.frame(n, "crash") for n in range(30)))
        event = await site.wait_event("circuit-open")
        assert any("trial" in reason for reason in node.health().reasons)
        await site.wait_dead_letters(30)

    assert (event["pipeline"], event["detail"]["stage"]) == ("p", "trial")
    assert {letter["reason"] for letter in site.dead_letters()} <= {"stage-failed", "circuit-open"}


async def test_health_is_published(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hedgerow.node.health.FIRST_HEALTH_S", 0.1)
    async with site.node():
        await until(lambda: site.published("health"))
        report = Health.model_validate(site.published("health")[-1].body)

    assert report.at <= time.time()
    assert report.memory_bytes > 1 << 20
    assert report.state == "ok"


async def test_a_pipeline_with_only_dead_letters_is_degraded(site: Site) -> None:
    """Health depends on results: a node may run without errors and produce nothing but dead letters."""
    async with site.node() as node:
        for number in range(3):
            await site.frame(number, "dies")
        await until(lambda: node.runners["p"].tally.dead.total() == 3)

        health = node.health()
        node._health.start_period()

        assert health.state == "degraded"
        told = f"3 frames dead-lettered, most with asked-to-die, most from {site.topic('a')}; 0 gave results"
        assert health.reasons == [f"pipeline p: {told}"]
        assert node.health().state == "ok"


async def test_a_refused_subscription_makes_the_node_failing_and_unready(site: Site) -> None:
    """Apart from the refusal, a pipeline without its subscription looks healthy."""
    async with site.node() as node:
        node.runners["p"]._source._session.subscriptions.refused["plant/#"] = 0x87

        health = node.health()

        assert health.state == "failing"
        assert (
            health.reasons == node._probes.why_unready() == ["pipeline p: the broker refuses plant/#: not authorised"]
        )
