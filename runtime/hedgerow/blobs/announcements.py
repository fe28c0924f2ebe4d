"""Topics and messages by which nodes and the region exchange content. Pure.

    {region}/{site}/{node}/blob/ask/part       node → region    send the site these chunks      crosses the WAN, up
    {region}/{site}/{node}/blob/ask/document   node → region    send the site this document     crosses the WAN, up
    {region}/{site}/~/blob/part/GROUP/DIGEST   region → site    a chunk                         crosses the WAN, down
    {region}/{site}/~/blob/document            region → site    a part of a document            crosses the WAN, down
    {region}/{site}/{node}/blob/want           node → site      I want these chunks; unless a peer has them, I ask the region
    {region}/{site}/{node}/blob/have           node → site      I have these and will send them
    {region}/{site}/{node}/blob/busy           node → site      I am already waiting for these
    {region}/{site}/{node}/blob/take           node → site      I fetch these from a mirror and will send them
    {region}/{site}/{node}/blob/part/GROUP/DIGEST   node → site      a chunk

A group is a set of files fetched together: nodes fetching the same files receive the same chunks, and no others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import msgpack

from hedgerow.models.bundle.manifest import File
from hedgerow.topics import Address, Channel, is_name

MAX_DIGESTS: Final = 64
"""Limit on chunks in one announcement."""
RESEND_AFTER_S: Final = 1.0
"""The region ignores requests for a chunk sent more recently: two nodes may have asked at once."""
MAX_PART_BYTES: Final = 256 << 10
"""Largest chunk, and largest part of a document, in bytes."""
MAX_PAYLOAD_BYTES: Final = MAX_PART_BYTES + (8 << 10)
_LONGEST_PATH: Final = 512
_GROUP_DIGITS: Final = 16


class AnnouncementKind(StrEnum):
    """Kind of an announcement; the end of its topic."""

    WANT = "want"
    HAVE = "have"
    BUSY = "busy"
    TAKE = "take"
    ASK = "ask/part"


class BadAnnouncement(ValueError):
    """An announcement cannot be decoded."""


@dataclass(frozen=True, slots=True)
class Announcement:
    """A message about chunks.

    Attributes:
        kind: its meaning.
        group: the group they are fetched with.
        digests: the chunks, hexadecimal.
        exclude: distrusted nodes, which should not answer.
    """

    kind: AnnouncementKind
    group: str
    digests: tuple[str, ...]
    exclude: tuple[str, ...] = ()

    def encode(self) -> bytes:
        """Encode as MessagePack."""
        packed: bytes = msgpack.packb([self.group, [bytes.fromhex(one) for one in self.digests], list(self.exclude)])
        return packed


def decode_announcement(kind: AnnouncementKind, payload: bytes | memoryview) -> Announcement:
    """Decode an announcement. Raises: BadAnnouncement: it is invalid."""
    match _unpack(payload):
        case [str(group), [*digests], [*but]] if (
            is_group(group)
            and len(digests) <= MAX_DIGESTS
            and all(isinstance(one, bytes) and len(one) == 32 for one in digests)
            and len(but) <= MAX_DIGESTS
            and all(isinstance(name, str) and is_name(name) for name in but)
        ):
            return Announcement(kind, group, tuple(one.hex() for one in digests), tuple(but))
    raise BadAnnouncement(f"Not an announcement of kind {kind}: {bytes(payload[:40])!r}")


@dataclass(frozen=True, slots=True)
class DocumentRequest:
    """Requests a part of a document."""

    path: str
    offset: int = 0

    def encode(self) -> bytes:
        """Encode as MessagePack."""
        packed: bytes = msgpack.packb([self.path, self.offset])
        return packed


def decode_document_request(payload: bytes | memoryview) -> DocumentRequest:
    """Decode a request. Raises: BadAnnouncement: it is invalid."""
    match _unpack(payload):
        case [str(path), int(offset)] if _is_document(path) and 0 <= offset < 1 << 40:
            return DocumentRequest(path, offset)
    raise BadAnnouncement(f"Not a document request: {bytes(payload[:40])!r}")


@dataclass(frozen=True, slots=True)
class DocumentPart:
    """A part of a document.

    Attributes:
        total: size of the whole document in bytes; None: it does not exist.
    """

    path: str
    offset: int
    total: int | None
    data: bytes = b""

    def encode(self) -> bytes:
        """Encode as MessagePack."""
        packed: bytes = msgpack.packb([self.path, self.offset, self.total, self.data])
        return packed


def decode_document_part(payload: bytes | memoryview) -> DocumentPart:
    """Decode a part. Raises: BadAnnouncement: it is invalid."""
    match _unpack(payload):
        case [str(path), int(offset), int() | None as total, bytes(data)] if (
            _is_document(path) and offset >= 0 and len(data) <= MAX_PART_BYTES
        ):
            return DocumentPart(path, offset, total, data)
    raise BadAnnouncement(f"Not a part of a document: {bytes(payload[:40])!r}")


def group_of(files: Sequence[File]) -> str:
    """Return the group of files fetched together: the same on every node."""
    return group_of_digests(file.digest for file in files)


def group_of_digests(digests: Iterable[str]) -> str:
    """Return the group of files with these digests."""
    return hashlib.sha256("\n".join(sorted(set(digests))).encode()).hexdigest()[:_GROUP_DIGITS]


def is_group(text: str) -> bool:
    """Return whether a text is a valid group."""
    return len(text) == _GROUP_DIGITS and all(digit in "0123456789abcdef" for digit in text)


def announcement_topic(address: Address, kind: AnnouncementKind) -> str:
    """Return the topic of a node's announcements."""
    return address.topic(Channel.BLOB, kind)


def part_topic(address: Address, group: str, digest: str) -> str:
    """Return the topic of a chunk. `address` is the sender's: a node, or the site for the region. `group` and `digest` may be `+`."""
    return address.topic(Channel.BLOB, f"part/{group}/{digest}")


def document_request_topic(address: Address) -> str:
    """Return the topic on which a node requests documents from the region."""
    return address.topic(Channel.BLOB, "ask/document")


def document_topic(address: Address) -> str:
    """Return the topic on which the region publishes parts of documents to the site."""
    return address.everyone().topic(Channel.BLOB, "document")


def _is_document(path: str) -> bool:
    """Return whether a path is one that a repository's documents may have."""
    parts = path.split("/")
    return (
        len(path) <= _LONGEST_PATH
        and parts[0] in ("metadata", "targets")
        and len(parts) > 1
        and path.isprintable()
        and not any(part in ("", ".", "..") for part in parts)
    )


def _unpack(payload: bytes | memoryview) -> Any:
    try:
        return msgpack.unpackb(
            payload,
            max_str_len=1024,
            max_bin_len=MAX_PART_BYTES,
            max_array_len=MAX_DIGESTS,
            max_map_len=0,
            max_ext_len=0,
        )
    except (ValueError, msgpack.UnpackException) as error:
        raise BadAnnouncement(f"Not MessagePack: {error}") from error
