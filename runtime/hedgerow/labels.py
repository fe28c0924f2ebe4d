"""Labels of nodes, and selectors that choose among them. Pure.

A selector is written as Kubernetes writes label selectors, since operators know that:

    site=shop-12, hardware in (jetson, nuc), !spare, ring!=late

All parts must hold. `key!=value` and `key notin (…)` hold too where a node lacks the label.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from hedgerow.errors import ConfigError

_KEY: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?")
_VALUE: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._:/+-]{0,126}[A-Za-z0-9])?|")
_PART: Final = re.compile(
    r"\s*(?:(?P<absent>!)\s*(?P<lacks>[^\s!=,()]+)"
    r"|(?P<key>[^\s!=,()]+)\s*(?:(?P<equal>==?|!=)\s*(?P<value>[^\s!=,()]*)"
    r"|\s(?P<set>in|notin)\s*\((?P<values>[^()]*)\))?)\s*(?:,|$)"
)
_REMEDY: Final = (
    "Write parts with commas between: `site=shop-12`, `hardware in (jetson, nuc)`, `ring!=late`, `camera`, `!spare`."
)

Labels = Mapping[str, str]
"""A node's labels: key → value."""


@dataclass(frozen=True, slots=True)
class Requirement:
    """One part of a selector."""

    key: str
    is_: Literal["in", "notin", "present", "absent"]
    values: frozenset[str] = frozenset()

    def holds(self, labels: Labels) -> bool:
        """Whether a node with these labels fits."""
        value = labels.get(self.key)
        match self.is_:
            case "present":
                return value is not None
            case "absent":
                return value is None
            case "in":
                return value in self.values
        return value not in self.values

    def __str__(self) -> str:
        match self.is_:
            case "present":
                return self.key
            case "absent":
                return f"!{self.key}"
        match sorted(self.values):
            case [value]:
                return f"{self.key}{'=' if self.is_ == 'in' else '!='}{value}"
            case values:
                return f"{self.key} {self.is_} ({', '.join(values)})"


@dataclass(frozen=True, slots=True)
class Selector:
    """Chooses nodes by their labels; an empty one chooses all."""

    requirements: tuple[Requirement, ...] = ()

    def matches(self, labels: Labels) -> bool:
        """Whether a node with these labels is chosen."""
        return all(requirement.holds(labels) for requirement in self.requirements)

    def why_not(self, labels: Labels) -> str | None:
        """The first part that does not hold, and what the node has instead; None: it is chosen."""
        for requirement in self.requirements:
            if not requirement.holds(labels):
                value = labels.get(requirement.key)
                return f"{requirement}, and the node has {'no such label' if value is None else f'{value!r}'}"
        return None

    def __str__(self) -> str:
        return ", ".join(map(str, self.requirements))


def parse_selector(text: str) -> Selector:
    """Read a selector.

    Raises: ConfigError: it is none; the message says from where on.
    """
    requirements: list[Requirement] = []
    position = 0
    while position < len(text.rstrip()):
        part = _PART.match(text, position)
        if part is None:
            raise ConfigError(f"{text!r} is no label selector, from {text[position:]!r} on", remedy=_REMEDY)
        requirements.append(_requirement(part, text))
        position = part.end()
    if text.rstrip().endswith(","):
        raise ConfigError(f"{text!r} is no label selector: nothing follows the last comma", remedy=_REMEDY)
    return Selector(tuple(requirements))


def check_labels(labels: Labels) -> Labels:
    """Check labels and give them back.

    Raises: ConfigError: a key or a value is none.
    """
    for key, value in labels.items():
        if not _KEY.fullmatch(key):
            raise ConfigError(
                f"{key[:80]!r} is no key of a label",
                remedy="Use 1 to 63 letters, digits, `.`, `_`, `-` or `/`, with a letter or digit at both ends.",
            )
        if not _VALUE.fullmatch(value):
            raise ConfigError(
                f"{value[:80]!r} is no value of a label ({key})",
                remedy="Use at most 128 letters, digits, `.`, `_`, `-`, `:`, `/` or `+`, with a letter or digit at both ends.",
            )
    return labels


def _requirement(part: re.Match[str], text: str) -> Requirement:
    key = part["lacks"] or part["key"]
    values: Sequence[str] = ()
    if part["absent"]:
        kind: Literal["in", "notin", "present", "absent"] = "absent"
    elif part["equal"]:
        kind, values = ("notin" if part["equal"] == "!=" else "in"), (part["value"],)
    elif part["set"]:
        kind = "notin" if part["set"] == "notin" else "in"
        values = [value.strip() for value in part["values"].split(",")]
    else:
        kind = "present"
    try:
        for value in values or [""]:
            check_labels({key: value})
    except ConfigError as error:
        raise ConfigError(f"{text!r} is no label selector: {error}", remedy=error.remedy) from error
    return Requirement(key, kind, frozenset(values))
