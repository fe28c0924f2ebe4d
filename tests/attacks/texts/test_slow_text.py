"""Texts that once took minutes: selectors are matched in linear time, and files that expand are refused before they do."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hedgerow.configfile import BadConfigFile, Document
from hedgerow.errors import ConfigError
from hedgerow.labels import parse_selector

_FAR_TOO_LONG_S = 20.0
"""CPU seconds; each took minutes or for ever, and takes milliseconds."""


def cpu_s(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


@pytest.mark.parametrize(
    "text",
    [
        "a" + " " * 4000 + "!",
        "a" + " " * 100_000 + "!",
        "a in" + " " * 4000 + "x",
        "a in (" + " " * 4000,
        "a" * 4000 + "!",
        "a=" + "b" * 3000 + " " * 900 + "(",
        "!" + " " * 4000,
        "a," * 2000,
        ("a," * 100)[:-1],
    ],
    ids=lambda text: f"{text[:6]}…{len(text)}",
)
def test_a_selector_is_parsed_or_refused_at_once(text: str) -> None:
    def parse() -> None:
        with pytest.raises(ConfigError):
            parse_selector(text)

    assert cpu_s(parse) < _FAR_TOO_LONG_S


def lists(levels: int) -> str:
    names = [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels)]
    return "\n".join(["a0: &a0 [x]", *names])


def merges(levels: int) -> str:
    names = [f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}], k{n}: 1}}" for n in range(1, levels)]
    return "\n".join(["a0: &a0 {x: 1}", *names])


WIDE = (
    "a: &a {" + ", ".join(f"k{n}: 1" for n in range(2000)) + "}\n" + "\n".join(f"b{n}: {{<<: *a}}" for n in range(2000))
)


@pytest.mark.parametrize(
    "text",
    [
        lists(40),
        merges(40),
        WIDE,
        "a: &a [*a]",
        "a: &a {<<: *a}",
        "a: [" + "1," * 200_000 + "]",
        "\n".join(f"k{n}: 1" for n in range(200_000)),
        "#" + "x" * (2 << 20),
        "[" * 10_000,
    ],
    ids=["lists", "merges", "wide-merges", "itself", "merges-itself", "long-list", "long-map", "long-file", "deep"],
)
def test_a_file_that_expands_is_refused_before_it_does(text: str) -> None:
    def read() -> None:
        with pytest.raises(BadConfigFile):
            Document(text, Path("node.yaml"))

    assert cpu_s(read) < _FAR_TOO_LONG_S


def test_references_in_moderation_are_allowed() -> None:
    text = "a: &a {x: 1, y: [1, 2]}\n" + "\n".join(f"b{n}: {{<<: *a, z: {n}}}" for n in range(100))

    assert Document(text, Path("node.yaml")).content["b99"] == {"x": 1, "y": [1, 2], "z": 99}
