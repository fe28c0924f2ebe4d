"""Shared by all benchmarks: load, contenders, processes."""
