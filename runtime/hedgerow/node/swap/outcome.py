"""Reports of a swap: its steps and its outcome."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hedgerow.errors import ModelError

OnStep = Callable[[str, float | None], None]
"""Called with each step and its progress: 0..1, or None if unknown."""


@dataclass(frozen=True, slots=True)
class SwapOutcome:
    """Outcome of a swap.

    Attributes:
        kept: whether the new version was kept.
        code: why not, in kebab-case; empty if it was kept.
        reason: why not, as a sentence.
        remedy: what to do about it.
        served: whether the new version served live frames.
        measures: measures of the last step, and `gap_s`: seconds in which no version served.
    """

    kept: bool
    code: str = ""
    reason: str = ""
    remedy: str = ""
    served: bool = False
    measures: Mapping[str, Any] = field(default_factory=dict)


class SwapRefused(ModelError):
    """A version did not pass a step of its swap."""

    def __init__(self, code: str, message: str, remedy: str) -> None:
        super().__init__(message, remedy=remedy)
        self.code = code
