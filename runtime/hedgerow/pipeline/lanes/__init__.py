"""Lanes: threads that run lists of frames, and the dispatcher that decides what runs where."""
