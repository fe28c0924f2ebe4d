"""A circuit breaker (M. Nygard, Release It!): stop calling what keeps failing, try again after a while. No clock in it."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field


@dataclass(slots=True)
class Circuit:
    """Opens after `threshold` failures in a row; lets one try through after a pause that doubles.

    Threads may share it: of those that come when the pause is over, one gets the try.

    Attributes:
        threshold: failures in a row that open it.
        pause_s: first pause; doubles with every failed try, up to `longest_pause_s`.
    """

    threshold: int = 10
    pause_s: float = 1.0
    longest_pause_s: float = 60.0
    failures: int = 0
    open_until: float | None = None
    _pause: float = field(init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def is_open(self) -> bool:
        """Whether calls are refused, but for the try when the pause is over."""
        return self.open_until is not None

    def take_try(self, now: float) -> bool:
        """Take the try, if the pause is over at this time (monotonic seconds); whether the caller has it now.

        For everybody else the pause begins anew, so that a try that hangs is not the last one.
        """
        with self._lock:
            if self.open_until is None or now < self.open_until:
                return False
            self.open_until = now + self._pause
            return True

    def succeeded(self) -> bool:
        """Note a success; True if it closed the circuit."""
        with self._lock:
            closed = self.is_open
            self.failures, self.open_until = 0, None
            return closed

    def failed(self, now: float, *, trying: bool = False) -> bool:
        """Note a failure at this time; True if it opened the circuit.

        Args:
            trying: it was the try; only that lengthens the pause, not what was under way when the circuit opened.
        """
        with self._lock:
            self.failures += 1
            if self.open_until is not None:
                if trying:
                    self._pause = min(self._pause * 2, self.longest_pause_s)
                    self.open_until = now + self._pause
                return False
            if self.failures < self.threshold:
                return False
            self._pause = self.pause_s
            self.open_until = now + self._pause
            return True
