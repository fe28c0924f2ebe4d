"""Threads that run lists of frames: how many, how long the lists."""
