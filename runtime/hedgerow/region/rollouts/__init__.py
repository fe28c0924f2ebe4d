"""Rolls models out through the fleet: turns requests into desired documents."""
