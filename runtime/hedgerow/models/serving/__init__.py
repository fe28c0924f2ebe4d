"""Serving models: slots, their engines, and the pool of a node."""
