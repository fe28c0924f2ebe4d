"""Verbs for topologies and sites."""
