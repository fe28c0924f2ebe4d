"""Builds and parses Hedgerow topics; no other module does.

    hedgerow/v1/{region}/{site}/{node}/{channel}[/{tail}]

`{node}` may be `~`, which means every node of the site. Topics of sensors are free; `matches`, `overlap` and
`check_filter` apply to any topic and follow MQTT 5 §4.7.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import NamedTuple

from hedgerow.errors import ConfigError
from hedgerow.text import refusal

ROOT = "hedgerow/v1"
EVERY_NODE = "~"
MAX_TOPIC_BYTES = 65_535

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Channel(StrEnum):
    """Kind of message that a topic carries."""

    STATUS = "status"
    HEALTH = "health"
    EVENT = "event"
    RESULT = "result"
    REPORTED = "reported"
    DESIRED = "desired"
    COMMAND = "command"
    REPLY = "reply"
    BLOB = "blob"
    ACK = "ack"
    DEAD = "dead"
    SERVICE = "service"
    ENROL = "enrol"
    ENROLLED = "enrolled"


UP = "up"
"""First level of the tails of replies that leave the site: `reply/up/AUTHORITY/REQUEST`."""

_LATE = "/late"
_PIPELINES = Channel.RESULT, Channel.DEAD
ENROLMENT = Channel.ENROL, Channel.ENROLLED
"""Requests of machines that have no certificate yet, and their answers; the tail is the asking client's id, the node `~`."""
_WITH_TAIL = frozenset(
    {
        Channel.EVENT,
        Channel.RESULT,
        Channel.COMMAND,
        Channel.REPLY,
        Channel.BLOB,
        Channel.DEAD,
        Channel.SERVICE,
        *ENROLMENT,
    }
)


class Address(NamedTuple):
    """Address of a node: region, site, node."""

    region: str
    site: str
    node: str

    def topic(self, channel: Channel, tail: str = "") -> str:
        """Return the topic of one of this node's channels.

        Args:
            channel: the channel.
            tail: the last part: kind of event, name of a pipeline or command.
        Raises: ValueError: the tail is missing, or the channel takes none.
        """
        if bool(tail) != (channel in _WITH_TAIL):
            raise ValueError(f"Channel {channel} {'needs' if channel in _WITH_TAIL else 'takes no'} tail")
        base = f"{ROOT}/{self.region}/{self.site}/{self.node}/{channel}"
        return f"{base}/{tail}" if tail else base

    def present(self, topic: str) -> str:
        """Return a topic of this node for one that it had under another name; a topic of any other kind stays."""
        if topic.startswith(f"{ROOT}/{self}/") or (parsed := parse(topic)) is None:
            return topic
        return self.topic(parsed.channel, parsed.tail)

    def everyone(self) -> Address:
        """Return the address of all nodes of this site."""
        return self._replace(node=EVERY_NODE)

    def __str__(self) -> str:
        return f"{self.region}/{self.site}/{self.node}"


class Parsed(NamedTuple):
    """A parsed Hedgerow topic."""

    address: Address
    channel: Channel
    tail: str

    @property
    def pipeline(self) -> str:
        """The pipeline of a result or dead letter; without the suffix `/late`."""
        return self.tail.removesuffix(_LATE)

    @property
    def goes_up(self) -> bool:
        """Whether it is a reply that bridges carry out of the site."""
        return self.channel is Channel.REPLY and self.tail.partition("/")[0] == UP


def late(topic: str) -> str:
    """Return the topic for late results: durable results that are published again or after an outage.

    `result/doors/#` matches all results, `result/doors` only those that are not late.
    """
    return topic + _LATE


def upward(authority: str, request: str) -> str:
    """Return the tail of replies to a request from above the site; bridges carry no others.

    Args:
        authority: who certifies the requester: `region`, or the name of the region's parent.
        request: names the request.
    """
    return f"{UP}/{authority}/{request}"


def parse(topic: str) -> Parsed | None:
    """Parse a Hedgerow topic; None if it is not one."""
    parts = topic.split("/", 6)
    if len(parts) < 6 or f"{parts[0]}/{parts[1]}" != ROOT:
        return None
    _, _, region, site, node, channel = parts[:6]
    tail = parts[6] if len(parts) == 7 else ""
    if channel not in Channel.__members__.values() or bool(tail) != (Channel(channel) in _WITH_TAIL):
        return None
    if not (is_name(region) and is_name(site) and (is_name(node) or node == EVERY_NODE)):
        return None
    return Parsed(Address(region, site, node), Channel(channel), tail)


def is_name(name: str) -> bool:
    """Whether a string is a valid name of a region, site, node, pipeline or model: 1 to 64 of `A-Z a-z 0-9 . _ -`."""
    return _NAME.fullmatch(name) is not None


def check_filter(pattern: str) -> str:
    """Validate an MQTT topic filter (MQTT 5 §4.7) and return it.

    Raises: ConfigError: it is empty, too long, or has a misplaced wildcard or a control character.
    """
    remedy = (
        "`+` matches one whole level; `#`, only at the end, matches all further levels: `plant/+/image`, `plant/#`."
    )
    if not pattern or len(pattern.encode(errors="surrogatepass")) > MAX_TOPIC_BYTES:
        raise ConfigError(f"{pattern[:80]!r} is not a topic filter", remedy=remedy)
    if (why := refusal(pattern)) is not None:
        raise ConfigError(
            f"{pattern[:80]!a} is not a topic filter: {why}",
            remedy="Remove the character. Brokers close the connection of a client that uses it, or it adds a line to a file.",
        )
    levels = pattern.split("/")
    for position, level in enumerate(levels):
        last = position == len(levels) - 1
        if ("#" in level and (level != "#" or not last)) or ("+" in level and level != "+"):
            raise ConfigError(
                f"{pattern!r} is not a topic filter: misplaced wildcard in level {level!r}", remedy=remedy
            )
    if levels[0] == "$share" and (len(levels) < 3 or not levels[1]):
        raise ConfigError(f"{pattern!r} is not a shared subscription", remedy="Write `$share/GROUP/FILTER`.")
    return pattern


def matches(pattern: str, topic: str) -> bool:
    """Whether a topic filter matches a topic (MQTT 5 §4.7; leading wildcards do not match `$…` topics)."""
    expected = pattern.split("/")
    if expected[0] == "$share":
        expected = expected[2:]
    levels = topic.split("/")
    if topic.startswith("$") and expected[0] in ("+", "#"):
        return False
    for position, level in enumerate(expected):
        if level == "#":
            return True
        if position >= len(levels) or (level != "+" and level != levels[position]):
            return False
    return len(levels) == len(expected)


def overlap(one: str, other: str) -> bool:
    """Whether some topic matches both filters (without `$share`)."""
    left, right = one.split("/"), other.split("/")
    for position in range(max(len(left), len(right))):
        mine = left[position] if position < len(left) else None
        theirs = right[position] if position < len(right) else None
        if "#" in (mine, theirs):  # `a/#` matches `a` too
            return True
        if mine is None or theirs is None or (mine != theirs and "+" not in (mine, theirs)):
            return False
    return True


def check_feedback(address: Address, pipeline: str, subscriptions: Mapping[str, Iterable[str]]) -> None:
    """Check that a pipeline does not subscribe to what its own node publishes: each message would cause the next one.

    The results of another pipeline are allowed, unless that one depends on this one's results.

    Args:
        address: the node's address.
        pipeline: the pipeline to check.
        subscriptions: topic filters of all pipelines of the node, by name.
    Raises: ConfigError: names the filter and a topic that it matches.
    """
    for pattern in subscriptions[pipeline]:
        if (topic := _feedback(address, pipeline, pattern, subscriptions)) is not None:
            result = address.topic(Channel.RESULT, "PIPELINE")
            raise ConfigError(
                f"{pattern!r} also matches what this node publishes, for example {topic}",
                remedy="Subscribe to the topics of the sensors only, e.g. `plant/#`. To process the results of another "
                f"pipeline, subscribe to `{result}`; that pipeline must not depend on this one.",
            )


def _feedback(address: Address, pipeline: str, pattern: str, subscriptions: Mapping[str, Iterable[str]]) -> str | None:
    """Return a topic of the node that the filter matches and the pipeline must not process."""
    for channel in Channel:
        tails = subscriptions if channel in _PIPELINES else ("NAME",) if channel in _WITH_TAIL else ("",)
        for tail in tails:
            topic = address.topic(channel, tail)
            whole = f"{topic.removesuffix('/NAME')}/+/#" if tail == "NAME" else f"{topic}/#" if tail else topic
            if not overlap(without_group(pattern), whole):
                continue
            if channel is not Channel.RESULT or pipeline in _sources(address, tail, subscriptions):
                return topic
    return None


def _sources(address: Address, pipeline: str, subscriptions: Mapping[str, Iterable[str]]) -> set[str]:
    """Return the pipelines whose results a pipeline depends on, itself included."""
    found, waiting = {pipeline}, [pipeline]
    while waiting:
        filters = [without_group(pattern) for pattern in subscriptions[waiting.pop()]]
        for name in subscriptions.keys() - found:
            whole = f"{address.topic(Channel.RESULT, name)}/#"
            if any(overlap(pattern, whole) for pattern in filters):
                found.add(name)
                waiting.append(name)
    return found


def without_group(pattern: str) -> str:
    """Return the filter inside a shared subscription; `$queue/` and `$exclusive/` are those of EMQX."""
    if pattern.startswith("$share/"):
        return pattern.split("/", 2)[2]
    return pattern.removeprefix("$queue/").removeprefix("$exclusive/")
