"""Shared by all verbs: output, options, the connection to the broker."""
