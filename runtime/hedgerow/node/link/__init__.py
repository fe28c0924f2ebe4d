"""The node's links to its broker: announcements, certificates, outbox."""
