"""Sending frames and commands, watching results."""
