"""Long runs of the same characters are read or refused as quickly as anything else, whatever is in front of them and behind.

A pattern or parser that goes back over what it has read takes minutes for them, and coverage does not show it.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pytest

from .limits import arm, attempt
from .targets import TARGETS

SIZES = {
    "selector": 32_000,
    "texts": 8_000,
    "documents": 200_000,
    "parse": 100_000,
    "manifest": 64_000,
    "configuration": 4_000,
}
"""Characters of each run; YAML takes 10 µs a character even if all is well."""

RUNS = (
    " ",
    "a ",
    "a,",
    "[",
    "{",
    "(",
    '"',
    "\\",
    '\\"',
    "0",
    "-",
    "- ",
    "a: ",
    "&a ",
    "\n",
    "\n ",
    "in (",
    "!a,",
    "nan",
    "'a' ",
)
FRONTS = ("", "a", "[", '{"a":"', "a in (")
BACKS = ("", "b", '"')
CHOICES = {"documents": range(6), "parse": (1, 2, 3, 7, 8)}
"""First bytes that choose a text format."""


@pytest.fixture(autouse=True)
def _armed() -> Iterator[None]:
    with arm():
        yield


@pytest.mark.parametrize("run", RUNS, ids=repr)
@pytest.mark.parametrize("name", SIZES)
def test_a_long_run_takes_no_longer(name: str, run: str) -> None:
    for front, back, choice in product(FRONTS, BACKS, CHOICES.get(name, ("",))):
        text = f"{front}{run * (SIZES[name] // len(run))}{back}"
        attempt(TARGETS[name], (b"" if choice == "" else bytes([int(choice)])) + text.encode())
