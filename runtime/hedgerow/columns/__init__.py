"""Frames and the state of streams as columns, for stages that process lists with array operations."""
