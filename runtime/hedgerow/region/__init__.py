"""The region's service: stores what the sites send, acknowledges it, reports their status, and rolls out models."""
