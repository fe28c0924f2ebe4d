"""Features of a vibration window: energy per frequency band, and three statistics of the waveform. Pure.

Methods:
- Band energies from the periodogram with a Hann window, normalised by the window's energy: P. D. Welch, "The use of
  fast Fourier transform for the estimation of power spectra", IEEE Trans. Audio Electroacoust. 15(2), 1967. The sum
  over all bands is the mean square of the signal (Parseval).
- RMS, crest factor and kurtosis for rolling bearings: D. Dyer and R. M. Stewart, "Detection of rolling element bearing
  damage by statistical vibration analysis", J. Mech. Design 100(2), 1978; R. B. Randall, "Vibration-based Condition
  Monitoring", Wiley, 2nd ed. 2021. Kurtosis is not the excess: Gaussian noise has 3.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

Scale = Literal["db", "linear"]
TIME_FEATURES: Final = ("rms", "crest", "kurtosis")
FLOOR: Final = 1e-12
"""Added to energies before the logarithm: silence is -120 dB."""


def names(edges_hz: Sequence[float], channels: int = 1) -> tuple[str, ...]:
    """Return the features' names: `band 10-100 Hz`, …, `rms`, `crest`, `kurtosis`; channel by channel if several."""
    bands = [f"band {low:g}-{high:g} Hz" for low, high in itertools.pairwise(edges_hz)]
    one = (*bands, *TIME_FEATURES)
    if channels == 1:
        return one
    return tuple(f"{name} [{channel}]" for channel in range(channels) for name in one)


def features(
    samples: NDArray[np.float32], rate: float, edges_hz: Sequence[float], scale: Scale = "db"
) -> NDArray[np.float32]:
    """Return the features of windows.

    Args:
        samples: (..., n), in the sensor's unit; the mean (an accelerometer's gravity) is subtracted.
        rate: samples a second.
        edges_hz: band edges, ascending; a band includes its lower edge, the last band also its upper edge.
        scale: of energies and RMS: `db` (10 log10 of the square, re 1 unit) or `linear` (unit², unit).
    Returns: (..., bands + 3), in the order of `names`.
    Raises: ValueError: a band is too narrow to contain a line of the spectrum.
    """
    count = samples.shape[-1]
    centred = samples.astype(np.float64) - samples.mean(axis=-1, keepdims=True, dtype=np.float64)
    hann, starts = _hann(count), _starts(count, rate, tuple(edges_hz))
    lines = np.abs(np.fft.rfft(centred * hann, axis=-1)) ** 2
    # Double the one-sided spectrum, except the lines at 0 and at half the rate, which have no mirror image.
    lines[..., 1 : (count + 1) // 2] *= 2
    lines /= count * np.square(hann).sum()
    energies = np.add.reduceat(lines[..., : starts[-1]], starts[:-1], axis=-1)

    square = np.mean(np.square(centred), axis=-1)
    rms = np.sqrt(square)
    flat = rms < np.sqrt(FLOOR)
    divisor = np.where(flat, 1.0, rms)
    crest = np.where(flat, 0.0, np.abs(centred).max(axis=-1) / divisor)
    kurtosis = np.where(flat, 0.0, np.mean((centred / divisor[..., np.newaxis]) ** 4, axis=-1))
    if scale == "db":
        energies = 10 * np.log10(energies + FLOOR)
        rms = 10 * np.log10(square + FLOOR)
    return np.concatenate((energies, np.stack((rms, crest, kurtosis), axis=-1)), axis=-1).astype(np.float32)


@lru_cache(maxsize=8)
def _hann(count: int) -> NDArray[np.float64]:
    """Return the periodic Hann window."""
    hann: NDArray[np.float64] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(count) / count)
    return hann


@lru_cache(maxsize=256)
def _starts(count: int, rate: float, edges_hz: tuple[float, ...]) -> NDArray[np.intp]:
    """Return the first spectral line of each band, and the line after the last band."""
    # In lines, not Hz, so that rounding does not misplace a line on an edge.
    edges = np.asarray(edges_hz) * count / rate
    starts = np.ceil(edges - 1e-6).astype(np.intp)
    starts[-1] = np.floor(edges[-1] + 1e-6) + 1
    for low, high, start, end in zip(edges_hz[:-1], edges_hz[1:], starts[:-1], starts[1:], strict=True):
        if start == end:
            raise ValueError(
                f"{count} samples at {rate:g} Hz resolve {rate / count:g} Hz: too coarse for band {low:g}-{high:g} Hz"
            )
    return starts
