"""`hedgerow command`: sends a command to a node, or to every node of a site or region, and prints the replies."""

from __future__ import annotations

import asyncio
import itertools
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from hedgerow.cli.base.console import echo, plural, print_json, style
from hedgerow.cli.base.options import BrokerConfig, BrokerUrl, Json
from hedgerow.cli.base.tables import print_facts
from hedgerow.errors import CommandError, ConfigError
from hedgerow.text import visible
from hedgerow.topics import EVERY_NODE, Address, Channel, is_name, parse, upward

if TYPE_CHECKING:
    from hedgerow.cli.base.client import Connection
    from hedgerow.config import BrokerSection
    from hedgerow.wire.messages import Reply


_MOST_UNKNOWN: Final = 1000
"""Most replies in names of nodes that are not online: one that is stolen may invent names."""
_MOST_TOLD: Final = 20
_LONGEST_TOLD: Final = 500
_QUIET_S: Final = 0.5
"""A broker that has sent nothing for this long has sent all its retained messages."""


def command(
    node: Annotated[
        str, typer.Argument(help="REGION/SITE/NODE; REGION/SITE/~ means every node of a site, REGION/~/~ of a region.")
    ],
    name: Annotated[str, typer.Argument(help="ping, info, pause, resume, adjust, reload, snapshot, release, stop…")],
    args: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE...", help="Arguments; KEY=@FILE takes the value from a text file."),
    ] = None,
    args_json: Annotated[
        str | None, typer.Option("--args", metavar="JSON", help="All arguments as one JSON object.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.05, max=3600, help="Seconds to wait for replies.")] = 5.0,
    above: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Where you are, if above the site's broker: `region`, or the name of the region's parent. By default as your "
            "certificate says.",
        ),
    ] = None,
    broker: BrokerUrl = None,
    config: BrokerConfig = None,
    json: Json = False,
) -> None:
    """Send a command to a running node, and print its reply.

    Examples:
      hedgerow command local/site/node ping
      hedgerow command local/site/node info --json
      hedgerow command local/site/node pause pipeline=doors
      hedgerow command local/site/node adjust pipeline=doors batch=8 queue.max_age_s=2
      hedgerow command local/site/node reload
      hedgerow command 'local/site/~' ping --timeout 2
      hedgerow command 'local/~/~' snapshot --timeout 30 --json

    Only replies to requests from above leave a site, and none with a raw frame (`snapshot`) unless the node's file allows it.
    Without a certificate of the region, say `--above region`.

    A node replies to an unknown command with a list of the commands it has. It refuses a command that arrives after the
    timeout. With `~`, replies are collected until every node that is online according to the broker has replied, or until
    the timeout. Exits with 1 if a node replies with an error, or does not reply although it is online.
    """
    from hedgerow.cli.base.connection import broker_section

    address = _address(node)
    if not is_name(name):
        raise ConfigError(f"{name!r} is not a command name", remedy="Write a name such as `ping`.")
    replies = asyncio.run(
        send_command(broker_section(broker, config), address, name, _arguments(args or [], args_json), timeout, above)
    )
    many = address.node == EVERY_NODE
    if json:
        shown = [reply.model_dump(by_alias=True) for reply in replies]
        print_json(shown if many else shown[0] if shown else None)
    else:
        for reply in replies:
            _print(reply, many=many)
        if many and replies:
            echo(f"{sum(reply.ok for reply in replies):,} of {plural(len(replies), 'node')} succeeded.")
    if not replies:
        raise CommandError(
            f"No reply from {address} within {timeout:g} s",
            code="no-answer",
            remedy=f"Check the address and the broker: `hedgerow watch --node '{address.region}/+/+'` shows the nodes that run.",
        )
    if not all(reply.ok for reply in replies):
        raise typer.Exit(1)


def _address(text: str) -> Address:
    parts = text.split("/")
    named = [part for index, part in enumerate(parts) if parts[index:] not in ([EVERY_NODE], [EVERY_NODE] * 2)]
    if len(parts) != 3 or not named or not all(map(is_name, named)):
        raise ConfigError(
            f"{text!r} is not a node address",
            remedy="Write REGION/SITE/NODE as in its configuration, REGION/SITE/~ or REGION/~/~.",
        )
    return Address(*parts)


def _arguments(pairs: Sequence[str], text: str | None) -> dict[str, Any]:
    import orjson

    args: dict[str, Any] = {}
    if text is not None:
        try:
            args = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            raise ConfigError(
                f"--args is not JSON: {error}", remedy="""Write --args '{"pipeline": "doors"}'."""
            ) from error
        if not isinstance(args, dict):
            raise ConfigError("--args is not a JSON object", remedy="""Write --args '{"pipeline": "doors"}'.""")
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise ConfigError(f"{pair!r} is not KEY=VALUE", remedy="Write arguments as pipeline=doors.")
        args[key] = _value(value)
    return args


def _value(text: str) -> Any:
    """Return the value of an argument: a file's text, JSON, or the text itself."""
    import orjson

    if text.startswith("@"):
        try:
            return Path(text[1:]).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{text[1:]} cannot be read: {error}", remedy="Give the path of a text file.") from error
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


async def send_command(
    broker: BrokerSection,
    address: Address,
    name: str,
    args: Mapping[str, Any],
    timeout_s: float,
    above: str | None = None,
) -> list[Reply]:
    """Send a command and return the replies, one per node, in order of arrival (MQTT 5 §4.10, request/response).

    Where the address means every node, the list has an error for each online node that did not reply.
    """
    from hedgerow.cli.base.client import payload_of
    from hedgerow.cli.base.connection import connected

    request = uuid.uuid4().hex
    replies: dict[str, Reply] = {}
    told = itertools.count()

    def ignored(message: Any, why: str) -> None:
        if next(told) < _MOST_TOLD:
            echo(visible(f"ignored: a reply on {message.topic}: {why[:_LONGEST_TOLD]}"), err=True)

    async with connected(broker) as client:
        every_node = address.node == EVERY_NODE
        online = await _online(client, address) if every_node else {str(address)}
        sites = [address.site] if address.site != EVERY_NODE else sorted({node.split("/")[1] for node in online})
        authority = above or _above(broker, address, sites)
        tail = request if authority is None else upward(authority, request)  # bridges carry no others
        await client.subscribe(_filter(address).topic(Channel.REPLY, tail), qos=1)
        for site in sites:
            await _send(client, address._replace(site=site), name, args, request, tail, timeout_s)
        try:
            async with asyncio.timeout(timeout_s if sites else 0):
                async for message in client.messages:
                    if getattr(message.properties, "CorrelationData", None) != request.encode():
                        continue
                    try:
                        reply = _reply(payload_of(message))
                    except CommandError as error:
                        if not every_node:
                            raise
                        ignored(message, str(error))
                        continue
                    if not _speaks_for(str(message.topic), reply.node):
                        ignored(message, f"in the name of {reply.node}")
                    elif reply.node not in online and len(replies.keys() - online) >= _MOST_UNKNOWN:
                        ignored(message, f"{reply.node} is not online, as {_MOST_UNKNOWN:,} others that replied")
                    else:
                        replies.setdefault(reply.node, reply)
                    if online and online <= replies.keys():
                        break
        except TimeoutError:
            pass
    missing = [_no_reply(node, name, timeout_s) for node in sorted(online - replies.keys())] if every_node else []
    return [*replies.values(), *missing]


async def _online(client: Connection, address: Address) -> set[str]:
    """Return the nodes of a site or region that are online, by the status that they or their wills published."""
    from pydantic import ValidationError

    from hedgerow.cli.base.client import payload_of
    from hedgerow.wire.messages import Status

    online = set()
    topic = _filter(address)._replace(node="+").topic(Channel.STATUS)
    await client.subscribe(topic, qos=0)
    try:
        while True:
            async with asyncio.timeout(_QUIET_S):
                message = await anext(client.messages)
            parsed = parse(str(message.topic))
            with suppress(ValidationError):
                if parsed is not None and Status.model_validate_json(payload_of(message)).state == "online":
                    online.add(str(parsed.address))
    except TimeoutError:
        await client.unsubscribe(topic)
        return online


async def _send(
    client: Connection,
    address: Address,
    name: str,
    args: Mapping[str, Any],
    request: str,
    tail: str,
    timeout_s: float,
) -> None:
    from hedgerow.cli.base.client import publish_properties
    from hedgerow.wire.messages import JSON, Command

    command = Command(args=dict(args), expires_at=time.time() + timeout_s)
    properties = publish_properties(
        ContentType=JSON,
        ResponseTopic=address.topic(Channel.REPLY, tail),
        CorrelationData=request.encode(),
        MessageExpiryInterval=max(1, round(timeout_s)),  # a disconnected node must not receive it later
    )
    topic = address.topic(Channel.COMMAND, name)
    await client.send(topic, command.model_dump_json().encode(), qos=1, properties=properties)


def _above(broker: BrokerSection, address: Address, sites: Sequence[str]) -> str | None:
    """Return the authority above the sites that certifies this client; None if it is a site's, or there is none."""
    from cryptography import x509

    authority = ""
    if broker.tls.cert_file is not None:
        with suppress(OSError, ValueError, IndexError):  # connecting explains what is wrong with it
            subject = x509.load_pem_x509_certificate(broker.tls.cert_file.read_bytes()).subject
            common_name = subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value
            authority = str(common_name).partition("@")[2]
    if not authority and address.site == EVERY_NODE:
        return "region"
    return authority if authority not in ("", *sites) else None


def _speaks_for(topic: str, node: str) -> bool:
    """Whether who publishes on a reply topic may reply in the name of a node: only nodes of a site publish on its topics."""
    parsed = parse(topic)
    if parsed is None:
        return False
    own = str(parsed.address)
    return node.startswith(own.removesuffix(EVERY_NODE)) if parsed.address.node == EVERY_NODE else node == own


def _filter(address: Address) -> Address:
    """Return the address as a topic filter: `+` for the site if every site is meant."""
    return address._replace(site="+") if address.site == EVERY_NODE else address


def _reply(payload: bytes) -> Reply:
    from pydantic import ValidationError

    from hedgerow.wire.messages import Reply

    try:
        return Reply.model_validate_json(payload)
    except ValidationError as error:
        raise CommandError(
            f"The reply is not valid: {error.errors()[0]['msg']}",
            code="unreadable-reply",
            remedy="Check that the node runs the same version of Hedgerow as this command.",
        ) from error


def _no_reply(node: str, name: str, timeout_s: float) -> Reply:
    from hedgerow.wire.messages import ErrorBody, Reply

    error = ErrorBody(
        code="no-answer",
        message=f"Online, but no reply within {timeout_s:g} s",
        remedy="Raise --timeout; `hedgerow region status` shows whether commands reach it and replies return.",
    )
    return Reply(command=name, node=node, ok=False, error=error)


def _print(reply: Reply, *, many: bool) -> None:
    head = f"{visible(reply.node)}: " if many else ""
    if reply.error is not None:
        echo(
            f"{head}{style('error:', fg='red', bold=True)} {visible(reply.error.message)} ({visible(reply.error.code)})",
            err=True,
        )
        echo(f"  → {visible(reply.error.remedy)}", err=True)
    elif not isinstance(reply.value, dict) or not reply.value:
        echo(f"{head}{visible(_text(reply.value)) if reply.value not in (None, {}) else 'ok'}")
    else:
        if head:
            echo(head.rstrip())
        print_facts(_rows(reply.value))


def _rows(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Flatten a nested mapping into dotted keys and values."""
    rows: list[tuple[str, str]] = []
    for key, item in value.items():
        if isinstance(item, dict) and item:
            rows += _rows(item, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", _text(item)))
    return rows


def _text(value: Any) -> str:
    import orjson

    text = value if isinstance(value, str) else orjson.dumps(value).decode()
    return text if len(text) <= 200 else f"{text[:200]}… ({len(text):,} characters; --json shows all)"
