"""Stages for the benchmarks."""
