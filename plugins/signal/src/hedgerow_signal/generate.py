"""Generates vibration of a rotating machine, healthy or faulty. None of it is recorded.

For demonstrations and tests without an accelerometer. The faults follow the literature:
- imbalance: the amplitude at the shaft frequency grows (R. B. Randall, "Vibration-based Condition Monitoring", 2nd ed.
  2021).
- outer-race: each ball that passes a pit in a bearing's outer race excites a resonance (P. D. McFadden and J. D. Smith,
  "Model for the vibration produced by a single point defect in a rolling element bearing", J. Sound Vib. 96(1), 1984),
  slightly irregularly because balls slip (R. B. Randall and J. Antoni, "Rolling element bearing diagnostics", Mech.
  Syst. Signal Process. 25(2), 2011).
- looseness: harmonics and half harmonics of the shaft, and peaks clipped where the foot strikes (Randall, as above).
"""

from __future__ import annotations

from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

Condition = Literal["healthy", "imbalance", "outer-race", "looseness"]
CONDITIONS: Final[tuple[Condition, ...]] = get_args(Condition)

RATE: Final = 12_800
"""Samples a second."""
_HARMONICS: Final = np.array([1, 2, 3, 4])
_LOOSE: Final = np.arange(1, 13) / 2
_BALLS_PER_TURN: Final = 3.585
"""Times a ball passes a point of the outer race in one turn of the shaft, bearing 6205 (9 balls)."""
_RESONANCE_HZ: Final = 3_200.0
_RING_S: Final = 0.0012
_BLOCKS_PER_S: Final = 10
"""How often speed and load change."""


class Machine:
    """A simulated machine with an accelerometer on its bearing: 25 Hz shaft, 0.1 g when healthy.

    Machines differ slightly; speed (±6 %) and load (60 to 110 %) vary over time.

    Args:
        seed: selects the machine; the same seed and calls give the same samples.
        condition: `healthy` or a fault; may be changed at any time.
        severity: of the fault, 0..1; below about 0.3 even a good model misses it.
    """

    def __init__(self, seed: int, condition: Condition = "healthy", severity: float = 1.0) -> None:
        self.condition: Condition = condition
        self.severity = severity
        self._rng = np.random.default_rng(seed)
        rng = self._rng
        self._nominal_hz = 25 * rng.uniform(0.99, 1.01)
        self._shaft_g = np.array([0.10, 0.05, 0.025, 0.012]) * rng.uniform(0.8, 1.25, 4)
        self._phases = rng.uniform(0, 2 * np.pi, 4)
        self._loose_phases = rng.uniform(0, 2 * np.pi, len(_LOOSE))
        self._hum_g = 0.01 * rng.uniform(0.7, 1.4)
        self._noise_g = 0.02 * rng.uniform(0.85, 1.2)
        self._turns = rng.uniform(0, 1)
        self._seconds = 0.0
        self._speed = rng.uniform(-1, 1)
        self._load = rng.uniform(-1, 1)
        self._next_impact = self._turns
        self._ringing = np.zeros(round(8 * _RING_S * RATE))

    def vibrate(self, count: int) -> NDArray[np.float32]:
        """Return the next samples, in g: (count,)."""
        parts = []
        while count > 0:
            step = min(count, RATE // _BLOCKS_PER_S)
            parts.append(self._block(step))
            count -= step
        return np.concatenate(parts).astype(np.float32) if parts else np.zeros(0, np.float32)

    def _block(self, count: int) -> NDArray[np.float64]:
        rng = self._rng
        self._speed, self._load = (
            float(np.clip(value + rng.normal(0, 0.05), -1, 1)) for value in (self._speed, self._load)
        )
        hz = self._nominal_hz * (1 + 0.06 * self._speed)
        load = 0.85 + 0.25 * self._load
        turns = self._turns + np.arange(count) * hz / RATE
        seconds = self._seconds + np.arange(count) / RATE
        self._turns += count * hz / RATE
        self._seconds += count / RATE

        amplitudes = self._shaft_g * load * (hz / 25) ** 2
        if self.condition == "imbalance":
            amplitudes = amplitudes * np.array([1 + 5 * self.severity, 1, 1, 1])
        signal = amplitudes @ np.sin(2 * np.pi * np.outer(_HARMONICS, turns) + self._phases[:, np.newaxis])
        signal += self._hum_g * np.sin(2 * np.pi * 100 * seconds)
        signal += rng.normal(0, self._noise_g * (0.7 + 0.3 * load), count)
        if self.condition == "looseness":
            waves = np.sin(2 * np.pi * np.outer(_LOOSE, turns) + self._loose_phases[:, np.newaxis])
            signal += 0.12 * self.severity * load * (1 / np.sqrt(1 + _LOOSE)) @ waves
            top = 0.25 * (1.2 - 0.4 * self.severity)
            signal = np.where(signal > top, top + 0.2 * (signal - top), signal)
        signal += self._impacts(turns, count, load)
        return signal

    def _impacts(self, turns: NDArray[np.float64], count: int, load: float) -> NDArray[np.float64]:
        """Return the resonances excited by balls that pass a pit, including those from the previous block."""
        ringing = np.zeros(count + len(self._ringing))
        ringing[: len(self._ringing)] = self._ringing
        if self.condition == "outer-race":
            after = np.arange(len(self._ringing)) / RATE
            ring = np.exp(-after / _RING_S) * np.sin(2 * np.pi * _RESONANCE_HZ * after)
            self._next_impact = max(self._next_impact, float(turns[0]))
            while self._next_impact < self._turns:
                at = min(int(np.searchsorted(turns, self._next_impact)), count - 1)
                ringing[at : at + len(ring)] += 0.4 * self.severity * load * self._rng.uniform(0.8, 1.2) * ring
                self._next_impact += self._rng.normal(1, 0.015) / _BALLS_PER_TURN
        self._ringing = ringing[count:]
        return ringing[:count]
