"""Generated tables in docs/ are current, and documents cover the names in the code."""

from __future__ import annotations

import importlib.util
import inspect
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import ModuleType

import pytest

from hedgerow.node.command_handlers import CommandHandlers
from hedgerow.telemetry.tally import DropReason

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
RUNTIME = ROOT / "runtime" / "hedgerow"


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_tables_are_current(generate: ModuleType) -> None:
    """If not: `python docs/generate.py`."""
    assert [path.name for path, _ in generate.stale()] == []


def test_every_table_is_used_and_every_placeholder_has_a_table(generate: ModuleType) -> None:
    text = "".join(path.read_text("utf-8") for path in DOCS.rglob("*.md"))

    assert set(re.findall(r"^<!-- generated: ([\w-]+) -->$", text, re.MULTILINE)) == set(generate.tables())


@pytest.mark.parametrize("module", sorted(RUNTIME.rglob("*.py")), ids=lambda path: str(path.relative_to(RUNTIME)))
def test_a_module_has_a_summary_that_says_what_it_is_or_does(generate: ModuleType, module: Path) -> None:
    """In one sentence: the architecture page lists it, for those who look for a file."""
    summary = generate.summary(module)

    assert summary.endswith(".")
    assert len(summary) <= 150
    assert summary.split()[0] not in {"How", "What", "When", "Where", "Whether", "Which", "Who"}


def test_alerts_use_existing_metrics(generate: ModuleType) -> None:
    text = (DOCS / "operator" / "health-and-metrics.md").read_text("utf-8")
    rules = re.search(r"```yaml prometheus.*?```", text, re.DOTALL)
    assert rules is not None
    metrics = set(re.findall(r"hedgerow_\w+", generate.metric_table())) | {"hedgerow_latency_seconds_bucket"}

    assert set(re.findall(r"hedgerow_\w+", rules[0])) <= metrics


def test_every_drop_reason_has_advice() -> None:
    text = (DOCS / "operator" / "delivery.md").read_text("utf-8")
    advice = text.partition("What to do about each:")[2].partition("## Dead letters")[0]

    assert [reason for reason in DropReason if f"`{reason}`" not in advice] == []


def test_every_dead_letter_code_has_advice() -> None:
    """Only codes of dead letters; those of commands, configuration and model loading are documented elsewhere."""
    text = (DOCS / "operator" / "delivery.md").read_text("utf-8")
    advice = text.partition("## Dead letters")[2].partition("## When things restart")[0]
    raised = set()
    for folder in ("pipeline", "stages", "wire"):
        for path in (ROOT / "runtime" / "hedgerow" / folder).rglob("*.py"):
            raised |= set(re.findall(r"code\s*=\s*\"([a-z-]+)\"", path.read_text("utf-8")))
    elsewhere = {"unreadable-payload", "internal", "worker-not-started"}  # of result consumers; of the node itself

    assert [code for code in sorted(raised - elsewhere) if f"`{code}`" not in advice] == []


def test_every_command_is_documented() -> None:
    text = (DOCS / "operator" / "commands.md").read_text("utf-8")
    names = re.findall(r"\"(\w+)\": self\.\w+", inspect.getsource(CommandHandlers.handlers))

    assert "ping" in names
    assert [name for name in names if f"`{name}`" not in text] == []


def test_every_kind_of_event_is_documented() -> None:
    text = (DOCS / "operator" / "health-and-metrics.md").read_text("utf-8")
    kinds = set()
    for path in (ROOT / "runtime" / "hedgerow").rglob("*.py"):
        kinds |= set(re.findall(r"event\(\s*\"([a-z-]+)\"", path.read_text("utf-8")))

    assert "reloaded" in kinds
    assert [kind for kind in sorted(kinds) if f"`{kind}`" not in text] == []


@pytest.mark.parametrize("path", sorted(DOCS.rglob("*.svg")), ids=lambda path: path.name)
def test_a_drawing_has_a_title_and_a_description(path: Path) -> None:
    """Drawings are well-formed and have a title and a description."""
    drawing = ElementTree.parse(path).getroot()
    space = "{http://www.w3.org/2000/svg}"

    assert drawing.findtext(f"{space}title")
    assert drawing.findtext(f"{space}desc")
