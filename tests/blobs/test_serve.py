"""The region's server against requests that nobody should send: each is counted, and the next honest one is answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Any

import msgpack
import pytest

from hedgerow.blobs.announcements import (
    AnnouncementKind,
    BadAnnouncement,
    DocumentPart,
    announcement_topic,
    decode_document_part,
    document_request_topic,
)
from hedgerow.blobs.fetch.documents import RegionDocuments
from hedgerow.blobs.serve import MAX_IN_FLIGHT, BlobServer
from hedgerow.bus.client import Client
from hedgerow.bus.connect import ClientOptions
from hedgerow.testing.mosquitto import Mosquitto
from hedgerow.topics import Address

GROUP = "0123456789abcdef"


def request(path: Any, offset: Any = 0) -> bytes:
    packed: bytes = msgpack.packb([path, offset])
    return packed


def raw_str(content: bytes) -> bytes:
    """Return a request whose path is a MessagePack string of these bytes, UTF-8 or not."""
    return b"\x92\xd9" + bytes([len(content)]) + content + b"\x00"


HOSTILE = {
    "nul": request("metadata/\0root.json"),
    "nul-at-the-end": request("metadata/1.root.json\0"),
    "nul-alone": request("\0"),
    "nul-in-the-folder": request("metadata\0/1.root.json"),
    "empty": request(""),
    "slash": request("/"),
    "dot": request("metadata/."),
    "absolute": request("/etc/passwd"),
    "absolute-inside": request("/metadata/1.root.json"),
    "parent": request("../secret"),
    "parent-later": request("metadata/../../secret"),
    "parent-at-the-end": request("metadata/.."),
    "parent-backslash": request("metadata\\..\\..\\secret"),
    "double-slash": request("metadata//1.root.json"),
    "trailing-slash": request("metadata/"),
    "folder-alone": request("metadata"),
    "other-folder": request("online.key"),
    "private-folder": request("staged/1.root.json"),
    "blobs-as-document": request(f"blobs/sha256/ab/{'ab' * 32}"),
    "newline": request("metadata/1.root.json\n"),
    "escape-sequence": request("metadata/\x1b[2J"),
    "delete": request("metadata/\x7f"),
    "right-to-left-override": request("metadata/\u202ejson.root"),
    "surrogate": raw_str(b"metadata/\xed\xa0\x80"),
    "not-utf-8": raw_str(b"metadata/\xff\xfe"),
    "very-long": request("metadata/" + "a" * 1000),
    "beyond-the-limit": request("metadata/" + "é" * 504),
    "path-is-bytes": request(b"metadata/1.root.json"),
    "path-is-a-number": request(7),
    "path-is-a-list": request(["metadata", "1.root.json"]),
    "path-is-null": request(None),
    "offset-negative": request("metadata/1.root.json", -1),
    "offset-huge": request("metadata/1.root.json", 1 << 60),
    "offset-is-text": request("metadata/1.root.json", "0"),
    "offset-is-a-float": request("metadata/1.root.json", 0.5),
    "no-offset": bytes(msgpack.packb(["metadata/1.root.json"])),
    "a-map": bytes(msgpack.packb({"path": "metadata/1.root.json"})),
    "nothing": b"",
    "truncated": request("metadata/1.root.json")[:-3],
    "deeply-nested": b"\x91" * 5000 + b"\x00",
    "json": b'["metadata/1.root.json", 0]',
}
VALID_BUT_MISSING = {
    "no-such-file": "metadata/7.root.json",
    "a-folder": "metadata/folder",
    "name-too-long-for-the-disk": "targets/" + "a" * 300,
    "below-a-file": "metadata/1.root.json/x",
}


class Node:
    """A node that asks the region by hand."""

    def __init__(self, broker: Mosquitto, server: BlobServer, address: Address) -> None:
        self.server = server
        self.address = address
        self.parts: asyncio.Queue[DocumentPart | bytes] = asyncio.Queue()
        self.client = Client(ClientOptions(url=broker.url), self._receive)

    def _receive(self, messages: list[Any]) -> None:
        for message in messages:
            self.client.ack(message)
            document = message.topic.endswith("/blob/document")
            self.parts.put_nowait(decode_document_part(message.payload) if document else bytes(message.payload))

    def ask(self, payload: bytes) -> None:
        self.client.publish(document_request_topic(self.address), payload, qos=1)

    async def answer(self) -> DocumentPart | bytes:
        async with asyncio.timeout(60):
            return await self.parts.get()

    async def check_served(self) -> None:
        """Check that an honest request is answered."""
        self.server._sent.clear()  # it would not repeat itself within a second
        self.ask(request("metadata/1.root.json"))
        part = await self.answer()
        assert isinstance(part, DocumentPart)
        assert (part.path, part.data) == ("metadata/1.root.json", b"root")


@pytest.fixture
async def node(broker: Mosquitto, topic_prefix: str, tmp_path: Path) -> AsyncIterator[Node]:
    (tmp_path / "metadata" / "folder").mkdir(parents=True)
    (tmp_path / "metadata" / "1.root.json").write_bytes(b"root")
    (tmp_path / "online.key").write_bytes(b"secret")
    region = topic_prefix.replace("/", "-")
    async with BlobServer(ClientOptions(url=broker.url), region, tmp_path) as server:
        node = Node(broker, server, Address(region, "hall", "n1"))
        async with node.client:
            await node.client.subscribe({f"hedgerow/v1/{region}/hall/~/#": 1})
            await node.client.wait_connected(60)
            await server.client.wait_connected(60)
            yield node


async def test_hostile_requests_are_counted_and_harm_nothing(node: Node) -> None:
    for number, (name, payload) in enumerate(HOSTILE.items(), 1):
        node.ask(payload)
        await node.check_served()
        assert node.server.counts.unreadable == number, name

    assert node.server.counts.failed == 0


@pytest.mark.parametrize("path", VALID_BUT_MISSING.values(), ids=VALID_BUT_MISSING)
async def test_a_document_that_does_not_exist_is_answered_as_missing(node: Node, path: str) -> None:
    node.ask(request(path))

    part = await node.answer()

    assert isinstance(part, DocumentPart)
    assert (part.path, part.total) == (path, None)
    await node.check_served()


async def test_requests_that_fail_unexpectedly_are_counted_and_the_next_is_answered(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More of them than replies may be in flight, so that a leaked slot would stop the server."""

    def fail(self: BlobServer, digest: str) -> bytes:
        raise ValueError("embedded null byte")

    count = MAX_IN_FLIGHT + 4
    with monkeypatch.context() as patch:
        patch.setattr(BlobServer, "_chunk", fail)
        for number in range(count):
            payload = msgpack.packb([GROUP, [number.to_bytes(32, "big")], []])
            node.client.publish(announcement_topic(node.address, AnnouncementKind.ASK), payload, qos=1)
        async with asyncio.timeout(60):
            while node.server.counts.failed < count:  # noqa: ASYNC110 - a count has no event
                await asyncio.sleep(0.005)

    await node.check_served()
    node.client.publish(
        announcement_topic(node.address, AnnouncementKind.ASK), msgpack.packb([GROUP, [bytes(32)], []]), qos=1
    )
    assert await node.answer() == b""
    assert node.server.counts.missing == 1
    gauges = {name: value for name, _, _, value in node.server.gauges()}
    assert gauges["hedgerow_region_blobs_failed"] == count


@pytest.mark.parametrize("path", ["\0", "", "/x", "../x", "metadata/..", "online.key"])
def test_nodes_refuse_such_documents_too(path: str) -> None:
    with pytest.raises(BadAnnouncement):
        decode_document_part(msgpack.packb([path, 0, None, b""]))


async def test_missing_documents_do_not_fill_the_cache(broker: Mosquitto) -> None:
    documents = RegionDocuments(Client(ClientOptions(url=broker.url), print), Address("r", "s", "n"), Random(0))
    for number in range(5000):
        documents.on_part(DocumentPart(f"targets/{number}.json", 0, None).encode())

    assert len(documents._cache) <= 1024
    assert ("targets/4999.json", 0) in documents._cache
