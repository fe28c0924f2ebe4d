"""`annotate` writes pictures and never loses a result."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from numpy.typing import NDArray

from hedgerow import Frame, Stage, StageConfig
from hedgerow.testing import frame, run_pipeline, run_stage
from hedgerow_vision.images.annotate import Annotate, draw

Picture = NDArray[np.uint8]
FOUND = {"label": "face", "score": 0.9, "box": [0.3, 0.1, 0.6, 0.4], "points": [[0.4, 0.2]]}
TEXT = {"text": "Exit", "score": 0.9, "box": [[0.1, 0.5], [0.4, 0.5], [0.4, 0.6], [0.1, 0.6]]}


def frame_with_result(picture: Picture, number: int = 0, **fields: Any) -> Frame:
    fields.setdefault("result", {"detections": [FOUND]})
    return frame(picture, sequence=number, captured_at=1000.0 + number, **fields)


def test_the_picture_is_written_and_the_frame_passes(astronaut: Picture, tmp_path: Path) -> None:
    before = frame_with_result(astronaut, stream="site/cam-1/image")

    (after,) = run_stage(Annotate, [before], folder=tmp_path / "new").out

    path = Path(after.meta["annotated"])
    assert path.name == "test@site_cam-1_image-00000000.jpg"
    assert simplejpeg.decode_jpeg(path.read_bytes()).shape == astronaut.shape
    assert after.result is before.result
    assert after.array is astronaut
    assert [file.suffix for file in path.parent.iterdir()] == [".jpg"]


def test_streams_with_similar_names_do_not_overwrite_each_other(astronaut: Picture, tmp_path: Path) -> None:
    """File names allow fewer characters than topics, and are shorter."""
    small, long = np.ascontiguousarray(astronaut[::8, ::8]), "level/" * 20
    streams = ["a/b", "a_b", "a b", "../a/b", "", "/", f"{long}1", f"{long}2"]

    run_stage(Annotate, [frame_with_result(small, stream=stream) for stream in streams], folder=tmp_path / "all")

    assert len(list((tmp_path / "all").glob("*.jpg"))) == len(streams)
    assert [path.name for path in tmp_path.iterdir()] == ["all"]


def test_a_box_is_drawn_only_at_its_place(astronaut: Picture) -> None:
    untouched = astronaut.copy()

    drawn = draw(astronaut, [FOUND], [])

    changed = (drawn != astronaut).any(axis=2)
    assert changed[200, 153:156].any(), "left edge"
    assert changed[203:206, 250].any(), "lower edge"
    assert changed[98:106, 200:208].any(), "point"
    assert not changed[230:].any()
    np.testing.assert_array_equal(astronaut, untouched)


def test_text_is_drawn_beside_the_picture(astronaut: Picture) -> None:
    drawn = draw(astronaut, [], [TEXT])

    assert drawn.shape == (512, 1024, 3)
    panel = drawn[:, 512:]
    assert (panel[256:307, 51:205] < 128).any()
    assert (panel[330:] == 255).all()


@pytest.mark.parametrize("size", [(1, 1), (2, 900), (40, 3)])
def test_a_picture_of_any_size_can_be_drawn_on(size: tuple[int, int]) -> None:
    everything = {**FOUND, "box": [0, 0, 1, 1]}

    assert draw(np.zeros((*size, 3), np.uint8), [everything], [TEXT]).shape == (size[0], size[1] * 2, 3)


def test_only_the_newest_pictures_are_kept(astronaut: Picture, tmp_path: Path) -> None:
    """Files of others in the folder are not deleted."""
    small = np.ascontiguousarray(astronaut[::8, ::8])
    (tmp_path / "holiday.jpg").write_bytes(b"mine")

    run_stage(Annotate, [frame_with_result(small, n) for n in range(5)], folder=tmp_path, keep=2)
    run_stage(Annotate, [frame_with_result(small, 5)], folder=tmp_path, keep=2)

    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == ["holiday.jpg", "test@test_stream-00000004.jpg", "test@test_stream-00000005.jpg"]


def test_every_s_limits_the_pictures_of_a_stream(astronaut: Picture, tmp_path: Path) -> None:
    small = np.ascontiguousarray(astronaut[::8, ::8])
    one = [frame_with_result(small, n, stream="one") for n in range(6)]
    two = [frame_with_result(small, 0, stream="two")]

    run = run_stage(Annotate, one + two, folder=tmp_path, every_s=3)

    assert [(out.stream, out.sequence) for out in run.out if "annotated" in out.meta] == [
        ("one", 0),
        ("one", 3),
        ("two", 0),
    ]


def test_pictures_without_detections_can_be_skipped(astronaut: Picture, tmp_path: Path) -> None:
    run = run_stage(
        Annotate, [frame_with_result(astronaut, result={"detections": []})], folder=tmp_path, only_found=True
    )

    assert len(run.out) == 1
    assert not list(tmp_path.iterdir())


def test_a_failing_disk_loses_no_result(astronaut: Picture, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file is in place of the folder; the failure is logged once, not per frame."""
    blocked = tmp_path / "blocked"
    blocked.write_text("in the way")

    with caplog.at_level(logging.WARNING):
        run = run_stage(Annotate, [frame_with_result(astronaut, n) for n in range(3)], folder=blocked)

    assert run.dead == {}
    assert run.results == [{"detections": [FOUND]}] * 3
    assert len([record for record in caplog.records if record.name == "hedgerow_vision.images.annotate"]) == 1


def test_writing_resumes_when_the_disk_recovers(astronaut: Picture, tmp_path: Path) -> None:
    """The folder is replaced by a file, and the file is deleted."""
    folder = tmp_path / "pictures"
    disk = iter(["works", "blocked", "blocked", "works"])

    class Disk(Stage[StageConfig]):
        """Replaces the folder between frames."""

        def process(self, frame: Frame) -> Frame:
            shutil.rmtree(folder, ignore_errors=True)
            if folder.is_file():
                folder.unlink()
            if next(disk) == "blocked":
                folder.write_text("in the way")
            return frame

    stages: list[Any] = [Disk, {"annotate": {"folder": str(folder)}}]
    run = run_pipeline(stages, [frame_with_result(astronaut, n) for n in range(4)], together=False)

    assert [out.sequence for out in run.out if "annotated" in out.meta] == [0, 3]
    assert run.results == [{"detections": [FOUND]}] * 4


def test_pipelines_share_a_folder(astronaut: Picture, tmp_path: Path) -> None:
    """A pipeline does not delete the pictures of another whose name has the same prefix."""
    other = tmp_path / "test-2@cam-00000000.jpg"
    other.write_bytes(b"theirs")

    run_stage(Annotate, [frame_with_result(astronaut, n) for n in range(3)], folder=tmp_path, keep=1)

    assert other.exists()
    assert len(list(tmp_path.iterdir())) == 2


def test_annotate_runs_in_a_pipeline_by_name(photo_bytes: Any, tmp_path: Path) -> None:
    run = run_pipeline(["decode", {"annotate": {"folder": str(tmp_path)}}], [frame(photo_bytes("coffee.png"))])

    assert run.dead == {}
    assert len(list(tmp_path.iterdir())) == 1
