"""Benchmarks, side by side: the same frames, broker and machine for the node and its peers, in turns."""
