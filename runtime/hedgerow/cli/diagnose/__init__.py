"""Verbs that check machines, brokers and configurations."""
