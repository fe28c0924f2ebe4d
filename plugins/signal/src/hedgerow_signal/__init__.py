"""Stages for vibration and other sensor series: windows, band energies, anomalies.

The stages are used by name in a pipeline: `window`, `fft-bands`, `anomaly`. `python -m hedgerow_signal.train` trains a
small model for them.
"""
