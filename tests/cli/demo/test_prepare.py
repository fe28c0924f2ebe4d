"""What the demos do without where a model or the recordings are not to be had."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hedgerow import configfile
from hedgerow.cli.demo import feeds
from hedgerow.cli.demo.feeds import demo_feeds
from hedgerow.cli.demo.prepare import prepare, reasons, say_skipped, without

TEMPLATES = Path(feeds.__file__).parent / "templates"


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A demo's folder on a machine without npm, recordings, or models that set-up has fetched. Those made here are there."""
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "no-environment"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(feeds, "_RECORDINGS", (tmp_path / "no-recordings",))
    out = tmp_path / "out"
    (out / "models").mkdir(parents=True)
    for made in ("vibration.onnx", "shuttle.onnx"):
        (out / "models" / made).write_bytes(b"made earlier")
    return out


def test_a_pipeline_whose_model_or_recordings_cannot_be_had_is_skipped_with_all_that_is_its_own(bare: Path) -> None:
    skipped = prepare(bare, "node.yaml")

    assert reasons(skipped) == {
        "street": "npm is not installed",
        "speech": "The recordings of speech are not installed",
    }
    whole = configfile.load(TEMPLATES / "demo.yaml")
    config = configfile.load(bare / "node.yaml")
    assert config.pipelines.keys() == whole.pipelines.keys() - {"street", "speech"}
    assert config.models.keys() == whole.models.keys() - {"street"}
    assert {feed.topic.partition("/")[0] for feed in demo_feeds(skipped)} == {"office", "orbiter", "plant"}


def test_each_skipped_pipeline_is_told_in_a_line_with_its_remedy(bare: Path) -> None:
    lines: list[str] = []
    say_skipped(prepare(bare, "node.yaml"), lines.append)

    street, speech = lines
    assert street == "Skipping street: npm is not installed. → `apt-get install npm` as root, or do without this model."
    assert speech.startswith("Skipping speech: The recordings of speech are not installed. → `apt-get install pocket")


def test_a_half_written_detector_is_not_taken_for_whole(bare: Path) -> None:
    for name in ("ssd_mobilenetv2_oidv4.tflite", "ssd_mobilenetv2_oidv4.txt"):
        (bare / "models" / name).write_bytes(b"the beginning of it")

    assert "street" in prepare(bare, "node.yaml")


def test_a_file_that_set_up_was_still_writing_is_not_taken(bare: Path) -> None:
    kept = Path(sys.prefix) / "models"
    kept.mkdir(parents=True)
    (kept / "labels.txt").write_text("whole")
    (kept / "other.txt.new").write_text("ha")

    prepare(bare, "node.yaml")

    assert (bare / "models" / "labels.txt").read_text() == "whole"
    assert not list((bare / "models").glob("other*"))


@pytest.mark.parametrize("template", ["demo.yaml", "demo-region.yaml"])
def test_what_is_cut_out_of_a_template_is_an_entry_and_its_comment(template: str) -> None:
    text = (TEMPLATES / template).read_text("utf-8")
    cut = without(text, ["street"])

    assert without(text, []) == text
    gone = [line for line in text.splitlines() if line not in cut.splitlines()]
    assert any(line.startswith("  street:") for line in gone)
    assert all(line.startswith("  ") for line in gone)
    assert "street:" not in cut
