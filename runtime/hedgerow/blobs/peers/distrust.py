"""Leaves out peers that harm a fetch, each time for longer. Pure: no clock.

It outlives a fetch, so that a peer cannot start over with each version.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

DISTRUST_S: Final = 120.0
"""How long a peer is left out the first time."""
_MAX_DISTRUST_S: Final = 3600.0
_FORGET_S: Final = 4 * 3600.0
"""A peer that was not left out for this long starts over."""
_MAX_PEERS: Final = 1024
"""Limit on peers remembered; those left out first are forgotten first."""


@dataclass(slots=True)
class _PeerRecord:
    until: float
    times: int


class PeerDistrust:
    """The peers that this node leaves out."""

    def __init__(self) -> None:
        self._records: OrderedDict[str, _PeerRecord] = OrderedDict()

    def leave_out(self, name: str, now: float) -> float:
        """Leave a peer out, unless it is already. Returns: for how many seconds; 0: it is left out already."""
        known = self._records.pop(name, None)
        if known is not None and known.until > now:
            self._records[name] = known
            return 0.0
        times = 1 if known is None or now - known.until >= _FORGET_S else known.times + 1
        seconds: float = min(DISTRUST_S * 2.0 ** (times - 1), _MAX_DISTRUST_S)
        self._records[name] = _PeerRecord(now + seconds, times)
        if len(self._records) > _MAX_PEERS:
            self._records.popitem(last=False)
        return seconds

    def includes(self, name: str, now: float) -> bool:
        """Return whether a peer is left out."""
        record = self._records.get(name)
        return record is not None and record.until > now

    def names(self, now: float, most: int) -> tuple[str, ...]:
        """Return the peers left out, at most `most`."""
        return tuple(name for name, record in self._records.items() if record.until > now)[:most]
