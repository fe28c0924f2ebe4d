"""Throttle of what repeats: the first of a kind passes at once, then the last of each minute, with a count. No clock.

Log lines and events that can occur per frame or per message go through it, so that a storm costs a line a minute.
"""

from __future__ import annotations

import re
import threading
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeAlias, TypeVar

EVERY_S: Final = 60.0
"""Shortest time between two reports of one kind."""

_MOST_PER_NAME: Final = 20
"""Kinds of one name that are told apart at the same time; more are counted together."""

_TEXTS: Final = frozenset({"detail", "error", "exception", "message", "reason", "reasons", "remedy", "topic"})
"""Fields of free text, where numbers do not make another kind."""
_NUMBERS: Final = re.compile(r"\b[0-9a-f]{8,}\b|\d+")

Kind: TypeAlias = tuple[str, ...]
T = TypeVar("T")


def kind_of(name: str, fields: Mapping[str, Any]) -> Kind:
    """Return the kind of a log line or event: its name, and its fields that do not change with every occurrence.

    Numbers do not make a kind, and texts do only where no field `place` says which line of code it is about.
    """
    kind = [name]
    for field, value in fields.items():
        if isinstance(value, (int, float)) or (field in _TEXTS and "place" in fields):
            continue
        text = str(value)[:200]
        kind.append(_NUMBERS.sub("#", text) if field in _TEXTS else text)
    return tuple(kind)


@dataclass(slots=True)
class _Repeats(Generic[T]):
    """What was held back of a kind since it last passed; `since` in monotonic seconds."""

    since: float
    count: int = 0
    last: T | None = None


class Throttle(Generic[T]):
    """Decides what passes. Thread-safe."""

    def __init__(self) -> None:
        self._kinds: OrderedDict[Kind, _Repeats[T]] = OrderedDict()  # by `since`
        self._per_name: Counter[str] = Counter()
        self._lock = threading.Lock()

    def admit(self, kind: Kind, item: T, now: float) -> int | None:
        """Return whether an item passes.

        Args:
            kind: its kind, which begins with its name.
            item: kept until `due` returns it, if it is the last of its kind that is held back.
            now: monotonic seconds.
        Returns: how many of its kind it stands for: itself, and those held back before it; None if it is held back.
        """
        with self._lock:
            if kind not in self._kinds and self._per_name[kind[0]] >= _MOST_PER_NAME:
                kind = (kind[0], "…")
            repeats = self._kinds.get(kind)
            if repeats is not None and now - repeats.since < EVERY_S:
                repeats.count += 1
                repeats.last = item
                return None
            if repeats is not None:
                del self._kinds[kind]
            else:
                self._per_name[kind[0]] += 1
            self._kinds[kind] = _Repeats(now)
            return 1 if repeats is None else repeats.count + 1

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._kinds.clear()
            self._per_name.clear()

    def due(self, now: float, *, final: bool = False) -> list[tuple[T, int]]:
        """Return the last item of each kind that was held back for long enough, and how many it stands for.

        Args:
            now: monotonic seconds.
            final: return all that is held back, at the end.
        """
        found: list[tuple[T, int]] = []
        with self._lock:
            while self._kinds:
                kind, repeats = next(iter(self._kinds.items()))
                if now - repeats.since < EVERY_S and not final:
                    break
                del self._kinds[kind]
                if repeats.count and not final:
                    self._kinds[kind] = _Repeats(now)
                else:
                    self._per_name[kind[0]] -= 1
                if repeats.last is not None and repeats.count:
                    found.append((repeats.last, repeats.count))
            self._per_name += Counter()  # drops those at 0
        return found
