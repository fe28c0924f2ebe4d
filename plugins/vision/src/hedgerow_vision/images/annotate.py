"""The `annotate` stage: writes pictures with detections and text drawn onto them."""

from __future__ import annotations

import logging
import math
import re
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple
from zlib import crc32

import numpy as np
import simplejpeg
from PIL import Image, ImageDraw, ImageFont
from pydantic import Field

from hedgerow import Frame, FrameSpec, PerStream, Stage, StageConfig, StageContext
from hedgerow_vision.images.pictures import Picture, picture, picture_spec

_log = logging.getLogger(__name__)

_COLOURS: Final = ("#ff6b35", "#1a936f", "#3d5a98", "#c1292e", "#7b2d8b", "#0f8b8d", "#b8860b", "#d6336c")
_SMALLEST: Final = 6
_Point = tuple[float, float]


class AnnotateConfig(StageConfig):
    """Folder, number and rate of pictures."""

    folder: Path = Field(description="Folder for the pictures, relative to the configuration file; created if missing.")
    every_s: float = Field(0, ge=0, description="Shortest time between two pictures of one stream, by capture time.")
    keep: int = Field(
        200, ge=1, description="Maximum number of pictures of this pipeline in the folder; the oldest are deleted."
    )
    only_found: bool = Field(False, description="Write only pictures in which something was found.")
    quality: int = Field(85, ge=1, le=100, description="JPEG quality.")


class Annotate(Stage[AnnotateConfig]):
    """Draw detections and texts onto a copy of the picture and write it as a JPEG; the frame passes unchanged.

    Texts that were read are drawn beside the picture, at the same position. Meta `annotated` is the file's path. If the
    disk fails, pictures are skipped and results continue; failure and recovery are each logged once.
    """

    concurrent = True

    def setup(self, context: StageContext) -> None:
        """List the pictures that earlier runs of this pipeline wrote."""
        self._folder = context.path(self.config.folder)
        self._prefix = f"{context.pipeline}@"  # pipeline names have no @, so no prefix begins with another
        self._written_at: PerStream[list[float]] = context.per_stream(list)
        self._lock = threading.Lock()
        self._failing = False
        try:
            existing = self._folder.glob(f"{self._prefix}*.jpg")
            self._files = deque(sorted(existing, key=lambda path: path.stat().st_mtime))
        except OSError as error:
            self._files = deque()
            self._report(error)

    def output_spec(self, incoming: FrameSpec) -> FrameSpec:
        """Take a picture. Raises: StageMismatch: there is none."""
        return picture_spec(incoming).with_meta(annotated=None)

    def process(self, frame: Frame) -> Frame:
        """Raises: FrameError: not-decoded, not-a-picture."""
        image = picture(frame)
        result = frame.result if isinstance(frame.result, Mapping) else {}
        detections, texts = result.get("detections") or (), result.get("texts") or ()
        last = self._written_at[frame.stream]
        if self.config.only_found and not detections and not texts:
            return frame
        if last and self.config.every_s and 0 <= frame.captured_at - last[0] < self.config.every_s:
            return frame
        last[:] = [frame.captured_at]
        path = self._folder / f"{self._prefix}{_slug(frame.stream)}-{frame.sequence:08d}.jpg"
        try:
            _write(path, simplejpeg.encode_jpeg(draw(image, detections, texts), self.config.quality))
            self._prune(path)
        except OSError as error:
            self._report(error)
            return frame
        self._report(None)
        return frame.with_meta(annotated=str(path))

    def _prune(self, path: Path) -> None:
        """Add a picture to the list, and delete the oldest beyond `keep`."""
        with self._lock:
            if path in self._files:
                self._files.remove(path)
            self._files.append(path)
            while len(self._files) > self.config.keep:
                self._files.popleft().unlink(missing_ok=True)

    def _report(self, error: OSError | None) -> None:
        """Log when writing begins to fail, and when it recovers."""
        with self._lock:
            before, self._failing = self._failing, error is not None
        if error is not None and not before:
            _log.warning("Cannot write pictures to %s, skipping them: %s", self._folder, error)
        elif before and error is None:
            _log.warning("Writing pictures to %s again", self._folder)


def draw(image: Picture, detections: Sequence[Mapping[str, Any]], texts: Sequence[Mapping[str, Any]]) -> Picture:
    """Return a copy of a picture with detections and texts drawn onto it.

    Args:
        image: (H, W, 3), uint8, RGB.
        detections: as in a result, with `label`, `score`, `box` and optional `points`.
        texts: as in a result, with `box`, four points, and optional `text`.
    Returns: (H, W, 3); (H, 2 W, 3) if any text was read.
    """
    height, width = image.shape[:2]
    pen = _Pen(max(2, round(min(height, width) / 200)), max(12, round(min(height, width) / 28)))
    sheet = Image.fromarray(image)
    if texts:
        sheet = _draw_texts(sheet, texts, pen)
    # Lowest scores first, so that the highest are on top.
    for detection in sorted(detections, key=lambda one: float(one["score"])):
        _draw_detection(ImageDraw.Draw(sheet), detection, (width, height), pen)
    return np.ascontiguousarray(sheet)


class _Pen(NamedTuple):
    width: int
    letters: int


def _draw_detection(canvas: ImageDraw.ImageDraw, found: Mapping[str, Any], size: tuple[int, int], pen: _Pen) -> None:
    width, height = size
    colour = _COLOURS[crc32(str(found["label"]).encode()) % len(_COLOURS)]
    x0, y0, x1, y1 = (fraction * side for fraction, side in zip(found["box"], (width, height) * 2, strict=True))
    canvas.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=colour, width=pen.width)
    for x, y in found.get("points", ()):
        canvas.circle((x * width, y * height), pen.width * 1.5, fill=colour, outline="white")
    label = f"{found['label']} {float(found['score']):.0%}"
    font = ImageFont.load_default(pen.letters)
    _, _, right, bottom = canvas.textbbox((0, 0), label, font=font)
    gap = pen.letters // 4
    chip_width, chip_height = right + 2 * gap, bottom + gap
    left = min(max(x0, 0), max(0, width - chip_width))
    top = y0 - chip_height if y0 >= chip_height else y0  # above the box, or inside it at the picture's edge
    canvas.rectangle((left, top, left + chip_width, top + chip_height), fill=colour)
    canvas.text((left + gap, top), label, fill="white", font=font)


def _draw_texts(sheet: Image.Image, texts: Sequence[Mapping[str, Any]], pen: _Pen) -> Image.Image:
    width, height = sheet.size
    read = any("text" in text for text in texts)
    wide = Image.new("RGB", (width * 2 if read else width, height), "white")
    wide.paste(sheet)
    canvas = ImageDraw.Draw(wide, "RGBA")
    for text in texts:
        corners: list[_Point] = [(x * width, y * height) for x, y in text["box"]]
        canvas.polygon(corners, fill=(26, 147, 111, 40), outline=(26, 147, 111, 255), width=max(1, pen.width // 2))
        if "text" in text:
            _set_text(canvas, str(text["text"]), corners, width)
    return wide


def _set_text(canvas: ImageDraw.ImageDraw, text: str, corners: Sequence[_Point], shift: int) -> None:
    """Draw a text into its box, `shift` pixels to the right."""
    left, top = min(x for x, _ in corners), min(y for _, y in corners)
    right, bottom = max(x for x, _ in corners), max(y for _, y in corners)
    letters = max(_SMALLEST, int(math.dist(corners[0], corners[3]) * 0.7))
    needed = ImageFont.load_default(letters).getlength(text)
    if needed > right - left:
        letters = max(_SMALLEST, int(letters * (right - left) / needed))
    place = (left + shift, (top + bottom) / 2)
    canvas.text(place, text, fill="black", font=ImageFont.load_default(letters), anchor="lm")


def _write(path: Path, content: bytes) -> None:
    """Write a file atomically, so that programs watching the folder never see a partial picture."""
    part = path.with_suffix(".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        part.write_bytes(content)
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def _slug(stream: str) -> str:
    """Return a stream's name for use in a file name: `/` becomes `_`; a checksum is added if that is ambiguous."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", stream).strip("._")[:80] or "stream"
    if name == stream.replace("/", "_") and "_" not in stream:
        return name
    return f"{name}.{crc32(stream.encode()):08x}"
