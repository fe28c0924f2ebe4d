"""Demos skip pipelines whose model or recordings are unavailable."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hedgerow import configfile
from hedgerow.cli.demo import feeds
from hedgerow.cli.demo.feeds import demo_feeds
from hedgerow.cli.demo.prepare import log_skipped, prepare, reasons, without

TEMPLATES = Path(feeds.__file__).parent / "templates"


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A demo's folder with the trained models, on a machine without npm, recordings and fetched models."""
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "no-environment"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(feeds, "_RECORDINGS", (tmp_path / "no-recordings",))
    out = tmp_path / "out"
    (out / "models").mkdir(parents=True)
    for model in ("vibration.onnx", "shuttle.onnx"):
        (out / "models" / model).write_bytes(b"trained earlier")
    return out


def test_an_unavailable_pipeline_is_skipped_with_its_model_and_sensors(bare: Path) -> None:
    skipped = prepare(bare, "node.yaml")

    assert reasons(skipped) == {
        "street": "npm is not installed",
        "speech": "The speech recordings are not installed",
    }
    whole = configfile.load(TEMPLATES / "demo.yaml")
    config = configfile.load(bare / "node.yaml")
    assert config.pipelines.keys() == whole.pipelines.keys() - {"street", "speech"}
    assert config.models.keys() == whole.models.keys() - {"street"}
    assert {feed.topic.partition("/")[0] for feed in demo_feeds(skipped)} == {"office", "orbiter", "plant"}


def test_each_skipped_pipeline_is_logged_with_its_remedy(bare: Path) -> None:
    lines: list[str] = []
    log_skipped(prepare(bare, "node.yaml"), lines.append)

    street, speech = lines
    assert street == "Skipping street: npm is not installed. → `apt-get install npm` as root, or do without this model."
    assert speech.startswith("Skipping speech: The speech recordings are not installed. → Run `apt-get install pocket")


def test_a_truncated_detector_is_not_used(bare: Path) -> None:
    for name in ("ssd_mobilenetv2_oidv4.tflite", "ssd_mobilenetv2_oidv4.txt"):
        (bare / "models" / name).write_bytes(b"the beginning of it")

    assert "street" in prepare(bare, "node.yaml")


def test_a_file_that_the_set_up_is_still_writing_is_not_copied(bare: Path) -> None:
    installed = Path(sys.prefix) / "models"
    installed.mkdir(parents=True)
    (installed / "labels.txt").write_text("complete")
    (installed / "other.txt.new").write_text("incomp")

    prepare(bare, "node.yaml")

    assert (bare / "models" / "labels.txt").read_text() == "complete"
    assert not list((bare / "models").glob("other*"))


@pytest.mark.parametrize("template", ["demo.yaml", "demo-region.yaml"])
def test_only_the_named_entries_and_their_comments_are_removed_from_a_template(template: str) -> None:
    text = (TEMPLATES / template).read_text("utf-8")
    shortened = without(text, ["street"])

    assert without(text, []) == text
    removed = [line for line in text.splitlines() if line not in shortened.splitlines()]
    assert any(line.startswith("  street:") for line in removed)
    assert all(line.startswith("  ") for line in removed)
    assert "street:" not in shortened


def test_removing_an_entry_keeps_the_comments_and_layout_of_the_others() -> None:
    text = (
        "# About the file.\n"
        "node: {site: a}\n"
        "\n"
        "# About the section.\n"
        "pipelines:\n"
        "  # About b.\n"
        "  b:\n"
        "    stages: [x]\n"
        "\n"
        "  # About c,\n"
        "  # in two lines.\n"
        "  c: {stages: [y]}\n"
        "\n"
        "# About the end.\n"
        "end: true\n"
    )

    assert without(text, ["b"]) == text.replace("  # About b.\n  b:\n    stages: [x]\n\n", "")
    assert without(text, ["c"]) == text.replace("  # About c,\n  # in two lines.\n  c: {stages: [y]}\n\n", "")
    assert without(text, ["site", "end", "node", "nothing"]) == text
