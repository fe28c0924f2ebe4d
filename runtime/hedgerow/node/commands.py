"""Serves commands: MQTT 5 requests on `command/{name}`.

Each command gets exactly one reply, on its response topic, or on `reply/{name}` if it has none. Expired, retained or
malformed commands are not executed; the reply says why.

The reply is published with the node's rights. So a response topic must be below the node's own `reply/` or its site's, or
below a prefix that the node's file allows; any other is refused on `reply/{name}`. Tails below `up/` leave the site, and
raw frames do not, unless the file allows it.

`expires_at` is by the sender's clock, which may differ from this one. If the command also has a message expiry, by which the
broker has let it through, it is executed up to `CLOCK_TOLERANCE_S` later, but only once.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final

import structlog
import xxhash
from pydantic import ValidationError

from hedgerow.bus.properties import Property, PublishProperties, Value, encode_properties
from hedgerow.config import RemoteSection
from hedgerow.errors import CommandError, HedgerowError, first_problem, internal
from hedgerow.topics import Address, Channel, is_name, parse
from hedgerow.wire.messages import JSON, Command, ErrorBody, Reply

if TYPE_CHECKING:
    from hedgerow.bus.client import Client
    from hedgerow.bus.message import Message

log = structlog.get_logger(__name__)

LARGEST_COMMAND: Final = 1 << 20
"""Most bytes of a command's payload; a configuration to reload is far smaller."""

CLOCK_TOLERANCE_S: Final = 60.0
"""How far the sender's clock may be behind this one."""

LONGEST_CORRELATION: Final = 1024
"""Most bytes of correlation data, which the reply repeats."""

_LONGEST_RESPONSE_TOPIC: Final = 512
"""Most characters of a response topic."""

_WITH_FRAMES: Final = frozenset({"snapshot"})
"""Commands whose replies carry a raw frame."""

MOST_RUNNING: Final = 16
"""Commands in progress at once; more are refused, so that a flood of slow ones cannot fill the memory."""

_LONGEST_NAME: Final = 100
_MOST_REMEMBERED: Final = 1000
"""Executed commands that are remembered, to recognise a repetition."""

Handler = Callable[[Mapping[str, Any]], Awaitable[Any]]
"""Executes a command with its arguments; returns the reply's value."""


class CommandServer:
    """Executes commands and replies.

    Args:
        address: the node's address.
        client: publishes the replies.
        handlers: command handlers by name.
        remote: returns the node's current `remote:`, which says what to carry out and where else to reply.
        warn: logs refusals and publishes them as events, throttled; None: they are only logged.
    Attributes:
        counts: number of commands done and refused.
    """

    def __init__(
        self,
        address: Address,
        client: Client,
        handlers: Mapping[str, Handler],
        remote: Callable[[], RemoteSection] = RemoteSection,
        warn: Callable[[str, dict[str, Any]], None] | None = None,
    ) -> None:
        self._address = address
        self._client = client
        self._handlers = handlers
        self._remote = remote
        self._warn = warn or _log_warning
        self._running = 0
        self.counts: dict[str, int] = {"done": 0, "refused": 0}
        self._executed: OrderedDict[int, float] = OrderedDict()  # digest → expires_at
        self._forgotten_until = 0.0  # a repetition of a command that expired before cannot be recognised

    def filters(self) -> dict[str, int]:
        """Return subscriptions (filter → QoS): commands to this node, and to every node of the site."""
        topics = (self._address.topic(Channel.COMMAND, "+"), self._address.everyone().topic(Channel.COMMAND, "+"))
        return dict.fromkeys(topics, 1)

    async def answer(self, message: Message) -> None:
        """Execute a command and reply. Never raises."""
        parsed = parse(message.topic)
        name = parsed.tail if parsed is not None and is_name(parsed.tail) else "unknown"
        topic, correlation = self._default_topic(name), None
        self._running += 1
        try:
            properties = _properties(message)
            correlation = _correlation(properties)
            if properties.response_topic is not None:
                topic = self._checked(properties.response_topic)
            self._check_egress(topic, name)
            value = await self._execute(name, message)
            reply = Reply(command=name, node=str(self._address), ok=True, value=value)
            self.counts["done"] += 1
        except HedgerowError as error:
            reply = self._refusal(name, error)
        except Exception as error:
            log.exception("command-failed", command=name)
            reply = self._refusal(name, internal(error))
        finally:
            self._running -= 1
        self._reply(topic, correlation, reply)

    def _checked(self, topic: str) -> str:
        """Return a response topic if the reply may go there. Raises: CommandError: it may not."""
        parsed = parse(topic)
        if parsed is not None:
            addressed = parsed.address in (self._address, self._address.everyone())
            allowed = parsed.channel is Channel.REPLY and addressed
        else:
            allowed = any(topic.startswith(f"{prefix}/") for prefix in self._remote().reply_prefixes)
        valid = len(topic) <= _LONGEST_RESPONSE_TOPIC and topic.isprintable() and not {"+", "#"} & set(topic)
        if not (allowed and valid):
            raise CommandError(
                f"The reply may not go to {topic[:200]!r}",
                code="response-topic-refused",
                remedy=f"Use a response topic such as {self._default_topic('1')}. For others, set `remote: {{reply_prefixes: […]}}` in "
                "the node's file.",
            )
        return topic

    def _check_egress(self, topic: str, command: str) -> None:
        """Raises: CommandError: the reply would carry a raw frame out of the site."""
        parsed = parse(topic)
        if parsed is not None and parsed.goes_up and command in _WITH_FRAMES and not self._remote().frames_may_leave:
            raise CommandError(
                f"The reply to {command} carries a raw frame, which may not leave the site",
                code="frame-stays",
                remedy="Send it from the site, or set `remote: {frames_may_leave: true}` in the node's file.",
            )

    def gauges(self) -> Iterator[tuple[str, str, dict[str, str], float]]:
        """Yield metrics: name, help, labels, value."""
        for what, count in self.counts.items():
            yield "hedgerow_commands", "Commands carried out and refused.", {"what": what}, count

    def _refusal(self, name: str, error: HedgerowError) -> Reply:
        self.counts["refused"] += 1
        known = {"command": name} if name in self._handlers else {}  # others' names are not a kind of refusal
        self._warn("command-refused", {**known, "code": error.code, "error": error})
        return Reply(command=name, node=str(self._address), ok=False, error=ErrorBody.of(error))

    async def _execute(self, name: str, message: Message) -> Any:
        if self._running > MOST_RUNNING:
            raise CommandError(
                f"{MOST_RUNNING} commands are in progress",
                code="busy",
                remedy="Wait for their replies, then send it again.",
            )
        if message.oversized is not None:
            raise CommandError(
                f"The command is too large: {message.oversized:,} bytes; the limit is {LARGEST_COMMAND:,}",
                code="command-too-large",
                remedy="Send a smaller payload.",
            )
        if message.retain:
            raise CommandError(
                "The command is a retained message, so it may be old",
                code="command-retained",
                remedy="Publish commands without the retain flag.",
            )
        allowed, handler = self._remote().commands, self._handlers.get(name)
        if handler is None:
            near = get_close_matches(name, allowed, n=1)
            raise CommandError(
                f"Unknown command {name!r}",
                code="unknown-command",
                remedy=(f"Did you mean {near[0]!r}? " if near else "") + f"Commands: {', '.join(allowed)}.",
            )
        if name not in allowed:
            raise CommandError(
                f"This node does not carry out {name!r} for others",
                code="command-off",
                remedy=f"Its file decides that: add {name} to `remote: commands` there, and `reload`.",
            )
        try:
            command = Command.model_validate_json(bytes(message.payload) or b"{}")
        except ValidationError as error:
            raise CommandError(
                f"The command is malformed: {first_problem(error, 'payload')}",
                code="malformed-command",
                remedy='Send JSON like {"args": {"pipeline": "doors"}, "expires_at": 1750000000.0}, or nothing.',
            ) from error
        if command.expires_at is not None:
            self._check_expiry(message, command.expires_at)
        return await handler(command.args)

    def _check_expiry(self, message: Message, expires_at: float) -> None:
        """Raises: CommandError: the command has expired, or may have been executed before."""
        properties = message.properties
        digest = xxhash.xxh3_64_intdigest(
            b"\0".join((message.topic.encode(), bytes(message.payload), properties.correlation_data or b""))
        )
        late_s = time.time() - expires_at
        tolerance_s = 0.0 if properties.expiry_s is None else CLOCK_TOLERANCE_S
        if late_s > tolerance_s or (late_s > 0 and expires_at <= self._forgotten_until):
            raise CommandError(
                f"The command expired {late_s:.1f} s ago by this node's clock",
                code="command-expired",
                remedy="Send it again. If it was sent just now, compare the clocks of sender and node.",
            )
        if late_s > 0 and digest in self._executed:
            raise CommandError(
                "The command was executed before", code="command-repeated", remedy="Send it again as a new command."
            )
        self._executed[digest] = expires_at
        while len(self._executed) > _MOST_REMEMBERED:
            _, forgotten = self._executed.popitem(last=False)
            self._forgotten_until = max(self._forgotten_until, forgotten)

    def _reply(self, topic: str, correlation: bytes | None, reply: Reply) -> None:
        pairs: list[tuple[Property, Value]] = [(Property.CONTENT_TYPE, JSON)]
        if correlation is not None:
            pairs.append((Property.CORRELATION_DATA, correlation))
        try:
            payload = reply.encode()
        except TypeError as error:
            log.error("reply-unserialisable", command=reply.command, error=str(error))
            body = ErrorBody(
                code="internal",
                message="The reply cannot be encoded",
                remedy="Report this with the node's log.",
            )
            payload = Reply(command=reply.command, node=str(self._address), ok=False, error=body).encode()
        self._client.publish(topic, payload, qos=1, properties=encode_properties(pairs))

    def _default_topic(self, command: str) -> str:
        return self._address.topic(Channel.REPLY, command)


def _properties(message: Message) -> PublishProperties:
    """Return a command's properties.

    Raises: HedgerowError: they are malformed, so its expiry and where the reply may go are not known.
    """
    if message.malformed is not None:
        raise CommandError(
            f"The command is malformed: {message.malformed}",
            code="malformed-command",
            remedy="Send shorter properties: response topic, correlation data and message expiry are enough.",
        )
    return message.properties


def _correlation(properties: PublishProperties) -> bytes | None:
    """Return a request's correlation data. Raises: CommandError: it is too long to be repeated."""
    data = properties.correlation_data
    if data is not None and len(data) > LONGEST_CORRELATION:
        raise CommandError(
            f"The correlation data has {len(data):,} bytes; the limit is {LONGEST_CORRELATION:,}",
            code="correlation-too-long",
            remedy="Send a shorter one, such as a UUID.",
        )
    return data


def _log_warning(kind: str, detail: dict[str, Any]) -> None:
    log.warning(kind, **{**detail, "error": str(detail["error"])})


def choice(args: Mapping[str, Any], name: str, known: Mapping[str, Any]) -> str:
    """Return an argument that must be one of the known names; if there is only one, it may be left out.

    Raises: CommandError: it is missing or unknown.
    """
    value = args.get(name)
    if not isinstance(value, str | None):
        raise CommandError(f"`{name}` is not text", code="bad-argument", remedy=f"Send the name of the {name}.")
    if value is None and len(known) == 1:
        return next(iter(known))
    names = ", ".join(sorted(known)) or "none"
    if value is None:
        raise CommandError(f"The command needs `{name}`", code="missing-argument", remedy=f"Use one of: {names}.")
    if value not in known:
        raise CommandError(
            f"Unknown {name} {value[:_LONGEST_NAME]!r}", code=f"unknown-{name}", remedy=f"Use one of: {names}."
        )
    return str(value)


def accept_only(args: Mapping[str, Any], *names: str) -> None:
    """Refuse other arguments. Raises: CommandError."""
    if unknown := sorted(args.keys() - set(names)):
        raise CommandError(
            f"Unknown arguments: {', '.join(unknown)[:_LONGEST_NAME]}",
            code="unknown-argument",
            remedy=f"The command accepts: {', '.join(names) or 'none'}.",
        )
