"""A node's links to its broker, and what it announces over its own."""
