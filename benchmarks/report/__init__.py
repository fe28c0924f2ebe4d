"""Writes the results to files."""
