"""Benchmarks of the cost of a frame."""
