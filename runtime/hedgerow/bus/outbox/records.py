"""Records, gaps and acknowledgements of the outbox, and their encodings.

A number is (epoch, priority, sequence): each priority is numbered separately, from 1, without holes. Inside the outbox,
priority and sequence form one integer, the *key*. Key order is the order in which records are evicted when space runs out:
lowest priority first, then oldest first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import orjson

from hedgerow.errors import BusError

PRIORITIES: Final = 10
"""Priorities are 0 (lowest) to 9."""

ACK_NOW: Final = ("ack", "now")
"""User property that requests an immediate acknowledgement from the region."""

_SHIFT: Final = 48
_SEQUENCE: Final = (1 << _SHIFT) - 1


PACKET_OVERHEAD_BYTES: Final = 160
"""Upper bound of what a packet adds to a record: fixed header, number, suffix of the late topic, request for an ack."""


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
    """

    pipeline: str
    topic: str
    payload: bytes
    properties: bytes = b""
    priority: int = 0
    created_at: float = 0.0
    ttl_s: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.priority < PRIORITIES:
            raise ValueError(f"Priority {self.priority} is not between 0 and {PRIORITIES - 1}")
        if not self.topic:
            raise ValueError("A record needs a topic")

    @property
    def size(self) -> int:
        """Size of payload, properties and topic, in bytes."""
        return len(self.payload) + len(self.properties) + len(self.topic)


@dataclass(frozen=True, slots=True)
class OutboxEntry:
    """A stored record, or a gap in place of several.

    Attributes:
        key: the record's key; of a gap, its first.
        last: equal to `key`; of a gap, its last key.
        topic: where it is published; "" for a gap.
        properties: encoded MQTT properties.
        payload: of a gap, `Gap.body()`.
    """

    key: int
    last: int
    topic: str
    properties: bytes
    payload: bytes

    @property
    def size(self) -> int:
        """Size as sent, in bytes."""
        return len(self.payload) + len(self.properties) + len(self.topic)


@dataclass(frozen=True, slots=True)
class PreviousEpoch:
    """An earlier epoch that ended because its store was lost.

    Attributes:
        epoch: its id; None if unknown.
        numbers: last known next number of each priority. Lower numbers that the region has not received are lost; there may
            have been higher ones.
    """

    epoch: str | None
    numbers: tuple[int, ...] | None


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
        previous = [[each.epoch, each.numbers] for each in self.previous]
        return json.dumps({"reasons": self.reasons, "previous": previous}, separators=(",", ":")).encode()

    @classmethod
    def read(cls, first: int, last: int, body: bytes) -> Gap:
        """Decode a stored gap; an unreadable body counts as one record lost with the reason `corrupt`."""
        try:
            content = json.loads(body)
            previous = tuple(
                PreviousEpoch(epoch, tuple(numbers) if numbers else None) for epoch, numbers in content["previous"]
            )
            return cls(first, last, content["reasons"], previous)
        except (ValueError, KeyError, TypeError):
            return cls(first, last, {"corrupt": 1})

    def message(self, epoch: str) -> bytes:
        """Encode the gap as the JSON message to publish."""
        content = {
            "schema": "hedgerow.gap/1",
            "epoch": epoch,
            "priority": priority_of(self.first),
            "first": sequence_of(self.first),
            "last": sequence_of(self.last),
            "count": self.count,
            "reasons": self.reasons,
            "previous": [{"epoch": each.epoch, "next": each.numbers} for each in self.previous],
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
            PreviousEpoch(each["epoch"], None if each["next"] is None else tuple(each["next"]))
            for each in content["previous"]
        )
        return content["epoch"], Gap(first, last, content["reasons"], previous)
    except (KeyError, TypeError) as error:
        raise ValueError(f"Not a gap message: {message[:80]!r}") from error


@dataclass(frozen=True, slots=True)
class Ack:
    """The numbers the region has stored: cumulative per priority, plus ranges beyond.

    Attributes:
        epoch: of the numbers; ignored unless it is the outbox's current one.
        through: highest number without a missing one below it, by priority.
        also: ranges (first, last) above the first missing number, by priority.
    """

    epoch: str
    through: Mapping[int, int]
    also: Mapping[int, Sequence[tuple[int, int]]] = field(default_factory=dict)

    def ranges(self) -> list[tuple[int, int]]:
        """Return all acknowledged numbers as ranges of keys."""
        whole = [(key_of(priority, 0), key_of(priority, last)) for priority, last in self.through.items()]
        return whole + [
            (key_of(priority, first), key_of(priority, last))
            for priority, ranges in self.also.items()
            for first, last in ranges
        ]

    def encode(self) -> bytes:
        """Encode as JSON."""
        content = {"schema": "hedgerow.ack/1", "epoch": self.epoch, "through": self.through, "also": self.also}
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
            return cls(str(content["epoch"]), through, also)
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"Not an acknowledgement: {bytes(payload[:80])!r}") from error


def _priority(name: str) -> int:
    if not 0 <= (priority := int(name)) < PRIORITIES:
        raise ValueError(f"{priority} is not a priority")
    return priority


def _sequence(value: int) -> int:
    if not isinstance(value, int) or not 0 <= value <= _SEQUENCE:
        raise ValueError(f"{value!r} is not a sequence number")
    return value
