"""Fetches model files to a node."""
