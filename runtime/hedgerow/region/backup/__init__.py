"""Backups of a region: its store and its repository of models, made while the service runs, and put back."""
