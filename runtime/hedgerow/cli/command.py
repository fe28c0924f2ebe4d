"""`hedgerow command`: ask a node, or every node of a site, to do something, and show what it answers."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hedgerow.cli.console import BrokerConfig, BrokerUrl, Json, print_columns, print_json
from hedgerow.errors import CommandError, ConfigError
from hedgerow.topics import EVERY_NODE, Address, Channel, is_name

if TYPE_CHECKING:
    from hedgerow.config import BrokerSection
    from hedgerow.wire.messages import Reply


def command(
    node: Annotated[str, typer.Argument(help="REGION/SITE/NODE, or REGION/SITE/~ for every node of a site.")],
    name: Annotated[str, typer.Argument(help="ping, info, pause, resume, reload, snapshot, release, stop…")],
    args: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE...", help="Arguments; @FILE as a value is a file's text.")
    ] = None,
    args_json: Annotated[
        str | None, typer.Option("--args", metavar="JSON", help="All arguments as one mapping.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.05, max=3600, help="Seconds to wait for the answer.")] = 5.0,
    broker: BrokerUrl = None,
    config: BrokerConfig = None,
    json: Json = False,
) -> None:
    """Ask a running node to do something, and show its answer.

    Examples:
      hedgerow command local/site/node ping
      hedgerow command local/site/node info --json
      hedgerow command local/site/node pause pipeline=doors
      hedgerow command local/site/node reload config=@node.yaml
      hedgerow command 'local/site/~' ping --timeout 2

    The node knows what commands there are and says so when it is asked for another. It refuses to carry out one that
    reaches it after the timeout. With `~`, answers are collected until the timeout. Exits with 1 if a node answers
    with an error, or none answers.
    """
    from hedgerow.cli.broker import broker_section

    address = _address(node)
    if not is_name(name):
        raise ConfigError(f"{name!r} cannot be a command", remedy="Write a name such as `ping`.")
    replies = asyncio.run(
        ask(broker_section(broker, config), address, name, _arguments(args or [], args_json), timeout)
    )
    if json:
        shown = [reply.model_dump(by_alias=True) for reply in replies]
        print_json(shown if address.node == EVERY_NODE else shown[0] if shown else None)
    else:
        for reply in replies:
            _print(reply, many=address.node == EVERY_NODE)
    if not replies:
        raise CommandError(
            f"No answer from {address} within {timeout:g} s",
            code="no-answer",
            remedy=f"Does it run, under this name and on this broker? `hedgerow watch --node '{address.region}/+/+'` shows who does.",
        )
    if not all(reply.ok for reply in replies):
        raise typer.Exit(1)


def _address(text: str) -> Address:
    parts = text.split("/")
    if len(parts) != 3 or not all(map(is_name, parts[:2])) or not (is_name(parts[2]) or parts[2] == EVERY_NODE):
        raise ConfigError(
            f"{text!r} is not a node's address",
            remedy="Write REGION/SITE/NODE as in its configuration, or REGION/SITE/~.",
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
            raise ConfigError("--args is not a mapping", remedy="""Write --args '{"pipeline": "doors"}'.""")
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise ConfigError(f"{pair!r} is not KEY=VALUE", remedy="Write arguments as pipeline=doors.")
        args[key] = _value(value)
    return args


def _value(text: str) -> Any:
    """What a word on the command line stands for: a file's text, JSON, or itself."""
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


async def ask(
    broker: BrokerSection, address: Address, name: str, args: Mapping[str, Any], timeout_s: float
) -> list[Reply]:
    """Send a command and collect its replies, one a node, in order of arrival (MQTT 5 §4.10, request/response)."""
    from pydantic import ValidationError

    from hedgerow.cli.broker import connected, payload_of, publish_properties
    from hedgerow.wire.messages import JSON, Command, Reply

    request = uuid.uuid4().hex
    reply_to = address.topic(Channel.REPLY, request)
    command = Command(args=dict(args), expires_at=time.time() + timeout_s)
    properties = publish_properties(
        ContentType=JSON,
        ResponseTopic=reply_to,
        CorrelationData=request.encode(),
        MessageExpiryInterval=max(1, round(timeout_s)),  # so that a node that is away does not find it when it is back
    )
    replies: dict[str, Reply] = {}
    async with connected(broker) as client:
        await client.subscribe(reply_to, qos=1)
        await client.send(
            address.topic(Channel.COMMAND, name), command.model_dump_json().encode(), qos=1, properties=properties
        )
        try:
            async with asyncio.timeout(timeout_s):
                async for message in client.messages:
                    if getattr(message.properties, "CorrelationData", None) != request.encode():
                        continue
                    try:
                        reply = Reply.model_validate_json(payload_of(message))
                    except ValidationError as error:
                        raise CommandError(
                            f"The answer cannot be read: {error.errors()[0]['msg']}",
                            code="unreadable-reply",
                            remedy="Is the node's version of Hedgerow the same as this one's?",
                        ) from error
                    replies.setdefault(reply.node, reply)
                    if address.node != EVERY_NODE:
                        break
        except TimeoutError:
            pass
    return list(replies.values())


def _print(reply: Reply, *, many: bool) -> None:
    head = f"{reply.node}: " if many else ""
    if reply.error is not None:
        typer.echo(
            f"{head}{typer.style('error:', fg='red', bold=True)} {reply.error.message} ({reply.error.code})", err=True
        )
        typer.echo(f"  → {reply.error.remedy}", err=True)
    elif not isinstance(reply.value, dict) or not reply.value:
        typer.echo(f"{head}{_text(reply.value) if reply.value not in (None, {}) else 'ok'}")
    else:
        if head:
            typer.echo(head.rstrip())
        print_columns(_rows(reply.value))


def _rows(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """A nested mapping as dotted keys and values."""
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
    return text if len(text) <= 200 else f"{text[:200]}… ({len(text):,} characters; --json has all)"
