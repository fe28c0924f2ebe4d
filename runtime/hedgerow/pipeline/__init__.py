"""Frames through stages: queue, chain, run."""
