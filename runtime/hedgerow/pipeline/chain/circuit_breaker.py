"""Circuit breaker (after Nygard, "Release It!"): skips a stage that keeps failing, retries after a pause. No clock."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field


@dataclass(slots=True)
class CircuitBreaker:
    """Opens after `threshold` failures in a row, and admits one trial call after each pause.

    Thread-safe: after a pause only one caller gets the trial.

    Attributes:
        threshold: failures in a row that open it.
        pause_s: first pause; doubles with every failed trial, up to `longest_pause_s`.
        failures: failures in a row so far.
        open_until: end of the pause, monotonic seconds; None while closed.
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
        """Whether calls are refused, except for the trial after a pause."""
        return self.open_until is not None

    def take_trial(self, now: float) -> bool:
        """Return whether the caller may make the trial call; `now` in monotonic seconds.

        This restarts the pause for all others, so a trial that hangs is not the last one.
        """
        with self._lock:
            if self.open_until is None or now < self.open_until:
                return False
            self.open_until = now + self._pause
            return True

    def succeeded(self) -> bool:
        """Record a success; return whether it closed the circuit."""
        with self._lock:
            closed = self.is_open
            self.failures, self.open_until = 0, None
            return closed

    def failed(self, now: float, *, trial: bool = False) -> bool:
        """Record a failure; return whether it opened the circuit.

        Args:
            now: monotonic seconds.
            trial: whether this was the trial call; calls that were in progress when the circuit opened do not lengthen
                the pause.
        """
        with self._lock:
            self.failures += 1
            if self.open_until is not None:
                if trial:
                    self._pause = min(self._pause * 2, self.longest_pause_s)
                    self.open_until = now + self._pause
                return False
            if self.failures < self.threshold:
                return False
            self._pause = self.pause_s
            self.open_until = now + self._pause
            return True
