"""Monitoring of versions that serve: drift, canary analysis, quarantine."""
