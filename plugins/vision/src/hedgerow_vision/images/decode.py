"""The `decode` stage: decodes JPEG, PNG and WebP."""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError
from pydantic import Field, model_validator

from hedgerow import Frame, FrameError, FrameSpec, Stage, StageConfig
from hedgerow.frame import Buffer
from hedgerow_vision.images.formats import (
    JPEG,
    PNG,
    base64_field,
    describe,
    jpeg_exif,
    jpeg_is_single_scan,
    webp_size,
)
from hedgerow_vision.images.pictures import SPEC, Picture

_ORIENTATION: Final = 0x0112
_END_OF_IMAGE: Final = b"\xff\xd9"
_STRAY: Final = re.compile(rb"[\r\n\t ]{1,64}")
"""What devices leave of a header before a picture: line ends and spaces."""
_DEEP: Final = 16
"""Bits of a sample, in a PNG's header (ISO/IEC 15948, §11.2.2)."""
_GREY: Final = 0
_GREY_WITH_ALPHA: Final = 4
"""Colour types in a PNG's header."""
_SIDEWAYS: Final = (5, 6, 7, 8)
"""Orientations that exchange width and height."""


class DecodeConfig(StageConfig):
    """Size limits, reduced-size decoding, orientation, and how strictly files are read."""

    max_pixels: int = Field(40_000_000, ge=1, description="A larger picture is refused before any of it is decoded.")
    min_width: int = Field(
        0, ge=0, description="JPEG: decode at reduced size, but no narrower than this, once upright; 0: full size."
    )
    min_height: int = Field(
        0, ge=0, description="JPEG: decode at reduced size, but no lower than this, once upright; 0: full size."
    )
    orient: bool = Field(True, description="Turn the picture upright according to its EXIF orientation.")
    strict: bool = Field(
        False,
        description="Refuse a JPEG that is whole but for its end marker, and line ends before a picture. A picture of which "
        "anything is missing is always refused.",
    )
    grey16: tuple[int, int] | None = Field(
        None,
        description="16-bit grey: the values that become black and white; values beyond are clipped. Without it such a picture "
        "is refused, since a thermal camera uses a small part of the range.",
        examples=[[0, 65535], [7000, 8200]],
    )
    json_field: str | None = Field(
        None,
        description="The payload is a JSON object with the picture in this field, or path (`data.image`), in base64 or as a data "
        "URL.",
    )

    @model_validator(mode="after")
    def _range_not_empty(self) -> DecodeConfig:
        if self.grey16 is not None and not 0 <= self.grey16[0] < self.grey16[1] <= 65535:
            raise ValueError("grey16 must be two ascending values between 0 and 65535")
        return self


class Decode(Stage[DecodeConfig]):
    """Decode JPEG, PNG and WebP to (H, W, 3) uint8 RGB; decoded frames pass unchanged.

    The format is detected from the first bytes; the content type is ignored. Transparency becomes white, grey becomes
    RGB, and 16-bit colours become 8-bit.
    """

    concurrent = True

    def output_spec(self, incoming: FrameSpec) -> FrameSpec:
        """Give a picture; decoded frames pass unchanged."""
        if incoming.array is not None:
            return incoming
        content_type = "image/*" if self.config.json_field is None else incoming.content_type
        return replace(incoming, array=SPEC, content_type=content_type)

    def process(self, frame: Frame) -> Frame:
        """Raises: FrameError: empty-payload, unknown-content-type, image-too-large, truncated-image, bad-image."""
        if frame.has_array:
            return frame
        payload: Buffer = frame.payload
        if not len(payload):
            raise FrameError("The payload is empty", code="empty-payload")
        if self.config.json_field is not None:
            payload = base64_field(payload, self.config.json_field)
        if not self.config.strict and (stray := _STRAY.match(payload)):
            payload = memoryview(payload)[stray.end() :]
        magic = bytes(payload[:8])
        if magic.startswith(JPEG):
            return frame.with_array(self._jpeg(payload))
        if magic == PNG:
            return frame.with_array(self._png(payload))
        if (size := webp_size(payload)) is not None:
            self._check_size(*size)
            return frame.with_array(self._pillow(payload, "WEBP"))
        what = describe(payload)
        raise FrameError(
            f"The payload ({len(payload)} bytes, beginning {magic.hex(' ')}) is "
            + (f"{what}, " if what else "")
            + "neither JPEG nor PNG nor WebP"
            + (f", although its content type is {frame.content_type}" if frame.content_type else ""),
            code="unknown-content-type",
            remedy="Set `json_field` of `decode` to the field that has the picture in base64."
            if what == "JSON"
            else "Configure the sensor to send JPEG, PNG or WebP; for arrays use `parse` instead of `decode`.",
        )

    def _jpeg(self, payload: Buffer) -> Picture:
        try:
            height, width, _, _ = simplejpeg.decode_jpeg_header(payload)
        except ValueError as error:
            raise FrameError(f"Cannot read the JPEG header: {error}", code="bad-image") from error
        self._check_size(width, height)
        exif = jpeg_exif(payload) if self.config.orient else b""
        orientation = _orientation(lambda: _parsed(exif)) if exif else 1
        smallest = (self.config.min_width, self.config.min_height)
        min_width, min_height = smallest[::-1] if orientation in _SIDEWAYS else smallest
        try:
            image = _whole_jpeg(payload, min_width, min_height, strict=self.config.strict)
        except ValueError as error:
            cut = "premature end" in str(error).lower()
            raise FrameError(
                f"Cannot decode the JPEG ({width}x{height}, {len(payload)} bytes): {error}",
                code="truncated-image" if cut else "bad-image",
            ) from error
        return _upright(image, orientation)

    def _png(self, payload: Buffer) -> Picture:
        if len(payload) < 33 or bytes(payload[12:16]) != b"IHDR":
            raise FrameError(f"A PNG of {len(payload)} bytes has no header", code="truncated-image")
        width, height, bits, colours = struct.unpack(">IIBB", payload[16:26])
        self._check_size(width, height)
        if bits == _DEEP and (colours == _GREY_WITH_ALPHA or (colours == _GREY and self.config.grey16 is None)):
            raise FrameError(
                f"The PNG ({width}x{height}) is 16-bit grey, and it is not stated which values are black and white",
                code="bad-image",
                remedy="Set `grey16` of `decode`: [0, 65535] for the whole range, or the sensor's own, as [7000, 8200]. "
                "Transparency is not supported with it.",
            )
        return self._pillow(payload, "PNG")

    def _pillow(self, payload: Buffer, kind: str) -> Picture:
        try:
            with Image.open(io.BytesIO(payload), formats=[kind]) as image:
                if getattr(image, "n_frames", 1) > 1:
                    raise ValueError("it is an animation")
                image.load()
                orientation = _orientation(image.getexif) if self.config.orient else 1
                return _upright(_rgb(image, self.config.grey16), orientation)
        except UnidentifiedImageError as error:  # its message is an address in memory
            raise FrameError(f"The header of the {kind} ({len(payload)} bytes) is damaged", code="bad-image") from error
        except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
            cut = "truncated" in str(error) or isinstance(error, EOFError)
            raise FrameError(
                f"Cannot decode the {kind} ({len(payload)} bytes): {error}",
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


def _whole_jpeg(payload: Buffer, min_width: int, min_height: int, *, strict: bool) -> Picture:
    """Decode a JPEG of which nothing is missing, unless not `strict` its end marker.

    With the marker added, libjpeg still reports any part of the scan that is missing; but a further scan may be missing
    altogether, so there must be one alone.

    Raises: ValueError: it is not whole, or damaged.
    """
    try:
        image: Picture = simplejpeg.decode_jpeg(payload, min_width=min_width, min_height=min_height)
    except ValueError as error:
        if strict or "premature end" not in str(error).lower() or not jpeg_is_single_scan(payload):
            raise
        ended = b"".join((payload, _END_OF_IMAGE))
        image = simplejpeg.decode_jpeg(ended, min_width=min_width, min_height=min_height)
    return image


def _rgb(image: Image.Image, grey16: tuple[int, int] | None) -> Picture:
    if image.mode.startswith("I") and grey16 is not None:  # 16-bit grey, which Pillow would clip at 255
        low, high = grey16
        scaled = (np.asarray(image).astype(np.float32) - low) * (255 / (high - low))
        grey = np.clip(scaled, 0, 255).round().astype(np.uint8)
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


def _upright(image: Picture, orientation: int) -> Picture:
    turn = _TURNS.get(orientation)
    return image if turn is None else np.ascontiguousarray(turn(image))


def _orientation(read: Callable[[], Image.Exif]) -> int:
    try:
        value = read().get(_ORIENTATION, 1)
    except Exception:  # noqa: BLE001 - do not refuse a picture because of broken EXIF
        return 1
    return value if isinstance(value, int) else 1


def _parsed(data: bytes) -> Image.Exif:
    exif = Image.Exif()
    exif.load(data)
    return exif
