"""Frames through stages: intake, lanes, a built pipeline, settlement; the runner holds them together."""
