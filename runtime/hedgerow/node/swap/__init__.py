"""Swaps: how a model's versions follow each other while frames flow."""
