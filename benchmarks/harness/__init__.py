"""What all benchmarks share: load, contenders, processes."""
