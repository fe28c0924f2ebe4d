"""Stages that only benchmarks use."""
