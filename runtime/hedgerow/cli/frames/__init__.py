"""Verbs that publish frames, watch and explain results, and send commands."""
