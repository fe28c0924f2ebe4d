"""Heads of object detectors."""
