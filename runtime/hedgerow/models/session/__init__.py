"""Loaded models: signature, memory and batching."""
