"""Building, checking and publishing models."""
