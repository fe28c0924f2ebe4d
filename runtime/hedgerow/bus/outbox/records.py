"""What the outbox holds, how it is numbered, and what the region says to it.

A number is (epoch, priority, sequence): every priority counts for itself, from 1, without holes. Inside the outbox
priority and sequence are one integer, the *key*, so that its order is the order in which records are given up when space
runs out: lowest priority first, oldest first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import orjson

from hedgerow.errors import BusError

PRIORITIES: Final = 10
"""Priorities are 0 (least) to 9."""

ACK_NOW: Final = ("ack", "now")
"""The user property that asks the region to acknowledge at once what it has got."""

_SHIFT: Final = 48
_SEQUENCE: Final = (1 << _SHIFT) - 1


class OutboxError(BusError):
    """The outbox cannot take or keep records: look at the node's disk.

    Args:
        code: what it is, kebab-case.
    """

    code = "outbox"

    def __init__(self, message: str, *, remedy: str, code: str | None = None) -> None:
        super().__init__(message, remedy=remedy)
        if code is not None:
            self.code = code


class Number(NamedTuple):
    """The identity of a record for the region: the same whenever it is sent."""

    epoch: str
    priority: int
    sequence: int

    def __str__(self) -> str:
        return f"{self.epoch}/{self.priority}/{self.sequence}"

    @classmethod
    def parse(cls, text: str) -> Number:
        """Read a number from its text.

        Raises: ValueError: it is none.
        """
        epoch, priority, sequence = text.split("/")
        return cls(epoch, int(priority), int(sequence))


def key_of(priority: int, sequence: int) -> int:
    """Priority and sequence as one integer."""
    return priority << _SHIFT | sequence


def priority_of(key: int) -> int:
    """The priority in a key."""
    return key >> _SHIFT


def sequence_of(key: int) -> int:
    """The sequence in a key."""
    return key & _SEQUENCE


@dataclass(frozen=True, slots=True)
class Record:
    """A result that must reach the region.

    Attributes:
        pipeline: which made it.
        topic: where it is published.
        payload: its bytes.
        properties: encoded MQTT properties. An expiry among them would let a broker lose it unseen: use `ttl_s`.
        priority: 0 to 9; higher ones are sent first and given up last.
        created_at: Unix seconds.
        ttl_s: seconds after which it is of no use; None for never.
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
            raise ValueError(f"Priority {self.priority} is not one of 0 to {PRIORITIES - 1}")
        if not self.topic:
            raise ValueError("A record needs a topic")

    @property
    def size(self) -> int:
        """Bytes of payload, properties and topic."""
        return len(self.payload) + len(self.properties) + len(self.topic)


@dataclass(frozen=True, slots=True)
class OutboxEntry:
    """A record with its number, or a gap in place of several.

    Attributes:
        key: priority and sequence; of a gap, its first.
        last: the same for a record; of a gap, the key of its last.
        topic: where it is published; "" for a gap.
        properties: encoded MQTT properties.
        payload: of a gap, the body of a `Gap`.
    """

    key: int
    last: int
    topic: str
    properties: bytes
    payload: bytes

    @property
    def size(self) -> int:
        """Bytes that it takes on the way."""
        return len(self.payload) + len(self.properties) + len(self.topic)


@dataclass(frozen=True, slots=True)
class PreviousEpoch:
    """An earlier epoch that came to an end because its store was lost.

    Attributes:
        epoch: which; None if not even that is known.
        numbers: the next number of each priority when it was last heard of. Whatever the region has not got of the
            numbers below is lost; whether there were more is unknown.
    """

    epoch: str | None
    numbers: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class Gap:
    """Numbers that will never come, and why: what the outbox declares instead of them.

    Attributes:
        first, last: keys.
        reasons: records lost, by reason. Numbers of the gap that are not among them had come to the region before.
        previous: earlier epochs that ended here.
    """

    first: int
    last: int
    reasons: Mapping[str, int]
    previous: tuple[PreviousEpoch, ...] = ()

    @property
    def count(self) -> int:
        """Records lost."""
        return sum(self.reasons.values())

    def joined(self, other: Gap) -> Gap:
        """One gap in place of two that have nothing between them."""
        reasons = dict(self.reasons)
        for reason, count in other.reasons.items():
            reasons[reason] = reasons.get(reason, 0) + count
        first, last = min(self.first, other.first), max(self.last, other.last)
        return Gap(first, last, reasons, self.previous + other.previous)

    def body(self) -> bytes:
        """What is stored of it, beside its keys."""
        previous = [[one.epoch, one.numbers] for one in self.previous]
        return json.dumps({"reasons": self.reasons, "previous": previous}, separators=(",", ":")).encode()

    @classmethod
    def read(cls, first: int, last: int, body: bytes) -> Gap:
        """Make it of what was stored; a body that cannot be read leaves the reason open."""
        try:
            said = json.loads(body)
            previous = tuple(
                PreviousEpoch(epoch, tuple(numbers) if numbers else None) for epoch, numbers in said["previous"]
            )
            return cls(first, last, said["reasons"], previous)
        except (ValueError, KeyError, TypeError):
            return cls(first, last, {"corrupt": 1})

    def message(self, epoch: str) -> bytes:
        """What is published of it: JSON."""
        said = {
            "schema": "hedgerow.gap/1",
            "epoch": epoch,
            "priority": priority_of(self.first),
            "first": sequence_of(self.first),
            "last": sequence_of(self.last),
            "count": self.count,
            "reasons": self.reasons,
            "previous": [{"epoch": one.epoch, "next": one.numbers} for one in self.previous],
        }
        return json.dumps(said, separators=(",", ":")).encode()


def read_gap(message: bytes) -> tuple[str, Gap]:
    """Read what `Gap.message` wrote: the epoch, and the gap.

    Raises: ValueError: it is none.
    """
    try:
        said = json.loads(message)
        first, last = (key_of(said["priority"], said[end]) for end in ("first", "last"))
        previous = tuple(
            PreviousEpoch(one["epoch"], None if one["next"] is None else tuple(one["next"])) for one in said["previous"]
        )
        return said["epoch"], Gap(first, last, said["reasons"], previous)
    except (KeyError, TypeError) as error:
        raise ValueError(f"This is no gap: {message[:80]!r}") from error


@dataclass(frozen=True, slots=True)
class Ack:
    """What the region has got: of each priority all numbers up to one, and perhaps ranges beyond it.

    Attributes:
        epoch: of the numbers; those of another epoch mean nothing.
        through: the last number of those without a hole before them, by priority.
        also: ranges (first, last) that came ahead of a hole, by priority.
    """

    epoch: str
    through: Mapping[int, int]
    also: Mapping[int, Sequence[tuple[int, int]]] = field(default_factory=dict)

    def ranges(self) -> list[tuple[int, int]]:
        """All that it acknowledges, as ranges of keys."""
        whole = [(key_of(priority, 0), key_of(priority, last)) for priority, last in self.through.items()]
        return whole + [
            (key_of(priority, first), key_of(priority, last))
            for priority, ranges in self.also.items()
            for first, last in ranges
        ]

    def encode(self) -> bytes:
        """As JSON."""
        said = {"schema": "hedgerow.ack/1", "epoch": self.epoch, "through": self.through, "also": self.also}
        return orjson.dumps(said, option=orjson.OPT_NON_STR_KEYS)

    @classmethod
    def decode(cls, payload: bytes | memoryview) -> Ack:
        """Read what `encode` wrote.

        Raises: ValueError: it is none.
        """
        try:
            said = json.loads(bytes(payload))
            through = {_priority(name): _sequence(last) for name, last in said["through"].items()}
            also = {
                _priority(name): [(_sequence(first), _sequence(last)) for first, last in ranges]
                for name, ranges in said.get("also", {}).items()
            }
            return cls(str(said["epoch"]), through, also)
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"This is no acknowledgement: {bytes(payload[:80])!r}") from error


def _priority(name: str) -> int:
    if not 0 <= (priority := int(name)) < PRIORITIES:
        raise ValueError(f"{priority} is no priority")
    return priority


def _sequence(value: int) -> int:
    if not isinstance(value, int) or not 0 <= value <= _SEQUENCE:
        raise ValueError(f"{value!r} is no sequence")
    return value
