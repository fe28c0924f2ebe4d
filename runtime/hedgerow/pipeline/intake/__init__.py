"""Intake: assigns messages to streams, limits their rate, and queues them."""
