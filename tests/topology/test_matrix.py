"""Every role tries every kind of topic in every way, on real brokers with rendered configurations.

What must happen is in one table, `RIGHTS` in `topology/acl.py`, from which the documentation's table is made too.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest
from tests.topology.conftest import Running, prepare
from tests.topology.raw import DENIED, Raw, connect, publish, respond_to, subscribe

from hedgerow.topics import Address, Channel, matches
from hedgerow.topology.acl import RIGHTS, pattern, rising

TOPOLOGY = """\
region:
  name: north
  broker: mqtts://localhost:PORT
  enrolment_port: PORT
  roles: {collector: [collector], operator: [anna], viewer: [wall]}
pipelines: base.yaml
sensors: {camera: plant/1/door, keypad: plant/1/safe}
up: {doors: true}
sites:
  hall:
    broker: mqtts://localhost:PORT
    loopback_port: PORT
    enrolment_port: PORT
    nodes: [a, b]
    roles: {viewer: [vera], operator: [kim], collector: [cole]}
  yard: {broker: mqtts://localhost:PORT, enrolment_port: PORT, nodes: [a]}
"""
PIPELINES = ("plant/+/door", "plant/+/safe", "plant/+/vault")
"""What the nodes' pipelines subscribe to."""
STATE = "$SYS/broker/connection/{}/state"


@dataclass(frozen=True)
class Actor:
    """A certificate, or none on the machine itself, on one broker.

    Attributes:
        address: of the nodes on its place; for a node its own.
        reads, writes: sensors' topics and states of bridges, which are not in the table.
    """

    name: str
    role: str
    broker: str
    authority: str
    folder: str | None
    address: Address
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()

    @property
    def qos(self) -> int:
        """What it may send with: the listener of claimants takes QoS 0 only."""
        return 0 if self.role == "claimant" else 1

    def may(self, right: str, topic: str, client: str = "") -> bool:
        """Whether the table allows it to a client of this id."""
        places = {
            "itself": self.address,
            "everyone": self.address.everyone(),
            "site": self.address._replace(node="+") if self.broker != "north" else None,
            "place": self.address._replace(node="+"),
            "client": self.address.everyone(),
        }
        allowed = list(self.reads if right == "read" else self.writes)
        for grant in RIGHTS[self.role]:
            place = places[grant.on]
            if place is not None:
                channels = grant.read if right == "read" else grant.write
                if grant.on == "client":
                    allowed += [place.topic(channel, client) for channel in channels if client]
                    continue
                rule = rising if (self.role, right) == ("bridge", "write") else pattern
                allowed += [rule(place, channel) for channel in channels]
        return any(matches(one, topic) for one in allowed)


def node(name: str, site: str = "hall") -> Actor:
    return Actor(f"node {name}", "node", site, site, name, Address("north", site, name), reads=PIPELINES)


HALL, ALL = Address("north", "hall", "+"), Address("north", "+", "+")
ACTORS = [
    node("a"),
    node("b"),
    Actor("camera", "sensor", "hall", "hall", "camera", HALL, writes=("plant/1/door",)),
    Actor("keypad", "sensor", "hall", "hall", "keypad", HALL, writes=("plant/1/safe",)),
    Actor("site's viewer", "viewer", "hall", "hall", "vera", HALL),
    Actor("site's operator", "operator", "hall", "hall", "kim", HALL),
    Actor("site's collector", "collector", "hall", "hall", "cole", HALL),
    Actor("program", "program", "hall", "hall", None, HALL, writes=("plant/1/door", "plant/1/safe")),
    Actor("site's claimant", "claimant", "hall", "hall", None, HALL),
    Actor("region's claimant", "claimant", "north", "region", None, ALL),
    Actor("bridge of hall", "bridge", "north", "region", "hall", HALL, writes=(STATE.format("hall"),)),
    Actor("bridge of yard", "bridge", "north", "region", "yard", Address("north", "yard", "+"), writes=(STATE.format("yard"),)),
    Actor("region's viewer", "viewer", "north", "region", "wall", ALL, reads=(STATE.format("+"),)),
    Actor("region's operator", "operator", "north", "region", "anna", ALL, reads=(STATE.format("+"),)),
    Actor("region's collector", "collector", "north", "region", "collector", ALL, reads=(STATE.format("+"),)),
]  # fmt: skip
NODES = ("north/hall/a", "north/hall/b", "north/hall/~", "north/yard/a", "north/yard/~", "south/hall/a")
TAILS = {
    Channel.RESULT: "doors",
    Channel.DEAD: "doors",
    Channel.EVENT: "gap",
    Channel.COMMAND: "stop",
    Channel.REPLY: "x/1",
    Channel.SERVICE: "s1",
    Channel.ENROL: "claimant-0",
    Channel.ENROLLED: "claimant-0",
}
CLAIMANTS = [f"claimant-{number}" for number in range(4)]
"""Client ids of claimants; what they may depends on it."""
TOPICS = [
    *(f"hedgerow/v1/{one}/{Channel(channel)}" + (f"/{tail}" if (tail := TAILS.get(channel) or ("1" if channel == "blob" else "")) else "")
      for one in NODES for channel in Channel),
    *(f"hedgerow/v1/{one}/reply/up/region/1" for one in NODES),
    "hedgerow/v1/north/~/~/service/s1",
    *(f"hedgerow/v1/north/hall/~/{one}/{client}" for one in ("enrol", "enrolled") for client in CLAIMANTS[1:]),
    "plant/1/door", "plant/1/safe", "plant/1/vault", "plant/1/elsewhere", "hedgerow", "hedgerow/v2/north/hall/a/status",
    STATE.format("hall"), STATE.format("yard"),
]  # fmt: skip


@pytest.fixture(scope="module")
def estate() -> Iterator[Running]:
    """Two brokers; the bridge between them is cut off, so that each message has one sender."""
    folder = Path(tempfile.mkdtemp(prefix="matrix-"))
    running = prepare(folder, TOPOLOGY)
    try:
        for name in ("hall", "north"):
            conf = running.out / name / "mosquitto.conf"
            text = conf.read_text()
            at = text.find("# --- The bridge")
            conf.write_text(text[:at] if at > 0 else text)
            running.start(name)
        yield running
    finally:
        running.close()
        shutil.rmtree(folder, ignore_errors=True)


NUMBERS = count()


async def opened(running: Running, actor: Actor, client: str | None = None, **options: object) -> Raw:
    if actor.role == "claimant":
        topology = running.described.topology
        place = topology.region if actor.broker == "north" else topology.sites[actor.broker]
        assert place.enrolment_port is not None
        trusting = running.tls(actor.authority, None)
        return await Raw.open(place.enrolment_port, trusting, connect(client or CLAIMANTS[0], **options))  # type: ignore[arg-type]
    tls = running.tls(actor.authority, actor.folder) if actor.folder is not None else None
    port = running.port(actor.broker) if tls is not None else running.described.topology.sites["hall"].loopback_port
    assert port is not None
    return await Raw.open(port, tls, connect(client or f"c{next(NUMBERS)}", **options))  # type: ignore[arg-type]


@pytest.fixture(params=["hall", "north"])
async def window(request: pytest.FixtureRequest, estate: Running) -> AsyncIterator[tuple[str, Raw]]:
    """A client of one broker that may do all, on a listener of its own."""
    made = await Raw.open(estate.windows[request.param], None, connect(f"w{next(NUMBERS)}"))
    made.send(subscribe(1, "#", "$SYS/broker/connection/#"))
    await made.until(lambda: made.suback)
    yield request.param, made
    await made.end()


def on(broker: str) -> list[Actor]:
    return [actor for actor in ACTORS if actor.broker == broker]


async def test_everyone_reads_what_the_table_says(estate: Running, window: tuple[str, Raw]) -> None:
    """By `#`, by the topic itself, by all its levels as `+`, and as a shared subscription; and what was retained before."""
    broker, sender = window
    for number, topic in enumerate(TOPICS, 1):
        sender.send(publish(topic, b"before", number, retain=True))
    await sender.until(lambda: len(sender.pubacks) == len(TOPICS))
    readers: list[tuple[Actor, str, str, Raw]] = []
    for actor in on(broker):
        for place, way in enumerate(("#", "exact", "plus", "shared")):
            client = CLAIMANTS[place] if actor.role == "claimant" else f"c{next(NUMBERS)}"
            link = await opened(estate, actor, client)
            filters = {
                "#": ["#", "$SYS/broker/connection/#"],
                "exact": TOPICS,
                "plus": [*sorted({"/".join(["+"] * (topic.count("/") + 1)) for topic in TOPICS}), STATE.format("+")],
                "shared": [f"$share/{actor.role}{actor.folder}{number}/{topic}" for number, topic in enumerate(TOPICS)],
            }[way]
            link.send(subscribe(1, *filters))
            await link.until(lambda link=link: link.suback)
            readers.append((actor, way, client, link))
    sender.pubacks.clear()
    for number, topic in enumerate(TOPICS, 1):
        sender.send(publish(topic, b"now", number))
    await sender.until(lambda: len(sender.pubacks) == len(TOPICS))

    for actor, way, client, link in readers:
        await link.settle()
        now = sorted(topic for topic, payload in link.received if payload == b"now")
        before = sorted({topic for topic, payload in link.received if payload == b"before"})
        # Mosquitto matches no topic of `$SYS` with a shared subscription.
        expected = sorted(
            topic for topic in TOPICS if actor.may("read", topic, client) and (way != "shared" or topic[0] != "$")
        )
        assert now == expected, (actor.name, way)
        assert before == expected, (actor.name, way)
        await link.end()
    for number, topic in enumerate(TOPICS, 1):
        sender.send(publish(topic, b"", number, retain=True))
    await sender.settle()


async def test_everyone_publishes_what_the_table_says(estate: Running, window: tuple[str, Raw]) -> None:
    """Plainly, to be retained, and with a response topic that is not its own: only the first topic gets the message."""
    broker, reader = window
    for actor in on(broker):
        link = await opened(estate, actor)
        ways = [
            (
                f"{way} {topic}",
                topic,
                publish(topic, f"{actor.name} {way}".encode(), actor.qos * (number * 3 + place + 1), **options),
            )
            for number, topic in enumerate(TOPICS)
            for place, (way, options) in enumerate(
                [
                    ("plain", {}),
                    ("retained", {"retain": True}),
                    ("response", {"properties": respond_to(TOPICS[number - 1])}),
                ]
            )
        ]
        for _, _, data in ways:
            link.send(data)
        await link.settle()
        await link.until(
            lambda link=link, ways=ways, actor=actor: len(link.pubacks) == len(ways) * actor.qos or link.closed
        )
        assert not link.closed, actor.name
        await reader.settle()

        accepted = {name for number, (name, _, _) in enumerate(ways, 1) if link.pubacks.get(number) in (0, 0x10)}
        refused = {name for number, (name, _, _) in enumerate(ways, 1) if link.pubacks.get(number) == DENIED}
        expected = {name for name, topic, _ in ways if actor.may("write", topic, CLAIMANTS[0])}
        arrived = {
            f"{payload.decode().removeprefix(f'{actor.name} ')} {topic}"
            for topic, payload in reader.received
            if payload.decode().startswith(f"{actor.name} ")
        }
        assert arrived == expected, actor.name
        if not actor.qos:
            await link.end()
            continue
        assert accepted == expected, actor.name
        assert len(refused) == len(ways) - len(expected), actor.name
        await link.end()
    for number, topic in enumerate(TOPICS, 1):
        reader.send(publish(topic, b"", number, retain=True))
    await reader.settle()


async def test_wills_are_published_as_the_table_says(estate: Running, window: tuple[str, Raw]) -> None:
    broker, reader = window
    for actor in on(broker):
        for number, topic in enumerate(TOPICS):
            will = (topic, f"will {actor.name} {number}".encode())
            link = await opened(estate, actor, will=will, will_qos=actor.qos)
            await link.end()
        expected = {topic for topic in TOPICS if actor.may("write", topic, CLAIMANTS[0])}
        # Wills are published in the order in which the broker notices; a last one, allowed, tells when it has.
        last = await Raw.open(
            estate.windows[broker], None, connect(f"c{next(NUMBERS)}", will=("end", actor.name.encode()))
        )
        await last.end()
        await reader.until(lambda actor=actor: ("end", actor.name.encode()) in reader.received)
        await reader.until(lambda expected=expected, actor=actor: expected <= _arrived(reader, actor))
        assert _arrived(reader, actor) == expected, actor.name


def _arrived(reader: Raw, actor: Actor) -> set[str]:
    return {topic for topic, payload in reader.received if payload.startswith(f"will {actor.name} ".encode())}


async def test_with_the_client_id_of_another_nothing_of_it_is_read_or_written(
    estate: Running, window: tuple[str, Raw]
) -> None:
    """Who takes over a session by its client id gets what its own certificate allows, of what waits there too."""
    broker, sender = window
    for number, owner in enumerate(on(broker)):
        session = f"session {number} {broker}"
        first = await opened(estate, owner, session, session_s=60)
        first.send(subscribe(1, "#"))
        await first.until(lambda first=first: first.suback)
        await first.leave()
        sender.pubacks.clear()
        for place, topic in enumerate(TOPICS[:-2], 1):
            sender.send(publish(topic, b"waits", place))
        await sender.until(lambda: len(sender.pubacks) == len(TOPICS) - 2)
        thief = on(broker)[number - 1]
        link = await opened(estate, thief, session, session_s=60, clean=False)
        await link.settle()
        read = {topic for topic, _ in link.received}
        assert read <= {topic for topic in TOPICS if thief.may("read", topic)}, (thief.name, owner.name)
        link.send(*(publish(topic, b"stolen", place) for place, topic in enumerate(TOPICS[:-2], 1)))
        await link.until(lambda link=link: len(link.pubacks) == len(TOPICS) - 2 or link.closed)
        wrote = {topic for place, topic in enumerate(TOPICS[:-2], 1) if link.pubacks.get(place) in (0, 0x10)}
        assert wrote == {topic for topic in TOPICS[:-2] if thief.may("write", topic)}, (thief.name, owner.name)
        await link.end()
        again = await opened(estate, thief, session)  # a clean start ends the session
        await again.leave()


@pytest.mark.parametrize(
    ("broker", "authority", "name"),
    [
        ("hall", "yard", "a"), ("hall", "yard", "camera"), ("hall", "region", "wall"), ("hall", "region", "anna"),
        ("hall", "region", "collector"), ("hall", "region", "hall"), ("north", "hall", "a"), ("north", "hall", "camera"),
        ("north", "hall", "vera"), ("north", "hall", "kim"), ("north", "hall", "cole"), ("north", "yard", "a"),
    ],
)  # fmt: skip
async def test_a_certificate_of_another_place_gets_no_further_than_tls(
    estate: Running, broker: str, authority: str, name: str
) -> None:
    tls = estate.tls(authority, name)
    tls.load_verify_locations(
        estate.folder / "pki" / ("region" if broker == "north" else broker) / "issued/broker/trust.crt"
    )
    link = await Raw.open(estate.port(broker), tls, connect("stranger"))

    assert link.closed
    assert not link.connack
    await link.end()


def test_every_role_and_channel_is_tried() -> None:
    assert {actor.role for actor in ACTORS} == set(RIGHTS)
    tried = {topic.split("/")[5] for topic in TOPICS if topic.startswith("hedgerow/v1/")}
    assert tried == set(Channel)
