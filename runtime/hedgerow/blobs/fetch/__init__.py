"""Bringing model files to a node."""
