"""Graphs of model files: their other files, their state, and sizes that depend on values."""
