"""Benchmarks of the node and its peers, in turns, with the same frames, broker and machine."""
