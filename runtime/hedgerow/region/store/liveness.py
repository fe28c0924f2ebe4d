"""Status of a node, derived from what the region last received from it. Pure.

A connection's own state is not trusted. A node is judged by when anything last arrived from it, and by its replies to pings
that travel all the way to it and back.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

_MAX_UNANSWERED: Final = 2
"""Consecutive unanswered pings that make a node one-way; a single one may be lost with a link."""


class Liveness(StrEnum):
    """Status of a node."""

    OK = "ok"
    DEGRADED = "degraded"
    """Its own health report says that something is wrong."""
    ONE_WAY = "one-way"
    """Its messages arrive, but it answers no pings: the path down, or its own link, carries nothing."""
    SILENT = "silent"
    """Nothing has arrived from it for too long, and it did not go offline."""
    OFFLINE = "offline"
    """Its broker lost the connection to it and published its will: it crashed, lost power, or its network failed."""
    STOPPED = "stopped"
    """It said that it stops, and did."""
    UNKNOWN = "unknown"
    """Only messages that a broker retained are known of it."""

    @property
    def old_name(self) -> str:
        """The deprecated name, still used by the JSON key and the metric label `verdict`."""
        old = {Liveness.DEGRADED: "troubled", Liveness.ONE_WAY: "deaf", Liveness.STOPPED: "offline"}
        return old.get(self, self.value)

    @property
    def needs_help(self) -> bool:
        """Whether an operator should look: in every status but ok and stopped."""
        return self not in (Liveness.OK, Liveness.STOPPED)


class NodeStatus(NamedTuple):
    """Status of a node, how often it ended without saying so, and which of its name, key and state another process uses too."""

    liveness: Liveness
    crashes: int
    twins: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Signs:
    """What is known of a node. Times are Unix seconds.

    Attributes:
        online: from its last status message; None: none was received.
        stopped: whether it said itself that it goes offline.
        last_seen: when anything last arrived from it.
        health_state, health_reasons: from its last health report.
        last_reply: when it last replied to a ping.
        unanswered: consecutive pings without a reply.
        name_in_use: that another process has its name; "" if none has.
    """

    online: bool | None
    stopped: bool
    last_seen: float | None
    health_state: str | None
    health_reasons: str
    last_reply: float | None
    unanswered: int
    name_in_use: str = ""


def judge(signs: Signs, now: float, silent_after_s: float) -> tuple[Liveness, str]:
    """Return a node's status, and the reason unless it is ok.

    Args:
        signs: what is known of the node.
        now: Unix seconds; when the collector last stored anything, for stored data.
        silent_after_s: longest normal silence.
    """
    if signs.online is False:
        if signs.stopped:
            return Liveness.STOPPED, "it was stopped"
        return Liveness.OFFLINE, "its broker lost the connection to it: it crashed, lost power, or its network failed"
    if signs.last_seen is None:
        return Liveness.UNKNOWN, "nothing received from it since the collector started"
    if (silence_s := now - signs.last_seen) > silent_after_s:
        return Liveness.SILENT, f"nothing received for {format_duration(silence_s)}"
    if signs.unanswered >= _MAX_UNANSWERED:
        reply = (
            "no reply yet" if signs.last_reply is None else f"last reply {format_duration(now - signs.last_reply)} ago"
        )
        return Liveness.ONE_WAY, f"{signs.unanswered} pings unanswered, {reply}"
    if signs.name_in_use:
        return Liveness.DEGRADED, signs.name_in_use
    if signs.health_state not in (None, "ok"):
        return Liveness.DEGRADED, f"{signs.health_state}: {signs.health_reasons}".removesuffix(": ")
    return Liveness.OK, ""


def format_duration(seconds: float) -> str:
    """Return a duration for humans, in the largest unit that fits twice: `5.0 s`, `3 min`, `2 h`, `4 d`."""
    for unit, length in (("d", 86_400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
