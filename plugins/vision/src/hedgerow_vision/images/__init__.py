"""Stages that decode, filter, resize and annotate pictures."""
