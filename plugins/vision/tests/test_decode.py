"""`decode` decodes JPEG and PNG, and raises only FrameError."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

from hedgerow import Frame, FrameError
from hedgerow.testing import frame, frames, run_stage
from hedgerow_vision.images.decode import Decode, DecodeConfig

Picture = NDArray[np.uint8]


def gradient(height: int = 48, width: int = 64) -> Picture:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], axis=2).astype(np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


JPEG = simplejpeg.encode_jpeg(gradient(), 95)
PNG = encoded(Image.fromarray(gradient()))


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


CODES = {"empty-payload", "unknown-content-type", "image-too-large", "truncated-image", "bad-image"}


def png_claiming(width: int, height: int) -> bytes:
    """Return a PNG of a few bytes whose header claims a huge size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview])
def test_a_jpeg_becomes_its_picture(wrap: Callable[[bytes], Any]) -> None:
    """Payloads may be views of the receive buffer."""
    run = run_stage(Decode, [frame(wrap(JPEG))])

    decoded = run.out[0].array
    assert decoded.shape == (48, 64, 3)
    assert decoded.dtype == np.uint8
    assert np.abs(decoded.astype(int) - gradient()).mean() < 3


def test_a_png_becomes_its_picture_exactly() -> None:
    run = run_stage(Decode, [frame(PNG)])

    np.testing.assert_array_equal(run.out[0].array, gradient())


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16"])
def test_every_kind_of_png_becomes_rgb(mode: str) -> None:
    """Grey, palette, transparency and 16 bits: each white picture must stay white."""
    fill: Any = {"1": 1, "L": 255, "LA": (255, 255), "P": 255, "RGBA": (255, 255, 255, 255), "I;16": 65535}[mode]
    image = Image.new("RGB", (7, 5), "white").convert("P") if mode == "P" else Image.new(mode, (7, 5), fill)

    run = run_stage(Decode, [frame(encoded(image))], grey16=(0, 65535))

    assert run.dead == {}
    np.testing.assert_array_equal(run.out[0].array, np.full((5, 7, 3), 255, np.uint8))


@pytest.mark.parametrize(
    ("grey16", "values", "expected"),
    [
        ((0, 65535), [0, 256, 32768, 65535], [0, 1, 128, 255]),
        ((7000, 8200), [7000, 7600, 8200, 6000, 9000], [0, 128, 255, 0, 255]),
    ],
)
def test_16_bits_of_grey_are_scaled_as_stated(grey16: tuple[int, int], values: list[int], expected: list[int]) -> None:
    deep = Image.fromarray(np.array([values], np.uint16))

    run = run_stage(Decode, [frame(encoded(deep))], grey16=grey16)

    np.testing.assert_array_equal(run.out[0].array[0, :, 0], expected)


def test_16_bits_of_grey_without_a_stated_scaling_are_refused() -> None:
    """A thermal camera's picture uses a small part of the range: its upper 8 bits would be nearly one grey."""
    run = run_stage(Decode, [frame(encoded(Image.fromarray(np.array([[7000, 8200]], np.uint16))))])

    assert run.dead == {"bad-image": 1}
    assert "grey16" in run.errors[0].remedy


def test_transparency_becomes_white() -> None:
    """Black letters on a transparent background would otherwise be black on black."""
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 255))

    run = run_stage(Decode, [frame(encoded(image))])

    np.testing.assert_array_equal(run.out[0].array[0], [[255, 255, 255], [0, 0, 0]])


def test_a_grey_and_a_cmyk_jpeg_become_rgb() -> None:
    grey, cmyk = (encoded(Image.fromarray(gradient()).convert(mode), "JPEG") for mode in ("L", "CMYK"))

    run = run_stage(Decode, frames([grey, cmyk]))

    assert [out.array.shape for out in run.out] == [(48, 64, 3)] * 2


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    """EXIF orientation, compared with Pillow."""
    photo = encoded(Image.fromarray(gradient()), kind, quality=95, exif=turned(orientation))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(photo))))

    run = run_stage(Decode, [frame(photo)])

    decoded = run.out[0].array
    assert decoded.shape == expected.shape
    assert decoded.flags.c_contiguous
    assert np.abs(decoded.astype(int) - expected).mean() < 2


def test_a_large_jpeg_can_be_decoded_at_reduced_size() -> None:
    photo = simplejpeg.encode_jpeg(gradient(480, 640))

    run = run_stage(Decode, [frame(photo)], min_width=150, min_height=100)

    height, width, _ = run.out[0].array.shape
    assert (height, width) < (480, 640)
    assert height >= 100
    assert width >= 150


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        pytest.param(b"", "empty-payload", id="no bytes"),
        pytest.param(b"GIF89a" + bytes(40), "unknown-content-type", id="a GIF"),
        pytest.param(b"{}", "unknown-content-type", id="JSON"),
        pytest.param(JPEG[: len(JPEG) // 2], "truncated-image", id="half a JPEG"),
        pytest.param(JPEG[:-20], "truncated-image", id="a JPEG without its last bytes"),
        pytest.param(JPEG[:40], "bad-image", id="a JPEG cut in its header"),
        pytest.param(PNG[: len(PNG) // 2], "truncated-image", id="half a PNG"),
        pytest.param(PNG[:20], "truncated-image", id="a PNG cut in its header"),
        pytest.param(PNG[:60] + bytes(40) + PNG[100:], "bad-image", id="a PNG with a hole"),
        pytest.param(png_claiming(50_000, 50_000), "image-too-large", id="a decompression bomb"),
        pytest.param(png_claiming(0, 10), "bad-image", id="a PNG without width"),
    ],
)
def test_a_bad_picture_is_dead_lettered_and_the_next_is_decoded(payload: bytes, code: str) -> None:
    run = run_stage(Decode, frames([payload, JPEG]))

    assert run.dead == {code: 1}
    assert isinstance(run.errors[0], FrameError)
    assert len(run.out) == 1


def test_a_picture_over_the_limit_is_refused_by_its_header() -> None:
    """The payload is only a header: decoding it would raise `truncated-image`."""
    header = JPEG[: JPEG.index(b"\xff\xda") + 20]

    run = run_stage(Decode, [frame(header)], max_pixels=64 * 48 - 1)

    assert run.dead == {"image-too-large": 1}


@pytest.mark.parametrize(("orientation", "upright"), [(1, (64, 48)), (3, (64, 48)), (6, (48, 64)), (8, (48, 64))])
def test_the_smallest_size_is_that_of_the_upright_picture(orientation: int, upright: tuple[int, int]) -> None:
    scale = 8
    photo = encoded(Image.fromarray(gradient(48 * scale, 64 * scale)), "JPEG", exif=turned(orientation))
    width, height = upright

    decoded = run_stage(Decode, [frame(photo)], min_width=width * 4, min_height=10).out[0].array
    lower = run_stage(Decode, [frame(photo)], min_width=10, min_height=height * 4).out[0].array

    assert decoded.shape == lower.shape == (height * 4, width * 4, 3)


def test_an_orientation_after_long_segments_is_found() -> None:
    """A colour profile of several segments may precede EXIF."""
    photo = encoded(Image.fromarray(gradient()), "JPEG", exif=turned(6))
    profile = b"\xff\xe2" + struct.pack(">H", 65_000) + bytes(64_998)

    run = run_stage(Decode, [frame(photo[:2] + profile * 3 + photo[2:])])

    assert run.out[0].array.shape == (64, 48, 3)


PROGRESSIVE = encoded(Image.fromarray(gradient()), "JPEG", quality=95, progressive=True)


@pytest.mark.parametrize(
    "payload", [JPEG[:-2], JPEG[:-1], b"\r\n" + JPEG, b"\n" + JPEG[:-2], b"\r\n" + PNG], ids=lambda p: p[:3].hex()
)
def test_a_whole_picture_in_a_careless_wrapping_is_decoded_unless_strict(payload: bytes) -> None:
    whole = run_stage(Decode, [frame(PNG if PNG in payload else JPEG)]).out[0].array

    np.testing.assert_array_equal(run_stage(Decode, [frame(payload)]).out[0].array, whole)
    assert sum(run_stage(Decode, [frame(payload)], strict=True).dead.values()) == 1


@pytest.mark.parametrize("kept", range(len(JPEG) // 2, len(JPEG) - 2, 7))
def test_a_jpeg_that_lacks_any_of_its_picture_is_refused(kept: int) -> None:
    """Cut anywhere, it is refused, or it is whole: the last byte may be filling."""
    run = run_stage(Decode, [frame(JPEG[:kept])])

    if run.dead != {"truncated-image": 1}:
        np.testing.assert_array_equal(run.out[0].array, run_stage(Decode, [frame(JPEG)]).out[0].array)


@pytest.mark.parametrize("end", [b"", b"\xff\xda", b"\xff\xc4"], ids=["marker", "scan", "table"])
def test_a_progressive_jpeg_without_its_last_scans_is_refused(end: bytes) -> None:
    """Each scan refines the whole picture, so one that lacks some looks whole."""
    cut = PROGRESSIVE[:-2] if not end else PROGRESSIVE[: PROGRESSIVE.rindex(end)]

    assert run_stage(Decode, [frame(cut)]).dead == {"truncated-image": 1}


@pytest.mark.parametrize("options", [{"lossless": True}, {"quality": 95}, {"lossless": True, "exif": turned(1)}])
def test_a_webp_becomes_its_picture(options: dict[str, Any]) -> None:
    """The three kinds of header: VP8L, VP8 and VP8X."""
    payload = encoded(Image.fromarray(gradient()), "WEBP", **options)

    run = run_stage(Decode, [frame(payload)])

    assert np.abs(run.out[0].array.astype(int) - gradient()).mean() < 8
    assert run_stage(Decode, [frame(payload)], max_pixels=64 * 48 - 1).dead == {"image-too-large": 1}
    assert sum(run_stage(Decode, [frame(payload[:-40])]).dead.values()) == 1


@pytest.mark.parametrize("kind", ["WEBP", "PNG"])
def test_an_animation_is_refused(kind: str) -> None:
    still = Image.fromarray(gradient())
    payload = encoded(still, kind, save_all=True, append_images=[still.transpose(Image.Transpose.ROTATE_180)])

    assert run_stage(Decode, [frame(payload)]).dead == {"bad-image": 1}


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,"])
def test_a_picture_in_a_field_of_json_is_decoded(prefix: str) -> None:
    text = prefix + base64.b64encode(PNG).decode()

    run = run_stage(Decode, [frame(json.dumps({"camera": "c1", "image": text}))], json_field="image")

    np.testing.assert_array_equal(run.out[0].array, gradient())


def test_a_picture_in_a_field_is_found_by_its_path() -> None:
    picture = {"data": {"image": base64.b64encode(PNG).decode()}}

    run = run_stage(Decode, [frame(json.dumps(picture))], json_field="data.image")

    np.testing.assert_array_equal(run.out[0].array, gradient())


def test_a_field_with_two_pictures_is_refused() -> None:
    text = base64.b64encode(PNG).decode()

    run = run_stage(Decode, [frame(f'{{"image": "{text}", "image": "{text[::-1]}"}}')], json_field="image")

    assert run.dead == {"duplicate-field": 1}


def test_a_damaged_header_is_named() -> None:
    run = run_stage(Decode, [frame(PNG[:30] + bytes([PNG[30] ^ 1]) + PNG[31:])])

    assert run.dead == {"bad-image": 1}
    assert str(run.errors[0]) == f"The header of the PNG ({len(PNG)} bytes) is damaged"


@pytest.mark.parametrize(
    "payload",
    ["{}", "[]", "7", "{", '{"image": 7}', '{"image": "%%%"}', '{"image": "data:x"}', '{"image": "////"}', "\x00"],
)
def test_a_field_without_a_picture_is_dead_lettered(payload: str) -> None:
    run = run_stage(
        Decode, frames([payload, json.dumps({"image": base64.b64encode(PNG).decode()})]), json_field="image"
    )

    assert sum(run.dead.values()) == 1
    assert {error.code for error in run.errors} <= CODES
    assert len(run.out) == 1


@pytest.mark.parametrize(
    ("payload", "name"),
    [
        (b'{"image": "/9j/4AAQ"}', "JSON"),
        (base64.b64encode(JPEG), "base64"),
        (b"data:image/png;base64,iVBORw0KGgo", "base64"),
        (b"II*\0" + bytes(40), "TIFF"),
        (b"\0\0\0\x1cftypheic" + bytes(40), "HEIF"),
        (b"\0\0\0\1\x67" + bytes(40), "H.264"),
        (b"BM" + bytes(40), "BMP"),
        (b"--frame\r\nContent-Type: image/jpeg\r\n\r\n" + JPEG, "multipart"),
        (b"<html>404</html>", "HTML"),
    ],
)
def test_what_is_no_picture_is_named(payload: bytes, name: str) -> None:
    run = run_stage(Decode, [frame(payload)])

    assert run.dead == {"unknown-content-type": 1}
    assert name in str(run.errors[0])


def test_a_decoded_frame_passes() -> None:
    picture = gradient()

    run = run_stage(Decode, [frame(picture)])

    assert run.out[0].array is picture


@given(st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", JPEG[:200], PNG[:60]]), st.binary(max_size=200))
def test_random_bytes_raise_only_frame_errors(prefix: bytes, noise: bytes) -> None:
    decode_or_frame_error(prefix + noise)


@given(st.sampled_from([JPEG, PNG]), st.integers(0, 5000), st.binary(min_size=1, max_size=8))
def test_damaged_pictures_raise_only_frame_errors(whole: bytes, place: int, damage: bytes) -> None:
    place %= len(whole)
    decode_or_frame_error(whole[:place] + damage + whole[place + len(damage) :])


def decode_or_frame_error(payload: bytes) -> None:
    (outcome,) = Decode(DecodeConfig(max_pixels=1_000_000)).process_many([frame(payload)])
    if isinstance(outcome, FrameError):
        assert outcome.code in CODES
    else:
        assert isinstance(outcome, Frame), repr(outcome)
        assert outcome.array.ndim == 3
        assert outcome.array.dtype == np.uint8
