"""Finds out that a name is used by two processes at once, from their health reports."""
