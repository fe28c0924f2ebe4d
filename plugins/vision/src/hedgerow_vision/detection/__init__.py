"""Decoders for the outputs of object detectors."""
