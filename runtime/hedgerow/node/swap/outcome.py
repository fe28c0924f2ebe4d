"""What a swap reports: each step on its way, and how it ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hedgerow.errors import ModelError

OnStep = Callable[[str, float | None], None]
"""Told of each step and its progress, 0..1 or None if it is unknown."""


@dataclass(frozen=True, slots=True)
class SwapOutcome:
    """How a swap ended.

    Attributes:
        kept: whether the new version serves from now on.
        code: why not, kebab-case; empty if it does.
        reason: the same as a sentence.
        remedy: what to do about it.
        served: whether it gave live results before it was rolled back.
        measures: what was measured: in the last step, and `gap_s`, seconds in which nothing served.
    """

    kept: bool
    code: str = ""
    reason: str = ""
    remedy: str = ""
    served: bool = False
    measures: Mapping[str, Any] = field(default_factory=dict)


class SwapRefused(ModelError):
    """A version may not go on to the next step of its swap."""

    def __init__(self, code: str, message: str, remedy: str) -> None:
        super().__init__(message, remedy=remedy)
        self.code = code
