"""Logs, metrics and counters of a service."""
