"""How a node is, from what is known of it. Pure.

A node is judged by what came of it and not by what any connection says of itself: when it was last heard, and whether it
answers pings that go all the way to it and back.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

_UNANSWERED: Final = 2
"""Pings in a row without an answer before a way counts as broken; one may be lost with a link."""


class Liveness(StrEnum):
    """How a node is."""

    OK = "ok"
    TROUBLED = "troubled"
    """It says itself that something is wrong."""
    DEAF = "deaf"
    """It is heard, and does not answer: the way down carries nothing, or its own link does not."""
    SILENT = "silent"
    """Nothing was heard of it for long, and it never said goodbye."""
    OFFLINE = "offline"
    """It said goodbye, or its broker said so for it."""
    UNKNOWN = "unknown"
    """Only what a broker had kept is known of it."""


@dataclass(frozen=True, slots=True)
class Signs:
    """What is known of a node. Times are Unix seconds.

    Attributes:
        online: what its last status says; None: there was none.
        heard_at: when something came of it.
        health_state, health_reasons: of its last health report.
        answered_at: when it last answered a ping.
        unanswered: pings in a row that it did not answer.
    """

    online: bool | None
    heard_at: float | None
    health_state: str | None
    health_reasons: str
    answered_at: float | None
    unanswered: int


def judge(signs: Signs, now: float, silent_after_s: float) -> tuple[Liveness, str]:
    """How a node is, and why.

    Args:
        now: Unix seconds; of what is stored, when the collector last stored something.
        silent_after_s: longest silence of one that is well.
    """
    if signs.online is False:
        return Liveness.OFFLINE, "said goodbye, or its broker did for it"
    if signs.heard_at is None:
        return Liveness.UNKNOWN, "nothing came of it since the collector has been there"
    if (silence_s := now - signs.heard_at) > silent_after_s:
        return Liveness.SILENT, f"nothing came for {spell(silence_s)}"
    if signs.unanswered >= _UNANSWERED:
        since = "never answered" if signs.answered_at is None else f"last answered {spell(now - signs.answered_at)} ago"
        return Liveness.DEAF, f"{signs.unanswered} pings unanswered, {since}"
    if signs.health_state not in (None, "ok"):
        return Liveness.TROUBLED, f"{signs.health_state}: {signs.health_reasons}".removesuffix(": ")
    return Liveness.OK, ""


def spell(seconds: float) -> str:
    """A time as people say it: `5 s`, `3 min`, `2 h`, `4 d`."""
    for unit, length in (("d", 86_400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
