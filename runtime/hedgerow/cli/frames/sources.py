"""Reads files as frames: pictures, recordings, videos, tables, arrays.

Rules:
- A file is read while its frames are sent; a long recording is never in memory as a whole.
- A missing file or an empty folder is an error before the first frame is sent.
"""

from __future__ import annotations

import csv
import itertools
import mimetypes
import mmap
import sys
import wave
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import numpy as np
import orjson

from hedgerow.cli.frames.stdin import Stdin, read_payloads
from hedgerow.errors import ConfigError, FrameError
from hedgerow.frame import Array
from hedgerow.wire.codec import NPY
from hedgerow.wire.messages import JSON
from hedgerow.wire.numbers import FLOAT32, below
from hedgerow.wire.wav import parse_wav

_STDIN: Final = Path("-")
_VIDEO: Final = frozenset({".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mjpeg", ".mpg", ".ts"})
_LINES: Final = frozenset({".jsonl", ".ndjson"})


class FileFrame(NamedTuple):
    """A frame read from a file.

    Attributes:
        payload: its bytes.
        content_type: MIME type of the payload.
        name: name of the file, without folder and suffix.
        due_s: when it is due, in seconds from the start of its file; None if the file has no times.
    """

    payload: bytes
    content_type: str
    name: str
    due_s: float | None = None


@dataclass(frozen=True, slots=True)
class SplitOptions:
    """How files are split into frames.

    Attributes:
        chunk_ms: length of a chunk of sound, in milliseconds.
        window: rows of a table or array per frame; None: one row of a table, the whole array.
        quality: JPEG quality of video frames, 1..100.
        content_type: MIME type of all payloads; files are then sent unchanged.
    """

    chunk_ms: float = 32.0
    window: int | None = None
    quality: int = 85
    content_type: str | None = None


def expand_sources(sources: Sequence[str]) -> list[Path]:
    """Return the files that sources name: a folder stands for its files, sorted by name, and `-` for stdin.

    Raises: ConfigError: a source does not exist, or a folder is empty.
    """
    files: list[Path] = []
    for source in sources:
        path = Path(source)
        if path.is_dir():
            inside = sorted(entry for entry in path.iterdir() if entry.is_file() and not entry.name.startswith("."))
            if not inside:
                raise ConfigError(f"The folder {path} has no files", remedy="Give a file, or a folder that has files.")
            files += inside
        elif source == "-" or path.exists():
            files.append(path)
        else:
            raise ConfigError(f"No file {path}", remedy="Give a picture, recording or table, or a folder.")
    return files


def read_frames(path: Path, options: SplitOptions) -> Iterator[FileFrame]:
    """Yield a file's frames in order.

    Raises: ConfigError: the file cannot be read, is not what its suffix says, or needs a package that is not installed.
    """
    if path == _STDIN and (options.content_type is None or options.content_type.startswith("image/")):
        yield from _stdin(options)
        return
    read, content_type = _reader(path, options)
    try:
        frames = iter(read(path, options) if read else _whole(path, content_type))
        first = next(frames, None)
        if first is None:
            raise ConfigError(
                f"{path} has nothing to send",
                remedy=f"Give at least {options.window or 1} row(s), in a table below the names of its columns.",
            )
        yield first
        yield from frames
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", remedy="Check the file and its permissions.") from error


def _reader(
    path: Path, options: SplitOptions
) -> tuple[Callable[[Path, SplitOptions], Iterator[FileFrame]] | None, str]:
    suffix = path.suffix.lower()
    if options.content_type is not None:
        return None, options.content_type
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
    payload = sys.stdin.buffer.read() if path == _STDIN else path.read_bytes()
    yield FileFrame(payload, content_type, "stdin" if path == _STDIN else path.stem)


def _stdin(options: SplitOptions) -> Iterator[FileFrame]:
    if options.window is not None:
        raise ConfigError("--window cannot split stdin", remedy="Give the table or the array as a file.")
    stdin = Stdin(sys.stdin.buffer)
    if stdin.is_recording:
        yield from _live_sound(stdin, options)
    else:
        for payload, content_type in read_payloads(stdin):
            yield FileFrame(payload, options.content_type or content_type, "stdin")


def _lines(path: Path, options: SplitOptions) -> Iterator[FileFrame]:  # noqa: ARG001 - the signature of all readers
    with path.open("rb") as lines:
        for line in lines:
            if line.strip():
                yield FileFrame(line.strip(), JSON, path.stem)


def _sound(path: Path, options: SplitOptions) -> Iterator[FileFrame]:
    """Yield chunks for the `pcm16` stage: of 16-bit sound its samples, with rate and channels in the content type; else WAV."""
    try:
        with path.open("rb") as file:
            wav = parse_wav(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))
    except (FrameError, ValueError) as error:  # ValueError: the file is empty
        raise ConfigError(
            f"{path}: {error}", remedy=f"Convert it: `ffmpeg -i {path} -c:a pcm_s16le OUT.wav`."
        ) from error
    samples = max(1, round(wav.rate * options.chunk_ms / 1000))
    step = samples * wav.channels * wav.bits // 8
    plain = wav.bits == 16
    content_type = f"audio/l16;rate={wav.rate};channels={wav.channels}" if plain else "audio/wav"
    for number, start in enumerate(range(0, len(wav.data), step)):
        chunk = bytes(wav.data[start : start + step])
        # As from a microphone: a chunk is due once its last sample was taken.
        due_s = (number + 1) * samples / wav.rate
        yield FileFrame(chunk if plain else wav.file(chunk), content_type, path.stem, due_s)


def _live_sound(stdin: Stdin, options: SplitOptions) -> Iterator[FileFrame]:
    """Yield chunks of 16-bit samples as a program such as `arecord` writes them."""
    try:
        with wave.open(cast(Any, stdin)) as file:
            rate, channels, width = file.getframerate(), file.getnchannels(), file.getsampwidth()
            samples = max(1, round(rate * options.chunk_ms / 1000))
            chunk = file.readframes(samples)
            if width != 2 or not chunk:
                what = f"{8 * width}-bit samples" if chunk else "no samples, by its header"
                raise ConfigError(f"The WAV in stdin has {what}", remedy="Write it to a file first, and give its name.")
            content_type = f"audio/l16;rate={rate};channels={channels}"
            for number in itertools.count(1):
                yield FileFrame(chunk, content_type, "stdin", number * samples / rate)
                if not (chunk := file.readframes(samples)):
                    return
    except (wave.Error, EOFError) as error:
        raise ConfigError(
            f"The WAV in stdin cannot be read: {error or 'it ends early'}",
            remedy="Write PCM of 16 bits, or write it to a file first, and give its name.",
        ) from error


def _table(path: Path, options: SplitOptions) -> Iterator[FileFrame]:
    """Yield rows as JSON, keyed by column if the first row has names; or windows of rows as float32 arrays."""
    with path.open(newline="", encoding="utf-8-sig") as lines:
        rows = _rows(path, lines)
        first = next(rows, None)
        if first is None:
            raise ConfigError(f"{path} is empty", remedy="Give a table with at least one row.")
        columns = None if not any(isinstance(_cell(cell), str) for cell in first) else first
        if columns and len(set(columns)) < len(columns):
            twice = next(name for name in columns if columns.count(name) > 1)
            raise ConfigError(f"{path} has two columns {twice!r}", remedy="Rename one, so that both are kept.")
        rows = rows if columns else itertools.chain([first], rows)
        if options.window is not None:
            yield from _windows(path, rows, options.window)
            return
        for row in rows:
            cells = [_cell(cell) for cell in row]
            yield FileFrame(orjson.dumps(dict(zip(columns, cells, strict=True)) if columns else cells), JSON, path.stem)


def _rows(path: Path, lines: Iterable[str]) -> Iterator[list[str]]:
    """Yield the rows of a table, all of the same length; blank lines do not count."""
    reader, width = csv.reader(lines, strict=True), 0
    try:
        for row in reader:
            if not width and (other := _other_mark(row)):
                raise ConfigError(
                    f"{path} has {other!r} between its cells, not a comma",
                    remedy=f"Save it with commas; or send it whole, --content-type text/csv, to `parse: {{delimiter: {other!r}}}`.",
                )
            width = width or len(row)
            if row and len(row) != width:
                raise ConfigError(
                    f"{path}, line {reader.line_num}, has {len(row)} cells, but the first line has {width}",
                    remedy="Give every line the same number of cells; quote cells that contain a comma.",
                )
            if row:
                yield row
    except csv.Error as error:
        raise ConfigError(
            f"{path}, line {reader.line_num}, is not CSV: {error}", remedy="Quote the cells as in RFC 4180."
        ) from error


def _other_mark(row: list[str]) -> str | None:
    """Return what separates the cells if it is no comma: `1,5;2,5` has three cells with commas between."""
    for mark, cell in itertools.product(";\t", row):
        if mark in cell and (len(row) == 1 or not any(isinstance(_cell(part), str) for part in cell.split(mark))):
            return mark
    return None


def _windows(path: Path, rows: Iterator[list[str]], size: int) -> Iterator[FileFrame]:
    while len(window := list(itertools.islice(rows, size))) == size:
        try:
            array = np.array(window, np.float64)
        except ValueError as error:
            raise ConfigError(
                f"{path} has cells that are not numbers: {error}",
                remedy="Remove those columns, or omit --window to send rows as JSON.",
            ) from error
        with np.errstate(over="ignore"):
            single = array.astype(np.float32)
        for row, column in np.argwhere(np.isfinite(array) & (np.abs(array) >= below(FLOAT32))):
            if _cell(window[row][column]) not in (float(single[row, column]), float(str(single[row, column]))):
                raise ConfigError(
                    f"{path} has {window[row][column]}, which float32 cannot represent",
                    remedy="Remove that column, or omit --window to send rows as JSON, and set `dtype: float64` of `parse`.",
                )
        yield FileFrame(_npy(single), NPY, path.stem)


def _cell(text: str) -> int | float | str:
    if not text.isascii() or "_" in text:  # Python reads numbers from such text that nobody else would
        return text
    for kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            continue
        return number if kind is float or -(2**63) <= number < 2**64 else text  # JSON keeps every digit of the text
    return text


def _array(path: Path, options: SplitOptions) -> Iterator[FileFrame]:
    if options.window is None:
        yield from _whole(path, NPY)
        return
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise ConfigError(f"{path} is not an array of numbers in .npy format: {error}", remedy=_NPY_REMEDY) from error
    if array.ndim == 0:
        raise ConfigError(f"{path} is a single number and cannot be split", remedy="Omit --window.")
    for start in range(0, len(array) - options.window + 1, options.window):
        yield FileFrame(_npy(array[start : start + options.window]), NPY, path.stem)


_NPY_REMEDY: Final = "Save it with `numpy.save`, without pickled objects."


def _npy(array: Array) -> bytes:
    import io

    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def _video(path: Path, options: SplitOptions) -> Iterator[FileFrame]:
    """Yield the frames of a video as JPEG."""
    try:
        import av
    except ImportError as error:
        raise ConfigError(
            f"Reading {path.name} needs PyAV, which is not installed", remedy="Run `pip install 'hedgerow[video]'`."
        ) from error
    encode = _jpeg_encoder(options.quality)
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ConfigError(f"{path} has no video stream", remedy="Give a video, or sound as WAV.")
            for number, frame in enumerate(container.decode(video=0)):
                due_s = frame.time if frame.time is not None else number / 25
                yield FileFrame(encode(frame), "image/jpeg", path.stem, float(due_s))
    except av.FFmpegError as error:
        raise ConfigError(
            f"{path} cannot be decoded: {error}", remedy="Check that the file is a complete video."
        ) from error


def _jpeg_encoder(quality: int) -> Callable[[Any], bytes]:
    """Return an encoder of decoded frames: libjpeg-turbo if it is installed, else PyAV's."""
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
