"""Attempts of a neighbour, or of a stolen site's broker, on what nodes of a site exchange: writing, replaying, overrunning, and lying
about who has what. `test_neighbour.py` has those who are slow, who claim, and who send nonsense.

Expected of each: the node fetches the model all the same, from the region if need be; nothing that is not the chunk is stored; what
peers make it remember has a bound; and an operator is told of whoever sent what is no chunk.
"""

from __future__ import annotations

import asyncio
import itertools
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from tests.attacks.test_neighbour import (
    CHUNK,
    OTHER_GROUP,
    WAIT_S,
    MovableClock,
    PeerSite,
    clock,
    site_broker,
)

from hedgerow.blobs.announcements import (
    Announcement,
    AnnouncementKind,
    DocumentRequest,
    announcement_topic,
    decode_document_part,
    document_request_topic,
    document_topic,
    part_topic,
)
from hedgerow.bus.client import Client
from hedgerow.bus.connect import ClientOptions
from hedgerow.testing.mosquitto import Mosquitto

__all__ = ["clock", "site_broker"]

Offence = Callable[[PeerSite], Awaitable[None]]
MANY = 2000


def content(site: PeerSite, number: int) -> bytes:
    return site.repository.path(site.file.chunks[number].digest).read_bytes()


def part_of(number: int, change: Callable[[bytes], bytes]) -> Offence:
    async def offence(site: PeerSite) -> None:
        await site.announce(AnnouncementKind.HAVE)
        await site.part(site.digests[number], change(content(site, number)))

    return offence


async def another_chunk_under_the_name(site: PeerSite) -> None:
    await site.announce(AnnouncementKind.HAVE)
    await site.part(site.digests[0], content(site, 1))


async def all_chunks_shifted_by_one(site: PeerSite) -> None:
    for number, digest in enumerate(site.digests):
        await site.part(digest, content(site, (number + 1) % len(site.digests)))


async def the_same_good_chunk_again_and_again(site: PeerSite) -> None:
    for _ in range(50):
        site.link.publish(part_topic(site.address("n9"), site.group, site.digests[2]), content(site, 2), qos=0)
    await site.part(site.digests[2], content(site, 2))


async def a_chunk_before_anybody_asks(site: PeerSite) -> None:
    await site.part(site.digests[3], content(site, 3), OTHER_GROUP)
    await site.part(site.digests[3], b"", OTHER_GROUP)


def raw_topic(tail: str, payload: bytes = b"x" * CHUNK) -> Offence:
    async def offence(site: PeerSite) -> None:
        await site.send(f"hedgerow/v1/{site.region}/hall/n9/blob/{tail}", payload)

    return offence


async def kept_by_the_broker(site: PeerSite) -> None:
    """Claims and a chunk that the broker gives to every node that comes later."""
    messages = [
        (announcement_topic(site.address("n9"), kind), Announcement(kind, site.group, site.digests).encode())
        for kind in (AnnouncementKind.TAKE, AnnouncementKind.BUSY, AnnouncementKind.HAVE)
    ]
    for topic, payload in [*messages, (part_topic(site.address("n9"), site.group, site.digests[0]), b"x" * CHUNK)]:
        accepted = asyncio.Event()
        site.link.publish(topic, payload, qos=1, retain=True, done=lambda _, accepted=accepted: accepted.set())
        await accepted.wait()


def invented_peers(kind: AnnouncementKind) -> Offence:
    names = itertools.count()

    async def offence(site: PeerSite) -> None:
        for _ in range(20):
            name = f"p{next(names)}"
            announcement = Announcement(kind, site.group, site.digests)
            site.link.publish(announcement_topic(site.address(name), kind), announcement.encode(), qos=0)
        await site.announce(kind)

    return offence


def invented_groups(kind: AnnouncementKind) -> Offence:
    numbers = itertools.count()

    async def offence(site: PeerSite) -> None:
        for _ in range(20):
            announcement = Announcement(kind, f"{next(numbers):016x}", site.digests)
            site.link.publish(announcement_topic(site.address("n9"), kind), announcement.encode(), qos=0)
        await site.announce(kind, OTHER_GROUP)

    return offence


async def everybody_is_excluded(site: PeerSite) -> None:
    await site.announce(AnnouncementKind.WANT, exclude=("n1", "n2", "n9"))
    await site.announce(AnnouncementKind.HAVE, exclude=("n1",))


async def offers_what_it_asks_for(site: PeerSite) -> None:
    for kind in (AnnouncementKind.HAVE, AnnouncementKind.WANT, AnnouncementKind.ASK, AnnouncementKind.TAKE):
        await site.announce(kind)


OFFENCES: dict[str, Offence] = {
    "another chunk under the right name": another_chunk_under_the_name,
    "all chunks shifted by one": all_chunks_shifted_by_one,
    "a byte behind the right content": part_of(0, lambda data: data + b"\0"),
    "a byte before the right content": part_of(0, lambda data: b"\0" + data),
    "the right content but for its last byte": part_of(0, lambda data: data[:-1]),
    "the right content twice": part_of(0, lambda data: data + data),
    "one bit of it changed": part_of(0, lambda data: bytes([data[0] ^ 1]) + data[1:]),
    "the right content, compressed": part_of(0, zlib.compress),
    "the same good chunk again and again": the_same_good_chunk_again_and_again,
    "a chunk in a group of its own": a_chunk_before_anybody_asks,
    "a digest that leads out of the folder": raw_topic("part/0123456789abcdef/..%2f..%2fetc%2fpasswd"),
    "a digest in capitals": raw_topic("part/0123456789ABCDEF/" + "A" * 64),
    "a topic that is too short": raw_topic("part"),
    "a topic with levels that nobody knows": raw_topic("part/a/b/c/d/e/f"),
    "a kind that there is not": raw_topic("take/it/all"),
    "a document in place of a chunk": raw_topic("document", b"\x93\xa1a\x00\xc4\x00"),
    "kept by the broker": kept_by_the_broker,
    "invented peers without end that offer": invented_peers(AnnouncementKind.HAVE),
    "invented peers without end that want": invented_peers(AnnouncementKind.WANT),
    "invented peers without end that take": invented_peers(AnnouncementKind.TAKE),
    "groups without end that offer": invented_groups(AnnouncementKind.HAVE),
    "groups without end that want": invented_groups(AnnouncementKind.WANT),
    "excludes everybody": everybody_is_excluded,
    "offers what it asks for": offers_what_it_asks_for,
}
BAD = (
    "another chunk under the right name",
    "a byte behind the right content",
    "a byte before the right content",
    "the right content but for its last byte",
    "the right content twice",
    "one bit of it changed",
    "the right content, compressed",
)


@pytest.mark.parametrize("name", OFFENCES)
async def test_whatever_peers_send_a_node_fetches_what_was_signed(
    site_broker: Mosquitto, tmp_path: Path, clock: MovableClock, name: str
) -> None:
    async with PeerSite(site_broker, tmp_path, clock) as site:
        await OFFENCES[name](site)  # before it fetches, too
        await site.fetched_despite(OFFENCES[name])

        for number, digest in enumerate(site.digests):
            assert site.victim._store.chunk(digest) == content(site, number)
        assert site.victim.client.connected
        assert remembered(site) <= MANY
        if name in BAD:
            assert site.victim.counts.bad == 1
            assert [detail["reason"] for _, detail in site.events] == ["bad-chunk"]


def remembered(site: PeerSite) -> int:
    """Return how many things of peers the victim has in memory."""
    victim, peers = site.victim, site.victim._peers
    assert peers is not None
    offers = next(value for value in vars(peers).values() if hasattr(value, "_candidates"))
    known = [offers._candidates, offers._to_send, offers._queued, offers._served, victim._bad]
    distrust = next(value for value in vars(victim).values() if hasattr(value, "_records"))
    return sum(map(len, known)) + len(distrust._records)


PATHS = (
    "../../../etc/passwd", "/etc/passwd", "metadata/../../secret.pem", "metadata/./timestamp.json", "metadata//timestamp.json",
    "secret.pem", "blobs/../secret.pem", "metadata/\0", "metadata/" + "a" * 600, "", ".", "metadata", "metadata/\u202egnp.json",
)  # fmt: skip


@pytest.mark.parametrize("path", PATHS, ids=[repr(path)[:30] for path in PATHS])
async def test_the_region_serves_documents_of_the_repository_only(
    site_broker: Mosquitto, tmp_path: Path, clock: MovableClock, path: str
) -> None:
    async with PeerSite(site_broker, tmp_path, clock) as site:
        folder = site.repository.folder
        for secret in (folder.parent / "secret.pem", folder / "secret.pem"):
            secret.write_bytes(b"SECRET")
        (folder / "metadata").mkdir(exist_ok=True)
        (folder / "metadata" / "timestamp.json").write_bytes(b"{}")
        answers: list[bytes] = []
        async with (
            asyncio.timeout(WAIT_S),
            Client(
                ClientOptions(url=site_broker.url, client_id=f"{site.region}-watcher"),
                lambda messages: answers.extend(bytes(message.payload) for message in messages),
            ) as watcher,
        ):
            await watcher.subscribe({document_topic(site.address("n9")): 0})
            for _ in range(3):
                await site.send(document_request_topic(site.address("n9")), DocumentRequest(path).encode())
            part = await site.victim.documents.part("metadata/timestamp.json", 0)  # others are served after it

        assert part.data == b"{}"
        assert site.server.counts.unreadable == 3
        assert {decode_document_part(answer).path for answer in answers} <= {"metadata/timestamp.json"}
