"""Verbs that run a node, check its configuration, and manage plugins."""
