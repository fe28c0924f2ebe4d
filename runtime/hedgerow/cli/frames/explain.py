"""`hedgerow explain`: shows where a result came from, or why a frame died, as a tree."""

from __future__ import annotations

import asyncio
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from hedgerow.cli.base.console import echo, plural, print_json, size
from hedgerow.cli.base.options import BrokerConfig, BrokerUrl, Json
from hedgerow.cli.base.tables import elided
from hedgerow.errors import CommandError, ConfigError, FrameError
from hedgerow.text import visible
from hedgerow.topics import ROOT, Channel, is_name

if TYPE_CHECKING:
    from hedgerow.config import BrokerSection


def explain(
    result: Annotated[
        str | None,
        typer.Argument(metavar="[RESULT]", help="File with the payload of a result or dead letter; `-` reads stdin."),
    ] = None,
    last: Annotated[
        str | None,
        typer.Option("--last", metavar="PIPELINE", help="Wait for the next result or dead letter of a pipeline."),
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.05, help="Seconds to wait with --last.")] = 30.0,
    broker: BrokerUrl = None,
    config: BrokerConfig = None,
    json: Json = False,
) -> None:
    """Explain where a result came from: its frame, the stages and their times, the models and their devices.

    Examples:
      hedgerow explain --last doors
      hedgerow explain result.json
      mosquitto_sub -t 'hedgerow/v1/+/+/+/dead/#' -C 1 | hedgerow explain -

    Reads results and dead letters, JSON or MessagePack. Everything shown is in the payload, so no node is needed.
    """
    if (result is None) == (last is None):
        raise ConfigError("Give either a result or --last PIPELINE", remedy="`hedgerow explain --help` has examples.")
    if last is not None:
        from hedgerow.cli.base.connection import broker_section

        if not is_name(last):
            raise ConfigError(f"{last!r} is not a pipeline name", remedy="Write it as in the node's configuration.")
        body = asyncio.run(_next(broker_section(broker, config), last, timeout))
    else:
        body = _read(result or "-")
    if json:
        print_json(body)
        return
    _print(tree(body, time.time()))


def _read(source: str) -> dict[str, Any]:
    try:
        payload = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    except OSError as error:
        raise ConfigError(f"{source} cannot be read: {error.strerror}", remedy="Give a file, or `-`.") from error
    return decode(payload)


def decode(payload: bytes) -> dict[str, Any]:
    """Decode a result or dead letter, JSON or MessagePack.

    Raises: FrameError: the payload is neither a result nor a dead letter.
    """
    from hedgerow.wire.messages import DEAD_SCHEMA, JSON, MSGPACK, RESULT_SCHEMA, decode_payload

    for content_type in (JSON, MSGPACK):
        try:
            body = decode_payload(payload, content_type)
        except FrameError:
            continue
        if isinstance(body, dict) and body.get("schema") in (RESULT_SCHEMA, DEAD_SCHEMA):
            return body
    raise FrameError(
        f"Neither a result nor a dead letter: {size(len(payload))} beginning with {payload[:24]!r}",
        code="no-result",
        remedy="Save a payload from `…/result/PIPELINE` or `…/dead/PIPELINE`, or use --last PIPELINE. The lineage of "
        "a picture or sound is in its user properties: `hedgerow watch --json` shows it.",
    )


async def _next(broker: BrokerSection, pipeline: str, timeout_s: float) -> dict[str, Any]:
    from hedgerow.cli.base.client import payload_of
    from hedgerow.cli.base.connection import connected

    async with connected(broker) as client:
        await client.subscribe(
            [(f"{ROOT}/+/+/+/{channel}/{pipeline}", 1) for channel in (Channel.RESULT, Channel.DEAD)]
        )
        passed_over = 0
        try:
            async with asyncio.timeout(timeout_s):
                async for message in client.messages:
                    try:
                        return decode(payload_of(message))
                    except FrameError as error:  # of one node; the others' can be read
                        passed_over += 1
                        if passed_over == 1:
                            echo(visible(f"passed over {message.topic}: {error}"), err=True)
        except TimeoutError:
            pass
    raise CommandError(
        f"Pipeline {pipeline} published nothing within {timeout_s:g} s"
        + (f" but {plural(passed_over, 'message')} that cannot be read" if passed_over else ""),
        code="no-result",
        remedy="Publish a frame (`hedgerow publish`), or check with `hedgerow watch` that the pipeline runs.",
    )


_LONGEST_LINE: Final = 2000
_LONGEST_NAME: Final = 60
_MOST_LINES: Final = 200


@dataclass(slots=True)
class Branch:
    """A line of the tree, and the branches below it."""

    text: str
    children: list[Branch] = field(default_factory=list)


def tree(body: Mapping[str, Any], now: float) -> Branch:
    """Return a result or dead letter as a tree.

    Args:
        now: Unix seconds; times are shown relative to it.
    """
    frame, at = _mapping(body.get("frame")), _number(body.get("at"))
    head = f"by {body.get('node', '?')}, pipeline {body.get('pipeline', '?')}, {_when(at, now)}"
    if body.get("schema") == "hedgerow.dead/1":
        root = Branch(f"Dead letter {head}", [_cause(body)])
        root.children += [_frame(frame, at, now), Branch(f"payload: {_payload(body)}")]
        return root
    from hedgerow.cli.frames.message_board import summarise

    lineage = _mapping(body.get("lineage"))
    summary = summarise(body.get("result"), 200) or "(empty)"
    root = Branch(f"Result {body.get('id', '?')} {head}", [Branch(f"result: {summary}"), _frame(frame, at, now)])
    if (waited := _number(lineage.get("waited_ms"))) is not None:
        root.children.append(Branch(f"waited {waited:.3g} ms in the queue"))
    root.children.append(_stages(_list(lineage.get("stages"))))
    root.children += _first([_model(_mapping(model)) for model in _list(lineage.get("models"))])
    root.children.append(
        Branch(f"produced by hedgerow {lineage.get('hedgerow', '?')}, configuration {lineage.get('config', '?')}")
    )
    return root


def _cause(body: Mapping[str, Any]) -> Branch:
    where = f"in stage {body['stage']}" if body.get("stage") else "before the first stage"
    lines = str(body.get("message") or "").splitlines() or ["(no message)"]
    return Branch(
        f"died {where}: {body.get('reason', '?')}",
        [*_first([*map(Branch, lines)]), *_traceback(body), Branch(f"→ {body.get('remedy') or 'no remedy'}")],
    )


def _traceback(body: Mapping[str, Any]) -> list[Branch]:
    lines = str(body.get("traceback") or "").splitlines()
    return [Branch("the stage's calls", _first([Branch(line) for line in lines]))] if lines else []


def _first(branches: list[Branch]) -> list[Branch]:
    """Return as many as fit a screen or two, and how many more there are."""
    more = len(branches) - _MOST_LINES
    return branches if more <= 0 else [*branches[:_MOST_LINES], Branch(f"… and {more:,} more; --json shows all")]


_OMITTED: Final = {
    "kept-back": "the pipeline keeps payloads back (`dead_letters: {payload: false}`, or `publish: {fields: …}`)",
    "not-received": "larger than the pipeline's `max_payload_bytes`",
    "too-large": "larger than 1 MiB, or than the broker's packet limit",
}


def _payload(body: Mapping[str, Any]) -> str:
    where = (
        "included as payload_base64"
        if body.get("payload_base64")
        else f"not included: {_OMITTED.get(str(body.get('payload_omitted')), 'too large or empty')}"
    )
    return f"{size(_number(body.get('payload_bytes')) or 0)} of {body.get('content_type') or 'unknown type'}, {where}"


def _frame(frame: Mapping[str, Any], at: float | None, now: float) -> Branch:
    captured = _number(frame.get("captured_at"))
    branch = Branch(f"frame {frame.get('id', '?')}")
    branch.children.append(Branch(f"number {frame.get('sequence', '?')} of stream {frame.get('stream', '?')}"))
    branch.children.append(Branch(f"received on {frame.get('topic', '?')}"))
    branch.children.append(Branch(f"captured {_when(captured, now)}"))
    if captured is not None and at is not None:
        branch.children.append(Branch(f"{(at - captured) * 1e3:.1f} ms old when it was processed"))
    return branch


def _stages(stages: Sequence[Sequence[Any]]) -> Branch:
    stages = [stage for stage in stages if isinstance(stage, (list, tuple)) and len(stage) == 3]
    total = sum(_number(ms) or 0.0 for _, ms, _ in stages)
    branch = Branch(f"{plural(len(stages), 'stage')}, {total:.1f} ms for all frames processed together")
    names = [elided(str(stage[0])[:_LONGEST_NAME], _LONGEST_NAME) for stage in stages[: _MOST_LINES + 1]]
    width = max(map(len, names), default=0)
    rows = []
    for name, (_, ms, frames) in zip(names, stages, strict=False):
        took, count = _number(ms) or 0.0, int(_number(frames) or 0)
        rows.append(Branch(f"{name:<{width}}  {took:9.3f} ms  {plural(count, 'frame')}"))
    branch.children = _first([*rows, *map(Branch, [""] * (len(stages) - len(rows)))])
    return branch


def _model(model: Mapping[str, Any]) -> Branch:
    where = f"{model.get('backend', '?')} on {model.get('device', '?')}"
    return Branch(f"model {model.get('name', '?')}, {where}", [Branch(str(model.get("digest", "?")))])


def _when(at: float | None, now: float) -> str:
    if at is None:
        return "at an unknown time"
    try:
        clock = datetime.fromtimestamp(at, UTC).isoformat(sep=" ", timespec="milliseconds").replace("+00:00", " UTC")
    except (ValueError, OverflowError, OSError):
        return f"at {at} (not a time)"
    return f"at {clock} ({_ago(now - at)})"


def _ago(seconds: float) -> str:
    direction = "ago" if seconds >= 0 else "in the future"
    seconds = abs(seconds)
    for unit, length in (("day", 86_400), ("hour", 3600), ("minute", 60)):
        if seconds >= 2 * length:
            return f"{plural(int(seconds // length), unit)} {direction}"
    return f"{seconds:.1f} s {direction}"


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _number(value: Any) -> float | None:
    number = float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
    return number if math.isfinite(number) else None


def _print(branch: Branch, prefix: str = "", joint: str = "") -> None:
    echo(f"{prefix}{joint}{elided(visible(branch.text[:_LONGEST_LINE]), _LONGEST_LINE)}")
    if joint:
        prefix += "   " if joint == "└─ " else "│  "
    for number, child in enumerate(branch.children):
        _print(child, prefix, "└─ " if number == len(branch.children) - 1 else "├─ ")
