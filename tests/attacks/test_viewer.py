"""Attacks by whoever holds a viewer's certificate, on a real broker with a rendered configuration.

A viewer may read status, health, events, results and reported state of its site. It tries to read more, to write, and to use up
the broker. Each attempt is refused or bounded, counted by `hedgerow broker refusals`, and costs others nothing: during and after
it a sensor's frames reach the node, the node's results another viewer, and an operator's command the node.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import struct
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest
from tests.topology.conftest import Running, prepare
from tests.topology.raw import (
    DENIED,
    FOREVER,
    Raw,
    connect,
    packet,
    publish,
    respond_to,
    subscribe,
    text,
)

from hedgerow.topology.refusals import AccessDenials, readable, writable

TOPOLOGY = """\
region: {name: north, broker: "mqtts://localhost:PORT", roles: {viewer: [wall]}}
pipelines: base.yaml
sensors: {camera: plant/1/door}
up: {doors: true}
limits:
  connections: 24
  queue_messages: 50
  queue_bytes: 65536
  memory_bytes: 16777216
  packet_bytes: 65536
  keepalive_s: 60
  inflight: 10
sites:
  hall:
    broker: mqtts://localhost:PORT
    nodes: [a]
    roles: {viewer: [vera, victor], operator: [kim]}
"""
NODE, EVERYONE = "hedgerow/v1/north/hall/a", "hedgerow/v1/north/hall/~"
RESULT = f"{NODE}/result/doors"
NUMBERS = count(1)


class Site:
    """A site whose viewer `vera` was robbed, and everyone else at work."""

    def __init__(self, running: Running) -> None:
        self.running = running
        self.port = running.port("hall")
        self._contexts = {name: running.tls("hall", name) for name in ("vera", "victor", "a", "camera", "kim")}
        self._acl = (running.out / "hall" / "acl").read_text()
        self._log_begins = len(running.log("hall"))
        self.attackers: list[Raw] = []

    async def open(self, name: str, first: bytes | None = None, **options: bool) -> Raw:
        first = connect(f"{name}{next(NUMBERS)}") if first is None else first
        return await Raw.open(self.port, self._contexts[name], first, **options)

    async def vera(self, first: bytes | None = None, **options: bool) -> Raw:
        made = await self.open("vera", first, **options)
        self.attackers.append(made)
        return made

    async def session(self, name: str = "", *filters: str, properties: bytes = b"") -> None:
        """Open a session that never expires, and leave it."""
        link = await self.vera(connect(name or f"session{next(NUMBERS)}", session_s=FOREVER, properties=properties))
        link.send(subscribe(1, *(filters or ("#",))))
        await link.until(lambda: link.suback)
        await link.leave()

    async def start(self) -> None:
        node = connect("the-node", session_s=3600, clean=False)
        self.node, self.camera, self.kim, self.victor = (
            await self.open("a", node), await self.open("camera"), await self.open("kim"), await self.open("victor")
        )  # fmt: skip
        self.node.send(subscribe(1, "plant/+/door", f"{NODE}/command/#"))
        self.victor.send(subscribe(1, RESULT))
        for link in (self.node, self.victor):
            await link.until(lambda link=link: link.suback)

    async def stop(self) -> None:
        for link in (*self.attackers, self.node, self.camera, self.kim, self.victor):
            await link.end()

    async def works(self, times: int = 3) -> None:
        """Check that frames, results and commands arrive, each once."""
        for link in (self.camera, self.node, self.kim):
            assert not link.closed
            link.pubacks.clear()
        marks = [f"honest {next(NUMBERS)}".encode() for _ in range(times)]
        for number, mark in enumerate(marks, 1):
            self.camera.send(publish("plant/1/door", mark, number))
            self.node.send(publish(RESULT, mark, number))
            self.kim.send(publish(f"{NODE}/command/ping", mark, number))
        for link in (self.camera, self.node, self.kim):
            await link.until(lambda link=link: len(link.pubacks) == times)
            assert set(link.pubacks.values()) <= {0, 0x10}
        await self.node.settle()
        await self.victor.settle()
        for mark in marks:
            received = sorted(topic for topic, payload in self.node.received if payload == mark)
            assert received == [f"{NODE}/command/ping", "plant/1/door"]
            assert [topic for topic, payload in self.victor.received if payload == mark] == [RESULT]
        for link in (self.node, self.victor):
            assert not [payload for _, payload in link.received if b"vera" in payload], "an attacker's message"

    async def results(self, number: int, size: int) -> None:
        """Publish results of one size, as the node."""
        for one in range(1, number + 1):
            self.node.pubacks.clear()
            known = len(self.victor.received)
            self.node.send(publish(RESULT, b"r" * size, one))
            await self.node.until(lambda: self.node.pubacks)
            assert set(self.node.pubacks.values()) <= {0, 0x10}
            await self.victor.until(lambda known=known: len(self.victor.received) > known)

    def counts(self) -> dict[str, int]:
        """Return what `hedgerow broker refusals` has counted since the start, of the attacker and of nobody, by kind."""
        reader = AccessDenials(readable(self._acl), writable(self._acl))
        for line in self.running.log("hall")[self._log_begins :].splitlines():
            reader.take(line)
        others = {user for _, user in reader.counts} - {"vera@hall", ""}
        assert not others, f"others were refused: {reader.counts}"
        return {what: reader.counts[what, "vera@hall"] + reader.counts[what, ""] for what, _ in reader.counts}

    async def told(self, what: str) -> None:
        """Wait until the operator's report has counted the attempt; the log is written by another process."""
        async with asyncio.timeout(60):
            while not self.counts().get(what):  # noqa: ASYNC110 - another process writes the log
                await asyncio.sleep(0.01)

    def memory_bytes(self) -> int:
        """Return the memory of the broker."""
        status = Path(f"/proc/{self.running.pid('hall')}/status").read_text()
        return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))) * 1024


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    folder = Path(tempfile.mkdtemp(prefix="viewer-"))
    made = prepare(folder, TOPOLOGY)
    try:
        conf = made.out / "hall" / "mosquitto.conf"
        conf.write_text(conf.read_text().partition("# --- The bridge")[0])
        for name in ("hall", "north"):
            made.start(name)
        yield made
    finally:
        made.close()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
async def site(running: Running) -> AsyncIterator[Site]:
    made = Site(running)
    await made.start()
    await made.works()
    yield made
    await made.stop()


RETAIN, QOS2 = {"retain": True}, "qos2"
WRITES: dict[str, tuple[str, bytes, dict[str, object]]] = {
    "a result of a node": (RESULT, b"vera", {}),
    "a result to be retained": (RESULT, b"vera", RETAIN),
    "a late result": (f"{RESULT}/late", b"vera", {}),
    "the status of a node, retained": (f"{NODE}/status", b"vera", RETAIN),
    "nothing, so that a node's status is deleted": (f"{NODE}/status", b"", RETAIN),
    "a health report": (f"{NODE}/health", b"vera", {}),
    "an event": (f"{NODE}/event/gap", b"vera", {}),
    "reported state": (f"{NODE}/reported", b"vera", RETAIN),
    "a command": (f"{NODE}/command/stop", b"vera", {}),
    "a command with a response topic": (f"{NODE}/command/info", b"vera", {"properties": respond_to(RESULT)}),
    "a command to all nodes": (f"{EVERYONE}/command/stop", b"vera", {}),
    "a retained command, for each start": (f"{NODE}/command/stop", b"vera", RETAIN),
    "desired state": (f"{NODE}/desired", b"vera", RETAIN),
    "nothing, so that desired state is deleted": (f"{NODE}/desired", b"", RETAIN),
    "an acknowledgement, so that results are forgotten": (f"{NODE}/ack", b"vera", {}),
    "a reply": (f"{NODE}/reply/x", b"vera", {}),
    "a model's chunk": (f"{EVERYONE}/blob/x", b"vera", {}),
    "a dead letter": (f"{NODE}/dead/doors", b"vera", {}),
    "a frame": ("plant/1/door", b"vera", {}),
    "a frame, retained": ("plant/1/door", b"vera", RETAIN),
    "a topic of its own": ("vera/was/here", b"vera", {}),
    "the state of the bridge": ("$SYS/broker/connection/hall/state", b"0", RETAIN),
    "a topic of the broker": ("$CONTROL/dynamic-security/v1", b"vera", {}),
}


@pytest.mark.parametrize("what", WRITES)
async def test_a_viewer_cannot_publish(site: Site, what: str) -> None:
    topic, payload, options = WRITES[what]
    spy = await Raw.open(site.running.windows["hall"], None, connect("spy"))
    spy.send(subscribe(1, "#", "$SYS/broker/connection/#"))
    await spy.until(lambda: spy.suback)
    known = len(spy.received)
    link = await site.vera()
    link.send(publish(topic, payload, 7, **options))  # type: ignore[arg-type]
    await link.until(lambda: link.pubacks or link.closed)
    await site.works()
    await spy.settle()

    assert link.pubacks == {7: DENIED}
    assert all(b"honest" in one for _, one in spy.received[known:]), "nobody gets it, and nothing is deleted"
    await site.told("publish")
    await spy.end()


@pytest.mark.parametrize("topic", [f"{NODE}/status", f"{NODE}/command/stop", "plant/1/door"])
async def test_a_viewers_last_will_is_not_published(site: Site, topic: str) -> None:
    """Mosquitto says nothing about it, so the report reads it from the connection."""
    link = await site.vera(connect("will", will=(topic, b"vera's will")))
    await link.end()
    await site.told("will")
    await site.works()


SECRETS = {
    "commands": f"{NODE}/command/ping",
    "desired state": f"{NODE}/desired",
    "replies": f"{NODE}/reply/x",
    "replies to all": f"{EVERYONE}/reply/x",
    "dead letters": f"{NODE}/dead/doors",
    "frames": "plant/1/door",
    "chunks": f"{NODE}/blob/x",
    "acknowledgements": f"{NODE}/ack",
}


@pytest.mark.parametrize("what", SECRETS)
async def test_a_viewer_cannot_read(site: Site, what: str) -> None:
    """By name, by wildcards, from what is retained, and in a session that waits for it."""
    topic = SECRETS[what]
    sender = await Raw.open(site.running.windows["hall"], None, connect("sender"))
    sender.send(publish(topic, b"secret retained", 1, retain=True))
    await sender.until(lambda: 1 in sender.pubacks)
    levels = topic.split("/")
    tries = [topic, "#", "/".join(["+"] * len(levels)), "/".join([*levels[:-1], "#"]), "/".join([*levels[:-1], "+"])]
    session = f"waits {what}"
    await site.session(session, *tries)
    link = await site.vera()
    link.send(subscribe(1, *tries))
    await link.until(lambda: link.suback)
    sender.send(publish(topic, b"secret", 2))
    await sender.until(lambda: 2 in sender.pubacks)
    await link.settle()
    later = await site.vera(connect(session, session_s=FOREVER, clean=False))
    await later.settle()

    assert not [payload for _, payload in (*link.received, *later.received) if b"secret" in payload]
    await site.told("subscribe")
    sender.send(publish(topic, b"", 3, retain=True))
    await sender.settle()
    await sender.end()
    later.send(packet(0xE0, b"\0\x05\x11" + struct.pack("!I", 0)))  # the session ends
    await later.until(lambda: later.closed)
    await site.works()


@pytest.mark.parametrize("what", [*WRITES, *SECRETS])
async def test_a_viewer_of_the_region_may_no_more(running: Running, what: str) -> None:
    """Its certificate reads results of all sites, and is tried on the region's broker, and on a site's."""
    topic, payload, options = WRITES[what] if what in WRITES else (SECRETS[what], b"vera", {})
    tls = running.tls("region", "wall")
    sender = await Raw.open(running.windows["north"], None, connect("sender"))
    link = await Raw.open(running.port("north"), tls, connect("wall"))
    link.send(subscribe(1, "#"), subscribe(2, topic), subscribe(3, RESULT))
    await link.until(lambda: len(link.suback) == 3)
    if what in SECRETS:
        sender.send(publish(topic, b"secret", 1))
        await sender.until(lambda: sender.pubacks)
    else:
        link.send(publish(topic, payload, 7, **options))  # type: ignore[arg-type]
        await link.until(lambda: link.pubacks or link.closed)
        assert link.pubacks == {7: DENIED}
    sender.send(publish(RESULT, b"honest", 2))
    await sender.until(lambda: 2 in sender.pubacks)
    await link.settle()
    assert set(link.received) == {(RESULT, b"honest")}
    tls.load_verify_locations(running.folder / "pki" / "hall" / "issued" / "broker" / "trust.crt")
    stranger = await Raw.open(running.port("hall"), tls, connect("wall"))
    assert stranger.closed
    assert not stranger.connack
    for one in (link, sender, stranger):
        await one.end()


Attack = Callable[[Site], Awaitable[str]]
"""Returns the kind of refusal that is reported."""


async def more_connections_than_allowed(site: Site) -> str:
    """Those that are connected stay; the attacker's surplus is closed at once."""
    links: list[Raw] = []
    with suppress(OSError):
        while len(links) < 300:
            links.append(await site.vera())
            assert not links[-1].closed
    assert len(links) < 2 * 24 + 64
    await site.works()
    for link in links:
        await link.end()
    return "connect"


async def sessions_that_never_expire(site: Site) -> str:
    """Each keeps 50 results at most, and the messages are stored once for all."""
    before = site.memory_bytes()
    for _ in range(100):
        await site.session("", RESULT)
    await site.results(200, 1000)
    assert site.memory_bytes() - before < 100 * 50 * 300
    return "drop"


async def results_never_acknowledged(site: Site) -> str:
    """Ten are in flight, 50 wait, the rest is dropped: for this client only."""
    link = await site.vera(acknowledges=False)
    link.send(subscribe(1, RESULT))
    await link.until(lambda: link.suback)
    await site.results(200, 100)
    await link.settle()
    assert len(link.received) == 10
    return "drop"


async def results_never_acknowledged_with_the_largest_window(site: Site) -> str:
    """A client chooses how many may be in flight, but not how many bytes."""
    link = await site.vera(connect("window", properties=b"\x21\xff\xff"), acknowledges=False)
    link.send(subscribe(1, RESULT))
    await link.until(lambda: link.suback)
    await site.results(200, 1000)
    await link.settle()
    assert len(link.received) <= 2 * 65_536 // 1000 + 2, "as many bytes in flight as may be queued, and the queue"
    return "drop"


async def reading_nothing(site: Site) -> str:
    """With QoS 0, which has no window: 50 messages wait at most, beside what the network holds."""
    reader, writer = await asyncio.open_connection(
        "localhost", site.port, ssl=site.running.tls("hall", "vera"), limit=1
    )
    writer.write(connect(f"slow{next(NUMBERS)}") + subscribe(1, RESULT, qos=0))
    await reader.readexactly(2)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    before = site.memory_bytes()
    await site.results(400, 20_000)
    assert site.memory_bytes() - before < 50 * 20_000 * 4
    writer.transport.abort()
    return "drop"


async def a_packet_that_is_too_large(site: Site) -> str:
    link = await site.vera()
    link.send(publish("vera", bytes(70_000), 1))
    await link.until(lambda: link.closed)
    return "disconnect"


async def a_client_id_of_64_kilobytes(site: Site) -> str:
    link = await site.vera(connect("x" * 65_535))
    await link.until(lambda: link.closed)
    assert not link.connack
    return "disconnect"


async def ten_thousand_user_properties(site: Site) -> str:
    property_ = b"\x26" + text("k") + text("v")
    link = await site.vera()
    link.send(publish("vera", b"", 1, properties=property_ * 10_000))
    await link.until(lambda: link.closed or link.pubacks)
    assert link.closed or link.pubacks == {1: DENIED}
    return "disconnect" if link.closed else "publish"


async def a_topic_alias(site: Site) -> str:
    link = await site.vera()
    link.send(publish("vera", b"", 1, properties=b"\x23\0\x01"))
    await link.until(lambda: link.closed)
    return "disconnect"


async def a_filter_of_many_levels(site: Site) -> str:
    link = await site.vera()
    link.send(subscribe(1, "/".join("a" * 202)))
    await link.until(lambda: link.closed or link.suback)
    assert link.closed or link.suback == b"\x8f" * len(link.suback)
    return "disconnect"


async def a_filter_with_a_misplaced_wildcard(site: Site) -> str:
    link = await site.vera()
    link.send(subscribe(1, "a/#/b"))
    await link.until(lambda: link.closed)
    return "disconnect"


async def a_topic_with_a_wildcard(site: Site) -> str:
    link = await site.vera()
    link.send(publish(f"{NODE}/command/+", b"vera", 1))
    await link.until(lambda: link.closed)
    return "disconnect"


async def text_that_is_not_utf8(site: Site) -> str:
    link = await site.vera()
    link.send(packet(0x32, struct.pack("!H", 2) + b"\xc3\x28" + b"\0\x01\0vera"))
    await link.until(lambda: link.closed)
    return "disconnect"


async def a_second_connect(site: Site) -> str:
    link = await site.vera()
    link.send(connect("again"))
    await link.until(lambda: link.closed)
    return "disconnect"


async def packets_of_a_broker(site: Site) -> str:
    link = await site.vera()
    link.send(packet(0x20, b"\0\0\0"))
    await link.until(lambda: link.closed)
    return "disconnect"


async def a_length_without_an_end(site: Site) -> str:
    link = await site.vera()
    link.send(b"\x30\xff\xff\xff\xff\xff")
    await link.until(lambda: link.closed)
    return "disconnect"


async def random_bytes(site: Site) -> str:
    link = await site.vera()
    link.send(b"\xf5\x10" + os.urandom(1000))
    await link.until(lambda: link.closed)
    return "disconnect"


async def thousands_of_subscriptions(site: Site) -> str:
    """They are counted as refused, because they deliver nothing, and are gone with the connection."""
    link = await site.vera()
    for start in range(0, 2000, 500):
        link.send(subscribe(1 + start, *(f"vera/{number}/{number}" for number in range(start, start + 500))))
    await link.until(lambda: len(link.suback) == 2000)
    await site.works()
    await link.end()
    return "subscribe"


async def a_keepalive_without_an_end(site: Site) -> str:
    """The broker sets its own: property 19 of the CONNACK."""
    for keepalive_s in (0, 65_535):
        link = await site.vera(connect(f"keep{keepalive_s}", keepalive_s=keepalive_s))
        assert b"\x13\0\x3c" in link.connack
    link.send(publish("vera", b"", 1))
    await link.until(lambda: link.pubacks)
    return "publish"


async def reconnecting_all_the_time(site: Site) -> str:
    for _ in range(50):
        link = await site.vera(connect("flap", session_s=FOREVER, clean=False))
        await link.end()
    link = await site.vera()
    link.send(publish("vera", b"", 1))
    await link.until(lambda: link.pubacks)
    return "publish"


async def asking_for_all_that_is_retained_again_and_again(site: Site) -> str:
    link = await site.vera()
    for number in range(1, 201):
        link.send(subscribe(number, "#"))
    await link.until(lambda: len(link.suback) == 200)
    link.send(publish("vera", b"", 1))
    await link.until(lambda: link.pubacks)
    return "publish"


async def publishing_at_full_speed(site: Site) -> str:
    """Ten thousand messages that go nowhere."""
    link = await site.vera()
    for _ in range(100):
        link.send(*(publish(f"{NODE}/command/stop", b"vera", number) for number in range(1, 101)))
        await link.writer.drain()
        await link.settle()
    assert set(link.pubacks.values()) == {DENIED}
    return "publish"


async def the_client_id_of_the_node(site: Site) -> str:
    """It reads nothing that waits there, and writes nothing. The node connects again, as nodes do."""
    link = await site.vera(connect("the-node", session_s=3600, clean=False))
    link.send(publish(RESULT, b"vera", 9))
    await link.until(lambda: link.pubacks)
    assert link.pubacks == {9: DENIED}
    assert not [one for one in link.received if one[0] != RESULT]
    await link.leave()
    await site.node.end()
    site.node = await site.open("a", connect("the-node", session_s=3600, clean=False))
    site.node.send(subscribe(1, "plant/+/door", f"{NODE}/command/#"))
    await site.node.until(lambda: site.node.suback)
    return "publish"


ATTACKS: list[Attack] = [
    more_connections_than_allowed, sessions_that_never_expire, results_never_acknowledged,
    results_never_acknowledged_with_the_largest_window, reading_nothing, a_packet_that_is_too_large,
    a_client_id_of_64_kilobytes, ten_thousand_user_properties, a_topic_alias, a_filter_of_many_levels,
    a_filter_with_a_misplaced_wildcard, a_topic_with_a_wildcard, text_that_is_not_utf8, a_second_connect,
    packets_of_a_broker, a_length_without_an_end, random_bytes, thousands_of_subscriptions, a_keepalive_without_an_end,
    reconnecting_all_the_time, asking_for_all_that_is_retained_again_and_again, publishing_at_full_speed,
    the_client_id_of_the_node,
]  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__.replace("_", "-"))
async def test_a_viewer_cannot_exhaust_the_broker(site: Site, attack: Attack) -> None:
    what = await attack(site)
    await site.told(what)
    await site.works()


def test_there_are_at_least_forty_attempts() -> None:
    assert len(WRITES) + 3 + len(SECRETS) + len(ATTACKS) >= 40


async def test_a_broker_whose_memory_is_used_up_loses_nothing_that_it_acknowledged(site: Site) -> None:
    """Readers that never read fill it. It stays up, and takes no more than it can keep; once they are gone, all goes on."""
    await site.stop()
    site.attackers.clear()
    keep = await site.open("victor", connect("keeper", session_s=3600))
    keep.send(subscribe(1, RESULT))
    await keep.until(lambda: keep.suback)
    slow = []
    for number in range(12):
        reader, writer = await asyncio.open_connection(
            "localhost", site.port, ssl=site.running.tls("hall", "vera"), limit=1
        )
        writer.write(connect(f"full{number}", properties=b"\x21\xff\xff") + subscribe(1, RESULT, qos=0))
        await reader.readexactly(2)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        slow.append(writer)
    acknowledged: set[bytes] = set()
    node = await site.open("a")
    for number in range(1000):
        payload = f"{number:08}".encode() + bytes(60_000)
        node.pubacks.clear()
        node.send(publish(RESULT, payload, 1))
        await node.until(lambda: node.pubacks or node.closed)
        if node.closed:
            break
        acknowledged.add(payload[:8])
    assert node.closed, "the broker ran out of memory"
    await node.end()
    for writer in slow:
        writer.transport.abort()
    await keep.settle()
    assert acknowledged <= {payload[:8] for _, payload in keep.received}
    await keep.end()
    assert site.memory_bytes() < 64 * 2**20
    await site.start()
    await site.works()
