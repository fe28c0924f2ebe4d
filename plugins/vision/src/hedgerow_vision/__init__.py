"""Stages for pictures.

Pipelines name them (`decode`, `letterbox`, `ssd`, `detect-text`, …); nothing here needs to be imported by hand.
"""
