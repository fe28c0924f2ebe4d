"""The `decode` stage: decodes JPEG and PNG."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np
import simplejpeg
from PIL import Image
from pydantic import Field

from hedgerow import Frame, FrameError, FrameSpec, Stage, StageConfig
from hedgerow.frame import Buffer
from hedgerow_vision.images.pictures import SPEC, Picture

_JPEG: Final = b"\xff\xd8\xff"
_PNG: Final = b"\x89PNG\r\n\x1a\n"
_EXIF_REACH: Final = 64 * 1024
_ORIENTATION: Final = 0x0112


class DecodeConfig(StageConfig):
    """Size limits, reduced-size decoding and orientation."""

    max_pixels: int = Field(40_000_000, ge=1, description="A larger picture is refused before any of it is decoded.")
    min_width: int = Field(
        0, ge=0, description="JPEG: decode at reduced size, but no narrower than this; 0: full size."
    )
    min_height: int = Field(0, ge=0, description="JPEG: decode at reduced size, but no lower than this; 0: full size.")
    orient: bool = Field(True, description="Turn the picture upright according to its EXIF orientation.")


class Decode(Stage[DecodeConfig]):
    """Decode JPEG and PNG to (H, W, 3) uint8 RGB; decoded frames pass unchanged.

    The format is detected from the first bytes; the content type is ignored. Transparency becomes white, 16 bits become
    8, grey becomes RGB.
    """

    concurrent = True

    def output_spec(self, incoming: FrameSpec) -> FrameSpec:
        """Give a picture; decoded frames pass unchanged."""
        return incoming if incoming.array is not None else replace(incoming, array=SPEC, content_type="image/*")

    def process(self, frame: Frame) -> Frame:
        """Raises: FrameError: empty-payload, unknown-content-type, image-too-large, truncated-image, bad-image."""
        if frame.has_array:
            return frame
        payload = frame.payload
        if not len(payload):
            raise FrameError("The payload is empty", code="empty-payload")
        magic = bytes(payload[:8])
        if magic.startswith(_JPEG):
            return frame.with_array(self._jpeg(payload))
        if magic == _PNG:
            return frame.with_array(self._png(payload))
        raise FrameError(
            f"The payload ({len(payload)} bytes, beginning {magic.hex(' ')}) is neither JPEG nor PNG"
            + (f", although its content type is {frame.content_type}" if frame.content_type else ""),
            code="unknown-content-type",
            remedy="Configure the sensor to send JPEG or PNG; for arrays use `parse` instead of `decode`.",
        )

    def _jpeg(self, payload: Buffer) -> Picture:
        try:
            height, width, _, _ = simplejpeg.decode_jpeg_header(payload)
        except ValueError as error:
            raise FrameError(f"Cannot read the JPEG header: {error}", code="bad-image") from error
        self._check_size(width, height)
        try:
            image: Picture = simplejpeg.decode_jpeg(
                payload, min_width=self.config.min_width, min_height=self.config.min_height
            )
        except ValueError as error:
            cut = "premature end" in str(error).lower()
            raise FrameError(
                f"Cannot decode the JPEG ({width}x{height}, {len(payload)} bytes): {error}",
                code="truncated-image" if cut else "bad-image",
            ) from error
        return _upright(image, payload) if self.config.orient else image

    def _png(self, payload: Buffer) -> Picture:
        if len(payload) < 33 or bytes(payload[12:16]) != b"IHDR":
            raise FrameError(f"A PNG of {len(payload)} bytes has no header", code="truncated-image")
        self._check_size(*struct.unpack(">II", payload[16:24]))
        try:
            with Image.open(io.BytesIO(payload), formats=["PNG"]) as image:
                return _rgb(image)
        except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
            cut = "truncated" in str(error) or isinstance(error, EOFError)
            raise FrameError(
                f"Cannot decode the PNG ({len(payload)} bytes): {error}",
                code="truncated-image" if cut else "bad-image",
            ) from error

    def _check_size(self, width: int, height: int) -> None:
        if width * height > self.config.max_pixels:
            raise FrameError(
                f"The picture is {width}x{height}, {width * height / 1e6:.1f} MP, above the limit of "
                f"{self.config.max_pixels / 1e6:.1f} MP",
                code="image-too-large",
                remedy="Configure the sensor to send smaller pictures, or raise `max_pixels` of `decode`.",
            )


def _rgb(image: Image.Image) -> Picture:
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255
        grey = (np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        ground = Image.new("RGBA", image.size, "white")
        ground.alpha_composite(image.convert("RGBA"))
        image = ground
    return np.array(image.convert("RGB"))


_TURNS: Final[dict[int, Callable[[Picture], Picture]]] = {
    2: np.fliplr,
    3: lambda image: np.rot90(image, 2),
    4: np.flipud,
    5: lambda image: image.transpose(1, 0, 2),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: np.rot90(image, 2).transpose(1, 0, 2),
    8: np.rot90,
}
"""Transforms that turn a picture upright, by EXIF orientation (CIPA DC-008, tag 0x0112); 1 is upright."""


def _upright(image: Picture, payload: Buffer) -> Picture:
    head = bytes(payload[:_EXIF_REACH])
    if b"Exif\0\0" not in head:
        return image
    try:
        with Image.open(io.BytesIO(payload), formats=["JPEG"]) as opened:
            turn = _TURNS.get(opened.getexif().get(_ORIENTATION, 1))
    except Exception:  # noqa: BLE001 - do not refuse a decoded picture because of broken EXIF
        return image
    return image if turn is None else np.ascontiguousarray(turn(image))
