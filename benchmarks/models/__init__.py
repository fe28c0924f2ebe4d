"""Benchmarks of models: batching, memory, swaps, reloads."""
