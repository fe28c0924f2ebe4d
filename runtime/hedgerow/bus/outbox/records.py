"""Records, gaps and acknowledgements of the outbox, and their encodings.

A number is (epoch, priority, sequence): each priority is numbered separately, from 1, without holes. Inside the outbox,
priority and sequence form one integer, the *key*. Key order is the order in which records are evicted when space runs out:
lowest priority first, then oldest first.
"""

from __future__ import annotations

import json
import struct
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple, TypeVar

import orjson
import xxhash

from hedgerow.bus.properties import MalformedPacket, PublishProperties
from hedgerow.errors import BusError

PRIORITIES: Final = 10
"""Priorities are 0 (lowest) to 9."""

ACK_NOW: Final = ("ack", "now")
"""User property that requests an immediate acknowledgement from the region."""

_SHIFT: Final = 48
_SEQUENCE: Final = (1 << _SHIFT) - 1


PACKET_OVERHEAD_BYTES: Final = 480
"""Upper bound of what a packet adds to a record: fixed header, numbers, suffix of the late topic, request for an ack."""

MAX_HELD: Final = 1024
"""Most records whose checks one acknowledgement carries, so that it has less than 64 KiB; the outbox sends others again."""
_CHECK_BYTES: Final = 8
MAX_LOST: Final = 8
"""Most ranges of lost positions in an acknowledgement."""
_MAX_STORE_ID: Final = 64


def record_check(sender_id: str, payload: Any) -> int:
    """Return the check of a result, by which an outbox knows that the region holds it and not another of the same number.

    Args:
        sender_id: its user property `id`; "" if it has none.
        payload: a buffer.
    """
    digest = xxhash.xxh3_64(payload)
    digest.update(b"\0" + sender_id.encode())
    return int(digest.intdigest()) - (1 << 63)  # as databases store it


def sender_id(properties: bytes) -> str:
    """Return the user property `id` of encoded properties; "" if there is none."""
    try:
        return dict(PublishProperties(properties).user_properties).get("id", "")
    except MalformedPacket:
        return ""


class OutboxError(BusError):
    """The outbox cannot store records: check the node's disk.

    Args:
        code: error code, kebab-case.
    """

    code = "outbox"

    def __init__(self, message: str, *, remedy: str, code: str | None = None) -> None:
        super().__init__(message, remedy=remedy)
        if code is not None:
            self.code = code


class Number(NamedTuple):
    """Identity of a record; unchanged when it is resent."""

    epoch: str
    priority: int
    sequence: int

    def __str__(self) -> str:
        return f"{self.epoch}/{self.priority}/{self.sequence}"

    @classmethod
    def parse(cls, text: str) -> Number:
        """Parse a number.

        Raises: ValueError: the text is invalid.
        """
        epoch, priority, sequence = text.split("/")
        return cls(epoch, int(priority), int(sequence))


def key_of(priority: int, sequence: int) -> int:
    """Return priority and sequence as one integer."""
    return priority << _SHIFT | sequence


def priority_of(key: int) -> int:
    """Return the priority of a key."""
    return key >> _SHIFT


def sequence_of(key: int) -> int:
    """Return the sequence of a key."""
    return key & _SEQUENCE


@dataclass(frozen=True, slots=True)
class Record:
    """A result that must reach the region.

    Attributes:
        pipeline: name of the pipeline that produced it.
        topic: where it is published.
        properties: encoded MQTT properties. Use `ttl_s`, not a message expiry: a broker would drop the result silently.
        priority: 0 to 9; higher ones are sent first and evicted last.
        created_at: Unix seconds.
        ttl_s: seconds after which it expires; None: never.
        id: its user property `id`; None: look it up in the properties.
    """

    pipeline: str
    topic: str
    payload: bytes
    properties: bytes = b""
    priority: int = 0
    created_at: float = 0.0
    ttl_s: float | None = None
    id: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.priority < PRIORITIES:
            raise ValueError(f"Priority {self.priority} is not between 0 and {PRIORITIES - 1}")
        if not self.topic:
            raise ValueError("A record needs a topic")

    @property
    def size(self) -> int:
        """Size of payload, properties and topic, in bytes."""
        return len(self.payload) + len(self.properties) + len(self.topic)

    @property
    def check(self) -> int:
        """Its `record_check`."""
        return record_check(sender_id(self.properties) if self.id is None else self.id, self.payload)


@dataclass(frozen=True, slots=True)
class OutboxEntry:
    """A stored record, or a gap in place of several.

    Attributes:
        key: the record's key; of a gap, its first.
        last: equal to `key`; of a gap, its last key.
        topic: where it is published; "" for a gap.
        properties: encoded MQTT properties.
        payload: of a gap, `Gap.body()`.
        check: of a record, its `record_check`.
    """

    key: int
    last: int
    topic: str
    properties: bytes
    payload: bytes
    check: int = 0

    @property
    def size(self) -> int:
        """Size as sent, in bytes."""
        return len(self.payload) + len(self.properties) + len(self.topic)


@dataclass(frozen=True, slots=True)
class PreviousEpoch:
    """An earlier epoch that ended because its store was lost, or because another outbox uses it too.

    Attributes:
        epoch: its id; None if unknown.
        numbers: last known next number of each priority. Lower numbers that the region has not received are lost; there may
            have been higher ones.
        moved: whether they are not lost but sent under a new epoch.
    """

    epoch: str | None
    numbers: tuple[int, ...] | None
    moved: bool = False

    def message(self) -> dict[str, Any]:
        """Return it as the gap message has it."""
        content: dict[str, Any] = {"epoch": self.epoch, "next": self.numbers}
        return content | {"moved": True} if self.moved else content


@dataclass(frozen=True, slots=True)
class Gap:
    """Declares that a range of numbers will not be sent, and why.

    Attributes:
        first, last: keys.
        reasons: records lost, by reason. The rest of the range had been acknowledged before.
        previous: earlier epochs that ended here.
    """

    first: int
    last: int
    reasons: Mapping[str, int]
    previous: tuple[PreviousEpoch, ...] = ()

    @property
    def count(self) -> int:
        """Number of records lost."""
        return sum(self.reasons.values())

    def merged(self, other: Gap) -> Gap:
        """Return one gap in place of two adjacent ones."""
        reasons = dict(self.reasons)
        for reason, count in other.reasons.items():
            reasons[reason] = reasons.get(reason, 0) + count
        first, last = min(self.first, other.first), max(self.last, other.last)
        return Gap(first, last, reasons, self.previous + other.previous)

    def body(self) -> bytes:
        """Encode the reasons and previous epochs, for storing."""
        previous = [[each.epoch, each.numbers, each.moved] for each in self.previous]
        return json.dumps({"reasons": self.reasons, "previous": previous}, separators=(",", ":")).encode()

    @classmethod
    def read(cls, first: int, last: int, body: bytes) -> Gap:
        """Decode a stored gap; an unreadable body counts as one record lost with the reason `corrupt`."""
        try:
            content = json.loads(body)
            previous = tuple(
                PreviousEpoch(epoch, tuple(numbers) if numbers else None, *moved)
                for epoch, numbers, *moved in content["previous"]
            )
            return cls(first, last, content["reasons"], previous)
        except (ValueError, KeyError, TypeError):
            return cls(first, last, {"corrupt": 1})

    def message(self, epoch: str, base: int = 0) -> bytes:
        """Encode the gap as the JSON message to publish.

        Args:
            epoch: of its numbers.
            base: the sequence before the epoch's first of this priority.
        """
        content = {
            "schema": "hedgerow.gap/1",
            "epoch": epoch,
            "priority": priority_of(self.first),
            "first": sequence_of(self.first) - base,
            "last": sequence_of(self.last) - base,
            "count": self.count,
            "reasons": self.reasons,
            "previous": [each.message() for each in self.previous],
        }
        return json.dumps(content, separators=(",", ":")).encode()


def read_gap(message: bytes) -> tuple[str, Gap]:
    """Decode a gap message. Returns: the epoch, and the gap.

    Raises: ValueError: it is invalid.
    """
    try:
        content = json.loads(message)
        first, last = (key_of(content["priority"], content[end]) for end in ("first", "last"))
        previous = tuple(
            PreviousEpoch(
                each["epoch"], None if each["next"] is None else tuple(each["next"]), each.get("moved") is True
            )
            for each in content["previous"]
        )
        return content["epoch"], Gap(first, last, content["reasons"], previous)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"Not a gap message: {message[:80]!r}") from error


_Entry = TypeVar("_Entry")
Held = Mapping[int, Sequence[tuple[int, int | None]]]
"""What the region holds, by priority: sequences and checks, of which None stands for a result that it rejected unread."""

Unread = Mapping[int, Sequence[tuple[int, int]]]
"""What the region rejected unread, since it is too large, by priority: sequences and sizes of payloads."""


@dataclass(frozen=True, slots=True)
class StorePosition:
    """How far the region's store is: it counts its transactions, so what it acknowledges at a position is in it there.

    Attributes:
        store: random id of the store.
        position: number of the transaction.
        lost: positions (first exclusive, last inclusive) that a restore from a backup has lost, oldest first. None of them is
            given again.
    """

    store: str
    position: int
    lost: tuple[tuple[int, int], ...] = ()

    @property
    def mark(self) -> str:
        """What changes when the store is put back, or is another one."""
        return f"{self.store}/{self.lost[-1][1] if self.lost else 0}"

    @classmethod
    def read(cls, body: Any) -> StorePosition | None:
        """Decode it; None stands for none. Raises: ValueError, TypeError: it is invalid."""
        if body is None:
            return None
        store, position, lost = body
        if not isinstance(store, str) or not 0 < len(store) <= _MAX_STORE_ID or len(lost) > MAX_LOST:
            raise ValueError("Not the position of a store")
        return cls(store, _position(position), tuple((_position(first), _position(last)) for first, last in lost))


@dataclass(frozen=True, slots=True)
class Ack:
    """The numbers the region has stored: cumulative per priority, plus ranges beyond, and what it holds under the last ones.

    Two outboxes may use one epoch: copies of a process that ran. So a number alone does not prove that the region has the
    result; its check does. If it has several results of one number, it names the checks of all.

    Attributes:
        epoch: of the numbers.
        through: highest number without a missing one below it, by priority.
        also: ranges (first, last) above the first missing number, by priority.
        held: what arrived since the last acknowledgement; None: the region does not tell, as earlier versions.
        at: when the region's store had all that; None: it does not tell, as earlier versions.
        unread: how large those were that it rejected unread; None: it does not tell, as earlier versions. Those that do, tell `at`.
    """

    epoch: str
    through: Mapping[int, int]
    also: Mapping[int, Sequence[tuple[int, int]]] = field(default_factory=dict)
    held: Held | None = None
    at: StorePosition | None = None
    unread: Unread | None = None

    def ranges(self) -> list[tuple[int, int]]:
        """Return all acknowledged numbers as ranges of keys."""
        whole = [(key_of(priority, 0), key_of(priority, last)) for priority, last in self.through.items()]
        return whole + [
            (key_of(priority, first), key_of(priority, last))
            for priority, ranges in self.also.items()
            for first, last in ranges
        ]

    def after(self, earlier: Ack) -> Ack:
        """Return this acknowledgement with what an earlier one, which was not sent, says that the region holds."""
        if not earlier.held:
            return self
        held = {priority: list(entries) for priority, entries in earlier.held.items()}
        for priority, entries in (self.held or {}).items():
            held.setdefault(priority, []).extend(entries)
        unread = {priority: list(sizes) for priority, sizes in (earlier.unread or {}).items()}
        for priority, sizes in (self.unread or {}).items():
            unread.setdefault(priority, []).extend(sizes)
        return replace(self, held=bounded(held), unread=bounded(unread))

    def encode(self) -> bytes:
        """Encode as JSON."""
        content: dict[str, Any] = {"schema": "hedgerow.ack/1", "epoch": self.epoch}
        content |= {"through": self.through, "also": self.also}
        if self.held is not None:
            content["held"] = {priority: _runs_of(entries) for priority, entries in self.held.items()}
        if self.unread:
            content["unread"] = self.unread
        if self.at is not None:
            content["at"] = (self.at.store, self.at.position, self.at.lost)
        return orjson.dumps(content, option=orjson.OPT_NON_STR_KEYS)

    @classmethod
    def decode(cls, payload: bytes | memoryview) -> Ack:
        """Decode JSON.

        Raises: ValueError: it is invalid.
        """
        try:
            content = json.loads(bytes(payload))
            through = {_priority(name): _sequence(last) for name, last in content["through"].items()}
            also = {
                _priority(name): [(_sequence(first), _sequence(last)) for first, last in ranges]
                for name, ranges in content.get("also", {}).items()
            }
            held = content.get("held")
            if held is not None:
                held = {_priority(name): _entries_of(runs) for name, runs in held.items()}
            at = StorePosition.read(content.get("at"))
            unread = {
                _priority(name): [(_sequence(sequence), _position(size)) for sequence, size in sizes[:MAX_HELD]]
                for name, sizes in content.get("unread", {}).items()
            }
            return cls(str(content["epoch"]), through, also, held, at, unread if at is not None else None)
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"Not an acknowledgement: {bytes(payload[:80])!r}") from error


def bounded(held: Mapping[int, Sequence[_Entry]]) -> dict[int, Sequence[_Entry]]:
    """Return the newest `MAX_HELD` results, of the highest priorities first."""
    left, kept = MAX_HELD, dict[int, Sequence[_Entry]]()
    for priority in sorted(held, reverse=True):
        if left:
            kept[priority] = held[priority][-left:]
            left -= len(kept[priority])
    return kept


def _runs_of(entries: Sequence[tuple[int, int | None]]) -> list[tuple[int, str | int]]:
    """Return runs of consecutive numbers: the first, and their checks in Base64, or their count if they have none."""
    runs: list[tuple[int, list[int | None]]] = []
    for sequence, check in entries:
        if runs and runs[-1][0] + len(runs[-1][1]) == sequence and (runs[-1][1][0] is None) == (check is None):
            runs[-1][1].append(check)
        else:
            runs.append((sequence, [check]))
    return [(first, _joined(checks)) for first, checks in runs]


def _joined(checks: Sequence[int | None]) -> str | int:
    if checks[0] is None:
        return len(checks)
    return b64encode(struct.pack(f">{len(checks)}q", *checks)).decode()


def _entries_of(runs: Sequence[tuple[int, str | int]]) -> list[tuple[int, int | None]]:
    entries: list[tuple[int, int | None]] = []
    for first, checks in runs:
        _sequence(first)
        if isinstance(checks, int):
            if not 0 <= checks <= MAX_HELD:
                raise ValueError(f"{checks} is not a number of results")
            entries += [(first + at, None) for at in range(checks)]
            if len(entries) > MAX_HELD:
                raise ValueError(f"More than {MAX_HELD} results")
            continue
        raw = b64decode(checks, validate=True)
        if len(raw) % _CHECK_BYTES:
            raise ValueError("A check is cut")
        entries += enumerate(struct.unpack(f">{len(raw) // _CHECK_BYTES}q", raw), first)
    return entries


def _priority(name: str) -> int:
    if not 0 <= (priority := int(name)) < PRIORITIES:
        raise ValueError(f"{priority} is not a priority")
    return priority


def _position(value: int) -> int:
    if not isinstance(value, int) or not 0 <= value < 1 << 62:
        raise ValueError(f"{value!r} is not a position")
    return value


def _sequence(value: int) -> int:
    if not isinstance(value, int) or not 0 <= value <= _SEQUENCE:
        raise ValueError(f"{value!r} is not a sequence number")
    return value
