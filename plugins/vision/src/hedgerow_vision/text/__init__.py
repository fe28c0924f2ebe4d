"""Stages that find and read text."""
