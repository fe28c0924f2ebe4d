"""`hedgerow publish`: sends files as frames, at the pace they were recorded or another."""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from hedgerow.cli.base.console import echo, plural, print_json, size
from hedgerow.cli.base.options import BrokerConfig, BrokerUrl, Json
from hedgerow.errors import BusError, ConfigError
from hedgerow.terminal import supports_redraw

if TYPE_CHECKING:
    from hedgerow.cli.frames.sender import OutgoingFrame
    from hedgerow.cli.frames.sources import FileFrame, SplitOptions
    from hedgerow.config import BrokerSection

_NO_SUBSCRIBERS: Final = 0x10
_REFUSED: Final = 0x80
_REASONS: Final = {
    0x87: "not authorized",
    0x90: "topic name invalid",
    0x97: "quota exceeded",
    0x99: "payload format invalid",
}


@dataclass(slots=True)
class Summary:
    """Totals of a run.

    Attributes:
        sent: frames sent to the broker; with QoS 1, those it acknowledged.
        refused: frames the broker refused in its acknowledgement.
        lost: frames the broker did not receive or, with QoS 1, never acknowledged, because it was unavailable.
        unheard: frames without a subscriber, if the broker reports that (QoS 1 only).
        bytes: bytes of payload, including refused frames.
        seconds: duration.
        topics: number of topics used; `topic` is the first.
    """

    sent: int = 0
    refused: int = 0
    lost: int = 0
    unheard: int = 0
    bytes: int = 0
    seconds: float = 0.0
    topics: int = 0
    topic: str = ""


def publish(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="SOURCE...", help="Files or folders; `-` reads stdin.", show_default=False),
    ],
    topic: Annotated[
        str,
        typer.Option("--topic", "-t", help="Topic; {name} becomes the file's name, {index} the frame's number."),
    ],
    broker: BrokerUrl = None,
    config: BrokerConfig = None,
    rate: Annotated[
        float | None, typer.Option(min=0.001, help="Frames per second, instead of the pace of the recording.")
    ] = None,
    realtime: Annotated[
        bool,
        typer.Option(
            "--realtime/--no-realtime",
            help="Send sound and video at the pace they were recorded, or as fast as possible.",
        ),
    ] = True,
    loop: Annotated[str, typer.Option(metavar="N|forever", help="How many times to send everything.")] = "1",
    count: Annotated[int | None, typer.Option(min=1, help="Stop after this many frames.")] = None,
    qos: Annotated[int, typer.Option(min=0, max=1, help="1 waits for the broker's acknowledgement.")] = 1,
    chunk_ms: Annotated[float, typer.Option(min=1, help="WAV: length of a chunk.")] = 32,
    window: Annotated[int | None, typer.Option(min=1, help="CSV, .npy: rows per frame, sent as a float array.")] = None,
    quality: Annotated[int, typer.Option(min=1, max=100, help="Video: JPEG quality.")] = 85,
    content_type: Annotated[
        str | None, typer.Option(metavar="TYPE", help="Send files unchanged, with this MIME type.")
    ] = None,
    give_up_after: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", min=0, help="Longest wait for a broker that became unavailable; 0: do not wait."
        ),
    ] = 60,
    json: Json = False,
) -> None:
    """Send pictures, sound, video, tables or any other file to a topic, as frames.

    Examples:
      hedgerow publish door.jpg --topic plant/door/image
      hedgerow publish photos/ --topic 'plant/{name}/image' --rate 10 --loop forever
      hedgerow publish speech.wav --topic shop/mic/audio
      hedgerow publish bikes.mp4 --topic yard/camera/image
      hedgerow publish vibration.csv --topic plant/pump/accel --window 256 --rate 4
      cat photos/*.jpg | hedgerow publish - --topic plant/door/image

    Pictures    are sent unchanged.
    WAV         is sent as chunks of 16-bit samples, at the pace of the recording.
    Video       is sent as JPEG frames, at the pace of the recording; needs `pip install 'hedgerow[video]'`.
    CSV, JSONL  are sent as a frame per row (JSON); with --window, CSV is sent as arrays (.npy).
    .npy        is sent unchanged; with --window, split along its first axis.
    -           (stdin) is sent as a frame for each JPEG, PNG or .npy file, or for each line of JSON; WAV as chunks; anything
                else as one frame.

    Every frame has a unique id and the time it was sent, as MQTT 5 user properties `id` and `time`. If the broker becomes
    unavailable, publishing waits for it: with QoS 1, frames it did not acknowledge are sent again with the same id, in
    order; with QoS 0, frames due meanwhile are lost and counted.
    """
    from hedgerow.cli.base.connection import broker_section
    from hedgerow.cli.frames.sources import SplitOptions, expand_sources

    _check_topic(topic)
    options = SplitOptions(chunk_ms=chunk_ms, window=window, quality=quality, content_type=content_type)
    frames = itertools.islice(_frames(expand_sources(sources), options, _repetitions(loop)), count)
    throttle = _Throttle(rate, realtime)
    summary = Summary()
    try:
        with _progress(json) as advance:
            outgoing = _outgoing(frames, topic, throttle, summary)
            asyncio.run(_send(broker_section(broker, config), outgoing, qos, give_up_after, summary, advance))
    finally:  # after Ctrl-C too
        _print_summary(summary, json)
    if summary.refused:
        raise typer.Exit(1)


def _check_topic(topic: str) -> None:
    if not topic or any(char in topic for char in "+#\0"):
        raise ConfigError(
            f"{topic!r} is not a topic to publish to", remedy="Name one topic, without `+` and `#`: plant/door/image."
        )


def _repetitions(loop: str) -> int | None:
    if loop == "forever":
        return None
    if not loop.isdecimal() or loop == "0":
        raise ConfigError(
            f"--loop {loop} is neither a number nor `forever`", remedy="Write --loop 3 or --loop forever."
        )
    return int(loop)


def _frames(files: Sequence[Path], options: SplitOptions, repetitions: int | None) -> Iterator[FileFrame]:
    from hedgerow.cli.frames.sources import read_frames

    for _ in itertools.count() if repetitions is None else range(repetitions):
        empty = True
        for file in files:
            for frame in read_frames(file, options):
                empty = False
                yield frame
        if empty:
            return


class _Throttle:
    """Waits until a frame is due."""

    def __init__(self, rate: float | None, realtime: bool) -> None:
        self._rate = rate
        self._realtime = realtime
        self._started_at: float | None = None
        self._last_due_s = float("inf")

    async def wait(self, index: int, frame: FileFrame) -> float | None:
        """Wait until a frame is due; a late one is not delayed.

        Returns: when it was due, by `time.monotonic()`; None: it has no due time.
        """
        now = time.monotonic()
        due_s = index / self._rate if self._rate else frame.due_s if self._realtime else None
        if due_s is None:
            return None
        if self._started_at is None or due_s < self._last_due_s:  # the next source starts
            self._started_at = self._started_at if self._rate and self._started_at is not None else now
        self._last_due_s = due_s
        if (pause := self._started_at + due_s - now) > 0:
            await asyncio.sleep(pause)
        return self._started_at + due_s


async def _outgoing(
    frames: Iterator[FileFrame], topic: str, throttle: _Throttle, summary: Summary
) -> AsyncGenerator[OutgoingFrame, None]:
    """Yield frames ready to send, each when it is due."""
    from hedgerow.cli.base.client import publish_properties
    from hedgerow.cli.frames.sender import OutgoingFrame

    run = uuid.uuid4().hex[:12]
    topics: set[str] = set()
    for index in itertools.count():
        frame = await asyncio.to_thread(next, frames, None)
        if frame is None:
            return
        due = await throttle.wait(index, frame)
        to = topic.replace("{name}", frame.name).replace("{index}", str(index))
        _check_topic(to)
        topics.add(to)
        summary.topic, summary.topics = summary.topic or to, len(topics)
        now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        user = [("id", f"{run}-{index}"), ("time", now)]
        yield OutgoingFrame(
            to, frame.payload, publish_properties(ContentType=frame.content_type, UserProperty=user), due
        )


async def _send(
    broker: BrokerSection,
    outgoing: AsyncGenerator[OutgoingFrame, None],
    qos: int,
    give_up_after_s: float,
    summary: Summary,
    advance: Callable[[Summary], None],
) -> None:
    from hedgerow.cli.frames.sender import Sender

    def update() -> None:
        summary.refused = sum(count for code, count in sender.reasons.items() if code >= _REFUSED)
        summary.unheard = sender.reasons[_NO_SUBSCRIBERS]
        summary.sent, summary.lost, summary.bytes = sender.sent - summary.refused, sender.lost, sender.bytes
        advance(summary)

    sender = Sender(outgoing, qos, give_up_after_s, update)
    started = time.monotonic()
    try:
        await sender.run(broker)
    finally:
        summary.seconds = time.monotonic() - started
        update()
    if summary.refused:
        reason = next(code for code in sender.reasons if code >= _REFUSED)
        raise BusError(
            f"The broker refused {plural(summary.refused, 'frame')}: {_REASONS.get(reason, f'reason code {reason:#x}')}",
            remedy="Check the broker's access list: which topics may this user publish to?",
        )


class _progress:  # noqa: N801 - used like a function
    """Shows a running summary in a line on the terminal; elsewhere, nothing."""

    def __init__(self, json: bool) -> None:
        self._bar: Any = None
        if supports_redraw(sys.stderr) and not json:
            from rich.console import Console
            from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

            columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)

    def __enter__(self) -> Callable[[Summary], None]:
        if self._bar is None:
            return _ignore
        self._bar.start()
        task = self._bar.add_task("connecting")
        return lambda summary: self._bar.update(
            task, description=f"{plural(summary.sent, 'frame')}, {size(summary.bytes)}"
        )

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()


def _ignore(summary: Summary) -> None:
    pass


def _print_summary(summary: Summary, json: bool) -> None:
    if json:
        print_json(asdict(summary))
        return
    if not summary.topics:
        return
    where = summary.topic if summary.topics == 1 else f"{summary.topic} and {plural(summary.topics - 1, 'other topic')}"
    echo(f"Sent {plural(summary.sent, 'frame')} ({size(summary.bytes)}) to {where} in {summary.seconds:.1f} s.")
    if summary.lost:
        echo(f"Lost {plural(summary.lost, 'frame')}: the broker was unavailable.", err=True)
    if summary.unheard:
        echo(
            f"No client subscribes to the topic of {plural(summary.unheard, 'frame')}. Check that a node is running and that "
            "the `subscribe` of one of its pipelines matches the topic.",
            err=True,
        )
