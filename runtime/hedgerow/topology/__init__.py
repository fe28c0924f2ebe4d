"""Topology: one description of a region, its sites and nodes, and the files rendered from it."""
