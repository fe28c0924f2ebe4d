"""Observations of a version in this process and in workers, and their comparison with the previous version. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hedgerow.models.monitor.canary_analysis import Measures, slowdown


@dataclass(frozen=True, slots=True)
class Observations:
    """Observations of a version in one place; they can be added, and have plain values, to be sent over a pipe.

    Attributes:
        frames: frames it has received.
        failures: frames it failed on.
        not_finite: frames with NaN or infinity in outputs where the author's samples had none.
        crashes: times that its worker ended while it had frames.
        recent_s: seconds of its last batches, by rows.
        shift: by output, its shift from the baseline, less chance.
        growth_bytes: memory growth of its worker; the node's own growth is not included.
    """

    frames: int = 0
    failures: int = 0
    not_finite: int = 0
    crashes: int = 0
    recent_s: Mapping[int, Sequence[float]] = field(default_factory=dict)
    shift: Mapping[str, float] = field(default_factory=dict)
    growth_bytes: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for the pipe; not copied, since they are sent with every frame list."""
        return {name: getattr(self, name) for name in self.__slots__}

    def __add__(self, other: Observations) -> Observations:
        sizes, outputs = self.recent_s.keys() | other.recent_s.keys(), self.shift.keys() | other.shift.keys()
        return Observations(
            frames=self.frames + other.frames,
            failures=self.failures + other.failures,
            not_finite=self.not_finite + other.not_finite,
            crashes=self.crashes + other.crashes,
            recent_s={rows: (*self.recent_s.get(rows, ()), *other.recent_s.get(rows, ())) for rows in sizes},
            shift={name: max(self.shift.get(name, 0.0), other.shift.get(name, 0.0)) for name in outputs},
            growth_bytes=self.growth_bytes + other.growth_bytes,
        )


def measure(elapsed_s: float, observed: Iterable[tuple[Observations, Observations]], growth_bytes: int = 0) -> Measures:
    """Return the measurements by which a version is judged.

    Args:
        elapsed_s: time since it started to serve.
        observed: observations of the previous version and of this one, by process. Versions are compared within each
            process, since another one has other cores and other frames.
        growth_bytes: memory growth of the node's own process.
    """
    before, now = Observations(), Observations()
    slowdowns: list[float] = []
    shifts: dict[str, float] = {}
    for old, new in observed:
        before, now = before + old, now + new
        if (factor := slowdown(old.recent_s, new.recent_s)) is not None:
            slowdowns.append(factor)
        for name, shift in new.shift.items():
            shifts[name] = max(shifts.get(name, 0.0), shift - old.shift.get(name, 0.0))
    return Measures(
        elapsed_s=round(elapsed_s, 3),
        frames=now.frames,
        failures=now.failures,
        failures_before=before.failures / before.frames if before.frames else 0.0,
        not_finite=now.not_finite,
        crashes=now.crashes,
        crashes_before=before.crashes,
        slowdown=max(slowdowns, default=None),
        shift=shifts,
        growth_bytes=max(0, growth_bytes) + now.growth_bytes,
    )
