"""Files as frames: what `hedgerow publish` sends for a picture, a folder, a recording, a table.

Rules:
- A source is read as it is sent; a long recording never lies in memory as a whole.
- What a source cannot be is said before the first frame goes out, with what to do about it.
"""

from __future__ import annotations

import csv
import itertools
import mimetypes
import sys
import wave
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import orjson

from hedgerow.errors import ConfigError
from hedgerow.frame import Array
from hedgerow.wire.codec import NPY
from hedgerow.wire.messages import JSON

_VIDEO: Final = frozenset({".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mjpeg", ".mpg", ".ts"})
_LINES: Final = frozenset({".jsonl", ".ndjson"})


class FileFrame(NamedTuple):
    """One frame to be sent.

    Attributes:
        payload: its bytes.
        content_type: what they are.
        name: the source's name without folder and ending.
        due_s: when it is due, seconds from the beginning of its source; None if the source has no clock of its own.
    """

    payload: bytes
    content_type: str
    name: str
    due_s: float | None = None


@dataclass(frozen=True, slots=True)
class SplitOptions:
    """How sources are cut into frames.

    Attributes:
        chunk_ms: length of a chunk of sound.
        window: rows of a table or array in one frame; None: a row of a table, the whole array.
        quality: JPEG quality of video frames, 1..100.
        content_type: says what every payload is, whatever its ending says; files then go out as they are.
    """

    chunk_ms: float = 32.0
    window: int | None = None
    quality: int = 85
    content_type: str | None = None


def expand_sources(sources: Sequence[str]) -> list[Path]:
    """The files that sources stand for; a folder's in order of their names, `-` is standard input.

    Raises: ConfigError: one is not there, or a folder is empty.
    """
    files: list[Path] = []
    for source in sources:
        path = Path(source)
        if path.is_dir():
            inside = sorted(entry for entry in path.iterdir() if entry.is_file() and not entry.name.startswith("."))
            if not inside:
                raise ConfigError(f"The folder {path} has no files", remedy="Give a file, or a folder with some.")
            files += inside
        elif source == "-" or path.exists():
            files.append(path)
        else:
            raise ConfigError(f"There is no file {path}", remedy="Give a picture, recording or table, or a folder.")
    return files


def read_frames(path: Path, cut: SplitOptions) -> Iterator[FileFrame]:
    """A file's frames, in order.

    Raises: ConfigError: it cannot be read, is not what its ending says, or needs a package that is not installed.
    """
    read, content_type = _reader(path, cut)
    try:
        yield from read(path, cut) if read else _whole(path, content_type)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} cannot be read: {error}", remedy="Check the file, and that you may read it."
        ) from error


def _reader(path: Path, cut: SplitOptions) -> tuple[Callable[[Path, SplitOptions], Iterator[FileFrame]] | None, str]:
    suffix = path.suffix.lower()
    if cut.content_type is not None:
        return None, cut.content_type
    if suffix == ".wav":
        return _sound, ""
    if suffix == ".csv":
        return _table, ""
    if suffix == ".npy":
        return _array, ""
    if suffix in _LINES:
        return _lines, ""
    if suffix in _VIDEO:
        return _video, ""
    return None, mimetypes.guess_type(path.name)[0] or "application/octet-stream"


def _whole(path: Path, content_type: str) -> Iterator[FileFrame]:
    payload = sys.stdin.buffer.read() if path == Path("-") else path.read_bytes()
    yield FileFrame(payload, content_type, "stdin" if path == Path("-") else path.stem)


def _lines(path: Path, cut: SplitOptions) -> Iterator[FileFrame]:  # noqa: ARG001 - all readers are called alike
    with path.open("rb") as lines:
        for line in lines:
            if line.strip():
                yield FileFrame(line.strip(), JSON, path.stem)


def _sound(path: Path, cut: SplitOptions) -> Iterator[FileFrame]:
    """Chunks of little-endian 16-bit samples, as `pcm16` reads them; rate and channels are in the content type."""
    try:
        with wave.open(str(path)) as file:
            rate, channels, width = file.getframerate(), file.getnchannels(), file.getsampwidth()
            if width != 2:
                raise ConfigError(
                    f"{path} has {8 * width}-bit samples",
                    remedy=f"Convert it: `ffmpeg -i {path} -c:a pcm_s16le OUT.wav`.",
                )
            samples = max(1, round(rate * cut.chunk_ms / 1000))
            content_type = f"audio/l16;rate={rate};channels={channels}"
            for number in itertools.count():
                if not (chunk := file.readframes(samples)):
                    return
                # A chunk is there to be sent once its last sample has been taken.
                yield FileFrame(chunk, content_type, path.stem, (number + 1) * samples / rate)
    except (wave.Error, EOFError) as error:
        raise ConfigError(
            f"{path} is not a WAV file of PCM samples: {error or 'it ends too early'}",
            remedy=f"Convert it: `ffmpeg -i {path} -c:a pcm_s16le OUT.wav`.",
        ) from error


def _table(path: Path, cut: SplitOptions) -> Iterator[FileFrame]:
    """Rows as JSON, by column name if the first row names the columns; or windows of rows as float32 arrays."""
    with path.open(newline="", encoding="utf-8-sig") as lines:
        rows: Iterator[list[str]] = (row for row in csv.reader(lines) if row)
        first = next(rows, None)
        if first is None:
            raise ConfigError(f"{path} is empty", remedy="Give a table with at least one row.")
        columns = None if not any(isinstance(_cell(cell), str) for cell in first) else first
        rows = rows if columns else itertools.chain([first], rows)
        if cut.window is not None:
            yield from _windows(path, rows, cut.window)
            return
        for row in rows:
            cells = [_cell(cell) for cell in row]
            yield FileFrame(
                orjson.dumps(dict(zip(columns, cells, strict=False)) if columns else cells), JSON, path.stem
            )


def _windows(path: Path, rows: Iterator[list[str]], size: int) -> Iterator[FileFrame]:
    while len(window := list(itertools.islice(rows, size))) == size:
        try:
            array = np.array(window, np.float32)
        except ValueError as error:
            raise ConfigError(
                f"{path} has cells that are no numbers, or rows of different lengths: {error}",
                remedy="Leave out those columns, or send rows as JSON by leaving out --window.",
            ) from error
        yield FileFrame(_npy(array), NPY, path.stem)


def _cell(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def _array(path: Path, cut: SplitOptions) -> Iterator[FileFrame]:
    if cut.window is None:
        yield from _whole(path, NPY)
        return
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise ConfigError(f"{path} is not an array of numbers in .npy format: {error}", remedy=_NPY_REMEDY) from error
    if array.ndim == 0:
        raise ConfigError(f"{path} is a single number and cannot be cut", remedy="Leave out --window.")
    for start in range(0, len(array) - cut.window + 1, cut.window):
        yield FileFrame(_npy(array[start : start + cut.window]), NPY, path.stem)


_NPY_REMEDY: Final = "Save it with `numpy.save`, without pickled objects."


def _npy(array: Array) -> bytes:
    import io

    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def _video(path: Path, cut: SplitOptions) -> Iterator[FileFrame]:
    """Frames of a video as JPEG."""
    try:
        import av
    except ImportError as error:
        raise ConfigError(
            f"To read {path.name}, PyAV is needed, and it is not installed", remedy="`pip install 'hedgerow[video]'`"
        ) from error
    encode = _jpeg_encoder(cut.quality)
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ConfigError(f"{path} has no pictures", remedy="Give a video, or sound as WAV.")
            for number, frame in enumerate(container.decode(video=0)):
                due_s = frame.time if frame.time is not None else number / 25
                yield FileFrame(encode(frame), "image/jpeg", path.stem, float(due_s))
    except av.FFmpegError as error:
        raise ConfigError(
            f"{path} cannot be decoded: {error}", remedy="Check that the file is a whole video."
        ) from error


def _jpeg_encoder(quality: int) -> Callable[[Any], bytes]:
    """Something that makes JPEG of a decoded frame: libjpeg-turbo if it is there, else what PyAV brings."""
    try:
        import simplejpeg
    except ImportError:
        return lambda frame: _mjpeg(frame, quality)

    def encode(frame: Any) -> bytes:
        payload: bytes = simplejpeg.encode_jpeg(frame.to_ndarray(format="rgb24"), quality=quality)
        return payload

    return encode


def _mjpeg(frame: Any, quality: int) -> bytes:
    from fractions import Fraction

    import av

    codec = av.CodecContext.create("mjpeg", "w")
    codec.width, codec.height, codec.pix_fmt, codec.time_base = frame.width, frame.height, "yuvj420p", Fraction(1, 25)
    # libavcodec's scale runs from 2 (best) to 31; this maps quality 100..1 onto it.
    scale = str(round(2 + (100 - quality) / 99 * 29))
    codec.options = {"qmin": scale, "qmax": scale}
    picture = frame.reformat(format="yuvj420p")
    picture.pts = 0
    return b"".join(bytes(packet) for packet in (*codec.encode(picture), *codec.encode(None)))
