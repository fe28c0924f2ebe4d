"""The stages of a pipeline in a chain: built, run, and left alone while they fail."""
