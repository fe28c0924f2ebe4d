"""The region's service as attacker: it publishes desired documents, acknowledgements, commands and model content for every node.

It holds the online key, and no owner's. Each attempt is refused, counted and told, the model that serves stays, and frames still
give results.
"""

from __future__ import annotations

import asyncio
import itertools
import time
import uuid
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import msgpack
import numpy as np
import orjson
import pytest
import pytest_asyncio
from tests.conftest import version_maker
from tests.node.plugins.trial_site import Site, properties, until

from hedgerow import configfile
from hedgerow.blobs.fetch.fetcher import MAX_UNSTORED_CHUNKS
from hedgerow.blobs.serve import BlobServer
from hedgerow.bus.connect import ClientOptions
from hedgerow.bus.message import Message
from hedgerow.bus.outbox import Ack
from hedgerow.labels import parse_selector
from hedgerow.models.bundle.version import ModelVersion
from hedgerow.node.node import Node
from hedgerow.testing import Mosquitto
from hedgerow.testing.repository import TestRepository, make_repository
from hedgerow.wire.fleet import ModelRef, Reported

pytestmark = pytest.mark.asyncio(loop_scope="module")

TWICE = "(float[N,3] x) => (float[N,3] y) { y = Add(x, x) }"
SWAP = {"probation_s": 0, "min_frames": 0, "timeout_s": 60}
OWN = {"ring": "late", "spare": "yes"}
"""Labels in the node's file."""

Tamper = Callable[[str, bytes], bytes]


class HostileServer(BlobServer):
    """The region's server of models, which changes what it sends as `tamper` says."""

    tamper: Tamper = staticmethod(lambda _, payload: payload)

    def _reply(self, site: Any, request: Any) -> tuple[str, bytes]:
        topic, payload = super()._reply(site, request)
        return topic, self.tamper(topic, payload)

    def _enqueue(self, site: str, request: Any) -> None:
        self._sent.clear()  # as if a second had passed
        super()._enqueue(site, request)


class Estate:
    """A node of a fleet, its site's broker, and the attacker's client, which sees everything.

    Attributes:
        node: it serves `good`, version 1.0.0 of `door`.
        versions: signed versions by name.
        sign_new: signs a version for all nodes that the node has not seen, and returns it.
    """

    def __init__(
        self,
        site: Site,
        node: Node,
        server: HostileServer,
        versions: dict[str, ModelRef],
        sign_new: Callable[[], ModelRef],
    ) -> None:
        self.site, self.node, self.server, self.versions, self.sign_new = site, node, server, versions, sign_new
        self.generation = 9
        self.frames = 0

    @property
    def reported(self) -> Reported:
        return Reported.model_validate(self.site.published("reported")[-1].body)

    @property
    def agent(self) -> Any:
        assert self.node._fleet is not None
        return self.node._fleet.agent

    @property
    def fetcher(self) -> Any:
        assert self.node._fleet is not None
        return self.node._fleet._fetcher

    def document(self, **changes: Any) -> dict[str, Any]:
        """Return a document that changes nothing but what is given."""
        self.generation += 1
        return {
            "schema": "hedgerow.desired/1",
            "node": str(self.site.address),
            "generation": self.generation,
            "at": time.time(),
            "models": {"door": self.versions["good"].model_dump()},
            "swap": SWAP,
            **changes,
        }

    async def publish(self, tail: str, payload: bytes, *, node: str = "node", qos: int = 1, **fields: Any) -> None:
        await self.site.client.publish(
            f"hedgerow/v1/test/{self.site.name}/{node}/{tail}",
            payload,
            qos=qos,
            properties=properties(**fields) if fields else None,
        )

    async def desire(self, document: dict[str, Any]) -> Reported:
        """Publish a document, and wait until the node has carried it out or refused it."""
        await self.publish("desired", orjson.dumps(document))
        generation = document["generation"]
        await until(
            lambda: self.reported.generation == generation and self.reported.state != "in-progress",
            lambda: self.reported,
        )
        return self.reported

    async def unharmed(self) -> None:
        """Check that the good version serves, that a frame gives its result, and that the node replies."""
        assert self.reported.models["door"].model == self.versions["good"]
        self.frames += 1
        before = len(self.site.published("result", "p"))
        await self.site.client.publish(self.site.topic(), np.full(3, self.frames, np.float32).tobytes(), qos=1)
        await until(lambda: len(self.site.published("result", "p")) > before, lambda: "the result of a frame")
        body = self.site.results("p")[-1]
        assert body["result"]["y"] == [[2.0 * self.frames] * 3]
        assert body["lineage"]["models"][0]["version"] == "1.0.0"
        assert (await self.site.command("ping"))["ok"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def estate(broker: Mosquitto, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Estate]:
    folder = tmp_path_factory.mktemp("region-service")
    models = make_repository(folder / "repository", ["door", "gate"])
    make = version_maker(folder)
    versions = {
        name: publish(models, make(TWICE, version, name=model), selector)
        for name, model, version, selector in (
            ("good", "door", "1.0.0", ""),
            ("other-site", "door", "2.0.0", "site=another"),
            ("other-node", "door", "2.1.0", "node=another"),
            ("other-region", "door", "2.2.0", "region=another"),
            ("early", "door", "2.3.0", "ring=early"),
            ("nuc", "door", "2.4.0", "hardware=nuc"),
            ("gpu", "door", "2.5.0", "device/gpu"),
            ("no-spares", "door", "2.6.0", "!spare"),
            ("for-all", "door", "3.0.0", ""),
            ("gate", "gate", "1.0.0", ""),
        )
    }
    numbers = itertools.count(1)

    def sign_new() -> ModelRef:
        number = next(numbers)
        body = f"(float[N,3] x) => (float[N,3] y) <float two = {{2.{number}}}> {{ y = Mul(x, two) }}"
        return publish(models, make(body, f"5.{number}.0"), "")

    versions["unsigned"] = make(TWICE, "9.0.0").ref
    (folder / "root.json").write_bytes(models.root)
    async with Site(broker.port, folder) as site:
        file = folder / "node.yaml"
        raw = {"parse": {"format": "raw"}}
        file.write_text(
            site.yaml(
                {
                    "p": {"subscribe": f"{site.name}/in/+", "stages": [raw, {"infer": {"model": "door"}}]},
                    "d": {"subscribe": f"{site.name}/durable", "stages": [raw], "publish": {"durable": True}},
                },
                node={"labels": OWN},
                models={"door": {"path": "bundle:door"}},
                fleet={"root_file": str(folder / "root.json")},
            )
        )
        options = ClientOptions(url=f"mqtt://127.0.0.1:{broker.port}")
        async with HostileServer(options, "test", models.repository.folder) as server:
            node = Node(configfile.load(file), file)
            running = asyncio.create_task(node.run())
            await until(lambda: running.done() or site.published("reported"), lambda: "the first report")
            estate = Estate(site, node, server, versions, sign_new)
            assert (await estate.desire(estate.document())).state == "succeeded"
            await until(lambda: not node._probes.why_unready(), node._probes.why_unready)
            await until(lambda: "door" in estate.reported.models, lambda: estate.reported)
            yield estate
            node.stop()
            await running


def publish(models: TestRepository, version: ModelVersion, selector: str) -> ModelRef:
    models.repository.publish(version, models.owner, parse_selector(selector))
    return version.ref


def choose(name: str, **labels: str) -> Callable[[Estate], dict[str, Any]]:
    """Return what makes a document that chooses a version, and sets labels."""
    return lambda estate: {"models": {"door": estate.versions[name].model_dump()}, "labels": labels}


def changed(**changes: Any) -> Callable[[Estate], dict[str, Any]]:
    return lambda _: changes


def with_ref(**changes: Any) -> Callable[[Estate], dict[str, Any]]:
    return lambda estate: {"models": {"door": estate.versions["for-all"].model_dump() | changes}}


@pytest.mark.parametrize(
    ("document", "code"),
    [
        pytest.param(choose("other-site", site="another"), "label-collision", id="site-of-another"),
        pytest.param(choose("other-node", node="another"), "label-collision", id="name-of-another"),
        pytest.param(choose("other-region", region="another"), "label-collision", id="region-of-another"),
        pytest.param(choose("early", ring="early"), "label-collision", id="label-of-the-file-changed"),
        pytest.param(choose("no-spares", spare=""), "label-collision", id="label-of-the-file-emptied"),
        pytest.param(choose("good", arch="z80"), "label-collision", id="label-of-the-machine-changed"),
        pytest.param(choose("good", cores="4096"), "label-collision", id="cores-changed"),
        pytest.param(choose("good", hedgerow="9.9.9"), "label-collision", id="version-of-hedgerow-changed"),
        pytest.param(choose("nuc", hardware="nuc"), "not-for-this-node", id="label-that-the-file-lacks"),
        pytest.param(choose("gpu", **{"device/gpu": ""}), "not-for-this-node", id="device-that-the-machine-lacks"),
        pytest.param(choose("other-site"), "not-for-this-node", id="signed-for-another-site"),
        pytest.param(choose("early", Ring="early"), "not-for-this-node", id="label-in-capitals"),
        pytest.param(choose("no-spares"), "not-for-this-node", id="signed-for-nodes-without-a-label"),
        pytest.param(choose("unsigned"), "unknown-target", id="unsigned-version"),
        pytest.param(choose("gate"), "another-bundle", id="model-of-another-slot"),
        pytest.param(with_ref(digest=f"sha256:{0:064x}"), "wrong-digest", id="digest-of-nothing"),
        pytest.param(with_ref(version="1.0.0"), "wrong-digest", id="new-content-under-an-old-version"),
        pytest.param(with_ref(version="4.0.0"), "unknown-target", id="version-that-nobody-signed"),
        pytest.param(with_ref(name="gate"), "another-bundle", id="version-under-another-name"),
        pytest.param(
            lambda estate: {"models": {"window": estate.versions["good"].model_dump()}}, "unknown-model", id="new-model"
        ),
        pytest.param(changed(pipelines={"ghost": None}), "unknown-pipeline", id="pipeline-that-is-not-there"),
    ],
)
async def test_a_document_that_asks_for_more_than_is_signed_is_refused(
    estate: Estate, document: Callable[[Estate], dict[str, Any]], code: str
) -> None:
    """The node reports why, an event says so too, and nothing of the document is carried out."""
    events = len(estate.site.events("desired-not-carried-out"))
    counted = estate.agent.counts["not-carried-out"]

    report = await estate.desire(estate.document(**document(estate)))

    assert (report.state in ("rejected", "failed"), report.error and report.error.code) == (True, code)
    assert report.error is not None
    assert report.error.remedy
    assert report.labels["site"] == estate.site.name
    assert report.labels.items() >= OWN.items(), "the node's labels are its own"
    assert estate.agent.counts["not-carried-out"] == counted + 1
    await until(lambda: len(estate.site.events("desired-not-carried-out")) > events)
    assert estate.site.events("desired-not-carried-out")[-1]["detail"]["code"] == code
    await estate.unharmed()


async def test_labels_of_the_region_that_are_no_node_labels_change_nothing_and_are_not_refused(estate: Estate) -> None:
    report = await estate.desire(estate.document(labels={"tier": "gold", "ring": "late"}))

    assert report.state == "succeeded"
    assert "tier" not in report.labels
    await estate.unharmed()


def as_document(**changes: Any) -> Callable[[Estate], bytes]:
    return lambda estate: orjson.dumps(estate.document(**changes))


def as_ref(**changes: Any) -> Callable[[Estate], bytes]:
    return lambda estate: orjson.dumps(
        estate.document(models={"door": estate.versions["for-all"].model_dump() | changes})
    )


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        pytest.param(as_document(node="test/elsewhere/node"), "another-node", id="document-of-another"),
        pytest.param(as_document(node="node"), "another-node", id="document-of-nobody"),
        pytest.param(as_document(generation=1), "old-generation", id="older-document"),
        pytest.param(as_document(generation=0), "unreadable", id="generation-zero"),
        pytest.param(as_document(generation=-5), "unreadable", id="generation-below-zero"),
        pytest.param(as_document(expires_at=5.0), "expired", id="expired-document"),
        pytest.param(as_document(schema="hedgerow.desired/2"), "unreadable", id="another-schema"),
        pytest.param(as_document(labels={"": "x"}), "unreadable", id="label-without-a-key"),
        pytest.param(as_document(labels={"a": "x\ny"}), "unreadable", id="label-with-a-newline"),
        pytest.param(as_document(labels={"a": "\u202e"}), "unreadable", id="label-that-turns-text-around"),
        pytest.param(as_document(labels=["site"]), "unreadable", id="labels-as-a-list"),
        pytest.param(as_ref(name="../door"), "unreadable", id="model-outside-the-store"),
        pytest.param(as_ref(name="door/1.0.0"), "unreadable", id="model-with-a-slash"),
        pytest.param(as_ref(version="../1.0.0"), "unreadable", id="version-outside-the-store"),
        pytest.param(as_ref(version="1." + "0" * 100 + ".0"), "unreadable", id="version-too-long"),
        pytest.param(as_ref(digest="sha256:"), "unreadable", id="digest-cut-short"),
        pytest.param(as_ref(digest=f"md5:{0:064x}"), "unreadable", id="digest-of-another-kind"),
        pytest.param(as_document(models={"../../etc": None}), "unreadable", id="model-name-as-a-path"),
        pytest.param(lambda _: b"\xff\xfe{}", "unreadable", id="no-text"),
        pytest.param(lambda _: b"[" * 50_000, "unreadable", id="deep-nesting"),
        pytest.param(lambda _: b"{}", "unreadable", id="empty-document"),
        pytest.param(lambda _: b" " * (2 << 20), "unreadable", id="oversized-document"),
    ],
)
async def test_a_document_that_is_none_is_refused(
    estate: Estate, payload: Callable[[Estate], bytes], reason: str
) -> None:
    counted, warned = estate.agent.counts["refused"], estate.node._announcer.warned["desired-refused", ""]

    await estate.publish("desired", payload(estate))

    await until(lambda: estate.agent.counts["refused"] == counted + 1)
    assert estate.node._announcer.warned["desired-refused", ""] == warned + 1
    await until(lambda: reason in {event["detail"]["reason"] for event in estate.site.events("desired-refused")})
    await estate.unharmed()


@pytest.mark.parametrize(
    "topic",
    [
        pytest.param("{own}/result/p", id="result"),
        pytest.param("{own}/result/p/late", id="late-result"),
        pytest.param("{own}/reported", id="reported"),
        pytest.param("{own}/status", id="status"),
        pytest.param("{own}/health", id="health"),
        pytest.param("{own}/event/gap", id="gap"),
        pytest.param("{own}/event/reloaded", id="event"),
        pytest.param("{own}/dead/p", id="dead-letter"),
        pytest.param("{own}/blob/ask/part", id="blob-request"),
        pytest.param("{own}/blob/want", id="blob-announcement"),
        pytest.param("{own}/ack", id="its-own-ack"),
        pytest.param("{own}/desired", id="its-own-desired"),
        pytest.param("{own}/command/stop", id="its-own-command"),
        pytest.param("{own}/reply", id="reply-without-tail"),
        pytest.param("{own}/replyx/1", id="channel-that-begins-alike"),
        pytest.param("{own}/Reply/1", id="channel-in-capitals"),
        pytest.param("{own}2/reply/1", id="neighbour-that-begins-alike"),
        pytest.param("{site}/neighbour/reply/1", id="reply-of-a-neighbour"),
        pytest.param("{site}/~/command/stop", id="command-to-every-node"),
        pytest.param("{site}/~/desired", id="desired-of-every-node"),
        pytest.param("hedgerow/v1/test/elsewhere/~/reply/1", id="reply-of-another-site"),
        pytest.param("hedgerow/v1/other/{name}/node/reply/1", id="reply-of-another-region"),
        pytest.param("hedgerow/v2/test/{name}/node/reply/1", id="another-tree"),
        pytest.param("{name}/in/a", id="frame-of-a-sensor"),
        pytest.param("plant/door/open", id="actuator"),
        pytest.param("answers/1", id="free-topic"),
        pytest.param("$SYS/broker/connection/hall/state", id="state-of-a-bridge"),
        pytest.param("$share/g/answers", id="shared"),
        pytest.param("{own}/reply/+", id="wildcard"),
        pytest.param("{own}/reply/#", id="wildcard-of-all"),
        pytest.param("{own}/reply/" + "x" * 2000, id="too-long"),
    ],
)
async def test_a_response_topic_makes_the_node_publish_nowhere_else(estate: Estate, topic: str) -> None:
    """The refusal comes where replies come by default, so whoever requests it sees why."""
    site = f"hedgerow/v1/test/{estate.site.name}"
    target = topic.format(own=f"{site}/node", site=site, name=estate.site.name)
    refused, key = estate.node._commands.counts["refused"], uuid.uuid4().bytes
    warned = estate.node._announcer.warned["command-refused", ""]
    async with estate.site.connect() as watcher:
        await watcher.subscribe([("#", 1), ("$SYS/broker/connection/#", 1)])

        await estate.publish("command/ping", b"", response_topic=target, correlation=key)

        async for message in watcher.messages:
            if getattr(message.properties, "CorrelationData", None) == key and message.topic.value.endswith(
                "/reply/ping"
            ):
                break
            if message.topic.value == target:
                assert b"hedgerow.reply" not in bytes(message.payload)
    reply = orjson.loads(message.payload)
    assert message.topic.value == f"{site}/node/reply/ping"
    assert (reply["ok"], reply["error"]["code"]) == (False, "response-topic-refused")
    assert "remote: {reply_prefixes:" in reply["error"]["remedy"]
    assert estate.node._commands.counts["refused"] == refused + 1
    assert estate.node._announcer.warned["command-refused", ""] == warned + 1
    await estate.unharmed()


@pytest.mark.parametrize(
    ("command", "fields", "code"),
    [
        pytest.param("snapshot", {"response_topic": "{own}/reply/up/region/1"}, "frame-stays", id="frame-to-the-region"),
        pytest.param("snapshot", {"response_topic": "{own}/reply/up"}, "frame-stays", id="frame-up-without-name"),
        pytest.param("snapshot", {"response_topic": "{all}/reply/up/x/y/z"}, "frame-stays", id="frame-up-for-every-node"),
        pytest.param("ping", {"correlation": bytes(2000)}, "correlation-too-long", id="long-correlation"),
        pytest.param("stop", {"correlation": bytes(60_000)}, "malformed-command", id="stop-with-endless-properties"),
        pytest.param(
            "stop", {"user": {f"{n}": "x" * 900 for n in range(60)}}, "malformed-command", id="stop-with-many-properties"
        ),
        pytest.param("stop", {"response_topic": "{own}/result/p"}, "response-topic-refused", id="stop-with-a-gadget"),
        pytest.param("pause", {"response_topic": "answers/1"}, "response-topic-refused", id="pause-with-a-gadget"),
    ],
)  # fmt: skip
async def test_a_command_whose_reply_may_not_go_there_is_not_carried_out(
    estate: Estate, command: str, fields: dict[str, Any], code: str
) -> None:
    await estate.unharmed()  # a snapshot has a frame
    site = f"hedgerow/v1/test/{estate.site.name}"
    if "response_topic" in fields:
        fields = {"response_topic": fields["response_topic"].format(own=f"{site}/node", all=f"{site}/~")}
    tail = fields["response_topic"].partition("/reply/")[2] if code == "frame-stays" else command
    seen = len(estate.site.published("reply", tail))

    await estate.publish(f"command/{command}", b'{"args": {}}', **fields)

    await until(lambda: len(estate.site.published("reply", tail)) > seen)
    reply = estate.site.published("reply", tail)[-1].body
    assert (reply["ok"], reply["error"]["code"]) == (False, code)
    assert "value" not in reply
    assert (estate.node.runners["p"].state, estate.node._stop.is_set()) == ("running", False)
    await estate.unharmed()


def acks(**content: Any) -> Callable[[str], bytes]:
    return lambda epoch: orjson.dumps({"schema": "hedgerow.ack/1", "epoch": epoch, "through": {}, **content})


@pytest.mark.parametrize(
    "ack",
    [
        pytest.param(lambda _: b"", id="empty"),
        pytest.param(lambda _: b"\xff", id="no-text"),
        pytest.param(lambda _: b"[" * 30_000, id="deep-nesting"),
        pytest.param(acks(through={"10": 1}), id="priority-that-is-none"),
        pytest.param(acks(through={"0": -1}), id="below-zero"),
        pytest.param(acks(through={"0": 1 << 63}), id="beyond-all-numbers"),
        pytest.param(acks(through={"0": 1.5}), id="half-a-number"),
        pytest.param(acks(through=[1]), id="list-for-a-map"),
        pytest.param(acks(also={"0": [[1]]}), id="half-a-range"),
        pytest.param(lambda _: bytes(200_000), id="oversized"),
    ],
)
async def test_an_acknowledgement_that_is_none_is_counted(estate: Estate, ack: Callable[[str], bytes]) -> None:
    outbox, entries = estate.node._outbox, await held(estate)
    counted = outbox.bad_acks

    await estate.publish("ack", ack(epoch(estate)))

    await until(lambda: outbox.bad_acks == counted + 1)
    assert estate_entries(estate) >= entries
    await estate.unharmed()


@pytest.mark.parametrize(
    ("make", "told"),
    [
        pytest.param(lambda _: Ack("0" * 16, {0: 1 << 40}), False, id="of-another-epoch"),
        pytest.param(lambda epoch: Ack(epoch, {0: 1 << 40}), True, id="through-numbers-never-given"),
        pytest.param(lambda epoch: Ack(epoch, {}, {0: [(1 << 30, 1 << 31)]}), True, id="range-never-given"),
        pytest.param(lambda epoch: Ack(epoch, {5: 7}), True, id="priority-never-used"),
        pytest.param(lambda epoch: Ack(epoch, {}, {0: [(5, 2)]}), False, id="range-backwards"),
    ],
)
async def test_an_acknowledgement_of_what_was_never_sent_loses_nothing(
    estate: Estate, make: Callable[[str], Ack], told: bool
) -> None:
    """What the outbox holds stays, and comes again under another epoch if the region claims numbers never given."""
    entries, before = await held(estate), epoch(estate)

    await estate.publish("ack", make(before).encode())

    if told:
        await until(lambda: epoch(estate) != before)
        await until(lambda: any(one["detail"].get("previous") == before for one in estate.site.events("outbox-clash")))
    await held(estate)
    assert estate_entries(estate) > entries
    await estate.unharmed()


def epoch(estate: Estate) -> str:
    health = estate.node.health().outbox
    assert health is not None
    return health.epoch


def estate_entries(estate: Estate) -> int:
    health = estate.node.health().outbox
    assert health is not None
    return health.entries


async def held(estate: Estate) -> int:
    """Let the outbox hold one more durable result. Returns: how many it holds."""
    before = estate_entries(estate)
    await estate.site.client.publish(f"{estate.site.name}/durable", np.zeros(3, np.float32).tobytes(), qos=1)
    await until(lambda: estate_entries(estate) > before)
    return estate_entries(estate)


@pytest.mark.parametrize(
    ("tail", "payload"),
    [
        pytest.param("blob/part/x", b"x", id="chunk-without-digest"),
        pytest.param("blob/part/" + "0" * 16 + "/" + "0" * 64 + "/x", b"x", id="chunk-with-more"),
        pytest.param("blob/document", b"\xc1", id="no-document"),
        pytest.param("blob/document", msgpack.packb(["../../etc/passwd", 0, 1, b"x"]), id="document-outside"),
        pytest.param("blob/document", msgpack.packb(["metadata/a\nb", 0, 1, b"x"]), id="document-with-a-newline"),
        pytest.param("blob/document", msgpack.packb(["metadata/x.json", -1, 1, b""]), id="document-before-its-start"),
        pytest.param("blob/document", msgpack.packb(["metadata/x.json", 0, 1, "x"]), id="document-as-text"),
        pytest.param("blob/document", b"\x91" * 50_000, id="deep-nesting"),
    ],
)
async def test_content_that_nobody_asked_for_is_counted(estate: Estate, tail: str, payload: bytes) -> None:
    if tail.startswith("blob/part/"):  # chunks are subscribed to while a version is fetched
        await estate.fetcher.client.subscribe({f"hedgerow/v1/test/{estate.site.name}/+/blob/part/#": 1})
    counts = estate.fetcher.counts
    scheduler, estate.fetcher._scheduler = estate.fetcher._scheduler, object()
    before = counts.unreadable
    try:
        await estate.publish(tail, payload, node="~")
        await until(lambda: counts.unreadable == before + 1)
    finally:
        estate.fetcher._scheduler = scheduler
    await estate.unharmed()


async def test_a_flood_of_chunks_without_acknowledgement_is_bounded(estate: Estate) -> None:
    """Those of QoS 1 are bounded by Receive Maximum."""
    fetcher, digest, group = estate.fetcher, "0" * 64, "0" * 16
    before = fetcher.counts.duplicate_chunks
    chunk = Message(f"hedgerow/v1/test/{estate.site.name}/~/blob/part/{group}/{digest}", bytes(3), 0, 0, 0.0, b"")
    fetcher._scheduler, fetcher._group = SimpleNamespace(missing={digest: 3}), group
    for _ in range(1000):
        fetcher._handle(chunk)
    waiting = fetcher._parts.qsize()
    fetcher._scheduler = None

    assert waiting == MAX_UNSTORED_CHUNKS
    await until(lambda: fetcher.counts.duplicate_chunks == before + 1000)
    await estate.unharmed()


def only(part: str, change: Callable[[bytes], bytes]) -> Tamper:
    """Return what changes content on topics that contain `part`."""
    return lambda topic, payload: change(payload) if part in topic else payload


def document(path: str, change: Callable[[list[Any]], list[Any]]) -> Tamper:
    """Return what changes parts of documents whose path contains `path`."""

    def tamper(topic: str, payload: bytes) -> bytes:
        if not topic.endswith("/document"):
            return payload
        fields = msgpack.unpackb(payload)
        return msgpack.packb(change(fields)) if path in fields[0] else payload

    return tamper


@pytest.mark.parametrize(
    ("tamper", "codes"),
    [
        pytest.param(only("/part/", lambda data: bytes(len(data))), {"content-damaged"}, id="chunk-of-zeros"),
        pytest.param(only("/part/", lambda data: data + b"x"), {"content-damaged"}, id="chunk-too-long"),
        pytest.param(only("/part/", lambda data: data[:-1] or b"x"), {"content-damaged"}, id="chunk-too-short"),
        pytest.param(only("/part/", lambda _: b""), {"content-missing"}, id="chunk-withheld"),
        pytest.param(
            document("timestamp", lambda f: [f[0], f[1], 1 << 39, b" " * 200_000]), {"endless-data"}, id="endless-timestamp"
        ),
        pytest.param(document("timestamp", lambda f: [*f[:3], b"{}"]), {"bad-metadata"}, id="empty-timestamp"),
        pytest.param(
            document("manifest", lambda f: [*f[:3], bytes(len(f[3]))]), {"wrong-content"}, id="manifest-of-zeros"
        ),
        pytest.param(
            document("manifest", lambda f: [f[0], f[1], 1 << 39, f[3] * 3]),
            {"endless-data", "wrong-content"},
            id="endless-manifest",
        ),
        pytest.param(document("manifest", lambda f: [f[0], f[1], None, b""]), {"missing-metadata"}, id="manifest-withheld"),
    ],
)  # fmt: skip
async def test_wrong_or_endless_content_is_refused_and_the_old_version_serves(
    estate: Estate, tamper: Tamper, codes: set[str]
) -> None:
    estate.fetcher._random = estate.fetcher.documents._random = NoDelay()
    estate.fetcher.documents._forget()
    version = estate.sign_new()
    estate.server.tamper = tamper  # type: ignore[method-assign]
    try:
        report = await estate.desire(estate.document(models={"door": version.model_dump()}))
    finally:
        estate.server.tamper = lambda _, payload: payload  # type: ignore[method-assign]
        estate.fetcher.documents._forget()

    assert report.state == "failed"
    assert report.error is not None
    assert report.error.code in codes
    assert report.error.remedy
    await estate.unharmed()


class NoDelay:
    """Chooses the shortest pause."""

    def uniform(self, a: float, b: float) -> float:
        return a

    def random(self) -> float:
        return 0.0
