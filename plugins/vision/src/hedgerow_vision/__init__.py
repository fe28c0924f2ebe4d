"""Stages for pictures, used by name in a pipeline: `decode`, `letterbox`, `ssd`, `detect-text`, …"""
