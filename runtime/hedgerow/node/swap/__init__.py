"""Swaps a model's version while frames flow."""
