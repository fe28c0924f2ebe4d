"""What nodes and the region tell each other of content: topics and bytes. Pure.

    {region}/{site}/{node}/blob/ask/part       node → region    give the site these chunks      crosses the WAN, up
    {region}/{site}/{node}/blob/ask/document   node → region    give the site this document     crosses the WAN, up
    {region}/{site}/~/blob/part/GROUP/DIGEST   region → site    a chunk                         crosses the WAN, down
    {region}/{site}/~/blob/document            region → site    a part of a document            crosses the WAN, down
    {region}/{site}/{node}/blob/want           node → site      who has these chunks? else I ask the region
    {region}/{site}/{node}/blob/have           node → site      I do, and send them
    {region}/{site}/{node}/blob/busy           node → site      these are on their way to me already
    {region}/{site}/{node}/blob/take           node → site      I bring these from elsewhere, and give them to you
    {region}/{site}/{node}/blob/part/GROUP/DIGEST   node → site      a chunk

A group is what is fetched together: whoever wants the same files hears the same chunks, and no others.
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

MOST_DIGESTS: Final = 64
"""Chunks that one note names."""
AGAIN_S: Final = 1.0
"""What the region has sent so lately it does not send again: two nodes may have asked at once."""
MAX_PART_BYTES: Final = 256 << 10
"""Bytes of a chunk, or of a part of a document."""
MAX_PAYLOAD_BYTES: Final = MAX_PART_BYTES + (8 << 10)
_LONGEST_PATH: Final = 512
_GROUP_DIGITS: Final = 16


class AnnouncementKind(StrEnum):
    """What a note says; the end of its topic."""

    WANT = "want"
    HAVE = "have"
    BUSY = "busy"
    TAKE = "take"
    ASK = "ask/part"


class BadAnnouncement(ValueError):
    """A note cannot be read."""


@dataclass(frozen=True, slots=True)
class Announcement:
    """What is said of some chunks.

    Attributes:
        kind: what.
        group: what they are fetched with.
        digests: which, hexadecimal.
        but: nodes that shall not answer, or were not believed.
    """

    kind: AnnouncementKind
    group: str
    digests: tuple[str, ...]
    but: tuple[str, ...] = ()

    def encode(self) -> bytes:
        """As MessagePack."""
        packed: bytes = msgpack.packb([self.group, [bytes.fromhex(one) for one in self.digests], list(self.but)])
        return packed


def decode_note(kind: AnnouncementKind, payload: bytes | memoryview) -> Announcement:
    """Read a note. Raises: BadNote: it is none."""
    match _unpack(payload):
        case [str(group), [*digests], [*but]] if (
            is_group(group)
            and len(digests) <= MOST_DIGESTS
            and all(isinstance(one, bytes) and len(one) == 32 for one in digests)
            and len(but) <= MOST_DIGESTS
            and all(isinstance(name, str) and is_name(name) for name in but)
        ):
            return Announcement(kind, group, tuple(one.hex() for one in digests), tuple(but))
    raise BadAnnouncement(f"No note of kind {kind}: {bytes(payload[:40])!r}")


@dataclass(frozen=True, slots=True)
class DocumentRequest:
    """Asks for a part of a document."""

    path: str
    offset: int = 0

    def encode(self) -> bytes:
        """As MessagePack."""
        packed: bytes = msgpack.packb([self.path, self.offset])
        return packed


def decode_document_request(payload: bytes | memoryview) -> DocumentRequest:
    """Read what is asked for. Raises: BadNote: it is none."""
    match _unpack(payload):
        case [str(path), int(offset)] if 0 < len(path) <= _LONGEST_PATH and 0 <= offset < 1 << 40:
            return DocumentRequest(path, offset)
    raise BadAnnouncement(f"Asks for no document: {bytes(payload[:40])!r}")


@dataclass(frozen=True, slots=True)
class DocumentPart:
    """A part of a document.

    Attributes:
        total: bytes of the whole; None: there is no such document.
    """

    path: str
    offset: int
    total: int | None
    data: bytes = b""

    def encode(self) -> bytes:
        """As MessagePack."""
        packed: bytes = msgpack.packb([self.path, self.offset, self.total, self.data])
        return packed


def decode_document_part(payload: bytes | memoryview) -> DocumentPart:
    """Read a part. Raises: BadNote: it is none."""
    match _unpack(payload):
        case [str(path), int(offset), int() | None as total, bytes(data)] if (
            0 < len(path) <= _LONGEST_PATH and offset >= 0 and len(data) <= MAX_PART_BYTES
        ):
            return DocumentPart(path, offset, total, data)
    raise BadAnnouncement(f"No part of a document: {bytes(payload[:40])!r}")


def group_of(files: Sequence[File]) -> str:
    """The name of what is fetched together: the same for everyone who wants these files."""
    return group_of_digests(file.digest for file in files)


def group_of_digests(digests: Iterable[str]) -> str:
    """Likewise, by the files' digests."""
    return hashlib.sha256("\n".join(sorted(set(digests))).encode()).hexdigest()[:_GROUP_DIGITS]


def is_group(text: str) -> bool:
    """Whether a text can be a group's name."""
    return len(text) == _GROUP_DIGITS and all(digit in "0123456789abcdef" for digit in text)


def note_topic(address: Address, kind: AnnouncementKind) -> str:
    """Where a node says something."""
    return address.topic(Channel.BLOB, kind)


def part_topic(address: Address, group: str, digest: str) -> str:
    """Where a chunk goes; `address` is that of the site if the region sends it. Parts may be `+`."""
    return address.topic(Channel.BLOB, f"part/{group}/{digest}")


def document_request_topic(address: Address) -> str:
    """Where a node asks the region for a document."""
    return address.topic(Channel.BLOB, "ask/document")


def document_topic(address: Address) -> str:
    """Where parts of documents come."""
    return address.everyone().topic(Channel.BLOB, "document")


def _unpack(payload: bytes | memoryview) -> Any:
    try:
        return msgpack.unpackb(
            payload,
            max_str_len=1024,
            max_bin_len=MAX_PART_BYTES,
            max_array_len=MOST_DIGESTS,
            max_map_len=0,
            max_ext_len=0,
        )
    except (ValueError, msgpack.UnpackException) as error:
        raise BadAnnouncement(f"No MessagePack: {error}") from error
