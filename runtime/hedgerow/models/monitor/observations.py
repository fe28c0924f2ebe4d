"""How a version behaves while it is watched, wherever it runs: in this process, or in workers that tell of it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hedgerow.models.monitor.canary_analysis import Measures, slowdown


@dataclass(frozen=True, slots=True)
class Observations:
    """What was seen of a version since it has been watched; two of them add up. Plain values, which go over a pipe.

    Attributes:
        frames: frames it was given.
        failures: those it failed on.
        not_finite: those whose outputs hold NaN or infinity where the author's samples had none.
        crashes: times that a process it runs in ended while it had frames.
        recent_s: seconds of its last batches, by rows.
        shift: by output, how far its values are from the baseline, above what chance explains.
        growth_bytes: memory that a process of its own has gained; what the node gains is not in it.
    """

    frames: int = 0
    failures: int = 0
    not_finite: int = 0
    crashes: int = 0
    recent_s: Mapping[int, Sequence[float]] = field(default_factory=dict)
    shift: Mapping[str, float] = field(default_factory=dict)
    growth_bytes: int = 0

    def as_dict(self) -> dict[str, Any]:
        """For the pipe; not copied, since it goes with every list."""
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
    """What a version is judged by.

    Args:
        elapsed_s: since it began to serve.
        observed: wherever it serves, that of the version before and its own. Each place is compared with itself: another
            process has other cores, and other frames.
        growth_bytes: memory that the node's own process has gained.
    """
    before, now = Observations(), Observations()
    times: list[float] = []
    moved: dict[str, float] = {}
    for old, new in observed:
        before, now = before + old, now + new
        if (times_as_long := slowdown(old.recent_s, new.recent_s)) is not None:
            times.append(times_as_long)
        for name, apart in new.shift.items():
            moved[name] = max(moved.get(name, 0.0), apart - old.shift.get(name, 0.0))
    return Measures(
        elapsed_s=round(elapsed_s, 3),
        frames=now.frames,
        failures=now.failures,
        failures_before=before.failures / before.frames if before.frames else 0.0,
        not_finite=now.not_finite,
        crashes=now.crashes,
        crashes_before=before.crashes,
        slowdown=max(times, default=None),
        shift=moved,
        growth_bytes=max(0, growth_bytes) + now.growth_bytes,
    )
