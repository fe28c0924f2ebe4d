"""Labels of nodes, and selectors that match them. Pure.

Selectors use the syntax of Kubernetes label selectors:

    site=shop-12, hardware in (jetson, nuc), !spare, ring!=late

A node must meet every requirement. `key!=value` and `key notin (…)` also match nodes without the label.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from hedgerow.errors import ConfigError

_KEY: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?")
_VALUE: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._:/+-]{0,126}[A-Za-z0-9])?|")
# Possessive throughout, so that matching takes linear time whatever the text.
_PART: Final = re.compile(
    r"\s*+(?:(?P<absent>!)\s*+(?P<lacks>[^\s!=,()]++)"
    r"|(?P<key>[^\s!=,()]++)(?:\s*+(?P<equal>==?+|!=)\s*+(?P<value>[^\s!=,()]*+)"
    r"|\s++(?P<set>in|notin)\s*+\((?P<values>[^()]*+)\))?+)\s*+(?:,|$)"
)
_LONGEST: Final = 4096
_MOST_REQUIREMENTS: Final = 64
_REMEDY: Final = (
    "Separate requirements by commas: `site=shop-12, hardware in (jetson, nuc), ring!=late, camera, !spare`."
)

Labels = Mapping[str, str]
"""A node's labels: key → value."""


@dataclass(frozen=True, slots=True)
class Requirement:
    """One requirement of a selector."""

    key: str
    operator: Literal["in", "notin", "present", "absent"]
    values: frozenset[str] = frozenset()

    def holds(self, labels: Labels) -> bool:
        """Whether a node with these labels meets the requirement."""
        value = labels.get(self.key)
        match self.operator:
            case "present":
                return value is not None
            case "absent":
                return value is None
            case "in":
                return value in self.values
        return value not in self.values

    def __str__(self) -> str:
        match self.operator:
            case "present":
                return self.key
            case "absent":
                return f"!{self.key}"
        match sorted(self.values):
            case [value]:
                return f"{self.key}{'=' if self.operator == 'in' else '!='}{value}"
            case values:
                return f"{self.key} {self.operator} ({', '.join(values)})"


@dataclass(frozen=True, slots=True)
class Selector:
    """Selects nodes by their labels; an empty selector selects all."""

    requirements: tuple[Requirement, ...] = ()

    def matches(self, labels: Labels) -> bool:
        """Whether a node with these labels is selected."""
        return all(requirement.holds(labels) for requirement in self.requirements)

    def why_not(self, labels: Labels) -> str | None:
        """Return the first requirement that is not met, and the node's label; None if the node is selected."""
        for requirement in self.requirements:
            if not requirement.holds(labels):
                value = labels.get(requirement.key)
                return f"{requirement}, but the node has {'no such label' if value is None else f'{value!r}'}"
        return None

    def __str__(self) -> str:
        return ", ".join(map(str, self.requirements))


def parse_selector(text: str) -> Selector:
    """Parse a selector.

    Raises: ConfigError: the text is not a selector; the message has the position of the error.
    """
    if len(text) > _LONGEST:
        raise ConfigError(
            f"A label selector of {len(text):,} characters is too long; at most {_LONGEST:,}", remedy=_REMEDY
        )
    requirements: list[Requirement] = []
    position, end = 0, len(text.rstrip())
    while position < end:
        part = _PART.match(text, position)
        if part is None:
            raise ConfigError(f"{text!r} is not a label selector: syntax error at {text[position:]!r}", remedy=_REMEDY)
        requirements.append(_requirement(part, text))
        position = part.end()
    if text[:end].endswith(","):
        raise ConfigError(f"{text!r} is not a label selector: it ends with a comma", remedy=_REMEDY)
    if len(requirements) > _MOST_REQUIREMENTS:
        raise ConfigError(
            f"A label selector of {len(requirements)} requirements is too long; at most {_MOST_REQUIREMENTS}",
            remedy="Set a label on the nodes that you mean, and select that.",
        )
    return Selector(tuple(requirements))


def check_labels(labels: Labels) -> Labels:
    """Validate labels and return them.

    Raises: ConfigError: a key or value is invalid.
    """
    for key, value in labels.items():
        if not _KEY.fullmatch(key):
            raise ConfigError(
                f"{key[:80]!r} is not a valid label key",
                remedy="Use 1 to 63 letters, digits, `.`, `_`, `-` or `/`, beginning and ending with a letter or digit.",
            )
        if not _VALUE.fullmatch(value):
            raise ConfigError(
                f"{value[:80]!r} is not a valid value of label {key}",
                remedy="Use at most 128 letters, digits, `.`, `_`, `-`, `:`, `/` or `+`, beginning and ending with a letter or digit.",
            )
    return labels


def _requirement(part: re.Match[str], text: str) -> Requirement:
    key = part["lacks"] or part["key"]
    values: Sequence[str] = ()
    if part["absent"]:
        operator: Literal["in", "notin", "present", "absent"] = "absent"
    elif part["equal"]:
        operator, values = ("notin" if part["equal"] == "!=" else "in"), (part["value"],)
    elif part["set"]:
        operator = "notin" if part["set"] == "notin" else "in"
        values = [value.strip() for value in part["values"].split(",")]
    else:
        operator = "present"
    try:
        for value in values or [""]:
            check_labels({key: value})
    except ConfigError as error:
        raise ConfigError(f"{text!r} is not a label selector: {error}", remedy=error.remedy) from error
    return Requirement(key, operator, frozenset(values))
