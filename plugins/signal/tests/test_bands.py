"""`fft-bands` computes the features of signals with known ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hedgerow.errors import ConfigError
from hedgerow.testing import frame, run_stage
from hedgerow_signal.bands import FftBands
from hedgerow_signal.features import features, names

RATE = 1_000
EDGES = [0, 50, 100, 200, 500]


def tone(hz: float, amplitude: float = 1.0, count: int = 1000) -> np.ndarray[Any, np.dtype[np.float32]]:
    return (amplitude * np.sin(2 * np.pi * hz * np.arange(count) / RATE)).astype(np.float32)


def found(samples: Any, **config: Any) -> dict[str, float]:
    run = run_stage(FftBands, [frame(samples, meta={"rate": RATE})], **{"edges_hz": EDGES, "scale": "linear", **config})
    assert not run.errors, run.errors
    return dict(run.out[0].meta["features"])


@pytest.mark.parametrize(
    ("hz", "band"), [(20, "band 0-50 Hz"), (75, "band 50-100 Hz"), (150, "band 100-200 Hz"), (407, "band 200-500 Hz")]
)
def test_a_tone_has_half_its_squared_amplitude_in_its_band(hz: float, band: str) -> None:
    values = found(tone(hz, amplitude=3.0))

    assert values.pop(band) == pytest.approx(4.5, rel=1e-4)
    assert values["rms"] == pytest.approx(3 / np.sqrt(2), rel=1e-4)
    assert values["crest"] == pytest.approx(np.sqrt(2), rel=0.01)
    assert values["kurtosis"] == pytest.approx(1.5, rel=0.01)
    assert all(values[other] < 1e-6 for other in values if other.startswith("band"))


def test_a_tone_on_an_edge_leaks_into_the_lower_band() -> None:
    """The Hann window leaks a sixth of a line's energy to either side."""
    values = found(tone(100))

    assert values["band 50-100 Hz"] == pytest.approx(0.5 / 6, rel=1e-3)
    assert values["band 100-200 Hz"] == pytest.approx(0.5 * 5 / 6, rel=1e-3)


@given(st.integers(0, 2**32 - 1), st.integers(64, 3000), st.floats(1e-3, 1e3))
def test_the_bands_add_up_to_the_energy_of_the_windowed_signal(seed: int, count: int, scale: float) -> None:
    """Parseval's theorem, for even and odd lengths."""
    samples = np.random.default_rng(seed).normal(5 * scale, scale, count).astype(np.float32)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(count) / count)
    centred = samples - samples.mean(dtype=np.float64)

    bands = features(samples, RATE, [0, 100, 300, 500], "linear")[:3]

    assert bands.sum() == pytest.approx(np.sum((centred * hann) ** 2) / np.sum(hann**2), rel=1e-4)


def test_noise_has_the_features_of_noise() -> None:
    noise = np.random.default_rng(3).normal(0, 2, 200_000).astype(np.float32)
    values = found(noise)

    assert values["kurtosis"] == pytest.approx(3, abs=0.05)
    assert values["rms"] == pytest.approx(2, rel=0.01)
    assert values["band 200-500 Hz"] == pytest.approx(4 * 300 / 500, rel=0.02)


def test_gravity_is_subtracted() -> None:
    assert found(tone(75) + np.float32(9.81)) == pytest.approx(found(tone(75)), abs=1e-4)


def test_decibels_match_the_linear_features() -> None:
    linear, db = found(tone(75, 0.5)), found(tone(75, 0.5), scale="db")

    assert db["band 50-100 Hz"] == pytest.approx(10 * np.log10(linear["band 50-100 Hz"]), abs=1e-3)
    assert db["rms"] == pytest.approx(20 * np.log10(linear["rms"]), abs=1e-3)
    assert db["kurtosis"] == pytest.approx(linear["kurtosis"])


@pytest.mark.parametrize("level", [0.0, 7.5])
def test_a_dead_sensor_gives_finite_features(level: float) -> None:
    values = found(np.full(1000, level, np.float32), scale="db")

    assert values["rms"] == pytest.approx(-120, abs=0.1)
    assert values["crest"] == values["kurtosis"] == 0


def test_features_of_channels_are_concatenated() -> None:
    both = np.stack((tone(20), tone(400)), axis=1)

    run = run_stage(FftBands, [frame(both, meta={"rate": RATE})], edges_hz=EDGES, scale="linear")
    values = run.out[0].meta["features"]

    assert run.out[0].tensors["features"].shape == (1, 14)
    assert run.out[0].tensors["features"].dtype == np.float32
    assert tuple(values) == names(EDGES, 2)
    assert values["band 0-50 Hz [0]"] == pytest.approx(0.5, rel=1e-3)
    assert values["band 200-500 Hz [1]"] == pytest.approx(0.5, rel=1e-3)


def refusal(samples: Any, meta: dict[str, Any] | None = None, **config: Any) -> str:
    meta = {"rate": RATE} if meta is None else meta
    return run_stage(FftBands, [frame(samples, meta=meta)], **{"edges_hz": EDGES, **config}).errors[0].code


def test_invalid_windows_are_refused() -> None:
    assert refusal(np.array([1, np.nan, 3])) == "not-finite"
    assert refusal(np.linspace(-1e200, 1e200, 1000)) == "not-finite"
    assert refusal(np.linspace(-1e30, 1e30, 1000), scale="linear") == "not-finite"
    assert refusal(np.zeros(0)) == "wrong-shape"
    assert refusal(np.zeros((4, 4, 3))) == "wrong-shape"
    assert refusal(np.zeros(1000), {}) == "no-rate"
    assert refusal(np.zeros(1000), {"rate": "fast"}) == "bad-rate"
    assert refusal(np.zeros(1000), {"rate": 800}) == "wrong-rate"
    assert refusal(np.zeros(8)) == "window-too-short"
    assert refusal(b"undecoded") == "not-decoded"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "either `model` or `edges_hz`"),
        ({"edges_hz": [10]}, "two edges"),
        ({"edges_hz": [10, 10]}, "ascend"),
        ({"edges_hz": [10, 600], "rate": 1000}, "half the rate"),
        ({"edges_hz": [10, 20], "model": "vibration"}, "either `model` or `edges_hz`"),
    ],
)
def test_invalid_settings_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_stage(FftBands, [], **config)
