"""Tells a broker that ended from one that ended a single link, by what all sessions of this process see of it.

A broker that refuses a message closes the link that brought it, and goes on. When it restarts, it ends all links at once, and
refuses connections until it is back.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from typing import Final

_TOGETHER_S: Final = 0.2
"""Links that end within this time have ended together."""


@dataclass(slots=True)
class _Seen:
    """What the sessions have seen of one broker, in monotonic seconds.

    Attributes:
        up: when each session's present link began, or its last one if it has none.
        ended: when that ended.
        refused: when it last refused a connection.
    """

    up: dict[int, float] = field(default_factory=dict)
    ended: dict[int, float] = field(default_factory=dict)
    refused: float = 0.0


_brokers: Final[dict[str, _Seen]] = {}
"""By URL; as many as have sessions."""


def link_up(url: str, session: int, at: float) -> None:
    """Note that the broker accepted a session, which `id` names."""
    seen = _brokers.setdefault(url, _Seen())
    seen.up[session] = at
    seen.ended.pop(session, None)


def link_ended(url: str, session: int, at: float) -> None:
    """Note that its link ended."""
    if url in _brokers:
        _brokers[url].ended[session] = at


def connection_failed(url: str, error: BaseException | None, at: float) -> None:
    """Note why a connection could not be opened: a broker that is not there has ended."""
    if url in _brokers and isinstance(error, OSError):
        refused = (errno.ECONNREFUSED, errno.ENOENT)
        if error.errno in refused or f"[Errno {errno.ECONNREFUSED}]" in str(error):  # of several addresses
            _brokers[url].refused = at


def session_left(url: str, session: int) -> None:
    """Forget a session that is closed."""
    seen = _brokers.get(url)
    if seen is None:
        return
    seen.up.pop(session, None)
    seen.ended.pop(session, None)
    if not seen.up:
        del _brokers[url]


def restarted(url: str, session: int, ended_at: float) -> bool:
    """Whether the broker itself ended when it ended this session's link, as far as the sessions can tell by now."""
    seen = _brokers.get(url)
    if seen is None:
        return False
    if seen.refused >= ended_at:
        return True
    others = [(up, seen.ended.get(each)) for each, up in seen.up.items() if each != session]
    earlier = [ended for up, ended in others if up < ended_at]  # a link that began later has replaced one that ended
    if any(ended is None or ended > ended_at + _TOGETHER_S for ended in earlier):
        return False  # a link lived on
    return len(earlier) < len(others) or any(ended is not None and ended > ended_at - _TOGETHER_S for ended in earlier)
