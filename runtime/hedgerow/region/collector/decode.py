"""Decodes messages into records. Any message becomes a record; nothing raises. Pure.

A node is who its topic says, since the brokers' access lists confine topics; a message whose body names another node is
rejected. Of results, the store decides: one that has waited since its node had another name still has that in its body.

A durable result that cannot be read is rejected with its number, and so acknowledged: sending it again would not help, and
the outbox would wait for it forever. A message with an invalid number is rejected without one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sized
from contextlib import suppress
from datetime import datetime
from hashlib import blake2b
from typing import Any, Final

import msgpack
import orjson
from pydantic import ValidationError

from hedgerow.bus.message import Message
from hedgerow.bus.outbox.epochs import MAX_FORMER, EpochEnd
from hedgerow.bus.outbox.records import ACK_NOW, PRIORITIES, Number, priority_of, read_gap, record_check, sequence_of
from hedgerow.errors import LONGEST_TEXT, FrameError
from hedgerow.region.store.records import (
    EventRecord,
    GapRecord,
    HealthRecord,
    RejectedRecord,
    ReportedRecord,
    ResultRecord,
    StatusRecord,
    StoreRecord,
)
from hedgerow.topics import EVERY_NODE, Address, Channel, Parsed, is_name, parse
from hedgerow.wire.fleet import Reported
from hedgerow.wire.messages import JSON, MSGPACK, RESULT_SCHEMA, Health, Instance, Status, clean
from hedgerow.wire.ranges import LATEST_TIME, MAX_COUNT

GAP: Final = (Channel.EVENT, "gap")
"""Channel and tail of the topic for gap declarations."""
MAX_REJECTED_BYTES: Final = 4096
"""Bytes of a rejected payload to store."""
MAX_DOCUMENT_BYTES: Final = 1 << 18
"""Largest status, health report, report and event. Each node's last ones are held in memory, and shown to operators."""
_MAX_ID_BYTES: Final = 1100
_MAX_SEQUENCE: Final = (1 << 48) - 1
_CHANNELS: Final = (Channel.RESULT, Channel.EVENT, Channel.HEALTH, Channel.STATUS, Channel.REPORTED)


class UnreadableMessage(Exception):
    """A message cannot be used, with the reason."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def filters(region: str) -> dict[str, int]:
    """Return the topic filters to subscribe to, with their QoS."""
    everyone = Address(region, "+", "+")
    tails = {Channel.RESULT: "#", Channel.EVENT: "#"}
    return {
        everyone.topic(channel, tails.get(channel, "")): 0 if channel is Channel.HEALTH else 1 for channel in _CHANNELS
    }


def decode_message(message: Message, region: str, received_at: float, max_names: int = 256) -> StoreRecord:
    """Decode a message.

    Args:
        message: from the broker.
        region: messages of other regions are rejected.
        received_at: Unix seconds.
        max_names: most pipelines, models, labels and reasons, each, in one document of a node.
    """
    size = len(message.payload) if message.oversized is None else message.oversized
    parsed = parse(message.topic)
    ours = parsed is not None and parsed.address.region == region and parsed.address.node != EVERY_NODE
    address = parsed.address if parsed is not None and ours else None
    head = (address, size, received_at, not message.retain)
    number: Number | None = None
    check: int | None = None
    try:
        if parsed is None or address is None or message.malformed is not None:
            raise UnreadableMessage("bad-topic", message.malformed or "not the topic of a node in this region")
        user_properties = _user_properties(message)
        number = _number(user_properties.get("number"))
        if message.oversized is not None:
            raise UnreadableMessage("too-large", f"{size} bytes")
        if number is not None:
            check = record_check(user_properties.get("id", ""), message.payload)
        if parsed.channel is not Channel.RESULT and size > MAX_DOCUMENT_BYTES:
            raise UnreadableMessage("too-large", f"{size} bytes; at most {MAX_DOCUMENT_BYTES} in {parsed.channel}")
        return _decode(parsed, message, head, user_properties, number, check, max_names)
    except UnreadableMessage as refusal:
        payload = bytes(message.payload[:MAX_REJECTED_BYTES])
        durable = number if parsed is not None and parsed.channel is Channel.RESULT else None
        detail = clean(str(refusal), 500)
        site = site_of(message.topic, region)
        return RejectedRecord(*head, clean(message.topic), refusal.reason, detail, durable, payload, site, check)


def clears(message: Message) -> bool:
    """Whether a message only clears a retained one, as the region does when a node was forgotten or renamed."""
    parsed = parse(message.topic)
    return parsed is not None and not message.payload and parsed.channel in (Channel.STATUS, Channel.REPORTED)


def site_of(topic: str, region: str) -> str:
    """Return the site that a topic names, even if the rest of it is invalid; "" if it names none of this region."""
    levels = topic.split("/", 5)
    return levels[3] if len(levels) > 4 and levels[2] == region and is_name(levels[3]) else ""


def _decode(
    parsed: Parsed,
    message: Message,
    head: tuple[Address | None, int, float, bool],
    user_properties: Mapping[str, str],
    number: Number | None,
    check: int | None,
    max_names: int,
) -> StoreRecord:
    channel, tail = parsed.channel, parsed.tail
    source = user_properties.get("source", "")
    named = None
    if source.startswith("/hedgerow/") and not f"{source}/".startswith(f"/hedgerow/{parsed.address}/"):
        named = "/".join(source.split("/")[2:5])
        if channel is not Channel.RESULT:
            raise UnreadableMessage("another-node", f"its source is {source[:100]}")
    if (channel, tail) == GAP:
        return _gap(message, head, user_properties, number)
    if channel is Channel.RESULT:
        return _result(parsed.pipeline, message, head, user_properties, number, named, check)
    if channel is Channel.EVENT:
        return _event(tail, message, head, user_properties)
    if channel is Channel.HEALTH:
        return _health(message, head, max_names)
    if channel is Channel.STATUS:
        return _status(message, head)
    if channel is Channel.REPORTED:
        return _reported(message, head, max_names)
    raise UnreadableMessage("bad-topic", f"{channel} messages are not collected")


def _check_sender(named: Any, head: tuple[Address | None, int, float, bool]) -> None:
    """Raises: UnreadableMessage: a message's body names another node than its topic."""
    if named is not None and named != str(head[0]):
        raise UnreadableMessage("another-node", f"its body names {clean(named, 100)}")


def _user_properties(message: Message) -> dict[str, str]:
    try:
        pairs = message.properties.user_properties
    except FrameError as error:
        raise UnreadableMessage("malformed-properties", str(error)) from error
    user_properties = dict(pairs)
    if len(user_properties) < len(pairs) and sum(name == "number" for name, _ in pairs) > 1:
        raise UnreadableMessage("bad-number", "more than one number")
    return user_properties


def _number(text: str | None) -> Number | None:
    if text is None:
        return None
    epoch, _, rest = text.partition("/")
    priority, _, sequence = rest.partition("/")
    if (
        is_name(epoch)
        and (priority.isascii() and priority.isdigit() and len(priority) <= 2 and int(priority) < PRIORITIES)
        and (sequence.isascii() and sequence.isdigit() and len(sequence) <= 15 and 1 <= int(sequence) <= _MAX_SEQUENCE)
    ):
        return Number(epoch, int(priority), int(sequence))
    raise UnreadableMessage("bad-number", text)


def _asks(user_properties: Mapping[str, str]) -> bool:
    name, value = ACK_NOW
    return user_properties.get(name) == value


def _result(
    pipeline: str,
    message: Message,
    head: tuple[Address | None, int, float, bool],
    user_properties: Mapping[str, str],
    number: Number | None,
    named: str | None,
    check: int | None,
) -> ResultRecord:
    if not is_name(pipeline):
        raise UnreadableMessage("bad-topic", "invalid pipeline name")
    content_type = message.properties.content_type
    body = _body(message, content_type)
    captured_at, properties, sender_id = None, None, user_properties.get("id")
    if body is not None:
        if body.get("schema") == RESULT_SCHEMA:  # what a stage has encoded itself may have any `node`
            node = body.get("node")
            named = node if isinstance(node, str) and node != str(head[0]) else named
            if not isinstance(node, str):
                _check_sender(node, head)
        frame = body.get("frame")
        captured_at = _time(frame.get("captured_at")) if isinstance(frame, dict) else None
        captured_at = _time(body.get("at")) if captured_at is None else captured_at
        if sender_id is None and isinstance(body.get("id"), str):
            sender_id = body["id"]
    elif user_properties:  # the lineage is nowhere else
        properties = orjson.dumps(message.properties.user_properties).decode()
    if captured_at is None:
        captured_at = _time_of(user_properties.get("time"))
    if captured_at is None:
        captured_at = head[2]
    sender_id = None if sender_id is None else _short_id(sender_id)
    return ResultRecord(
        *head, pipeline, number, sender_id, captured_at, clean(content_type), properties, message.payload, check,
        _former(message, user_properties), _end(user_properties.get("ended")), wants_ack=_asks(user_properties), named=named,
    )  # fmt: skip


def _former(message: Message, user_properties: Mapping[str, str]) -> tuple[Number, ...]:
    """Return the numbers that a result had before; what is none is left out, since they only help."""
    if "was" not in user_properties:
        return ()
    texts = [text for name, text in message.properties.user_properties if name == "was"][:MAX_FORMER]
    numbers = []
    for text in texts:
        with suppress(UnreadableMessage):
            numbers.append(_number(text))
    return tuple(number for number in numbers if number is not None)


def _end(text: str | None) -> EpochEnd | None:
    """Return the end of an epoch that a result tells; None if it tells none, or nothing that can be one."""
    epoch, *pairs = (text or "").split(" ")
    if not is_name(epoch) or len(pairs) > PRIORITIES:
        return None
    lasts: dict[int, int] = {}
    for pair in pairs:
        try:
            number = _number(f"{epoch}/{pair.replace(':', '/', 1)}")
        except UnreadableMessage:
            return None
        if number is not None:
            lasts[number.priority] = number.sequence
    return EpochEnd(epoch, lasts)


def _short_id(text: str) -> str:
    """Return an id that fits into a database's index: a longer one by its digest."""
    text = clean(text, LONGEST_TEXT)
    if len(text.encode()) <= _MAX_ID_BYTES:
        return text
    return f"{text[:100]}…{blake2b(text.encode(), digest_size=16).hexdigest()}"


def _body(message: Message, content_type: str) -> dict[str, Any] | None:
    """Return a result's decoded payload; None if it is not JSON or MessagePack."""
    if content_type not in (JSON, MSGPACK, ""):
        return None
    body = _decoded(message, content_type)
    return body if isinstance(body, dict) else {}


def _decoded(message: Message, content_type: str) -> Any:
    try:
        if content_type == MSGPACK:
            return msgpack.unpackb(message.payload, strict_map_key=False)
        return orjson.loads(message.payload)
    except Exception as error:
        raise UnreadableMessage("unreadable-payload", f"not {content_type or JSON}: {error}") from error


def _gap(
    message: Message,
    head: tuple[Address | None, int, float, bool],
    user_properties: Mapping[str, str],
    number: Number | None,
) -> GapRecord:
    try:
        epoch, gap = read_gap(bytes(message.payload))
        valid = (
            is_name(epoch)
            and 0 <= priority_of(gap.first) < PRIORITIES
            and priority_of(gap.first) == priority_of(gap.last)
            and 1 <= sequence_of(gap.first) <= sequence_of(gap.last) <= _MAX_SEQUENCE
            and all(
                isinstance(name, str) and type(n) is int and 0 <= n <= _MAX_SEQUENCE for name, n in gap.reasons.items()
            )
            and len(gap.reasons) <= 100
            and gap.count <= gap.last - gap.first + 1
            and len(gap.previous) <= 100
            and all(one.epoch is None or is_name(one.epoch) for one in gap.previous)
            and all(
                len(one.numbers) <= PRIORITIES
                and all(type(n) is int and 0 <= n <= _MAX_SEQUENCE + 1 for n in one.numbers)
                for one in gap.previous
                if one.numbers is not None
            )
            and (number is None or number.epoch == epoch)
        )
    except Exception as error:
        raise UnreadableMessage("bad-gap", str(error)) from error
    if not valid:
        raise UnreadableMessage("bad-gap", "invalid numbers")
    return GapRecord(*head, epoch, gap, _end(user_properties.get("ended")), wants_ack=_asks(user_properties))


def _event(
    kind: str, message: Message, head: tuple[Address | None, int, float, bool], user_properties: Mapping[str, str]
) -> EventRecord:
    if not is_name(kind):
        raise UnreadableMessage("bad-topic", "invalid kind of event")
    body = _decoded(message, JSON)
    at = None
    if isinstance(body, dict):
        _check_sender(body.get("node"), head)
        at = _time(body.get("at"))
    sender_id = user_properties.get("id")
    return EventRecord(
        *head, kind, None if sender_id is None else clean(sender_id), head[2] if at is None else at, message.payload
    )


def _health(message: Message, head: tuple[Address | None, int, float, bool], max_names: int) -> HealthRecord:
    try:
        health = Health.model_validate_json(bytes(message.payload))
        reasons = orjson.dumps([clean(reason, 300) for reason in health.reasons[:20]]).decode()
    except (ValidationError, ValueError) as error:
        raise UnreadableMessage("unreadable-payload", f"not a health report: {error}") from error
    _check_sender(health.node, head)
    counts = [len(pipeline.dropped) + len(pipeline.dead) for pipeline in health.pipelines.values()]
    _check_names(max_names, pipelines=health.pipelines, models=health.models, reasons=health.reasons)
    _check_names(max_names * 16, drops=range(sum(counts)))
    at = _time(health.at)
    bytes_in = sum(pipeline.bytes_in for pipeline in health.pipelines.values())
    session = clean(health.session, 100)
    return HealthRecord(
        *head,
        head[2] if at is None else at,
        session,
        min(bytes_in, MAX_COUNT),
        health.state,
        reasons,
        message.payload,
        uptime_s=health.uptime_s,
        instance=_instance(health.instance),
        region=None if health.outbox is None else health.outbox.region,
    )


def _instance(instance: Instance | None) -> Instance:
    if instance is None:  # a node of an earlier version
        return Instance()
    texts = {name: clean(getattr(instance, name)) for name in ("host", "address", "machine", "key", "state")}
    return instance.model_copy(update=texts)


def _reported(message: Message, head: tuple[Address | None, int, float, bool], max_names: int) -> ReportedRecord:
    try:
        reported = Reported.model_validate_json(bytes(message.payload))
    except (ValidationError, ValueError) as error:
        raise UnreadableMessage("unreadable-payload", f"not a report: {error}") from error
    _check_sender(reported.node, head)
    _check_names(
        max_names,
        pipelines=reported.pipelines,
        models=reported.models,
        configured=reported.configured or {},
        labels=reported.labels,
        quarantined=reported.quarantined,
        rolled_back=reported.rolled_back,
    )
    return ReportedRecord(*head, message.payload)


def _check_names(most: int, **parts: Sized) -> None:
    for name, part in parts.items():
        if len(part) > most:
            raise UnreadableMessage("too-many-names", f"{len(part)} {name}; at most {most}")


def _status(message: Message, head: tuple[Address | None, int, float, bool]) -> StatusRecord:
    try:
        status = Status.model_validate_json(bytes(message.payload))
        session = clean(status.session)
    except (ValidationError, ValueError) as error:
        raise UnreadableMessage("unreadable-payload", f"not a status message: {error}") from error
    _check_sender(status.node, head)
    stopped = status.state == "offline" and status.at is not None  # a will has no time
    return StatusRecord(*head, status.state == "online", stopped, session, message.payload)


def _time(value: Any) -> float | None:
    """Return Unix seconds; None if the value is not a plausible time."""
    if (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and 0 < value < LATEST_TIME
        and math.isfinite(value)
    ):
        return float(value)
    return None


def _time_of(text: str | None) -> float | None:
    """Parse a CloudEvents time (RFC 3339); None if it is not one."""
    try:
        at = None if text is None else datetime.fromisoformat(text)
        return None if at is None or at.tzinfo is None else _time(at.timestamp())
    except (ValueError, OverflowError):
        return None
