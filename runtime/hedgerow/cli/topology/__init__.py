"""Topologies and sites."""
