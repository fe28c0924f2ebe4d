"""README.md and docs/ are correct: commands run, examples are valid, links resolve."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from hedgerow import configfile

ROOT = Path(__file__).parents[2]
OURS = ("*.md", "docs/**/*.md", "broker/**/*.md", "plugins/*/README.md")
DOCUMENTS = sorted(path.relative_to(ROOT).as_posix() for pattern in OURS for path in ROOT.glob(pattern))
WITH_COMMANDS = [
    name for name in DOCUMENTS if not name.startswith("plugins/") and "```sh" in (ROOT / name).read_text("utf-8")
]
LONG = {  # too many processes for `make test`
    "README.md",
    "docs/author/models.md",
    "docs/operator/distribution.md",
    "docs/operator/models.md",
    "docs/operator/region.md",
    "docs/operator/rollouts.md",
    "docs/operator/topology.md",
    "docs/operator/trust.md",  # tests/docs/test_trust.py runs its commands in one process
}
TO_RUN = [pytest.param(name, marks=pytest.mark.long if name in LONG else ()) for name in WITH_COMMANDS]
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)|(?:src|srcset|href)=\"([^\"]+)\"")
_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", TO_RUN)
def test_the_commands_of_a_document_work_as_described(name: str, reader: Callable[[Path], Any], blocks: Any) -> None:
    """In order, as a reader would type them, with a real broker."""
    runner = reader(ROOT / name)
    for block in blocks(ROOT / name):
        runner.read(block)


@pytest.mark.parametrize("name", WITH_COMMANDS)
def test_blocks_that_are_not_run_have_a_reason(name: str, blocks: Any) -> None:
    for block in blocks(ROOT / name):
        assert block.language != "bash", f"line {block.line}: use `sh`"
        if block.language == "sh" and block.info:
            assert re.match(r"(background: until |fails: \d+$|not-run: \w+ \w+)", block.info), f"line {block.line}"
        if block.language == "text" and block.info:
            assert re.match(r"(background$|not-run: \w+ \w+)", block.info), f"line {block.line}"


@pytest.mark.parametrize("name", [name for name in DOCUMENTS if "```python" in (ROOT / name).read_text("utf-8")])
def test_the_python_of_a_document_runs(name: str, blocks: Any) -> None:
    """Blocks that are not saved as files run in order in one module; functions named test_… are called."""
    namespace: dict[str, Any] = {"__name__": "document"}
    for block in blocks(ROOT / name):
        if block.language != "python" or block.file:  # the commands run the files
            continue
        before = set(namespace)
        exec(compile("\n" * block.line + block.text, name, "exec"), namespace)
        for test in namespace.keys() - before:
            if test.startswith("test_"):
                namespace[test]()


@pytest.mark.parametrize("name", [name for name in DOCUMENTS if not name.startswith("plugins/")])
def test_the_examples_of_a_document_are_valid(name: str, blocks: Any) -> None:
    """YAML is a node's configuration, unless marked `part: …` or `prometheus: …`."""
    for block in blocks(ROOT / name):
        if block.language == "yaml" and not re.search(r"\b(prometheus|part):", block.info):
            configfile.parse(block.text, Path(f"{name}:{block.line}"))
        elif block.language == "yaml":
            assert YAML(typ="safe").load(block.text)
        elif block.language == "json":
            json.loads(block.text)
        elif block.language == "toml":
            tomllib.loads(block.text)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_links_of_a_document_resolve(name: str) -> None:
    """Links name an existing file, and an existing heading in it."""
    text = _FENCED.sub("", (ROOT / name).read_text("utf-8"))
    for target in (match[1] or match[2] for match in _LINK.finditer(text)):
        if re.match(r"https?://|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (ROOT / name).parent / path if path else ROOT / name
        assert linked.exists(), f"{target}: no such file"
        if anchor:
            assert anchor in _anchors(linked), f"{target}: no such heading"


def _anchors(document: Path) -> set[str]:
    headings = re.findall(r"^#+ +(.+)$", _FENCED.sub("", document.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", [name for name in DOCUMENTS if "test_" in (ROOT / name).read_text("utf-8")])
def test_tests_named_in_a_document_exist(name: str) -> None:
    """`tests/bus/test_client.py` is a file; `test_client.py::test_…` a test in it."""
    text = _FENCED.sub("", (ROOT / name).read_text("utf-8"))
    named = re.findall(r"`((?:tests|plugins)/[\w/]+\.py)(?:::(\w+))?`", text)
    assert text.count("::test_") == sum(bool(test) for _, test in named), "write each test as `tests/FILE.py::test_…`"
    for path, test in named:
        assert (ROOT / path).is_file(), path
        if test:
            assert f"def {test}(" in (ROOT / path).read_text("utf-8"), f"{path}::{test}"


def test_the_threat_model_names_all_attempts() -> None:
    text = (ROOT / "docs/operator/threats.md").read_text("utf-8")
    for path in (ROOT / "tests/attacks").glob("test_*.py"):
        assert f"`tests/attacks/{path.name}" in text, path.name
