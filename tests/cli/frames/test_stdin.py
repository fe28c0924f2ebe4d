"""Reading stdin as frames: several files one after another are several frames, as soon as each is complete."""

from __future__ import annotations

import io
import wave
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hedgerow.cli.frames.stdin import Stdin, read_payloads
from hedgerow.errors import ConfigError

JPEG, PNG, NPY, JSON, ANYTHING = (
    "image/jpeg",
    "image/png",
    "application/x-npy",
    "application/json",
    "application/octet-stream",
)


def picture(kind: str, seed: int = 0, **options: object) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, kind, **options)
    return stream.getvalue()


def with_thumbnail() -> bytes:
    """A picture with another one inside: in its Exif segment, as cameras write it."""
    return picture("jpeg", exif=b"Exif\0\0" + picture("jpeg", 9))


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


class Pipe(io.RawIOBase):
    """Yields a few bytes at a time, as a pipe from a slow program does."""

    def __init__(self, content: bytes, step: int) -> None:
        self._rest, self._step = content, step

    def read(self, size: int = -1) -> bytes:
        step = self._step if size < 0 else min(size, self._step)
        begin, self._rest = self._rest[:step], self._rest[step:]
        return begin


def payloads(content: bytes, step: int = 1 << 16) -> list[tuple[bytes, str]]:
    return list(read_payloads(Stdin(Pipe(content, step))))


PARTS: dict[str, tuple[Callable[[], list[bytes]], list[str]]] = {
    "one picture": (lambda: [picture("jpeg")], [JPEG]),
    "three pictures": (lambda: [picture("jpeg", seed) for seed in range(3)], [JPEG] * 3),
    "progressive pictures": (lambda: [picture("jpeg", seed, progressive=True) for seed in range(2)], [JPEG] * 2),
    "restart markers": (lambda: [picture("jpeg", seed, restart_marker_rows=1) for seed in range(2)], [JPEG] * 2),
    "thumbnails": (lambda: [with_thumbnail(), with_thumbnail()], [JPEG] * 2),
    "several kinds": (lambda: [picture("png"), picture("jpeg"), picture("png", 1)], [PNG, JPEG, PNG]),
    "arrays": (lambda: [npy(np.arange(5)), npy(np.zeros((2, 3), np.float32))], [NPY] * 2),
    "an empty array": (lambda: [npy(np.zeros((0, 3)))], [NPY]),
    "pictures without ends": (lambda: [picture("jpeg", seed)[:-2] for seed in range(3)], [JPEG] * 3),
    "a picture without an end": (lambda: [picture("jpeg"), picture("jpeg", 1)[:-2]], [JPEG] * 2),
    "a number": (lambda: [b"5"], [JSON]),
    "an indented document": (lambda: [b'{\n  "v": [1,\n 2]\n}\n'], [JSON]),
    "text": (lambda: [b"hello\nworld\n"], [ANYTHING]),
    "bytes": (lambda: [bytes(range(256))], [ANYTHING]),
    "nothing": (list, []),
}


@pytest.mark.parametrize("step", [1, 7, 1 << 16])
@pytest.mark.parametrize(("parts", "content_types"), PARTS.values(), ids=PARTS)
def test_every_file_in_stdin_is_a_frame(parts: Callable[[], list[bytes]], content_types: list[str], step: int) -> None:
    expected = parts()

    assert payloads(b"".join(expected), step) == list(zip(expected, content_types, strict=True))


def test_pictures_may_be_separated_by_line_breaks() -> None:
    pictures = [picture("jpeg", seed) for seed in range(2)]

    assert [payload for payload, _ in payloads(b"\r\n".join(pictures) + b"\n")] == pictures


def test_every_line_of_json_is_a_frame() -> None:
    assert payloads(b'{"v": 1}\n\n [2] \n3') == [(b'{"v": 1}', JSON), (b"[2]", JSON), (b"3", JSON)]


def test_a_picture_is_yielded_before_the_next_one_begins() -> None:
    """A camera that writes to a pipe for days never ends."""
    first = picture("jpeg")
    stream = Stdin(Pipe(first + picture("jpeg", 1), len(first)))

    assert next(read_payloads(stream)) == (first, JPEG)
    assert stream._waiting[stream._at :] == b""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: picture("jpeg") + b"hello", r"Frame 1 in stdin is followed by something else: b'hello'"),
        (lambda: picture("png") + picture("png")[:100], "Frame 2 in stdin is damaged: it ends early"),
        (lambda: picture("jpeg")[:20], "Frame 1 in stdin is damaged: it ends early"),
        (lambda: npy(np.arange(9))[:-4], "Frame 1 in stdin is damaged"),
        (lambda: b"\xff\xd8\xff\xe0\x00\x04abXY", "Frame 1 in stdin is damaged: it has 0x58 in place of a JPEG marker"),
        (lambda: b"\x89PNG\r\n\x1a\n" + b"\xff" * 8, "Frame 1 in stdin is damaged: it has a part of"),
        (lambda: b"1\n2\nthree\n", "Line 3 in stdin is not JSON, as line 1 is"),
    ],
)
def test_what_cannot_be_told_apart_is_an_error(content: Callable[[], bytes], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        payloads(content())

    assert "--content-type" in caught.value.remedy


@given(st.lists(st.binary(max_size=200), max_size=5))
def test_no_bytes_are_lost_or_invented(parts: list[bytes]) -> None:
    """Every payload is a piece of stdin, in order; with --content-type nothing is looked at."""
    content = b"".join([picture("png"), *parts])
    try:
        found = payloads(content, 50)
    except ConfigError:
        return
    assert b"".join(payload for payload, _ in found).replace(b"\n", b"").replace(b"\r", b"") == content.replace(
        b"\n", b""
    ).replace(b"\r", b"")


def test_a_recording_in_stdin_is_sent_in_chunks(hedgerow, broker, topic_prefix: str) -> None:
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(16_000))

    result = hedgerow(
        "publish", "-", "-t", topic_prefix, "--no-realtime", "--broker", broker.url, input=stream.getvalue()
    )

    assert result.out.startswith(f"Sent 32 frames (16.0 kB) to {topic_prefix}")


def test_pictures_in_stdin_are_counted_as_frames(hedgerow, broker, topic_prefix: str) -> None:
    pictures = b"".join(picture("jpeg", seed) for seed in range(3))

    result = hedgerow("publish", "-", "-t", topic_prefix, "--broker", broker.url, input=pictures)

    assert result.out.startswith("Sent 3 frames")


def test_pictures_in_stdin_are_frames_with_their_content_type_stated_too(hedgerow, broker, topic_prefix: str) -> None:
    pictures = b"".join(picture("jpeg", seed) for seed in range(2))
    words = ("publish", "-", "-t", topic_prefix, "--broker", broker.url, "--content-type")

    assert hedgerow(*words, "image/jpeg", input=pictures).out.startswith("Sent 2 frames")
    assert hedgerow(*words, "application/x-all-of-it", input=pictures).out.startswith("Sent 1 frame ")


def test_a_window_cannot_be_cut_from_stdin(hedgerow, broker, topic_prefix: str) -> None:
    result = hedgerow("publish", "-", "-t", topic_prefix, "--window", "4", "--broker", broker.url, input=b"1\n")

    assert (result.code, "--window cannot split stdin" in result.err) == (2, True)
