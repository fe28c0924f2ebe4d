"""Benchmarks of a region with many nodes."""
